from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.data.values import Array
from pipeline.evaluation.drift import (
    DIRECTIONS,
    Shift,
    directions_of,
    judged,
    of_classes,
    of_features,
    of_values,
    smallest_seen,
)


def test_the_distance_and_its_p_value_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    before, now = np.sort(rng.normal(0, 1, 800)), rng.normal(0.25, 1, 300)
    shift = of_values("brightness", before.tolist(), 800, now)
    expected = stats.ks_2samp(before, now, method="asymp")
    assert shift.distance == pytest.approx(expected.statistic)
    assert shift.p == pytest.approx(expected.pvalue, rel=0.15)
    assert shift.psi == pytest.approx(0.25**2, abs=0.05)  # of two normal distributions: d²
    assert (shift.reference, shift.new) == (np.median(before), np.median(now))


def test_class_shares_are_compared_by_the_test_of_scipy_whatever_the_names() -> None:
    before, now = {"cat": 60, "dog": 40}, {"cat": 30, "dog": 60, "cow": 10}
    shift = of_classes("classes", before, now)
    expected = stats.chi2_contingency([[60, 40, 0], [30, 60, 10]])
    assert shift.p == pytest.approx(expected.pvalue)
    assert shift.distance == pytest.approx(0.3)
    assert shift.detail == "cat: 60.0% → 30.0%"
    rare = of_classes("classes", {"cat": 9_997, "dog": 3}, {"cat": 50, "dog": 50})
    assert rare.detail == "cat: >99.9% → 50.0%"
    assert of_classes("classes", {"cat": 3}, {"cat": 5}).p == 1
    with pytest.raises(ValueError, match="no images to compare"):
        of_classes("classes", {"cat": 1}, {"cat": 0})


def test_rare_classes_raise_no_more_false_alarms_than_the_level_of_the_test() -> None:
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 31) ** 2  # most classes have less than one new image
    drawn = [
        [
            dict(zip(map(str, range(30)), rng.multinomial(n, shares / shares.sum()), strict=True))
            for n in (1000, 20)
        ]
        for _ in range(100)
    ]
    ps = np.array([of_classes("classes", before, now).p for before, now in drawn])
    assert (ps < 0.05).sum() <= 10  # the χ² distribution: 18 or so, and 15 of them below 0.005
    assert (ps < 0.005).sum() <= 3
    before, now = drawn[0]
    assert of_classes("classes", before, now).p == ps[0]
    assert of_classes("classes", before, {"7": 20}).p == 1 / 2000


def test_a_class_of_its_own_is_found_among_few_images() -> None:
    assert of_classes("classes", {"cat": 100, "dog": 100}, {"cow": 4}).p < 0.005


def test_a_shift_must_be_significant_among_all_tests_and_large_enough() -> None:
    rng = np.random.default_rng(1)
    reference = np.sort(rng.normal(0, 1, 20_000)).tolist()

    def level(shift: float, count: int, tests: int = 1) -> int:
        one = of_values("a", reference, 20_000, np.random.default_rng(2).normal(shift, 1, count))
        return judged([one] * tests)[0].level

    assert level(0.1, 20_000) == 0  # significant, and of no importance
    assert level(0.5, 2_000) == 1
    assert level(2, 2_000) == 2
    assert level(0.7, 3) == 0  # three images do not tell
    assert level(0.7, 45) > level(0.7, 45, tests=5000)


def features(seed: int, count: int, size: int = 60) -> Array:
    """Features of three classes in a few directions, with noise in all."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(0, 3, (3, size))
    return centres[rng.integers(0, 3, count)] + rng.normal(0, 1, (count, size))


def compared(reference: Array, new: Array) -> tuple[Shift, Array, Array]:
    directions = directions_of(reference)
    return of_features("f", directions, directions.along(new))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "new"), [(20, 10), (60, 200), (400, 40)])
def test_features_of_the_same_kind_are_seldom_called_shifted(count: int, new: int) -> None:
    ps = [compared(features(n, count), features(500 + n, new))[0].p for n in range(20)]
    assert sum(p < 0.05 for p in ps) <= 3


def test_features_that_shift_are_found_in_or_outside_the_directions_of_the_reference() -> None:
    reference = features(1, 300)
    one_class = reference[np.abs(reference - reference[0]).mean(axis=1) < 2]
    within, before, now = compared(reference, one_class)
    assert judged([within])[0].level == 2
    assert "direction" in within.detail
    assert np.abs(np.median(before) - np.median(now)) > 0
    off = features(2, 100)
    off[:, 7] += 12
    beyond = compared(reference, off)[0]
    assert (beyond.detail, judged([beyond])[0].level) == ("outside", 2)
    with pytest.raises(ValueError, match="there are 19 images to compare with"):
        directions_of(reference[:19])


def test_of_new_features_few_values_are_kept_and_may_be_found_in_parts() -> None:
    directions, new = directions_of(features(1, 60, size=5000)), features(2, 30, size=5000)
    parts = np.concatenate([directions.along(new[:7]), directions.along(new[7:])])
    assert parts.shape == (30, DIRECTIONS + 1)
    assert parts == pytest.approx(directions.along(new))


def test_what_so_many_images_can_tell_is_the_distance_from_which_a_shift_counts() -> None:
    assert smallest_seen(10**9, 100, 1) == pytest.approx(1.358 / 100**0.5, rel=0.02)
    assert smallest_seen(1000, 20, 8) > smallest_seen(1000, 200, 8)
    assert smallest_seen(10**9, 10**6, 1) == 0.1  # smaller ones are significant, and do not count
    assert smallest_seen(1000, 1, 8) > 1


def test_constant_values_are_compared_too() -> None:
    same = of_values("height", [28.0] * 50, 50, np.full(40, 28))
    assert (same.distance, same.psi) == (0, 0)
    for height in (14, 64):
        other = of_values("height", [28.0] * 50, 50, np.full(40, height))
        assert (other.distance, other.psi > 5) == (1, True)
        assert judged([other])[0].verdict == "large shift"


def test_values_below_one_that_many_images_share_change_the_stability_index() -> None:
    reference = [28.0] * 60 + [*np.linspace(30, 40, 40)]
    same = of_values("height", reference, 100, np.array(reference))
    below = of_values("height", reference, 100, np.array([14.0] * 60 + reference[60:]))
    assert same.psi == 0
    assert below.psi > 1
