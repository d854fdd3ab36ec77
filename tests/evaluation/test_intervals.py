from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.intervals import (
    NEWCOMBE,
    STUDENT,
    WELCH,
    WILSON,
    Estimate,
    Resampling,
    bonett_price,
    bootstrap,
    newcombe,
    student,
    welch,
    wilson,
)

RESAMPLING = Resampling(confidence=0.95, resamples=4000)


@pytest.mark.parametrize(("right", "images"), [(0, 10), (7, 10), (4330, 5000), (5000, 5000)])
def test_the_score_interval_is_scipys(right: int, images: int) -> None:
    expected = stats.binomtest(right, images).proportion_ci(0.9, method="wilson")
    found = wilson(right / images, images, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (found.value, found.method) == (right / images, WILSON)


def test_the_interval_of_a_mean_over_seeds_is_students() -> None:
    values = np.array([0.86, 0.87, 0.89])
    found = student(values, 0.95)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.value, found.sd) == pytest.approx((values.mean(), values.std(ddof=1)))
    assert (found.n, found.method) == (3, STUDENT)


def test_a_difference_of_means_over_seeds_is_welchs() -> None:
    first, second = np.array([0.86, 0.87, 0.89, 0.9]), np.array([0.91, 0.92, 0.99])
    found = welch(student(first, 0.95), student(second, 0.95), 0.95)
    expected = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.value, found.method) == (pytest.approx(second.mean() - first.mean()), WELCH)


def test_a_single_run_is_taken_to_spread_as_the_seeds_it_is_compared_with() -> None:
    many = student(np.array([0.86, 0.87, 0.89]), 0.95)
    half = stats.t.ppf(0.975, 2) * many.sd * math.sqrt(1 + 1 / 3)
    for gap in (welch(many, Estimate(value=0.9), 0.95), welch(Estimate(value=0.9), many, 0.95)):
        assert gap.high - gap.value == pytest.approx(half)


@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_that_all_agree_do_not_tell_how_much_others_vary(seeds: int) -> None:
    same, others = (student(np.full(seeds, share), 0.95) for share in (0.1, 0.7))
    assert (same.value, same.n, same.sd, same.method) == (0.1, seeds, 0, "")
    assert math.isnan(same.low)
    assert welch(same, others, 0.95).is_noise is None
    assert welch(same, Estimate(value=0.5), 0.95).is_noise is None
    varying = student(np.array([0.5, 0.7]), 0.95)
    assert welch(same, varying, 0.95).is_noise is not None


def test_newcombes_example_of_two_shares_is_met() -> None:
    # Newcombe 1998, table II, 56/70 - 48/80, method 10: 0.0524 to 0.3339.
    found = newcombe(wilson(48 / 80, 80, 0.95), wilson(56 / 70, 70, 0.95))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert found.method == NEWCOMBE


def test_a_difference_to_a_value_without_interval_has_none() -> None:
    found = newcombe(wilson(0.5, 10, 0.95), Estimate(value=0.75))
    assert (found.value, found.is_noise) == (0.25, None)
    assert math.isnan(found.low)


def test_a_difference_is_noise_if_zero_is_inside_its_interval() -> None:
    assert Estimate(value=0.1, low=-0.1, high=0.3).is_noise is True
    assert Estimate(value=0.1, low=0.05, high=0.3).is_noise is False


def test_the_bootstrap_interval_is_about_the_exact_one() -> None:
    right = np.zeros((1, 1000))
    right[0, :870] = 1
    ((low, high),) = bootstrap(right, RESAMPLING)
    exact = stats.binom(1000, 0.87).ppf(RESAMPLING.tails) / 1000
    assert (low, high) == pytest.approx(tuple(exact), abs=0.002)


def test_the_bootstrap_is_seeded_and_sees_all_quantities_on_the_same_resamples() -> None:
    values = np.random.default_rng(0).random((1, 50))
    both = bootstrap(np.concatenate([values, 1 - values]), RESAMPLING)
    np.testing.assert_allclose(both[:1], bootstrap(values, RESAMPLING), rtol=1e-12)
    np.testing.assert_allclose(both[1], 1 - both[0][::-1])


def test_the_blocks_that_resamples_are_drawn_in_change_nothing_but_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).random((2, 30))
    whole = bootstrap(values, RESAMPLING)
    monkeypatch.setattr("pipeline.evaluation.intervals._AT_ONCE", 700)
    np.testing.assert_allclose(bootstrap(values, RESAMPLING), whole)


def test_a_constant_has_an_interval_of_no_width() -> None:
    np.testing.assert_allclose(bootstrap(np.full((1, 7), 0.25), RESAMPLING), [[0.25, 0.25]])


def test_a_paired_interval_adds_an_image_to_either_side() -> None:
    # By hand: p = 2/23 and 8/23, so -0.2609 ± 1.96 · √((10/23 - 0.0681) / 23).
    low, high = bonett_price(7, 1, 21, 0.95)
    assert (low, high) == pytest.approx((-0.5084, -0.0134), abs=1e-4)
    assert bonett_price(1, 7, 21, 0.95) == pytest.approx((-high, -low))
    assert bonett_price(0, 0, 1, 0.99999) == (-1, 1)


@pytest.mark.parametrize("images", [60, 400, 10_000])
def test_a_paired_interval_agrees_with_the_exact_test_except_at_the_border(images: int) -> None:
    for first, second in itertools.product(range(20), repeat=2):
        if first + second:
            p = stats.binomtest(first, first + second).pvalue
            low, high = bonett_price(first, second, images, 0.95)
            assert (low <= 0 <= high) == (p >= 0.05) or 0.05 <= p < 0.071


def test_equal_predictions_on_few_images_do_not_show_that_two_are_equal() -> None:
    low, high = bonett_price(0, 0, 100, 0.95)
    assert (low, high) == pytest.approx((-0.0272, 0.0272), abs=1e-4)
