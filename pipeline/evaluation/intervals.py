"""Confidence intervals of metrics and of their differences. Pure.

`confidence` is the coverage, such as 0.95. This module uses `scipy.special` only, which loads in a
tenth of the time of `scipy.stats`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import lazy_loader
import numpy as np

from pipeline.data.values import Array

scipy = lazy_loader.load("scipy")

BOOTSTRAP = "bootstrap over images"
WILSON = "Wilson score"
STUDENT = "Student's t over seeds"
WELCH = "Welch's t over seeds"
PAIRED = "paired bootstrap over images"
BONETT = "Bonett and Price's paired interval"
NEWCOMBE = "Newcombe's hybrid score"
CONFIDENCE = 0.95  # where no setting chooses another
_AT_ONCE = 2_000_000  # resampled images counted at once


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Settings of a bootstrap: seed, number of resamples, coverage of the intervals."""

    confidence: float
    resamples: int
    seed: int = 0

    @property
    def tails(self) -> tuple[float, float]:
        """The quantiles that bound the interval."""
        tail = (1 - self.confidence) / 2
        return tail, 1 - tail


def coverage(confidence: float) -> str:
    """The coverage of intervals in words such as `95% intervals`: `95%`, `99.9%`."""
    return f"{100 * confidence:.12g}%"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval from `low` to `high` and the `method`; NaN and "" if there is none.

    `sd` is the sample standard deviation (n - 1) of the `n` values, NaN for one value.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    method: str = ""
    n: int = 1
    sd: float = math.nan

    @property
    def is_noise(self) -> bool | None:
        """For a difference: whether the interval contains 0; None if there is no interval."""
        return None if math.isnan(self.low) else self.low <= 0 <= self.high


def wilson(share: float, images: int, confidence: float) -> Estimate:
    """A share of `images` with its score interval (Wilson, JASA 22, 1927)."""
    z = float(scipy.special.ndtri((1 + confidence) / 2))
    shrunk = 1 / (1 + z**2 / images)
    middle = shrunk * (share + z**2 / (2 * images))
    half = shrunk * z * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    low, high = max(0.0, middle - half), min(1.0, middle + half)  # beyond only by rounding
    return Estimate(value=share, low=low, high=high, method=WILSON)


def student(values: Array, confidence: float) -> Estimate:
    """The mean of values f64[n], n ≥ 2, with its Student's t interval.

    There is none if all values are equal: a few equal values do not show how much others vary.
    """
    n, sd = len(values), float(np.std(values, ddof=1))
    if not np.ptp(values):  # the rounded mean may differ from each of them
        return Estimate(value=float(values[0]), n=n, sd=0.0)
    mean, half = float(np.mean(values)), _t(n - 1, confidence) * sd / math.sqrt(n)
    return Estimate(value=mean, low=mean - half, high=mean + half, method=STUDENT, n=n, sd=sd)


def bootstrap(values: Array, resampling: Resampling) -> Array:
    """Percentile intervals f64[M,2] of the means of M quantities f64[M,N] over the same N images.

    All M use the same resamples, so the difference of two quantities can be passed as a quantity;
    its interval is then paired (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, §13).
    """
    means = np.concatenate(
        [
            counts @ values.T.astype(np.float64) / values.shape[1]
            for counts in _resampled(values.shape[1], resampling)
        ]
    )
    return np.quantile(means, resampling.tails, axis=0).T


def welch(first: Estimate, second: Estimate, confidence: float) -> Estimate:
    """`second` - `first`, two means over seeds with unequal variances.

    Degrees of freedom by Welch–Satterthwaite (Welch, Biometrika 34, 1947). If one of them is a
    single run, its variance is assumed to be that of the other. There is no interval if the values
    of neither vary.
    """
    difference = second.value - first.value
    if not (first.sd > 0 or second.sd > 0):
        return Estimate(value=difference)
    spread = [e.sd**2 / e.n for e in (first, second) if e.n > 1]
    if len(spread) == 2:
        total = sum(spread)
        parts = zip(spread, (first.n, second.n), strict=True)
        below = sum(part**2 / (n - 1) for part, n in parts)
        freedom = total**2 / below if below else 1.0
    else:
        many = first if first.n > 1 else second
        total, freedom = many.sd**2 * (1 + 1 / many.n), many.n - 1
    half = _t(freedom, confidence) * math.sqrt(total)
    return Estimate(value=difference, low=difference - half, high=difference + half, method=WELCH)


def newcombe(first: Estimate, second: Estimate) -> Estimate:
    """`second` - `first`, two shares with score intervals, treated as independent.

    Method 10 of Newcombe, Statistics in Medicine 17, 1998. If the images are the same, it is wider
    than the paired interval.
    """
    difference = second.value - first.value
    below = math.hypot(second.value - second.low, first.high - first.value)
    above = math.hypot(second.high - second.value, first.value - first.low)
    return Estimate(
        value=difference, low=difference - below, high=difference + above, method=NEWCOMBE
    )


def bonett_price(
    only_first: int, only_second: int, images: int, confidence: float
) -> tuple[float, float]:
    """The interval of `second` - `first`, two accuracies on the same images.

    `only_first` and `only_second` of the `images` are those that one of them alone has right. One
    is added to either, for images that were not drawn (Bonett & Price, Journal of Educational and
    Behavioral Statistics 37, 2012; recommended by Fagerland et al., Statistics in Medicine 33,
    2014).
    """
    z = float(scipy.special.ndtri((1 + confidence) / 2))
    first, second = ((count + 1) / (images + 2) for count in (only_first, only_second))
    change = second - first
    half = z * math.sqrt((first + second - change**2) / (images + 2))
    return max(-1.0, change - half), min(1.0, change + half)


def _resampled(images: int, resampling: Resampling) -> Iterator[Array]:
    """Yields how often each image is drawn, f64[r,N], in blocks of r resamples."""
    rng = np.random.default_rng(resampling.seed)
    block = max(1, _AT_ONCE // images)
    for start in range(0, resampling.resamples, block):
        rows = min(block, resampling.resamples - start)
        drawn = rng.integers(0, images, (rows, images))
        positions = drawn + images * np.arange(rows)[:, None]
        counts = np.bincount(positions.ravel(), minlength=rows * images)
        yield counts.reshape(rows, images).astype(np.float64)


def _t(freedom: float, confidence: float) -> float:
    return float(scipy.special.stdtrit(freedom, (1 + confidence) / 2))
