"""Statistics of two classifiers that were asked about the same images: pure, whole arrays.

Predictions of the same images are paired: what most images have in common (an easy one is right
in both) says nothing about which classifier is better, and leaving it out makes a comparison much
sharper than two separate intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import lazy_loader
import numpy as np

from pipeline.data import Array

scipy = lazy_loader.load("scipy")  # its statistics take half a second to import


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Images that one classifier alone has right, and how likely such an imbalance is by chance."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(labels: Array, first: Array, second: Array) -> McNemar:
    """McNemar's exact test, two-sided, of whether two classifiers err equally often.

    `labels`, and the classes predicted by the `first` and the `second`: i32[N], image by image.
    Where they are equally good, each image that one of them alone has right is as likely to be the
    one's as the other's: a fair coin (McNemar, Psychometrika 12, 1947; exact form: Dietterich,
    Neural Computation 10, 1998). With no such image p is 1.

    Raises:
        ValueError: the three differ in shape.
    """
    if not labels.shape == first.shape == second.shape:
        raise ValueError(f"not the same images: {labels.shape}, {first.shape}, {second.shape}")
    right, also = first == labels, second == labels
    only_first = int(np.count_nonzero(right & ~also))
    only_second = int(np.count_nonzero(also & ~right))
    decided = only_first + only_second
    p_value = float(scipy.stats.binomtest(only_first, decided).pvalue) if decided else 1.0
    return McNemar(only_first=only_first, only_second=only_second, p_value=p_value)
