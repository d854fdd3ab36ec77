from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.evaluation.paired import MOST_SWAPS, McNemar, Swap, class_changes, mcnemar, swaps

CONFIDENCE = 0.95
CLASSES = ("bag", "shirt")


def classes(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_images_that_one_alone_has_right_are_counted_and_tested_as_fair_coins() -> None:
    labels = np.zeros(30, np.int32)
    first, second = labels.copy(), labels.copy()
    first[:2], second[2:12], first[20], second[20] = 1, 1, 1, 1  # image 20: both wrong
    expected = binomtest(10, 12).pvalue
    assert mcnemar(labels, first, second) == McNemar(
        only_first=10, only_second=2, p_value=pytest.approx(expected)
    )


def test_which_of_the_two_comes_first_does_not_change_the_p_value() -> None:
    labels, first, second = classes(0, 0, 0, 0), classes(0, 0, 0, 1), classes(1, 1, 1, 0)
    assert mcnemar(labels, first, second).p_value == mcnemar(labels, second, first).p_value == 0.625


def test_classifiers_that_err_on_the_same_images_are_level() -> None:
    labels, predicted = classes(0, 1, 1), classes(0, 0, 1)
    assert mcnemar(labels, predicted, predicted) == McNemar(
        only_first=0, only_second=0, p_value=1.0
    )


def test_answers_to_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="not the same images"):
        mcnemar(classes(0, 1), classes(0, 1), classes(0, 1, 1))


def test_each_class_has_its_share_right_and_the_second_less_the_first() -> None:
    labels, first, second = (
        classes(0, 0, 0, 0, 1, 1),
        classes(0, 1, 1, 1, 1, 1),
        classes(0, 0, 0, 1, 1, 0),
    )
    bag, shirt = class_changes(labels, first, second, CLASSES, CONFIDENCE)
    assert (bag.name, bag.images, bag.first, bag.second) == ("bag", 4, 0.25, 0.75)
    assert (shirt.name, shirt.images, shirt.change.value) == ("shirt", 2, -0.5)
    assert bag.change.low <= bag.change.value <= bag.change.high


def test_the_interval_of_a_class_is_the_same_every_time_and_shrinks_with_its_images() -> None:
    labels, first, second = classes(*[0] * 8), classes(*[0, 1] * 4), classes(*[0, 0, 1, 0] * 2)
    widths = []
    for times in (1, 100):
        inputs = (np.tile(part, times) for part in (labels, first, second))
        [one] = class_changes(*inputs, ("bag",), CONFIDENCE)
        widths.append(one.change.high - one.change.low)
    [again] = class_changes(labels, first, second, ("bag",), CONFIDENCE)
    assert widths[0] == again.change.high - again.change.low
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.15)


def test_a_class_without_images_is_left_out() -> None:
    [only] = class_changes(classes(1), classes(1), classes(1), CLASSES, CONFIDENCE)
    assert only.name == "shirt"


def test_confusions_come_by_how_much_their_number_changed() -> None:
    labels = classes(0, 0, 0, 1, 1)
    first, second = classes(1, 1, 1, 0, 1), classes(0, 0, 1, 0, 0)
    assert swaps(labels, first, second, CLASSES) == [
        Swap(true="bag", predicted="shirt", first=3, second=1),
        Swap(true="shirt", predicted="bag", first=1, second=2),
    ]


def test_right_answers_and_unchanged_confusions_are_no_swaps() -> None:
    labels = classes(0, 1, 1)
    assert swaps(labels, classes(1, 1, 1), classes(1, 1, 1), CLASSES) == []


def test_at_most_eight_swaps_are_shown() -> None:
    labels = np.repeat(np.arange(5, dtype=np.int32), 5)
    names = tuple("abcde")
    found = swaps(labels, labels, np.tile(np.arange(5, dtype=np.int32), 5), names)
    assert len(found) == MOST_SWAPS
