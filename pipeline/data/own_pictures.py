"""A user's own pictures as a data set: packed once, grouped, divided, with an index of files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import cache
from pipeline.data.exclusion import Exclusion, require_classes
from pipeline.data.grouping import RULE, duplicates, held_out, join_groups, named_groups
from pipeline.data.listing import Listing
from pipeline.data.packing import Packed, Packing, Selection
from pipeline.data.values import EXACT, NEAR, SPLITS, Array, Index, RawData, Split, Texts, exceeds
from pipeline.system.errors import RequestError, counted, first_of, joined
from pipeline.system.terminal import printable

log = logging.getLogger(__name__)

EXCLUDED = len(SPLITS)  # in place of the number of a picture's split
_NAMED = 3  # files that a message names
# Keys of an entry's description: its packed copy, and how it is divided.
PACKED, DIVISION = "pixels", "division"
TEST_IS_GIVEN = (
    "dataset.test_fraction and dataset.seed have no effect: the data has a test split of its own, "
    "which is used"
)


@dataclass(frozen=True, kw_only=True)
class Division:
    """How pictures are divided.

    `group` is as `grouping.named_groups` takes it, `near_duplicates` as `grouping.duplicates` takes
    its threshold; `test_fraction` is of each class.
    """

    group: str | None
    near_duplicates: int | None
    test_fraction: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Remarks:
    """What was found where pictures lie; other remarks make no other data set.

    `notes`, `left_out` and `warnings` are those of the `Listing`, the layout before the notes; what
    `dataset.exclude` names in vain is warned of, too.
    """

    notes: tuple[str, ...]
    left_out: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Picture files that become a data set: what there is, how it is packed and divided.

    `on_bad` is `skip` or `refuse`; if more than the share `max_bad` of the files cannot be read,
    they are refused in any case. `exclusion` names those to leave out.
    """

    listing: Listing
    packing: Packing
    division: Division
    on_bad: str
    max_bad: float
    exclusion: Exclusion | None = None

    @property
    def excluded(self) -> frozenset[str]:
        """The files that are left out after the division."""
        return self.exclusion.files if self.exclusion else frozenset()

    @cached_property
    def selection(self) -> Selection:
        """The files to be packed."""
        return Selection(listing=self.listing, packing=self.packing)

    @property
    def remarks(self) -> Remarks:
        """What was found where the pictures lie."""
        listing = self.listing
        missing = self.exclusion.notes if self.exclusion else ()
        return Remarks(
            notes=(listing.layout, *listing.notes),
            left_out=listing.left_out,
            warnings=(*listing.warnings, *missing),
        )

    @property
    def content(self) -> dict[str, Any]:
        """The JSON-able values that determine the data set."""
        listing = self.listing
        texts = [*listing.splits, *(text for column in listing.columns.values() for text in column)]
        digest = sha256("\0".join(texts).encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(listing.labels).data)
        excluded = {"excluded": self.exclusion.content} if self.exclusion and self.excluded else {}
        return {
            "pixels": self.selection.name,
            "classes": list(listing.class_names),
            "columns": list(listing.columns),
            "labels": digest.hexdigest(),
            "division": vars(self.division),
            "rule": RULE,
            "unreadable": [(str(one.file), one.reason) for one in listing.unreadable],
            "bad": [self.on_bad, self.max_bad],
            **excluded,
        }


def divided(pictures: Pictures, packed: Packed) -> cache.Content:
    """Groups and divides packed pictures; returns the content of the entry that `restored` reads.

    Raises:
        RequestError: too many files cannot be read, or they cannot be divided.
    """
    _require_readable(pictures, packed)
    listing, settings = pictures.listing, pictures.division
    rows = np.flatnonzero([file not in packed.unreadable for file in listing.files])
    labels = listing.labels[rows].astype(np.int32)
    columns = {
        name: [texts[row] for row in rows.tolist()] for name, texts in listing.columns.items()
    }
    named = named_groups(settings.group, list(packed.files), columns)
    pairs = _between(np.arange(len(rows)), packed, settings)
    groups = join_groups(named, pairs)
    given = np.array([SPLITS.index(split) if split else -1 for split in listing.splits], np.int8)
    has_similar = bool((pairs[:, 2] == NEAR).any())
    splits, notes = _assigned(labels, groups, given[rows], pictures, has_similar=has_similar)
    is_free = (given[rows] <= 0) & (not {"val", "test"} <= {*listing.splits})
    if pictures.exclusion and pictures.excluded:
        out = np.array([file in pictures.excluded for file in packed.files], bool)
        pairs = _between(np.flatnonzero(~out), packed, settings)
        _exclude(out, splits, labels, pictures)
        notes += pictures.exclusion.notes
    arrays: dict[str, Array | cache.Stream | Path] = {}
    for number, split in enumerate(SPLITS):
        chosen = np.flatnonzero(splits == number)
        arrays |= {f"{split}_rows": chosen, f"{split}_labels": labels[chosen]}
    known = {
        "fingerprint": _fingerprint(arrays, packed, listing.class_names),
        "duplicates": _shared(packed.digests, arrays["test_rows"], arrays["train_rows"]),
    }
    arrays |= {"labels": labels, "groups": groups, "duplicates": pairs}
    for number, texts in enumerate(map(Texts.of, columns.values())):
        arrays |= {f"column_{number}": texts.content, f"ends_{number}": texts.ends}
    return arrays, {
        "class_names": list(listing.class_names),
        "source": pictures.selection.root,
        "known": known,
        PACKED: packed.folder.name,
        DIVISION: vars(settings),
        "fit": pictures.packing.fit,
        "excluded": int((splits == EXCLUDED).sum()),
        "columns": list(columns),
        "unreadable": [
            *([printable(one.file), one.reason] for one in listing.unreadable),
            *([printable(file), reason] for file, (_, reason) in _unreadable(pictures, packed)),
        ],
        "recognised": list(pictures.remarks.notes),
        "left_out": [list(one) for one in listing.left_out],
        "notes": [
            *_said(pictures, packed),
            *_joined(named, groups, pairs[splits[pairs[:, 0]] == splits[pairs[:, 1]]], is_free),
            *_contradicting(pairs, packed, labels),
            *notes,
        ],
    }


def restored(entry: cache.Entry, packed: Packed, remarks: Remarks | None = None) -> RawData:
    """The data set of an entry and its packed copy.

    The `remarks` are those on the pictures as they lie now or, without any, as they lay when the
    entry was made.
    """
    arrays, meta = entry.arrays, entry.meta
    if remarks is None:
        # Earlier versions kept what was recognised among the notes.
        recognised, left_out = meta.get("recognised", ()), meta["left_out"]
    else:
        recognised, left_out = remarks.notes, remarks.left_out
    splits = {
        name: Split(
            images=packed.images, rows=arrays[f"{name}_rows"], labels=arrays[f"{name}_labels"]
        )
        for name in SPLITS
    }
    raw = RawData(
        train=splits["train"],
        val=splits["val"] if len(splits["val"]) else None,
        test=splits["test"],
        class_names=tuple(meta["class_names"]),
        source=meta["source"],
        cached=entry.cached,
        fit=meta["fit"],
        excluded=meta.get("excluded", 0),  # earlier versions excluded nothing
        index=Index(
            root=meta["source"],
            files=packed.files,
            sha256=packed.sha256,
            digests=packed.digests,
            sizes=packed.sizes,
            modes=packed.modes,
            labels=arrays["labels"],
            groups=arrays["groups"],
            duplicates=arrays["duplicates"],
            columns={
                name: Texts(arrays[f"column_{number}"], arrays[f"ends_{number}"])
                for number, name in enumerate(meta["columns"])
            },
            unreadable=tuple((file, reason) for file, reason in meta["unreadable"]),
            left_out=tuple((what, count) for what, count in left_out),
            notes=(*recognised, *meta["notes"]),
        ),
    )
    vars(raw).update(meta["known"])  # saves reading every image to work it out
    return raw


def _require_readable(pictures: Pictures, packed: Packed) -> None:
    """Refuses a set with too many files that cannot be read, by `on_bad` and `max_bad`."""
    bad, count = dict(_unreadable(pictures, packed)), len(pictures.listing.files)
    if rows := pictures.listing.unreadable:
        told = first_of(
            rows, _NAMED, lambda row: f"{printable(row.file)}: {row.reason}", separator="; "
        )
        log.warning("skipped: %s of the list: %s", counted(len(rows), "row", "rows"), told)
    if not bad:
        return
    some = first_of(bad, _NAMED, lambda file: f"{printable(file)}: {bad[file][1]}", separator="; ")
    told = f"{len(bad)} of {count:,} files cannot be read: {some}"
    if pictures.on_bad == "refuse":
        raise RequestError(f"dataset.on_bad=refuse: {told}; fix or remove them, or skip them")
    if exceeds(len(bad), count, pictures.max_bad):
        raise RequestError(
            f"dataset.max_bad={pictures.max_bad:g}: {told}; fix or remove them, or allow more"
        )
    log.warning("skipped: %s", told)


def _unreadable(pictures: Pictures, packed: Packed) -> list[tuple[str, Any]]:
    """The files that cannot be read, unless they are excluded anyway."""
    return [one for one in packed.unreadable.items() if one[0] not in pictures.excluded]


def _between(rows: Array, packed: Packed, settings: Division) -> Array:
    """The pairs of equal and similar pictures among those in `rows` i64[m] of the packed array."""
    pairs = duplicates(
        packed.digests[rows],
        packed.hashes[rows],
        lambda positions: packed.images[rows[positions]],
        threshold=settings.near_duplicates,
    )
    return np.column_stack([rows[pairs[:, :2]], pairs[:, 2]])


def _exclude(out: Array, splits: Array, labels: Array, pictures: Pictures) -> None:
    """Takes the pictures of `out` bool[n] from their splits, once these are drawn."""
    assert pictures.exclusion is not None
    path, names = pictures.exclusion.path, pictures.listing.class_names
    trained = splits == SPLITS.index("train")
    require_classes(path, labels[trained], labels[trained & ~out], names)
    for split, use in (("val", "validate"), ("test", "test")):
        inside = splits == SPLITS.index(split)
        if inside.any() and out[inside].all():
            raise RequestError(f"dataset.exclude={path}: leaves no picture to {use} on")
    splits[out] = EXCLUDED


def _assigned(
    labels: Array, groups: Array, given: Array, pictures: Pictures, *, has_similar: bool
) -> tuple[Array, list[str]]:
    """The split of each picture, i8[n] in the order of SPLITS, and remarks about the division.

    `has_similar` says whether some pictures are in one group since they are near-duplicates.
    """
    settings, names = pictures.division, pictures.listing.class_names
    found = {SPLITS[number] for number in {*given[given >= 0].tolist()}}
    if lost := {*pictures.listing.splits} - found - {""}:
        told = joined(sorted(lost, key=SPLITS.index))
        raise RequestError(f"dataset.path: no picture for {told} can be read; fix or remove them")
    splits = np.where(given < 0, 0, given).astype(np.int8)
    notes = []
    test = SPLITS.index("test")
    if (given == test).any():
        notes.append(TEST_IS_GIVEN)
        if missing := sorted({*range(len(names))} - {*labels[given == test].tolist()}):
            notes.append(f"not in the test split: {', '.join(names[label] for label in missing)}")
    else:
        free = np.flatnonzero(splits == 0)
        held = held_out(labels[free], groups[free], settings.test_fraction, seed=settings.seed)
        splits[free[held.mask]] = test
        if not held.mask.any():
            raise RequestError(_untestable(settings.group, has_similar=has_similar))
        if held.lacking:
            lacking = ", ".join(names[label] for label in held.lacking)
            why = "a class would be left without pictures to train with"
            notes.append(f"not in the test split, since {why}: {lacking}")
    if unlearnt := sorted({*range(len(names))} - {*labels[splits == 0].tolist()}):
        shown = ", ".join(names[label] for label in unlearnt)
        notes.append(f"not in the training split, so a model cannot learn them: {shown}")
    if across := _across(groups, splits):
        several = counted(across, "group of pictures is", "groups of pictures are")
        notes.append(f"{several} in more than one of the given splits")
    return splits, notes


def _untestable(group: str | None, *, has_similar: bool) -> str:
    """Says why there is no picture to test on."""
    key = "dataset.path" if group is None else f"dataset.group={group}"
    why = "every group has the only pictures of a class; each class must be in two groups at least"
    if group is None:
        alike = ", or copies of one and pictures like it" if has_similar else ", or copies of one"
        why = f"each class has only one{alike}; there must be two at least"
    mend = "; dataset.near_duplicates=null divides similar ones" if has_similar else ""
    return f"{key}: no picture is left to test on, since {why}{mend}"


def _across(groups: Array, splits: Array) -> int:
    """The number of groups whose pictures are in more than one split."""
    least, most = np.full((2, groups.max() + 1), [[len(SPLITS)], [0]], np.int8)
    np.minimum.at(least, groups, splits)
    np.maximum.at(most, groups, splits)
    return int((least < most).sum())


def _said(pictures: Pictures, packed: Packed) -> list[str]:
    height, width, channels = packed.images.shape[1:]
    size = f"{height}×{width}" if height != width else f"{height}"
    chosen = "" if pictures.packing.size else f", chosen by the pictures; dataset.size={size}"
    if pictures.packing.channels is None:
        grey = ", grey as all of them are" if channels == 1 else ", in colour"
    else:
        grey = ""
    return [f"images of {height}×{width}{chosen}{grey}"]


def _joined(named: Array, groups: Array, pairs: Array, is_free: Array) -> list[str]:
    """Lines about the pictures that were joined into groups.

    `pairs` are those within one split. `is_free` bool[n] marks the pictures whose split is drawn.
    """
    notes = []
    sizes = np.bincount(named)
    if (sizes > 1).any():
        notes.append(f"{counted(len(sizes), 'group', 'groups')} of pictures by dataset.group")
    exact = pairs[pairs[:, 2] == EXACT]
    near = pairs[pairs[:, 2] != EXACT]
    if len(exact):
        notes.append(f"equal to another picture, and kept in its split: {len(exact):,}")
    if len(near):
        count = len(np.unique(near[:, :2]))
        advice = "; dataset.near_duplicates=null divides them" if is_free[near[:, 0]].any() else ""
        notes.append(f"near-duplicates, kept in one split: {count:,} pictures{advice}")
    if len(pairs) or (sizes > 1).any():
        largest = np.bincount(groups).max()
        notes.append(
            f"{len(groups):,} pictures are {groups.max() + 1:,} groups, the largest of {largest:,}"
        )
    return notes


def _contradicting(pairs: Array, packed: Packed, labels: Array) -> Iterator[str]:
    """A line about equal pictures of different classes, if there are any."""
    exact = pairs[pairs[:, 2] == EXACT]
    crossing = exact[labels[exact[:, 0]] != labels[exact[:, 1]]]
    if len(crossing):
        told = first_of(
            crossing[:, :2],
            _NAMED,
            lambda pair: " = ".join(printable(packed.files[one]) for one in pair),
            separator="; ",
        )
        yield f"the same picture under two classes: {told}"


def _fingerprint(arrays: Mapping[str, Any], packed: Packed, class_names: Sequence[str]) -> str:
    """SHA-256 (hex) of names, shapes, and the digests and labels of the pictures of all splits."""
    digest = sha256("\0".join(class_names).encode("utf-8", "surrogateescape"))
    for split in SPLITS:
        rows, labels = arrays[f"{split}_rows"], arrays[f"{split}_labels"]
        digest.update(f"{split}{(len(rows), *packed.images.shape[1:])}".encode())
        digest.update(np.ascontiguousarray(packed.digests[rows]).data)
        digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def _shared(digests: Array, rows: Any, others: Any) -> int:
    """How many of `rows` have the pixels of one of the `others`."""
    kinds = np.ascontiguousarray(digests).view("V32").ravel()
    return int(np.isin(kinds[rows], kinds[others]).sum())
