"""Statistics of two classifiers on the same images. Pure.

Predictions on the same images are paired: images that both classify correctly say nothing about
which classifier is better. A paired test leaves them out and is therefore much more powerful than
a comparison of two separate intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lazy_loader
import numpy as np

from pipeline.data.values import Array
from pipeline.evaluation.intervals import BONETT, Estimate, bonett_price

scipy = lazy_loader.load("scipy")  # its statistics take half a second to import


MOST_SWAPS = 8


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Images that only one of two classifiers gets right, and the p-value of that imbalance."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(labels: Array, first: Array, second: Array) -> McNemar:
    """McNemar's exact two-sided test of whether two classifiers err equally often.

    `labels`, and the classes predicted by the `first` and the `second` classifier: i32[N] each. If
    the classifiers are equally good, an image that only one of them gets right is equally likely to
    be either's, like the toss of a fair coin (McNemar, Psychometrika 12, 1947; exact form:
    Dietterich, Neural Computation 10, 1998). Without such images, p is 1.

    Raises:
        ValueError: the three differ in shape.
    """
    if not labels.shape == first.shape == second.shape:
        raise ValueError(f"not the same images: {labels.shape}, {first.shape}, {second.shape}")
    only_first, only_second = _alone(first == labels, second == labels)
    decided = only_first + only_second
    p_value = float(scipy.stats.binomtest(only_first, decided).pvalue) if decided else 1.0
    return McNemar(only_first=only_first, only_second=only_second, p_value=p_value)


def accuracy_change(labels: Array, first: Array, second: Array, confidence: float) -> Estimate:
    """The second's accuracy minus the first's, with a paired interval; all arrays i32[N]."""
    return paired_change(first == labels, second == labels, confidence)


def paired_change(right: Array, also: Array, confidence: float) -> Estimate:
    """The share of `also` minus that of `right`, bool[N] each, with a paired interval."""
    only_first, only_second = _alone(right, also)
    low, high = bonett_price(only_first, only_second, len(right), confidence)
    value = float(also.mean() - right.mean())
    return Estimate(value=value, low=low, high=high, method=BONETT)


def _alone(right: Array, also: Array) -> tuple[int, int]:
    """The numbers of images that the first or the second alone gets right."""
    return int(np.count_nonzero(right & ~also)), int(np.count_nonzero(also & ~right))


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """A class's accuracy by either classifier; `change`: the second's minus the first's."""

    name: str
    images: int
    first: float
    second: float
    change: Estimate


@dataclass(frozen=True, kw_only=True)
class Swap:
    """Number of images of class `true` that either classifier predicts as `predicted`."""

    true: str
    predicted: str
    first: int
    second: int


def class_changes(
    labels: Array,
    first: Array,
    second: Array,
    class_names: Sequence[str],
    confidence: float,
) -> list[ClassChange]:
    """The accuracy of two classifiers per class; labels and predictions i32[N].

    Classes without images are left out.
    """
    changes = []
    for number, name in enumerate(class_names):
        of_class = labels == number
        images = int(np.count_nonzero(of_class))
        if not images:
            continue
        here, one, other = labels[of_class], first[of_class], second[of_class]
        changes.append(
            ClassChange(
                name=name,
                images=images,
                first=float((one == number).mean()),
                second=float((other == number).mean()),
                change=accuracy_change(here, one, other, confidence),
            )
        )
    return changes


def swaps(labels: Array, first: Array, second: Array, class_names: Sequence[str]) -> list[Swap]:
    """The confusions (true → predicted class) that changed most in number, at most eight.

    `labels` and the predictions `first` and `second` are i32[N].
    """
    classes = len(class_names)
    cells = [labels.astype(np.int64) * classes + predicted for predicted in (first, second)]
    found, places = np.unique(np.concatenate(cells), return_inverse=True)  # of all, few have images
    counts = [np.bincount(part, minlength=len(found)) for part in np.split(places, 2)]
    trues, guesses = np.divmod(found, classes)
    changed = np.where(trues == guesses, 0, np.abs(counts[1] - counts[0]))
    order = np.argsort(-changed, kind="stable")[:MOST_SWAPS]
    return [
        Swap(
            true=class_names[trues[position]],
            predicted=class_names[guesses[position]],
            first=int(counts[0][position]),
            second=int(counts[1][position]),
        )
        for position in order.tolist()
        if changed[position]
    ]
