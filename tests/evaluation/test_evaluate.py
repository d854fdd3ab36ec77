from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.trusted import trust
from pipeline.data.values import Fitted, Predictions, Split
from pipeline.evaluation import metrics
from pipeline.evaluation.evaluate import (
    alternative_metrics,
    at_temperature,
    best_temperature,
    draw_training,
    evaluate,
)
from pipeline.system.errors import PipelineError, RequestError
from tests.commands import configured

MADE = Predictions(
    split=Split(images=np.zeros((4, 2, 2, 1), np.uint8), labels=np.array([0, 0, 1, 1], np.int32)),
    probabilities=np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32),
    class_names=("T-shirt/top", "bag"),
)


def fitted(best_epoch: int | None, **history: list[float]) -> Fitted:
    return Fitted(
        model=None,
        history={"train/loss": [1.0, 0.5], "train/accuracy": [0.5, 1.0], **history},
        images_per_s=1234.5,
        best_epoch=best_epoch,
        kept_epoch=1,
        untrained=lambda: None,
    )


def test_the_chosen_metrics_and_no_others_are_measured_under_test() -> None:
    evaluation = evaluate(MADE, ["accuracy", "ece"], [])
    assert evaluation.metrics == {"test/accuracy": 0.75, "test/ece": 0.25}
    assert evaluation.figures == {}


def test_two_metrics_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ece(predictions: object) -> dict[str, float]:
        return {"accuracy": 0.0}

    ece.__module__ = metrics.__name__
    monkeypatch.setattr(metrics, "ece", ece)
    with pytest.raises(ValueError, match="two metrics are named test/accuracy"):
        evaluate(MADE, ["accuracy", "ece"], [])


OWN = """
def none(predictions: "Predictions") -> float: ...
def failing(predictions: "Predictions") -> float: return 1 / 0
def drawn(predictions: "Predictions") -> "Figure": return [1]
"""


@pytest.fixture
def own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_metrics.py").write_text(OWN)
    trust(["my_metrics"])
    yield
    trust([])
    sys.modules.pop("my_metrics")


@pytest.mark.usefixtures("own_metrics")
@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ((["my_metrics.none"], []), r"none: TypeError: float\(\) argument must be .* 'NoneType'"),
        ((["my_metrics.failing"], []), "failing: ZeroDivisionError: division by zero"),
        (([], ["my_metrics.drawn"]), "drawn: TypeError: returns list, not a Figure"),
    ],
)
def test_a_metric_or_plot_of_ones_own_that_fails_is_named(
    named: tuple[list[str], list[str]], reason: str
) -> None:
    with pytest.raises(PipelineError, match=rf"^my_metrics.{reason}"):
        evaluate(MADE, *named)


def test_a_metric_of_several_values_gives_one_metric_each() -> None:
    measured = evaluate(MADE, ["accuracy", "per_class"], []).metrics
    assert measured == pytest.approx(
        {
            "test/accuracy": 0.75,
            "test/accuracy_T-shirt_top": 1,
            "test/accuracy_bag": 0.5,
            "test/precision_T-shirt_top": 2 / 3,
            "test/precision_bag": 1,
            "test/f1_T-shirt_top": 0.8,
            "test/f1_bag": 2 / 3,
        }
    )


def test_figures_go_by_the_name_of_their_plot() -> None:
    figures = evaluate(MADE, [], ["mistakes", "reliability"]).figures
    assert list(figures) == ["mistakes", "reliability"]
    assert figures["mistakes"].get_suptitle() == "The 1 most confident of 1 mistakes"


def test_the_table_of_classes_comes_with_every_report() -> None:
    evaluation = evaluate(MADE, [], [])
    assert evaluation.metrics == {}
    assert list(evaluation.texts) == ["class_report.txt", "class_scores.csv"]
    assert evaluation.texts["class_scores.csv"].splitlines() == [
        "class,images,accuracy,precision,f1",
        "T-shirt/top,2,1,0.666667,0.8",
        "bag,2,0.5,1,0.666667",
    ]
    rows = evaluation.texts["class_report.txt"].splitlines()
    assert any(row.split() == ["bag", "1.0000", "0.5000", "0.6667", "2"] for row in rows)


def test_training_reports_its_speed_its_best_epoch_and_the_chosen_plots() -> None:
    evaluation = draw_training(fitted(2), ["loss"])
    assert evaluation.metrics == {"time/images_per_s": 1234.5, "train/best_epoch": 2.0}
    assert list(evaluation.figures) == ["loss"]
    assert evaluation.texts == {}


def test_without_validation_no_epoch_is_called_the_best() -> None:
    assert draw_training(fitted(None), []).metrics == {"time/images_per_s": 1234.5}


def test_training_reports_what_the_epoch_has_whose_weights_were_kept() -> None:
    evaluation = draw_training(
        fitted(1, **{"val/loss": [0.7, 0.9], "val/accuracy": [0.5, 0.6]}), []
    )
    kept = {name: value for name, value in evaluation.metrics.items() if name.startswith("kept/")}
    assert kept == {"kept/val/loss": 0.7, "kept/val/accuracy": 0.5}


def test_an_unknown_name_does_not_pass_silently() -> None:
    with pytest.raises(RequestError, match=r"no function 'acuracy'; choose one of .*accuracy"):
        evaluate(MADE, ["acuracy"], [])


def test_augmented_images_are_drawn_beside_the_plots_that_are_wanted() -> None:
    some = replace(fitted(None), augmented=np.zeros((2, 3, 4, 4, 1), np.uint8))
    assert set(draw_training(some, ["loss"]).figures) == {"loss", "augmentation"}
    assert set(draw_training(some, ["augmentation"]).figures) == {"augmentation"}
    assert draw_training(some, []).figures == {}
    assert set(draw_training(fitted(None), ["loss"]).figures) == {"loss"}


def overconfident(sharpness: float, images: int = 4000) -> Predictions:
    """Labels drawn from known probabilities, whose logits are then multiplied by `sharpness`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (images, 3))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((images, 1)) > true.cumsum(axis=1)).sum(axis=1).astype(np.int32)
    sharp = np.exp(sharpness * logits)
    probabilities = (sharp / sharp.sum(axis=1, keepdims=True)).astype(np.float32)
    split = Split(images=np.zeros((images, 1, 1, 1), np.uint8), labels=labels)
    return Predictions(split=split, probabilities=probabilities, class_names=("a", "b", "c"))


@pytest.mark.parametrize("sharpness", [3.0, 1.0, 0.4])
def test_the_temperature_undoes_too_much_or_too_little_confidence(sharpness: float) -> None:
    given = overconfident(sharpness)
    found = best_temperature(given)
    assert found == pytest.approx(sharpness, rel=0.1)
    calibrated = at_temperature(given, found)
    assert metrics.loss(calibrated) == pytest.approx(0.60286, abs=1e-5)
    assert metrics.ece(calibrated) == pytest.approx(0.0143, abs=1e-4)
    np.testing.assert_array_equal(calibrated.predicted, given.predicted)


def test_a_temperature_of_one_changes_nothing_and_halves_are_square_roots() -> None:
    given = overconfident(1.0, images=5)
    np.testing.assert_allclose(
        at_temperature(given, 1.0).probabilities, given.probabilities, atol=1e-6
    )
    roots = np.sqrt(given.probabilities)
    expected = roots / roots.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(at_temperature(given, 2.0).probabilities, expected, atol=1e-6)


def test_figures_beside_the_plain_ones_name_the_split_and_the_way() -> None:
    val, test = overconfident(2.0, images=300), overconfident(2.0, images=200)
    both, asked = {"val": val, "test": test}, configured("evaluate.temperature=true").evaluate
    other = at_temperature(test, 0.5)
    assert alternative_metrics(both, {}, configured().evaluate).metrics == {}
    measured = alternative_metrics(both, {"test": other}, asked).metrics
    value = best_temperature(val)
    warmed = at_temperature(test, value)
    assert measured == {
        "test/views/accuracy": metrics.accuracy(other),
        "test/views/loss": metrics.loss(other),
        "test/views/ece": metrics.ece(other),
        "val/temperature": value,
        "test/tempered/accuracy": metrics.accuracy(test),
        "test/tempered/loss": metrics.loss(warmed),
        "test/tempered/ece": metrics.ece(warmed),
    }
    assert metrics.loss(warmed) < metrics.loss(test)
    assert alternative_metrics({"val": val}, {}, asked).metrics == {"val/temperature": value}
