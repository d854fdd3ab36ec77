from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.values import Array
from pipeline.evaluation.labels import audited_labels
from pipeline.system.errors import RequestError


def predicted(truth: Array, classes: int, sure: float = 0.9) -> Array:
    probabilities = np.full((len(truth), classes), (1 - sure) / (classes - 1), np.float32)
    probabilities[np.arange(len(truth)), truth] = sure
    return probabilities


def test_swapped_labels_are_found_and_the_others_left_alone() -> None:
    truth = np.arange(60, dtype=np.int32) % 3
    labels = truth.copy()
    labels[[4, 17, 30]] = (truth[[4, 17, 30]] + 1) % 3
    verdict = audited_labels(labels, predicted(truth, 3), np.ones(60, bool))
    assert np.flatnonzero(verdict.wrong).tolist() == [4, 17, 30]
    assert verdict.proposed[[4, 17, 30]].tolist() == truth[[4, 17, 30]].tolist()
    assert set(verdict.order[:3].tolist()) == {4, 17, 30}
    assert verdict.accuracy == pytest.approx(57 / 60)
    assert sum(count for *_, count in verdict.pairs) == 3
    assert verdict.quality[4] == pytest.approx(0.05, abs=1e-3)


def test_the_most_doubtful_label_comes_first() -> None:
    truth = np.arange(40, dtype=np.int32) % 2
    labels, probabilities = truth.copy(), predicted(truth, 2)
    labels[[2, 5]] = 1 - truth[[2, 5]]
    probabilities[5] = [0.01, 0.99] if truth[5] else [0.99, 0.01]
    assert audited_labels(labels, probabilities, np.ones(40, bool)).order[:2].tolist() == [5, 2]


def test_labels_of_a_class_that_no_model_has_seen_are_not_judged() -> None:
    truth = np.concatenate([np.arange(40) % 2, np.full(10, 2)]).astype(np.int32)
    probabilities = predicted(np.where(truth == 2, 0, truth), 3)
    probabilities[:, 2] = 0
    known = truth != 2
    verdict = audited_labels(truth, probabilities / probabilities.sum(axis=1, keepdims=True), known)
    assert not verdict.wrong.any()
    assert (verdict.quality[~known] == 1).all()
    assert verdict.accuracy == 1


def test_without_two_classes_to_compare_nothing_is_judged() -> None:
    with pytest.raises(RequestError, match="no labels can be judged"):
        audited_labels(np.zeros(4, np.int32), predicted(np.zeros(4, np.int32), 2), np.ones(4, bool))
