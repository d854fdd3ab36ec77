"""Draws explanations of a model's answers, and its features: `maps, features → pixels`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data.pictures import contained, picture_of
from pipeline.data.polarity import is_shown_inverted
from pipeline.data.values import Array, Predictions
from pipeline.evaluation.plots import cut

HEAT = np.array([(255, 214, 102), (245, 130, 32), (190, 20, 40)], np.float32)  # weak to strong
SIDE = 104  # pixels of a tile's longer side
POINTS = 2000  # images in the plot of the features, at most
SPAN = 1000  # width and height of that plot
_NAMED = 30  # classes whose names have room in it
_EDGE = 40  # so near the upper edge, no name has room above a point
_BESIDE = 24  # from the centre of a class to its name, which would hide an only image there


@dataclass(frozen=True, kw_only=True)
class FeaturePoint:
    """An image among the features: place, true and predicted class, number in reports."""

    x: float
    y: float
    true: int
    guess: int
    image: int

    @property
    def wrong(self) -> bool:
        """Whether the prediction is a mistake."""
        return self.true != self.guess


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Images by the two directions in which their features vary most.

    `shares` are the shares of the variance along each; `centres` are the mean places of the classes
    that occur, by number; `images` is the number of images in the split.
    """

    points: tuple[FeaturePoint, ...]
    shares: tuple[float, float]
    centres: dict[int, tuple[float, float]]
    images: int


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Explanations of the answers of a run's model.

    `images` i64[m] are mistakes by their index in the split; `guesses` and `truths` are maps
    f32[m,H,W] of the parts that speak for the predicted and for the true class, by `method`.
    `scatter` is the plot of the features, or None and `lacking` says why.
    """

    images: Array
    guesses: Array
    truths: Array
    method: str
    scatter: Scatter | None
    lacking: str = ""


def overlay(image: Array, heat: Array, side: int) -> Array:
    """The image u8[H,W,C] under a map f32[H,W] from 0 to 1, as RGB u8[h,w,3] that fits `side`."""
    grey = contained(picture_of(image).convert("L"), (side, side))
    base = 0.6 * np.asarray(grey, np.float32)[..., None] + 60  # faded, so that the map stands out
    wide = Image.fromarray(heat.astype(np.float32)).resize(grey.size, Image.Resampling.BILINEAR)
    strength = np.asarray(wide).clip(0, 1)
    positions = np.linspace(0, 1, len(HEAT))
    colour = np.stack([np.interp(strength, positions, HEAT[:, c]) for c in range(3)], axis=-1)
    alpha = 0.85 * strength[..., None] ** 0.75
    return ((1 - alpha) * base + alpha * colour).round().clip(0, 255).astype(np.uint8)


def spread(count: int) -> Array:
    """Which of `count` images the plot of the features shows, i64[m]: evenly spaced ones."""
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(np.int64))


def scatter(features: Array, chosen: Array, predictions: Predictions) -> Scatter:
    """Principal components of features f32[m,F] of the images `chosen` i64[m] of a split."""
    coordinates, shares = principal(features)
    low, span = coordinates.min(axis=0), np.ptp(coordinates, axis=0)
    coordinates = (coordinates - low) / np.where(span > 0, span, 1) * SPAN
    labels, guesses = predictions.labels[chosen], predictions.predicted[chosen]
    numbers = predictions.numbers[chosen]
    points = tuple(
        FeaturePoint(x=round(x, 1), y=round(SPAN - y, 1), true=true, guess=guess, image=image)
        for (x, y), true, guess, image in zip(
            coordinates.tolist(), labels.tolist(), guesses.tolist(), numbers.tolist(), strict=True
        )
    )
    centres = {}
    for label in np.unique(labels).tolist():
        x, y = np.median(coordinates[labels == label], axis=0).tolist()
        centres[label] = (round(x, 1), round(SPAN - y, 1))
    return Scatter(points=points, shares=shares, centres=centres, images=len(predictions.labels))


def captions(made: Scatter, names: Sequence[str]) -> list[tuple[str, float, float, str]]:
    """The names of classes in the plot, if there are few: text, place, and SVG's `text-anchor`.

    A name stands above the centre of its class, or below it at the upper edge; near the left and
    the right edge it extends inwards.
    """
    found = []
    for label, (x, y) in made.centres.items() if len(names) <= _NAMED else ():
        anchor = "start" if x < SPAN / 3 else "end" if x > 2 * SPAN / 3 else "middle"
        beside = _BESIDE if y < _EDGE else -_BESIDE
        found.append((cut(names[label]), x, round(y + beside, 1), anchor))
    return found


def principal(values: Array) -> tuple[Array, tuple[float, float]]:
    """The first two principal components of f32[n,F], f64[n,2], and their shares of the variance.

    The largest weight of each is positive, so that equal values give equal pictures.
    """
    centred = np.asarray(values, np.float64) - values.mean(axis=0, dtype=np.float64)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    if len(sizes) < 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 1), (0, 0)))
        sizes = np.pad(sizes, (0, 1))
    signs = np.sign([row[np.abs(row).argmax()] for row in right[:2]])
    whole = float((sizes**2).sum()) or 1.0
    first, second = (sizes[:2] ** 2 / whole).tolist()
    return left[:, :2] * sizes[:2] * np.where(signs == 0, 1, signs), (first, second)


def tiles(explained: Explained, predictions: Predictions) -> Array:
    """Each mistake as its image and its two maps, one after another, RGB u8[3·m,h,w,3]."""
    split = predictions.split
    inverted = split.image_shape[2] == 1 and is_shown_inverted(split, predictions.index)
    found = []
    for position, index in enumerate(explained.images.tolist()):
        image = predictions.split.take(index)
        image = 255 - image if inverted else image
        plain = contained(picture_of(image).convert("RGB"), (SIDE, SIDE))
        maps = (explained.guesses[position], explained.truths[position])
        found += [np.asarray(plain), *(overlay(image, one, SIDE) for one in maps)]
    return np.stack(found)


def colours(classes: int) -> list[str]:
    """A colour for each class, for light and dark pages."""
    return [f"hsl({360 * k / classes:.0f} 70% {(45, 62)[k % 2]}%)" for k in range(classes)]
