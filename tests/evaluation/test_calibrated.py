from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.values import Predictions, Split
from pipeline.evaluation.calibrated import at_temperature, best_temperature
from pipeline.evaluation.evaluate import beside
from pipeline.evaluation.metrics import accuracy, ece, loss
from tests.commands import configured


def predictions(sharpness: float, images: int = 4000) -> Predictions:
    """Labels drawn from known probabilities, whose logits are then multiplied by `sharpness`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (images, 3))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((images, 1)) > true.cumsum(axis=1)).sum(axis=1).astype(np.int32)
    sharp = np.exp(sharpness * logits)
    probs = (sharp / sharp.sum(axis=1, keepdims=True)).astype(np.float32)
    split = Split(images=np.zeros((images, 1, 1, 1), np.uint8), labels=labels)
    return Predictions(split=split, probs=probs, class_names=("a", "b", "c"))


@pytest.mark.parametrize("sharpness", [3.0, 1.0, 0.4])
def test_the_temperature_undoes_too_much_or_too_little_confidence(sharpness: float) -> None:
    given = predictions(sharpness)
    found = best_temperature(given)
    assert found == pytest.approx(sharpness, rel=0.1)
    calibrated = at_temperature(given, found)
    assert loss(calibrated) <= loss(given)
    assert ece(calibrated) < 0.03
    np.testing.assert_array_equal(calibrated.predicted, given.predicted)


def test_a_temperature_of_one_changes_nothing_and_halves_are_square_roots() -> None:
    given = predictions(1.0, images=5)
    np.testing.assert_allclose(at_temperature(given, 1.0).probs, given.probs, atol=1e-6)
    roots = np.sqrt(given.probs)
    expected = roots / roots.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(at_temperature(given, 2.0).probs, expected, atol=1e-6)


def test_figures_beside_the_plain_ones_name_the_split_and_the_way() -> None:
    val, test = predictions(2.0, images=300), predictions(2.0, images=200)
    both, asked = {"val": val, "test": test}, configured("evaluate.temperature=true").evaluate
    other = at_temperature(test, 0.5)
    assert beside(both, {}, configured().evaluate).metrics == {}
    measured = beside(both, {"test": other.probs}, asked).metrics
    value = best_temperature(val)
    warmed = at_temperature(test, value)
    assert measured == {
        "test/views/accuracy": accuracy(other),
        "test/views/loss": loss(other),
        "test/views/ece": ece(other),
        "val/temperature": value,
        "test/tempered/accuracy": accuracy(test),
        "test/tempered/loss": loss(warmed),
        "test/tempered/ece": ece(warmed),
    }
    assert loss(warmed) < loss(test)
    assert beside({"val": val}, {}, asked).metrics == {"val/temperature": value}
