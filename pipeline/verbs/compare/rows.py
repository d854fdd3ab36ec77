"""Groups recorded runs into rows: runs that differ only in their seed share one. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.tracking.values import (
    HARDWARE,
    SEED,
    SHORT,
    TRUSTED,
    VERSIONS,
    RecordedRun,
)

# The machine of a run: shown if it differs, but does not keep runs out of the same row.
MACHINE = (f"{HARDWARE}host", f"{HARDWARE}memory_gb")
# Not chosen by a person; used in a row's name only if nothing that was chosen differs.
ORIGIN, ORIGIN_PREFIXES = ("code", "data", "status"), (TRUSTED, VERSIONS, HARDWARE)
_LONGEST = 46  # characters of a row's name


@dataclass(frozen=True, kw_only=True)
class Row:
    """Runs that differ only in their seed: the newest per seed, ordered by seed."""

    runs: tuple[RecordedRun, ...]

    @cached_property
    def traits(self) -> dict[str, str]:
        """The traits that the runs share, and the seeds and machines of all of them."""
        common = dict(self.runs[0].traits)
        for key in (SEED, *MACHINE):
            if key in common:
                common[key] = _listed(run.traits.get(key, "") for run in self.runs)
        return common


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Rows in the order of their first run, and the number of runs that a newer one replaced."""

    rows: tuple[Row, ...]
    superseded: int


def fold(runs: Sequence[RecordedRun]) -> Folded:
    """Puts runs that differ only in their seed into one row.

    Of several runs with the same setting and seed, only the newest counts: reruns with the same
    random numbers would make the spread over seeds look smaller than it is.
    """
    alike: dict[frozenset[tuple[str, str]], dict[str, RecordedRun]] = {}
    for run in runs:
        setting = {k: v for k, v in run.traits.items() if k != SEED and k not in MACHINE}
        seeds = alike.setdefault(frozenset(setting.items()), {})
        seed = run.traits.get(SEED, "")
        if seed not in seeds or seeds[seed].started < run.started:
            seeds[seed] = run
    rows = tuple(
        Row(runs=tuple(sorted(seeds.values(), key=lambda run: _number(run.traits.get(SEED, "")))))
        for seeds in alike.values()
    )
    return Folded(rows=rows, superseded=len(runs) - sum(len(row.runs) for row in rows))


def differing(rows: Sequence[Row]) -> list[str]:
    """The traits that differ between rows, in the order in which the runs have them."""
    traits = [row.traits for row in rows]
    names = dict.fromkeys(key for row in traits for key in row)
    return [name for name in names if len({row.get(name, "") for row in traits}) > 1]


def trait_names(names: Sequence[str]) -> dict[str, str]:
    """Maps names to their last part, `optimizer.learning_rate` → `learning_rate`, where unique.

    Every table has a row `seed`, so that another key of that name, `dataset.seed`, stays whole.
    """
    ends = [name.rpartition(".")[2] for name in names]
    return {
        name: end if ends.count(end) == 1 and end != SEED else name
        for name, end in zip(names, ends, strict=True)
    }


def labels(rows: Sequence[Row], traits: Sequence[str]) -> list[str]:
    """A label per row: the run's name, or the differing traits if any row has several runs.

    A label that two rows share is followed by the beginning of the run's id.
    """
    telling = [name for name in traits if name != SEED and name not in MACHINE]
    telling = [name for name in telling if not _is_of_origin(name)] or telling
    short = trait_names(telling)
    several = any(len(row.runs) > 1 for row in rows)
    names = []
    for row in rows:
        words = [f"{short[name]}={row.traits[name]}" for name in telling if row.traits.get(name)]
        text = ", ".join(words) if several and words else row.runs[0].label
        names.append(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")
    seen = Counter(names)
    return [
        f"{name} {row.runs[0].id[:SHORT]}" if seen[name] > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]


def _is_of_origin(trait: str) -> bool:
    return trait in ORIGIN or trait.startswith(ORIGIN_PREFIXES)


def _listed(values: Iterable[str]) -> str:
    known = sorted(set(values), key=_number)
    if len(known) > 3:
        return f"{known[0]} … {known[-1]}"
    return ", ".join(known)


def _number(text: str) -> tuple[float, str]:
    """Sort key: numbers by value, before other texts."""
    return (float(text), text) if text.isdecimal() else (float("inf"), text)
