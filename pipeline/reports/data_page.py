"""The page of a data set: `RawData, Measures, Originals → str`, HTML that needs no other file.

It shows pictures of each class, sizes and colours, what was skipped, equal and similar pictures
side by side, and what the model will see beside the originals. Its size is bounded: where it does
not show all, it says how many of how many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.checks import CheckFinding, called, conflicts
from pipeline.data.describe import Description, describe
from pipeline.data.measures import QUANTITIES, Measures, labels_by_row, sizes
from pipeline.data.polarity import is_shown_inverted
from pipeline.data.values import EXACT, Array, RawData
from pipeline.reports.images import sprite, thumbnails
from pipeline.reports.originals import ORIGINAL, ORIGINALS, Originals, rows_to_show
from pipeline.reports.page import clean

if TYPE_CHECKING:
    from jinja2 import Template

DATA_PAGE = "data.html"
_SIDE = 64  # pixels of a thumbnail's longer side
PER_CLASS, THUMBNAILS = 12, 600  # of one class, and of all
CLASSES, PAIRS, _FILES = 1000, 24, 200  # shown at most
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


def data_html(  # noqa: PLR0913 (what there is to show)
    template: Template,
    raw: RawData,
    measures: Measures,
    originals: Originals,
    findings: Sequence[CheckFinding] = (),
    *,
    name: str,
    augment: Augment | None = None,
) -> str:
    """Renders `data.html` for the data set `name`; `findings` are those of its checks.

    `augment` makes versions of training images, if the configuration has an augmentation.
    """
    rows: list[int] = []  # of the packed array, behind the thumbnails of the first sprite
    classes = list(_classes(raw, rows))
    pairs = [one for one in _pairs(raw, measures, rows) if one.total]
    seen = _seen(raw, rows, originals, always=augment is not None)
    inverted = is_shown_inverted(raw.train, raw.index)
    images, places = raw.train.images, np.array(rows, np.int64)
    tiles = thumbnails(images, _SIDE, rows=places, inverted=inverted)
    sprites = {"image": sprite(tiles, inverted=inverted)}
    if len(originals.rows):
        sprites["original"] = sprite(originals.tiles, inverted=False, shown=ORIGINAL)
    if augment is not None and seen:
        chosen = places[[one.image for one in seen]]
        versions = augment(images[chosen], labels_by_row(raw)[chosen])
        flat = versions.reshape(-1, *versions.shape[2:])
        sprites["version"] = sprite(thumbnails(flat, _SIDE, inverted=inverted), inverted=inverted)
        seen = _with_versions(seen, versions.shape[1])
    description = describe(raw, measures)
    return template.render(
        name=clean(name),
        about=description,
        source=clean(description.source),
        splits=list(raw.splits),
        findings=[(one.action, clean(str(one))) for one in findings],
        classes=classes,
        more_classes=len(raw.class_names) - len(classes),
        histograms=_histograms(raw, measures),
        **_of_files(description),
        pairs=pairs,
        seen=seen,
        originals=bool(len(originals.rows)),
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
    splits = list(raw.splits.values())
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
    return [histogram(name, *found) for name, found in values.items()]


def histogram(name: str, values: Array, unit: str) -> Histogram:
    """The histogram of values [n] of any dtype; `unit` is shown beside them."""
    values = values.astype(np.float64)  # in float32, nearly equal values leave no room for bins
    low, median, high = (float(value) for value in np.quantile(values, (0, 0.5, 1)))
    counts = np.histogram(values, _BINS, (low, high if high > low else low + 1))[0]
    bars = (counts / max(1, counts.max())).round(3).tolist()
    return Histogram(name=name, unit=unit, bars=tuple(bars), low=low, median=median, high=high)


def _pairs(raw: RawData, measures: Measures, rows: list[int]) -> Iterator[Pairs]:
    """Pairs under two classes, equal ones and similar ones; appends their rows to `rows`."""
    labels = labels_by_row(raw)
    names = ("", *raw.splits)
    of_split = np.zeros(len(labels), np.int8)
    for number, split in enumerate(raw.splits.values(), 1):
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


def _seen(raw: RawData, rows: list[int], originals: Originals, *, always: bool) -> list[Seen]:
    """Some training pictures, and the images made of them, whose rows it appends to `rows`.

    With `always`, takes images without originals if there are none with.
    """
    found: list[tuple[int | None, int]] = [*enumerate(originals.rows.tolist())]
    found.sort(key=lambda one: one[1])
    if always and not found:
        found = [(None, row) for row in rows_to_show(raw)[:ORIGINALS].tolist()]
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
    return seen
