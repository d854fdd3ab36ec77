"""Labels that are likely wrong, by confident learning: `labels, probabilities → LabelAudit`.

Source: C. Northcutt, L. Jiang, I. Chuang, "Confident Learning", JAIR 70 (2021), as in cleanlab.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.data.values import Array, most_probable
from pipeline.system.errors import RequestError
from pipeline.system.imports import Lazy

cleanlab_filter, cleanlab_rank = Lazy("cleanlab.filter"), Lazy("cleanlab.rank")  # take a second

# Flags as many labels as confident learning estimates to be wrong, those of lowest probability. Of
# cleanlab's filters it has the best F1 on the labels that `benchmarks/audit.py` spoils.
METHOD = "low_self_confidence"


@dataclass(frozen=True, kw_only=True)
class LabelAudit:
    """The verdict on each label i32[n], by probabilities f32[n,K] of models without its image.

    `judged` bool[n] marks the labels that could be judged, `wrong` bool[n] those of them that are
    likely wrong. `quality` f32[n] from 0 to 1 is the probability that a label is right.
    """

    labels: Array
    probabilities: Array
    judged: Array
    wrong: Array
    quality: Array

    @cached_property
    def proposed(self) -> Array:
        """The most probable class of each image, i32[n]."""
        return most_probable(self.probabilities)

    @cached_property
    def sure(self) -> Array:
        """The probability of the proposed class, f32[n]."""
        return self.probabilities.max(axis=1)

    @cached_property
    def order(self) -> Array:
        """All images i64[n]: those with likely wrong labels first, the most doubtful at the top."""
        return np.lexsort((self.quality, ~self.wrong))

    @cached_property
    def pairs(self) -> list[tuple[int, int, int]]:
        """Given class, proposed class and the number of such labels, the most frequent first."""
        given, proposed = self.labels[self.wrong].tolist(), self.proposed[self.wrong].tolist()
        counts = Counter(zip(given, proposed, strict=True))
        return [(*pair, count) for pair, count in sorted(counts.items(), key=lambda p: (-p[1], p))]

    @property
    def doubted(self) -> list[int]:
        """The classes of which more than half of the judged labels are likely wrong."""
        classes = self.probabilities.shape[1]
        wrong, judged = (
            np.bincount(self.labels[some], minlength=classes) for some in (self.wrong, self.judged)
        )
        return np.flatnonzero(2 * wrong > judged).tolist()

    @property
    def accuracy(self) -> float:
        """The share of the judged images whose given class is the most probable one."""
        return float((self.proposed == self.labels)[self.judged].mean())


def audited_labels(labels: Array, probabilities: Array, known: Array) -> LabelAudit:
    """Finds likely wrong labels i32[n] by probabilities f32[n,K]; those not `known` are not judged.

    Raises:
        RequestError: fewer than two classes can be judged.
    """
    classes = np.unique(labels[known])
    if len(classes) < 2:
        raise RequestError(
            "audit: no labels can be judged, since the pictures of each class are one group"
        )
    positions = np.flatnonzero(known)
    given = np.searchsorted(classes, labels[positions])
    among = probabilities[np.ix_(positions, classes)].astype(np.float64) + 1e-9
    among /= among.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        # For example of classes with one image; it still flags the others.
        warnings.simplefilter("ignore", UserWarning)
        found = cleanlab_filter.find_label_issues(given, among, filter_by=METHOD, n_jobs=1)
        quality = cleanlab_rank.get_label_quality_scores(given, among, method="self_confidence")
    wrong, of_all = np.zeros(len(labels), bool), np.ones(len(labels), np.float32)
    # Only where the model prefers another class is there one to propose.
    wrong[positions] = found & (most_probable(probabilities[positions]) != labels[positions])
    of_all[positions] = quality
    return LabelAudit(
        labels=labels, probabilities=probabilities, judged=known, wrong=wrong, quality=of_all
    )
