"""The page of a data set: `RawData, Measures → str`, self-contained HTML that needs no script.

It shows pictures of each class, sizes and colours, what was skipped, equal and similar pictures
side by side, and what the model will see beside the originals. Its size is bounded: where it does
not show all, it says how many of how many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import cache
from pipeline.data.archives import place_at
from pipeline.data.checks import Violation, called, conflicts
from pipeline.data.describe import Description, describe
from pipeline.data.measures import QUANTITIES, Measures, labels_by_row, sizes, splits_of
from pipeline.data.pictures import Picture, contained, open_picture
from pipeline.data.values import EXACT, Array, RawData
from pipeline.reports.images import sprite, thumbnails
from pipeline.reports.page import clean, template

DATA_PAGE = "data.html"
_SIDE = 64  # pixels of a thumbnail's longer side
PER_CLASS, THUMBNAILS = 12, 600  # of one class, and of all
CLASSES, PAIRS, _FILES, ORIGINALS = 1000, 24, 200, 12  # shown at most
ORIGINAL = 150  # pixels of an original's longer side
_BINS = 32

Augment = Callable[[Array, Array], Array]
"""From images u8[n,H,W,C] and labels i32[n] to versions of each, u8[n,V,H,W,C]."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: its images in each split, its share of the largest class, and thumbnails."""

    name: str
    counts: tuple[int, ...]
    share: float
    thumbnails: range


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The distribution of some values: the count of each bin as a share of the largest."""

    name: str
    unit: str
    bars: tuple[float, ...]
    low: float
    median: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedPicture:
    """One picture of a pair: thumbnail, name, class and split."""

    thumbnail: int
    name: str
    label: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The first of `total` pairs of one kind."""

    title: str
    total: int
    shown: tuple[tuple[PairedPicture, PairedPicture], ...]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A training picture: its file, the image made of it, and versions of that by augmentation.

    The fields are indices into the sprites `original`, `image` and `version`; `original` is None
    for images that do not come from picture files.
    """

    original: int | None
    image: int
    name: str
    size: str
    versions: range = range(0)


def data_html(
    raw: RawData,
    measures: Measures,
    findings: Sequence[Violation] = (),
    *,
    name: str,
    folder: Path,
    augment: Augment | None = None,
) -> str:
    """Renders the page of the data set `name`; `findings` are those of its checks.

    `folder` is the data set's cache. `augment` makes versions of training images, if the
    configuration has an augmentation.
    """
    rows: list[int] = []  # of the packed array, behind the thumbnails of the first sprite
    classes = list(_classes(raw, rows))
    pairs = [one for one in _pairs(raw, measures, rows) if one.total]
    originals, seen = _seen(raw, rows, folder, always=augment is not None)
    inverted = raw.index is None
    images = raw.train.images[np.array(rows, np.int64)]
    sprites = {"image": sprite(thumbnails(images, _SIDE, inverted=inverted), inverted=inverted)}
    if len(originals):
        sprites["original"] = sprite(originals, inverted=False, shown=ORIGINAL)
    if augment is not None and seen:
        chosen = [one.image for one in seen]
        labels = labels_by_row(raw)[np.array(rows, np.int64)[chosen]]
        versions = augment(images[chosen], labels)
        flat = versions.reshape(-1, *versions.shape[2:])
        sprites["version"] = sprite(thumbnails(flat, _SIDE, inverted=inverted), inverted=inverted)
        seen = _with_versions(seen, versions.shape[1])
    description = describe(raw, measures)
    return template("data.html").render(
        name=clean(name),
        about=description,
        source=clean(description.source),
        splits=list(splits_of(raw)),
        findings=[(one.action, clean(str(one))) for one in findings],
        classes=classes,
        more_classes=len(raw.class_names) - len(classes),
        histograms=_histograms(raw, measures),
        **_of_files(description),
        pairs=pairs,
        seen=seen,
        originals=bool(len(originals)),
        total=_total(description),
        sprites=sprites,
    )


def _of_files(description: Description) -> dict[str, Any]:
    """The parts of the page about picture files, if the data set has any."""
    facts = description.pictures
    if facts is None:
        return {"facts": None, "modes": [], "notes": [], "left_out": [], "skipped": []}
    return {
        "facts": facts,
        "modes": [(clean(mode), count) for mode, count in facts.modes],
        "notes": [clean(note) for note in facts.notes],
        "left_out": [(clean(kind), count) for kind, count in facts.left_out[:_FILES]],
        "skipped": [(clean(file), clean(reason)) for file, reason in facts.unreadable[:_FILES]],
    }


def _with_versions(seen: Sequence[Seen], each: int) -> list[Seen]:
    """The pictures with the indices of their versions, `each` per picture, one after another."""
    return [
        replace(one, versions=range(position * each, (position + 1) * each))
        for position, one in enumerate(seen)
    ]


def _total(description: Description) -> int:
    return sum(split.shape[0] for split in description.splits.values())


def _classes(raw: RawData, rows: list[int]) -> Iterator[ClassRow]:
    """The rows of the table of classes; appends the rows of their thumbnails to `rows`."""
    splits = list(splits_of(raw).values())
    classes = len(raw.class_names)
    counts = np.stack([np.bincount(split.labels, minlength=classes) for split in splits], axis=1)
    most = max(1, int(counts.sum(axis=1).max()))
    each = min(PER_CLASS, max(1, THUMBNAILS // classes))
    order = np.argsort(raw.train.labels, kind="stable")
    ends = np.cumsum(np.bincount(raw.train.labels, minlength=classes))
    for label, class_name in enumerate(raw.class_names[:CLASSES]):
        of_class = order[ends[label - 1] if label else 0 : ends[label]]
        first = len(rows)
        if first + each <= THUMBNAILS and len(of_class):
            chosen = np.unique(np.linspace(0, len(of_class) - 1, each).astype(np.int64))
            rows += raw.train.rows[of_class[chosen]].tolist()
        yield ClassRow(
            name=clean(class_name),
            counts=tuple(counts[label].tolist()),
            share=float(counts[label].sum() / most),
            thumbnails=range(first, len(rows)),
        )


def _histograms(raw: RawData, measures: Measures) -> list[Histogram]:
    values: dict[str, tuple[Array, str]] = {}
    if raw.index is not None:
        measured = sizes(np.asarray(raw.index.sizes)[measures.rows])
        units = ("pixels", "pixels", "width per height")
        values |= dict(zip(measured, zip(measured.values(), units, strict=True), strict=True))
    quantities = QUANTITIES if raw.train.image_shape[2] > 1 else QUANTITIES[:2]
    for name, column in zip(quantities, measures.values.T, strict=False):
        values[name] = (column, "of 255")
    return [_histogram(name, *found) for name, found in values.items()]


def _histogram(name: str, values: Array, unit: str) -> Histogram:
    low, median, high = (float(value) for value in np.quantile(values, (0, 0.5, 1)))
    counts = np.histogram(values, _BINS, (low, high if high > low else low + 1))[0]
    bars = (counts / max(1, counts.max())).round(3).tolist()
    return Histogram(name=name, unit=unit, bars=tuple(bars), low=low, median=median, high=high)


def _pairs(raw: RawData, measures: Measures, rows: list[int]) -> Iterator[Pairs]:
    """Pairs under two classes, equal ones and similar ones; appends their rows to `rows`."""
    labels = labels_by_row(raw)
    names = ("", *splits_of(raw))
    of_split = np.zeros(len(labels), np.int8)
    for number, split in enumerate(splits_of(raw).values(), 1):
        of_split[split.rows] = number
    crossing = conflicts(raw, measures)
    near = np.empty((0, 2), np.int64)
    if raw.index is not None:
        pairs = raw.index.duplicates
        near = pairs[pairs[:, 2] != EXACT, :2]
        differ = labels[near[:, 0]] != labels[near[:, 1]]
        crossing = np.concatenate([crossing, near[differ]])
        near = near[~differ]
    same = labels[measures.equal[:, 0]] == labels[measures.equal[:, 1]]

    def side(row: int) -> PairedPicture:
        rows.append(row)
        return PairedPicture(
            thumbnail=len(rows) - 1,
            name=clean(called(raw, row)),
            label=clean(raw.class_names[labels[row]]),
            split=names[of_split[row]],
        )

    for title, found in (
        ("One picture, equal or similar, under two classes", crossing),
        ("Equal pictures of one class", measures.equal[same]),
        ("Similar pictures of one class", near),
    ):
        shown = tuple((side(one), side(other)) for one, other in found[:PAIRS].tolist())
        yield Pairs(title=title, total=len(found), shown=shown)


def _seen(raw: RawData, rows: list[int], folder: Path, *, always: bool) -> tuple[Array, list[Seen]]:
    """Some training pictures: their originals u8[m,h,w,3], and the images made of them.

    Appends the rows of these images to `rows`. With `always`, takes images without originals if
    there are none with.
    """
    count = min(len(raw.train), 2 * ORIGINALS)
    positions = np.unique(np.linspace(0, len(raw.train) - 1, count).astype(np.int64))
    chosen = raw.train.rows[positions]
    # Every other one comes first, so that they come from the whole split.
    chosen = np.concatenate([chosen[::2], chosen[1::2]])
    kept, originals = _originals(raw, chosen, folder)
    found: list[tuple[int | None, int]] = [*enumerate(chosen[kept].tolist())]
    found.sort(key=lambda one: one[1])
    if always and not found:
        found = [(None, row) for row in chosen[:ORIGINALS].tolist()]
    sizes = None if raw.index is None else np.asarray(raw.index.sizes)
    seen = []
    for original, row in found:
        rows.append(row)
        height, width = raw.train.image_shape[:2] if sizes is None else sizes[row].tolist()
        seen.append(
            Seen(
                original=original,
                image=len(rows) - 1,
                name=clean(called(raw, row)),
                size=f"{height}×{width}",
            )
        )
    return originals, seen


def _originals(raw: RawData, rows: Array, folder: Path) -> tuple[Array, Array]:
    """The files of up to ORIGINALS of these rows: their places i64[m], and tiles u8[m,h,w,3].

    The first call keeps them in the cache in `folder`, so that later ones need neither the files
    nor to unpack an archive. Files that are gone or changed by then are left out.
    """
    nothing = np.empty(0, np.int64), np.empty((0, ORIGINAL, ORIGINAL, 3), np.uint8)
    if raw.index is None:
        return nothing
    files = [raw.index.sha256[row].tobytes().hex() for row in rows.tolist()]
    entry = folder / f"originals-{cache.key(files=files, most=ORIGINALS, side=ORIGINAL)}"
    try:
        known: Mapping[str, Array] = cache.load_stored(entry).arrays
    except FileNotFoundError:
        tiles = _read_originals(raw, rows)
        if not tiles:
            return nothing
        known = {"places": np.array([*tiles]), "tiles": np.stack([*tiles.values()])}
        with suppress(OSError):  # the page does without
            cache.load_or_build(entry, lambda: (known, {}))
    return known["places"], known["tiles"]


def _read_originals(raw: RawData, rows: Array) -> dict[int, Array]:
    """The tiles u8[h,w,3] of up to ORIGINALS files that are what was packed, by place in `rows`."""
    assert raw.index is not None
    tiles: dict[int, Array] = {}
    source = place_at(Path(raw.index.root))
    for position, row in enumerate(rows.tolist()):
        try:
            if source is None:
                break
            with source.opened(raw.index.files[row]) as file:
                digest = file_digest(file, "sha256").digest()  # type: ignore[arg-type]
                if digest != raw.index.sha256[row].tobytes():
                    continue
                file.seek(0)
                tiles[position] = _tile(open_picture(file, side=ORIGINAL))
        except Exception:  # it is gone; a decoder may raise anything
            continue
        if len(tiles) == ORIGINALS:
            break
    return tiles


def _tile(picture: Picture) -> Array:
    """A picture on a grey square u8[h,w,3]; a transparent one would need PNG."""
    tile = np.full((ORIGINAL, ORIGINAL, 3), 128, np.uint8)
    small = np.asarray(contained(picture.convert("RGB"), (ORIGINAL, ORIGINAL)))
    top, left = ((ORIGINAL - side) // 2 for side in small.shape[:2])
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile
