"""The origin of a result (code, environment, hardware, data), compared between a run and now."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.config.trusted import checksums, trusted
from pipeline.data.values import Identity
from pipeline.system.processes import left_unset
from pipeline.tracking import lineage
from pipeline.tracking.values import (
    COMMIT,
    HARDWARE,
    PATCH,
    TRUSTED,
    WEIGHTS_SHA256,
    identity_in,
)

OF_HARDWARE = ("cpu", "cores", "threads")  # may change the last bits of a result, not its meaning


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Commit and uncommitted changes, libraries by version, hardware, and what identifies the data.

    `patch_sha256` (hex) is that of the patch as it was; a recorded text hides secrets. `modules`:
    SHA-256 of the source of each trusted module of the user's own. `weights`: that of the file of
    the pretrained weights, if there is one.
    """

    commit: str | None
    patch: str
    patch_sha256: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str]
    hardware: Mapping[str, str]
    data: Identity | None
    weights: str | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that has changed; `kind`: code, environment, data or hardware."""

    kind: str
    what: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{self.what} was {self.then} and is {self.now}"


def here(data: Identity, weights: str | None = None) -> Origin:
    """The origin of a run that would begin now, with this data and this file of weights."""
    code = lineage.code_state()
    return Origin(
        commit=code.commit,
        patch=code.patch,
        patch_sha256=code.patch_sha256,
        modules=checksums(trusted()),
        packages=packages(lineage.environment()),
        hardware=lineage.hardware(),
        data=data,
        weights=weights,
    )


def recorded_origin(tags: Mapping[str, str], *, patch: str, environment: str) -> Origin:
    """The origin of a run with these tags, `code.patch` and `environment.txt`."""
    return Origin(
        commit=tags.get(COMMIT),
        patch=patch,
        patch_sha256=tags.get(PATCH),
        modules=_below(TRUSTED, tags),
        packages=packages(environment),
        hardware=_below(HARDWARE, tags),
        data=identity_in(tags),
        weights=tags.get(WEIGHTS_SHA256),
    )


def _below(prefix: str, tags: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(prefix): tags[key] for key in tags if key.startswith(prefix)}


def packages(environment: str) -> dict[str, str]:
    """Versions by name, Python's among them, from an `environment.txt`.

    Names are normalized as on PyPI (PEP 503): `Typing_Ext` becomes `typing-ext`.
    """
    header, *lines = environment.splitlines()
    found = (line.split("==", 1) for line in lines)
    named = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}
    return {"Python": header.split()[2], **named}


def differences(then: Origin, now: Origin) -> list[Difference]:
    """The differences between two origins, most important first."""
    return [
        *_in_code(then, now),
        *in_packages(then.packages, now.packages),
        *_in_data(then.data, now.data),
        *_in_weights(then.weights, now.weights),
        *_in("hardware", then.hardware, now.hardware, OF_HARDWARE),
    ]


def with_threads_of(origin: Origin) -> None:
    """Makes TensorFlow use as many threads as in the run, if it is not imported yet.

    The number of threads determines the order in which a convolution sums up, and so the last bits.
    """
    if "threads" in origin.hardware:
        os.environ.update(left_unset({lineage.TF_THREADS: origin.hardware["threads"]}))


def _in_code(then: Origin, now: Origin) -> Iterator[Difference]:
    # The run does not depend on modules that are trusted only now.
    sums = [{name: _short(sha256) for name, sha256 in one.modules.items()} for one in (then, now)]
    yield from _in("code", sums[0], sums[1], sorted(then.modules))
    yield from _in(
        "code", {"commit": _short(then.commit)}, {"commit": _short(now.commit)}, ["commit"]
    )
    if then.commit is None or now.commit is None:
        return  # git could not tell the changes
    digests = [
        one.patch_sha256 or lineage.Code(commit=None, patch=one.patch).patch_sha256
        for one in (then, now)
    ]
    if digests[0] != digests[1]:
        texts = [_changes(then.patch), _changes(now.patch)]
        if texts[0] == texts[1]:
            texts = [f"{text} ({name})" for text, name in zip(texts, ("A", "B"), strict=True)]
        yield Difference(kind="code", what="uncommitted changes", then=texts[0], now=texts[1])


def in_packages(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Difference]:
    """Yields every package whose version differs, first those that results depend on."""
    first = [name for name in ("Python", *lineage.NAMED) if name in then or name in now]
    rest = sorted((then.keys() | now.keys()) - set(first), key=str.lower)
    yield from _in("environment", then, now, [*first, *rest])


def _in_data(then: Identity | None, now: Identity | None) -> Iterator[Difference]:
    """Other content or, if that is the same, other groups of its pictures."""
    before, after = (_short(one.fingerprint if one else None) for one in (then, now))
    yield from _in("data", {"data": before}, {"data": after}, ["data"])
    if then and now and before == after and then.has_other_groups(now):
        groups = _short(then.grouping), _short(now.grouping)
        what = "the grouping of the pictures"
        yield Difference(kind="data", what=what, then=groups[0], now=groups[1])


def _in_weights(then: str | None, now: str | None) -> Iterator[Difference]:
    """Other content of the file; runs of earlier versions have not recorded it."""
    if then is not None:
        name = "model.weights"
        yield from _in("data", {name: _short(then)}, {name: _short(now)}, [name])


def _in(
    kind: str, then: Mapping[str, str], now: Mapping[str, str], names: list[str] | tuple[str, ...]
) -> Iterator[Difference]:
    for name in names:
        one, other = then.get(name, "none"), now.get(name, "none")
        if one != other:
            yield Difference(kind=kind, what=name, then=one, now=other)


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "unknown"


def _changes(patch: str) -> str:
    count = sum(
        line.startswith(("+", "-")) and not line.startswith(("+++", "---"))
        for line in patch.splitlines()
    )
    return f"{count} lines" if patch else "none"
