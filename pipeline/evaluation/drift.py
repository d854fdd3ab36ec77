"""Measures how far new images differ from those that a model was trained on, and tests it.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import lazy_loader
import numpy as np

from pipeline.data.values import Array
from pipeline.system.errors import in_percent

scipy = lazy_loader.load("scipy")

ALPHA = 0.05  # of all tests together (Bonferroni)
SHIFTED, FAR = 0.1, 0.25  # of a distance between 0 and 1
DIRECTIONS, FEWEST = 16, 20  # in which features are compared; features to compare with
_BINS = 10  # of the population stability index: deciles of the reference
_EXPECTED = 5  # images of a class from which the χ² distribution holds (Cochran's rule)
_DEALT = 1999  # permutations where it does not
_AT_ONCE = 2_000_000  # numbers of them in memory


@dataclass(frozen=True, kw_only=True)
class Shift:
    """One quantity of new images compared with the reference.

    `reference` and `new` are the medians (NaN for classes). `distance` is the largest difference of
    the two cumulative distributions (Kolmogorov–Smirnov); for classes, half the sum of the
    differences of their shares. `p` is the p-value of no difference, `psi` the population stability
    index. `level` is 0 (no shift found), 1 (shift) or 2 (large shift).
    """

    name: str
    reference: float
    new: float
    distance: float
    p: float
    psi: float
    level: int = 0
    detail: str = ""

    @property
    def verdict(self) -> str:
        """The level in words."""
        return ("no shift found", "shift", "large shift")[self.level]


def of_values(name: str, reference: Sequence[float], count: int, new: Array) -> Shift:
    """Compares values f64[n] with a reference: `count` values, given sorted or as quantiles.

    The p-value is asymptotic, with Stephens' correction (J. R. Stat. Soc. B 32, 115, 1970).
    """
    before, now = np.asarray(reference, np.float64), np.sort(new.astype(np.float64))
    points = np.concatenate([before, now])
    below = [np.searchsorted(values, points, "right") / len(values) for values in (before, now)]
    distance = float(np.abs(below[0] - below[1]).max())
    root = math.sqrt(count * len(now) / (count + len(now)))
    p = float(scipy.special.kolmogorov((root + 0.12 + 0.11 / root) * distance))
    edges = _edges(before)
    shares = [
        np.bincount(np.searchsorted(edges, values, "left"), minlength=len(edges) + 1) / len(values)
        for values in (before, now)
    ]
    return Shift(
        name=name,
        reference=float(np.median(before)),
        new=float(np.median(now)),
        distance=distance,
        p=p,
        psi=_psi(shares[0], shares[1], len(now)),
    )


def _edges(before: Array) -> Array:
    """The upper edges f64[b] of all bins but the last: deciles of sorted values f64[n].

    A value that fills a bin by itself, as the only height of all images does, gets one of its own:
    otherwise smaller values would share it.
    """
    deciles = np.unique(np.quantile(before, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = [np.searchsorted(before, deciles, side) for side in ("right", "left")]
    tied = deciles[(counts[0] - counts[1]) * _BINS >= len(before)]
    return np.union1d(deciles, np.nextafter(tied, -np.inf))


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """The D directions in which features of a reference vary most, and its values along them.

    `centre` f64[F] is the mean of the features that determined the `directions` f64[D,F];
    `reference` f64[m,D+1] are the values of the other ones, as `along` returns them.
    """

    centre: Array
    directions: Array
    reference: Array

    def along(self, features: Array) -> Array:
        """Features f32[n,F] along the directions, then their distance from all, f64[n,D+1]."""
        return _along(features - self.centre, self.directions)


def directions_of(reference: Array) -> Directions:
    """Finds the directions along which new features are compared with a reference f32[m,F].

    One half of the reference determines the directions in which it varies most, the other half is
    what new features are compared with.

    Raises:
        ValueError: the reference has fewer than FEWEST features.
    """
    if len(reference) < FEWEST:
        raise ValueError(f"there are {len(reference)} images to compare with, {FEWEST} are needed")
    basis, rest = reference[::2].astype(np.float64), reference[1::2]
    centre = basis.mean(axis=0)
    directions = np.linalg.svd(basis - centre, full_matrices=False)[2][:DIRECTIONS]
    return Directions(
        centre=centre, directions=directions, reference=_along(rest - centre, directions)
    )


def of_features(name: str, directions: Directions, new: Array) -> tuple[Shift, Array, Array]:
    """Compares new features with a reference along several directions, and by the distance.

    `new` f64[n,D+1] are the values of the features as `Directions.along` returns them. The shift is
    that of the direction that differs most; p accounts for their number. Also returns the values of
    the reference and of the new features along it. Source: Rabanser et al., "Failing Loudly", 2019.
    """
    shifts = [
        of_values(name, np.sort(before).tolist(), len(before), now)
        for before, now in zip(directions.reference.T, new.T, strict=True)
    ]
    most = min(range(len(shifts)), key=lambda number: (shifts[number].p, -shifts[number].distance))
    is_inside = most < len(directions.directions)
    shift = replace(
        shifts[most],
        reference=math.nan,
        new=math.nan,
        p=min(1.0, shifts[most].p * len(shifts)),
        detail=f"direction {most + 1} of {len(shifts)}" if is_inside else "outside",
    )
    return shift, directions.reference[:, most], new[:, most]


def _along(features: Array, directions: Array) -> Array:
    """Coordinates along the directions, and the distance from all of them, f64[n,D+1]."""
    coordinates = features @ directions.T
    distance = np.linalg.norm(features - coordinates @ directions, axis=1)
    return np.column_stack([coordinates, distance])


def of_classes(name: str, reference: Mapping[str, int], new: Mapping[str, int]) -> Shift:
    """Compares how often classes occur (χ² test of homogeneity); `detail` names the largest change.

    Where fewer than five images of a class are expected, the p-value is that of permutations: the
    χ² distribution would call chance a shift many times as often as it claims to. They are seeded.

    Raises:
        ValueError: one of the two has no images.
    """
    names = [one for one in {**reference, **new} if reference.get(one, 0) + new.get(one, 0)]
    counts = np.array([[part.get(one, 0) for one in names] for part in (reference, new)], float)
    if not counts.sum(axis=1).all():
        raise ValueError(f"{name}: there are no images to compare")
    shares = counts / counts.sum(axis=1, keepdims=True)
    most = int(np.abs(shares[1] - shares[0]).argmax())
    before, now = shares[:, most].tolist()
    return Shift(
        name=name,
        reference=math.nan,
        new=math.nan,
        distance=float(np.abs(shares[1] - shares[0]).sum() / 2),
        p=_p_of_homogeneity(counts) if len(names) > 1 else 1.0,
        psi=_psi(shares[0], shares[1], int(counts[1].sum())),
        detail=f"{names[most]}: {in_percent(before, 1)}% → {in_percent(now, 1)}%",
    )


def _p_of_homogeneity(counts: Array) -> float:
    """The p-value of equal shares, for counts f64[2,K] without empty columns."""
    images, classes = counts.sum(axis=1), counts.sum(axis=0)
    expected = np.outer(images, classes) / counts.sum()
    per_square = (1 / expected).sum(axis=0)  # both rows deviate by as much
    statistic = float((counts[1] - expected[1]) ** 2 @ per_square)
    if expected.min() >= _EXPECTED:
        return float(scipy.special.chdtrc(len(classes) - 1, statistic))
    rng, as_far = np.random.default_rng(0), 0
    for size in _parts(_DEALT, len(classes)):
        dealt = rng.multivariate_hypergeometric(classes.astype(np.int64), int(images[1]), size)
        found = (dealt - expected[1]) ** 2 @ per_square
        as_far += int(np.count_nonzero(found >= statistic * (1 - 1e-9)))
    return (1 + as_far) / (1 + _DEALT)


def _parts(count: int, width: int) -> list[int]:
    """`count` rows of `width` numbers in parts that take little memory."""
    at_once = max(1, _AT_ONCE // width)
    return [min(at_once, count - start) for start in range(0, count, at_once)]


def judged(shifts: Sequence[Shift]) -> list[Shift]:
    """Gives each shift that is significant among all a level, by its distance."""
    return [
        replace(one, level=(one.distance >= SHIFTED) + (one.distance >= FAR))
        if one.p * len(shifts) < ALPHA
        else replace(one, level=0)
        for one in shifts
    ]


def smallest_seen(count: int, new: int, tests: int) -> float:
    """The distance from which a shift of values counts, for so many images.

    It is above 1, which no distance is, for too few.
    """
    root = math.sqrt(count * new / (count + new))
    significant = float(scipy.special.kolmogi(ALPHA / tests) / (root + 0.12 + 0.11 / root))
    return max(SHIFTED, significant)


def _psi(before: Array, now: Array, count: int) -> float:
    """Sum of (q - p) ln(q / p) over bins; an empty bin counts as half an image."""
    low = 0.5 / max(count, 1)
    p, q = np.maximum(before, low), np.maximum(now, low)
    return float(((q - p) * np.log(q / p)).sum())
