from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.rules import public_functions
from pipeline.data.values import Array, Predictions, Split
from pipeline.evaluation import metrics
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.metrics import Scale, scale_of


def predictions(
    probabilities: Array | list[list[float]], labels: list[int], names: tuple[str, ...] = ()
) -> Predictions:
    matrix = np.array(probabilities, np.float32)
    return Predictions(
        split=Split(
            images=np.zeros((len(labels), 2, 2, 1), np.uint8), labels=np.array(labels, np.int32)
        ),
        probabilities=matrix,
        class_names=names or tuple(f"c{index}" for index in range(matrix.shape[1])),
    )


def guesses(predicted: list[int], labels: list[int], classes: int) -> Predictions:
    """Predictions that are certain of `predicted`."""
    return predictions(np.eye(classes)[predicted], labels)


# Of the three images of c0 two are found and one goes to c1; c1's one image is found; c2 has none.
MIXED = guesses([0, 0, 1, 1], [0, 0, 0, 1], classes=3)


def test_loss_is_the_mean_negative_logarithm_of_the_right_class() -> None:
    made = predictions([[0.5, 0.5], [0.25, 0.75]], [0, 1])
    assert metrics.loss(made) == pytest.approx((np.log(2) + np.log(4 / 3)) / 2, rel=1e-7)


def test_a_class_held_impossible_costs_as_much_as_keras_says() -> None:
    assert metrics.loss(guesses([1], [0], 2)) == pytest.approx(-np.log(1e-7), rel=1e-9)
    assert metrics.loss(guesses([0], [0], 2)) == pytest.approx(1e-7, rel=1e-6)


def test_loss_agrees_with_keras() -> None:
    import keras

    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    made = predictions(probabilities, [index % 4 for index in range(50)])
    expected = keras.losses.SparseCategoricalCrossentropy()(made.labels, made.probabilities)
    assert metrics.loss(made) == pytest.approx(float(expected), rel=1e-6)


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert metrics.accuracy(MIXED) == 0.75
    assert metrics.accuracy(guesses([1, 0], [0, 1], 2)) == 0.0


def test_macro_f1_is_the_plain_mean_over_classes() -> None:
    # c0: precision 1, recall 2/3, F1 0.8; c1: 1/2, 1, 2/3; c2: nothing there, 0.
    assert metrics.macro_f1(MIXED) == pytest.approx((0.8 + 2 / 3 + 0) / 3, rel=1e-9)


def test_per_class_scores_are_named_by_class() -> None:
    assert metrics.per_class(MIXED) == pytest.approx(
        {
            "accuracy_c0": 2 / 3,
            "accuracy_c1": 1,
            "accuracy_c2": 0,
            "precision_c0": 1,
            "precision_c1": 1 / 2,
            "precision_c2": 0,
            "f1_c0": 0.8,
            "f1_c1": 2 / 3,
            "f1_c2": 0,
        }
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("T-shirt/top", "T-shirt_top"),
        ("Ankle boot", "Ankle_boot"),
        ("v1.5", "v1.5"),
        ("naïve", "naïve"),
        ("a:b\\c", "a_b_c"),
    ],
)
def test_a_class_name_within_a_metrics_name_has_no_separators(name: str, expected: str) -> None:
    assert metrics.as_metric_name(name) == expected
    made = predictions(np.eye(2), [0, 1], (name, "other"))
    assert f"f1_{expected}" in metrics.per_class(made)


@pytest.mark.parametrize(
    "names",
    [
        ("C++", "C--", "C##", "C  "),
        ("hot dog", "hot_dog", "hot/dog", "Hot dog"),
        ("cat", "Cat", "CAT"),
        ("😀", "😁", "🐈‍⬛"),
        ("हिन्दी", "हिन्द्", "日本", "日本語"),
        ("é", "e\u0301", "\ufb01", "fi"),
        ("", " ", "_"),
        ("a" * 300, "a" * 300 + "b"),
    ],
)
def test_no_two_classes_share_a_metric(names: tuple[str, ...]) -> None:
    made = predictions(np.eye(len(names)), list(range(len(names))), names)
    measured = metrics.per_class(made)
    assert len({name.casefold() for name in measured}) == 3 * len(names)
    assert all(len(f"test/{name}") <= 250 for name in measured)  # as MLflow allows


@given(st.lists(st.text(alphabet="aA\u017f ß_+-#./é😀日", max_size=4), unique=True, max_size=8))
def test_names_of_classes_within_metrics_are_distinct_whatever_the_classes(
    names: list[str],
) -> None:
    keys = metrics.class_keys(names)
    assert len({unicodedata.normalize("NFC", key).casefold() for key in keys}) == len(names)
    assert all(re.fullmatch(r"[\w.-]+", key) for key in keys)


@given(st.lists(st.text(max_size=6), unique=True, max_size=6))
def test_a_class_keeps_its_name_where_no_other_has_it(names: list[str]) -> None:
    slugs = [metrics.as_metric_name(name) for name in names]
    folded = [unicodedata.normalize("NFKC", slug).casefold() for slug in slugs]
    for slug, fold, key in zip(slugs, folded, metrics.class_keys(names), strict=True):
        assert key == slug or not slug or folded.count(fold) > 1 or not fold.isascii()


def test_the_name_of_a_class_that_clashes_does_not_depend_on_the_other_classes() -> None:
    assert (
        metrics.class_keys(["C++", "C##", "D"])[0]
        == metrics.class_keys(["x", "C--", "C  ", "C++"])[3]
    )
    assert metrics.class_keys(["C++", "D"]) == ["C__", "D"]


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("val/accuracy", "higher"),
        ("kept/val/loss", "lower"),
        ("train/loss", "lower"),
        ("test/macro_f1", "higher"),
        ("test/ece", "lower"),
        ("test/brier", "lower"),
        ("test/error_rate", "lower"),
        ("test/nll", "lower"),
        ("test/mae", "lower"),
        ("test/f1_C++", "higher"),
        ("test/accuracy_loss", "higher"),  # of the class "loss"
        ("val_loss", "lower"),
        ("val/Top-5-Error", "lower"),
        ("eval_top5_acc", "higher"),
        ("valid-auc", "higher"),
        ("time/total_s", "lower"),
        ("time/images_per_s", "higher"),
        ("model/parameters", "lower"),
        ("model/training_memory_mb", "lower"),
        ("train/best_epoch", None),
        ("test/fairness", None),
        ("val/accuracy_gap", None),
        ("learning_rate", None),
    ],
)
def test_a_metric_is_known_to_be_better_one_way_or_not_known(name: str, better: str | None) -> None:
    assert scale_of(name).better == better


def test_every_metric_of_ours_declares_which_way_is_better() -> None:
    for name, function in public_functions(metrics.__name__).items():
        if list(function.__annotations__.values()) == ["Predictions", "float"]:
            assert scale_of(f"test/{name}").better is not None, name


def test_a_metric_of_ones_own_declares_what_its_numbers_mean() -> None:
    @metrics.metric(better="lower", low=0, unit="points")
    def regret_of_mine(predictions: Predictions) -> float:
        return 0.0

    @metrics.metric(better="lower")
    def cost_of_mine(predictions: Predictions) -> dict[str, float]:
        return {}

    assert scale_of("test/regret_of_mine") == Scale(better="lower", low=0, unit="points")
    assert scale_of("test/cost_of_mine_Shirt").better == "lower"
    with pytest.raises(ValueError, match="metric regret_of_mine: .*different scales"):

        def again() -> None:
            @metrics.metric(better="higher")
            def regret_of_mine(predictions: Predictions) -> float:
                return 0.0

        again()


def test_an_interval_is_cut_to_what_the_metric_can_be_unless_its_value_is_on_another_scale() -> (
    None
):
    wide = Estimate(value=0.9, low=0.7, high=1.1)
    assert scale_of("val/accuracy").within(wide) == Estimate(value=0.9, low=0.7, high=1.0)
    percent = Estimate(value=90.0, low=70, high=110)
    assert scale_of("val/accuracy").within(percent) == percent


def test_the_brier_score_the_error_rate_and_the_balanced_accuracy() -> None:
    made = predictions([[0.8, 0.2], [0.4, 0.6], [1, 0]], [0, 0, 1])
    assert metrics.brier(made) == pytest.approx((0.08 + 0.72 + 2) / 3, rel=1e-6)
    assert metrics.error_rate(made) == pytest.approx(2 / 3)
    assert metrics.balanced_accuracy(MIXED) == pytest.approx((2 / 3 + 1) / 2)


def test_a_certain_model_that_is_always_right_is_calibrated() -> None:
    assert metrics.ece(guesses([0, 1], [0, 1], 2)) == 0.0


def test_a_certain_model_that_is_always_wrong_is_as_uncalibrated_as_can_be() -> None:
    assert metrics.ece(guesses([1, 0], [0, 1], 2)) == 1.0


def test_a_model_as_often_right_as_it_says_is_calibrated() -> None:
    assert metrics.ece(predictions([[0.75, 0.25]] * 4, [0, 0, 0, 1])) == 0.0


def test_calibration_error_is_the_gap_of_each_bin_weighted_by_its_images() -> None:
    # Three at confidence 0.75 with one right (gap 0.75 - 1/3), one at 1 that is right (gap 0).
    made = predictions([[0.75, 0.25]] * 3 + [[1, 0]], [0, 1, 1, 0])
    assert metrics.ece(made) == pytest.approx(3 / 4 * (0.75 - 1 / 3), rel=1e-9)


def test_gaps_of_opposite_sign_in_different_bins_do_not_cancel() -> None:
    made = predictions([[0.75, 0.25], [1, 0]], [0, 1])
    assert metrics.ece(made) == pytest.approx((0.25 + 1) / 2, rel=1e-9)


def test_calibration_has_the_bins_that_are_not_empty_and_certainty_in_the_last() -> None:
    made = predictions([[1, 0], [0.96875, 0.03125], [0.5, 0.5]], [0, 1, 1])
    confidence, share_right, count = metrics.calibration(made)
    np.testing.assert_array_equal(confidence, [0.5, (1 + 0.96875) / 2])
    np.testing.assert_array_equal(share_right, [0, 0.5])
    np.testing.assert_array_equal(count, [1, 2])


def test_the_class_report_has_a_row_for_each_class_also_an_absent_one() -> None:
    rows = [line.split() for line in metrics.class_report(MIXED).splitlines()]
    assert ["c0", "1.0000", "0.6667", "0.8000", "3"] in rows
    assert ["c2", "0.0000", "0.0000", "0.0000", "0"] in rows


@st.composite
def any_predictions(draw: st.DrawFn) -> Predictions:
    images, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Small concentrations give near-certain rows, large ones undecided rows.
    probabilities = rng.dirichlet(np.full(classes, draw(st.sampled_from([0.01, 1, 100]))), images)
    return predictions(probabilities, rng.integers(0, classes, images).tolist())


@given(any_predictions())
def test_every_share_lies_between_0_and_1_and_loss_is_not_negative(made: Predictions) -> None:
    shares = [metrics.ece(made), metrics.accuracy(made), metrics.macro_f1(made)]
    assert all(0 <= value <= 1 for value in [*shares, *metrics.per_class(made).values()])
    assert 0 <= metrics.loss(made) <= -np.log(1e-7) * (1 + 1e-9)


@given(any_predictions())
def test_calibration_counts_every_image_once_and_keeps_the_totals(made: Predictions) -> None:
    confidence, share_right, count = metrics.calibration(made)
    assert count.sum() == len(made.labels)
    assert (share_right * count).sum() == pytest.approx(made.correct.sum())
    assert (confidence * count).sum() == pytest.approx(made.confidence.sum(), rel=1e-5)
    # No bin can hide more than the whole: ECE is at least the gap of the means.
    gap = abs(float(made.confidence.mean()) - float(made.correct.mean()))
    assert metrics.ece(made) >= gap - 1e-6


@given(any_predictions(), st.integers(0, 100))
def test_metrics_do_not_depend_on_the_order_of_the_images(made: Predictions, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(made.labels))
    shuffled = predictions(made.probabilities[order], made.labels[order].tolist())
    for metric in (metrics.loss, metrics.accuracy, metrics.macro_f1, metrics.ece):
        assert metric(shuffled) == pytest.approx(metric(made), abs=1e-9)


def test_names_that_mlflow_would_refuse_are_changed_and_others_are_not() -> None:
    names = ["recall_cat", "recall hot/dog", "recall_C++", "recall_C##", "recall_men's", "r" * 300]
    keys = metrics.metric_keys(names)
    assert keys[:2] == names[:2]
    assert keys[4] == "recall_men_s"
    assert [key[:9] for key in keys[2:4]] == ["recall_C_"] * 2
    assert len(set(keys)) == len(names)
    assert all(re.fullmatch(r"[/\w.\- :]{1,240}", key) for key in keys)


def test_the_most_confused_classes_are_those_with_mistakes_then_those_with_images() -> None:
    labels = [3, 3, 3, 2, 2, 1, 0]
    found = guesses([3, 3, 3, 2, 2, 1, 1], labels, classes=6)
    assert metrics.most_confused(found, 3).tolist() == [0, 1, 3]
    assert metrics.most_confused(found, 9).tolist() == [*range(6)]
    assert metrics.confusion_counts(found, np.arange(6))[0].tolist() == [0, 1, 0, 0, 0, 0]
    assert metrics.confusion_counts(found, np.array([1, 3])).tolist() == [[1, 0], [0, 3]]
