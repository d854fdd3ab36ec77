"""Measures brightness, contrast and colour of images, and finds equal ones; kept in the cache.

`data_summary.json`, recorded with each run, holds the distribution of each quantity, so that new
pictures can be compared with the training images when these are gone (`drift`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path

import numpy as np

from pipeline.data import cache
from pipeline.data.values import EXACT, Array, RawData, Shape, pixel_digests
from pipeline.system.errors import RequestError

QUANTITIES = ("brightness", "contrast", "colour")
"""Mean of the pixel values, their standard deviation, mean range over the channels of a pixel."""
SIZES = ("height", "width", "aspect ratio")
"""Of the upright picture in its file: height and width in pixels, and width per height."""
SEEN = 64  # pixels along each side that are measured, about
_KEPT = 1001  # most values of a quantity in a summary; more are replaced by so many quantiles
SUMMARY_FILE = "data_summary.json"
_VERSION = 1  # raised when the same images give other measures


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """One entry per image: first those of the training split, then validation, then test.

    `rows` i64[n] are rows of the packed array. `values` f32[n,3] are the QUANTITIES, in pixel
    values. `blank` bool[n] marks images of one colour. `equal` i64[M,2] are pairs of rows with
    equal images: of a set of equal images, each is paired with the first.
    """

    rows: Array
    values: Array
    blank: Array
    equal: Array


def measured(raw: RawData, folder: Path) -> Measures:
    """The measures of a data set, from the cache in `folder` if it has been measured before.

    Raises:
        OSError: the cache cannot be written; names the file.
    """
    rows = np.concatenate([split.rows for split in raw.splits.values()])
    key = cache.key(fingerprint=raw.fingerprint, version=_VERSION)
    entry = cache.load_or_build(folder / f"measures-{key}", lambda: (_measure(raw), {}))
    found = entry.arrays
    return Measures(
        rows=rows,
        values=found["values"],
        blank=found["blank"],
        equal=rows[found["equal"]] if raw.index is None else _exact(raw),
    )


def quantities_of(images: Array) -> Array:
    """The QUANTITIES of images u8[N,H,W,C], f32[N,3]; of large ones, some of their pixels."""
    down, across = (max(1, side // SEEN) for side in images.shape[1:3])
    seen = images[:, ::down, ::across]
    channels = [seen[..., channel].reshape(len(images), -1) for channel in range(seen.shape[3])]
    grey = channels[0].astype(np.float32)
    for other in channels[1:]:
        grey += other
    grey /= len(channels)
    brightness = grey.mean(axis=1)
    grey -= brightness[:, np.newaxis]
    contrast = np.sqrt(np.einsum("ij,ij->i", grey, grey) / grey.shape[1])
    colour = reduce(np.maximum, channels) - reduce(np.minimum, channels)
    of_each: Array = np.stack([brightness, contrast, colour.mean(axis=1, dtype=np.float32)], axis=1)
    return of_each


def _measure(raw: RawData) -> dict[str, Array | cache.Stream | Path]:
    values, blank, digests = [], [], list[bytes]()
    for split in raw.splits.values():
        for images in split.batches():
            of_block = quantities_of(images)
            values.append(of_block)
            flat = images.reshape(len(images), -1, images.shape[3])
            one_colour = of_block[:, 1] < 1
            for position in np.flatnonzero(one_colour).tolist():
                one_colour[position] = (flat[position] == flat[position, 0]).all()
            blank.append(one_colour)
            if raw.index is None:
                digests += pixel_digests(images)
        cache.let_go(split.images)
    return {
        "values": np.concatenate(values),
        "blank": np.concatenate(blank),
        "equal": _equal(digests),
    }


def _equal(digests: Sequence[bytes]) -> Array:
    firsts: dict[bytes, int] = {}
    pairs = [
        (first, position)
        for position, digest in enumerate(digests)
        if (first := firsts.setdefault(digest, position)) != position
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _exact(raw: RawData) -> Array:
    """The pairs of equal pictures that the index of a data set holds, i64[M,2]."""
    assert raw.index is not None
    pairs = raw.index.duplicates
    exact: Array = pairs[pairs[:, 2] == EXACT, :2]
    return exact


def labels_by_row(raw: RawData) -> Array:
    """The label of each row of the packed array, i32[N]; -1 for rows of no split."""
    labels = np.full(len(raw.train.images), -1, np.int32)
    for split in raw.splits.values():
        labels[split.rows] = split.labels
    return labels


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """The training images of a data set in numbers.

    `shape` [H,W,C] and `fit` as in `RawData`; `classes` counts images by name. `quantities` holds
    the sorted values of each quantity, or _KEPT quantiles if there are more; those of SIZES only
    for picture files.
    """

    images: int
    shape: Shape
    fit: str | None
    classes: Mapping[str, int]
    quantities: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The summary as the content of `data_summary.json`."""
        return json.dumps(asdict(self) | {"version": _VERSION}, ensure_ascii=False)


def summarised(raw: RawData, measures: Measures) -> DataSummary:
    """Summarises the training split of a data set."""
    count = len(raw.train)
    counts = np.bincount(raw.train.labels, minlength=len(raw.class_names)).tolist()
    quantities = dict(zip(QUANTITIES, measures.values[:count].T, strict=True))
    if raw.index is not None:
        quantities |= sizes(raw.index.sizes[raw.train.rows])
    return DataSummary(
        images=count,
        shape=raw.train.image_shape,
        fit=raw.fit,
        classes=dict(zip(raw.class_names, counts, strict=True)),
        quantities={name: quantiles(values) for name, values in quantities.items()},
    )


def sizes(heights_widths: Array) -> dict[str, Array]:
    """SIZES of pictures whose heights and widths are i32[N,2], f64[N] each."""
    height, width = heights_widths.astype(np.float64).T
    return {"height": height, "width": width, "aspect ratio": width / np.maximum(height, 1)}


def quantiles(values: Array) -> list[float]:
    """Sorts numbers [n] of any dtype; returns them, or _KEPT quantiles of more than _KEPT.

    Each has four significant digits.
    """
    ordered = np.sort(values.astype(np.float64))
    if len(ordered) > _KEPT:
        ordered = np.quantile(ordered, np.linspace(0, 1, _KEPT))
    return rounded(ordered).tolist()


def rounded(values: Array) -> Array:
    """Numbers [n] of any dtype with four significant digits, as summaries have them, f64[n]."""
    return np.array([float(f"{value:.4g}") for value in values.tolist()], np.float64)


def parsed(text: str) -> DataSummary:
    """Reads `data_summary.json`.

    Raises:
        RequestError: the text is not such a file.
    """
    try:
        found = json.loads(text)
        height, width, channels = map(int, found["shape"])
        quantities = {
            str(name): np.sort(np.asarray(values, np.float64)).tolist()
            for name, values in found["quantities"].items()
        }
        if not np.isfinite([value for values in quantities.values() for value in values]).all():
            raise ValueError("values are not finite")
        return DataSummary(
            images=int(found["images"]),
            shape=(height, width, channels),
            fit=None if found["fit"] is None else str(found["fit"]),
            classes={str(name): int(count) for name, count in found["classes"].items()},
            quantities=quantities,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(
            f"{SUMMARY_FILE} cannot be read: {type(error).__name__}: {error}"
        ) from error
