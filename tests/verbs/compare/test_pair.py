from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.tracking.values import StoredPredictions
from pipeline.verbs.compare.verdicts import (
    notes,
    verdict,
)
from tests.verbs.compare.test_comparison import IMAGES, LABELS, answers, compared, run


def test_two_runs_are_compared_on_the_test_images_where_both_have_them() -> None:
    found = compared([run("a"), run("b", rate="2")], a=answers(300), b=answers(320))
    assert found.pair is not None
    assert (found.pair.split, found.pair.images, found.unpaired) == ("test", IMAGES, None)
    assert (found.pair.test.only_first, found.pair.test.only_second) == (0, 20)
    assert found.pair.change.value == pytest.approx(0.05)
    assert [one.name for one in found.pair.classes] == ["bag", "shirt"]
    assert not found.pair.is_noise
    assert "test images a is right on 75.00%, b on 80.00%: +5.00 points" in verdict(found)
    assert verdict(found).endswith("The difference is significant: b is better.")


def test_two_runs_are_compared_on_the_validation_images_where_one_has_no_others() -> None:
    found = compared([run("a"), run("b", rate="2")], a=answers(300, "val"), b=answers(302))
    assert found.pair is not None
    assert found.pair.split == "validation"
    assert "McNemar's exact test, p = 0.5" in verdict(found)
    assert "within noise" in verdict(found)


@pytest.mark.parametrize(
    ("tags", "predictions", "reason"),
    [
        (
            {"data.fingerprint": "e" * 64},
            answers(9),
            "data differ: SHA-256 ffffffffffff and eeeeeeeeeeee",
        ),
        ({}, answers(9, labels=1 - LABELS), "test images differ"),
        ({}, answers(9, "val", labels=LABELS[:-2]), "validation images differ"),
        ({}, {}, "no predictions on a common split"),
    ],
)
def test_runs_of_other_images_are_refused_a_paired_test_with_the_reason(
    tags: dict[str, str], predictions: dict[str, StoredPredictions], reason: str
) -> None:
    other = run("b", rate="2")
    other = replace(other, tags=dict(other.tags) | tags)
    found = compared([run("a"), other], a=answers(300), b=predictions)
    assert found.pair is None
    assert reason in str(found.unpaired)
    assert any(reason in note for note in notes(found))


def test_a_run_without_stored_predictions_is_named() -> None:
    found = compared([run("a"), run("b", rate="2")], a=answers(300))
    assert found.unpaired == "run b has no stored predictions (predictions.npz)"
