from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.data.values import Predictions, Split
from pipeline.verbs.promote import Promote
from pipeline.verbs.promote.gates import LOADS, Champion, Evidence, Gate, failed, judge
from tests.stress.matrix import matrix

RULES = Promote(
    max_prediction_gap=0.01,
    min_test_accuracy=0.75,
    min_class_recall=0.5,
    max_ece=0.3,
    alpha=0.05,
    margin=0.005,
    max_model_mb=2.0,
    max_latency_ms=10.0,
    challenger=False,
    force=False,
    reason=None,
)
# Class 0 is right on three of four images, class 1 on all four; class 2 has no test images.
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
PREDICTED = [0, 0, 0, 1, 1, 1, 1, 1]


def predictions(predicted: list[int], labels: list[int]) -> Predictions:
    return Predictions(
        split=Split(
            images=np.zeros((len(labels), 2, 2, 1), np.uint8), labels=np.array(labels, np.int32)
        ),
        probabilities=np.eye(3, dtype=np.float32)[predicted],
        class_names=("shirt", "coat", "hat"),
    )


def evidence(**changes: Any) -> Evidence:
    logged = predictions(PREDICTED, LABELS)
    sound = Evidence(
        status="FINISHED",
        fingerprint="ab" * 32,
        fingerprint_now="ab" * 32,
        logged=logged,
        reproduced=logged.probabilities.copy(),
        load_error="",
        model_mb=2.0,
        latency_ms=10.0,
        champion=None,
    )
    return replace(sound, **changes)


def by_name(gates: list[Gate]) -> dict[str, Gate]:
    return {gate.name: gate for gate in gates}


def failing(made: Evidence, rules: Promote = RULES) -> list[str]:
    return [gate.name for gate in failed(judge(made, rules))]


def test_a_sound_run_passes_every_gate_with_its_numbers() -> None:
    gates = by_name(judge(evidence(), RULES))
    assert all(gate.passed for gate in gates.values())
    assert {name: (gate.value, gate.limit) for name, gate in gates.items()} == {
        "run finished": ("FINISHED", "FINISHED"),
        "evaluated on test": ("yes", "yes"),
        "same data": ("ab" * 6, "ab" * 6),
        LOADS: ("yes", "yes"),
        "reproduces predictions": (0.0, 0.01),
        "test accuracy": (0.875, 0.75),
        "worst-class recall": (0.75, 0.5),
        "calibration (ECE)": (pytest.approx(0.125), 0.3),
        "model size, MB": (2.0, 2.0),
        "latency, ms": (10.0, 10.0),
    }


@pytest.mark.parametrize(
    ("rule", "limit", "gate"),
    [
        ("min_test_accuracy", 0.88, "test accuracy"),
        ("min_class_recall", 0.76, "worst-class recall"),
        ("max_ece", 0.12, "calibration (ECE)"),
        ("max_model_mb", 1.9, "model size, MB"),
        ("max_latency_ms", 9.9, "latency, ms"),
    ],
)
def test_a_limit_missed_is_that_gate_failed_alone_and_null_leaves_it_out(
    rule: str, limit: float, gate: str
) -> None:
    assert failing(evidence(), replace(RULES, **{rule: limit})) == [gate]
    assert gate not in by_name(judge(evidence(), replace(RULES, **{rule: None})))


def test_the_worst_class_is_named_and_one_without_test_images_is_none() -> None:
    worst = by_name(judge(evidence(), RULES))["worst-class recall"]
    assert worst.says == "of 'shirt', the worst class"


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING"])
@matrix(36)
def test_a_run_that_did_not_finish_is_refused(status: str) -> None:
    assert failing(evidence(status=status)) == ["run finished"]


@matrix(36)
def test_a_run_that_was_not_evaluated_has_no_accuracy_to_judge() -> None:
    gates = by_name(judge(evidence(logged=None), RULES))
    assert [name for name, gate in gates.items() if not gate.passed] == ["evaluated on test"]
    assert "test accuracy" not in gates
    assert "evaluate run_id=" in gates["evaluated on test"].says


def test_other_data_than_the_run_saw_is_refused() -> None:
    assert failing(evidence(fingerprint_now="cd" * 32)) == ["same data"]
    assert failing(evidence(fingerprint="")) == ["same data"]


def test_a_model_that_does_not_load_is_refused_with_the_reason_and_not_timed() -> None:
    gates = by_name(judge(evidence(reproduced=None, load_error="no such file"), RULES))
    assert (gates[LOADS].passed, gates[LOADS].says) == (False, "no such file")
    assert not {"latency, ms", "model size, MB", "reproduces predictions"} & gates.keys()


def test_a_model_that_answers_otherwise_than_it_did_is_refused() -> None:
    now = predictions(PREDICTED, LABELS).probabilities.copy()
    now[3] = [0.02, 0.98, 0]
    gates = by_name(judge(evidence(reproduced=now), RULES))
    assert gates["reproduces predictions"].value == pytest.approx(0.02)
    assert failing(evidence(reproduced=now)) == ["reproduces predictions"]


@pytest.mark.parametrize("now", [np.full((8, 3), np.nan, np.float32), np.zeros((7, 3), np.float32)])
@matrix(36)
def test_nan_and_answers_of_another_shape_reproduce_nothing(now: np.ndarray[Any, Any]) -> None:
    assert failing(evidence(reproduced=now)) == ["reproduces predictions"]


def beside_champion(candidate_right: int, champion_right: int) -> Evidence:
    """Images that one of both alone has right, and ten that both have."""
    count = candidate_right + champion_right + 10
    candidate = [1] * count
    champion = [1] * count
    candidate[:champion_right] = [0] * champion_right
    champion[champion_right : champion_right + candidate_right] = [0] * candidate_right
    return evidence(
        logged=predictions(candidate, [1] * count),
        reproduced=predictions(candidate, [1] * count).probabilities,
        champion=Champion(version=3, predicted=np.array(champion, np.int32)),
    )


LENIENT = replace(RULES, min_test_accuracy=0, min_class_recall=0, max_ece=1)


@matrix(36)
def test_a_run_that_the_champion_beats_by_more_than_chance_is_refused() -> None:
    gate = by_name(judge(beside_champion(1, 9), LENIENT))["not worse than version 3"]
    assert (gate.value, gate.limit, gate.passed) == (pytest.approx(-0.632251), -0.005, False)
    assert gate.says == (
        "-40.00 points, 95% interval -63.23 to -9.50: alone right on 1 of 20 images, the champion "
        "on 9 (McNemar's exact p = 0.021)"
    )


@pytest.mark.parametrize(("candidate", "champion"), [(9, 1), (5, 0), (0, 0)])
def test_a_better_run_and_one_that_is_as_good_pass(candidate: int, champion: int) -> None:
    assert failing(beside_champion(candidate, champion), LENIENT) == []


@pytest.mark.parametrize(("candidate", "champion"), [(2, 8), (5, 5)])
def test_a_run_that_too_few_images_show_to_be_as_good_is_refused_and_says_so(
    candidate: int, champion: int
) -> None:
    [gate] = failed(judge(beside_champion(candidate, champion), LENIENT))
    assert gate.says.endswith("; too few images to rule out such a loss")
    surer = replace(LENIENT, alpha=0.001)
    assert ", 99.9% interval " in failed(judge(beside_champion(candidate, champion), surer))[0].says
    assert failing(beside_champion(candidate, champion), replace(LENIENT, margin=0.9)) == []


IMAGES = 10_000


def test_a_loss_that_mcnemars_test_calls_chance_is_refused_as_often_as_it_is_tried() -> None:
    """-0.45 points at p = 0.058, the two trainings of docs/compare-and-promote.md."""
    champion = right_on(np.arange(8_597))
    worse = np.concatenate([np.arange(293, 8_597), np.arange(9_000, 9_248)])
    gate = versus(right_on(worse), champion)
    assert gate.says.startswith("-0.45 points, 95% interval -0.9")
    assert "p = 0.058" in gate.says
    assert not gate.passed


def test_ten_steps_down_each_within_the_margin_end_within_one_margin_of_the_best() -> None:
    answers = [right_on(np.arange(9_000 - 30 * step)) for step in range(11)]  # -0.3 points each
    against_the_last_alone = [
        versus(later, earlier).passed for earlier, later in itertools.pairwise(answers)
    ]
    assert all(against_the_last_alone)  # which would be 3 points in all
    champion = best = answers[0]
    for candidate in answers[1:]:
        if versus(candidate, champion).passed and versus(candidate, best).passed:
            champion = candidate
    assert np.sum(best == 1) - np.sum(champion == 1) <= RULES.margin * IMAGES


def right_on(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Answers to images of class 1, of which these are right."""
    answers = np.zeros(IMAGES, np.int32)
    answers[images] = 1
    return answers


def versus(candidate: np.ndarray[Any, Any], champion: np.ndarray[Any, Any]) -> Gate:
    made = predictions(candidate.tolist(), [1] * IMAGES)
    put = evidence(logged=made, champion=Champion(version=1, predicted=champion))
    return by_name(judge(put, LENIENT))["not worse than version 1"]


def test_the_best_former_champion_is_a_gate_of_its_own() -> None:
    beside = beside_champion(5, 0)
    labels = beside.logged.labels  # type: ignore[union-attr]
    former = Champion(version=2, predicted=labels, is_former=True)
    best = replace(beside, best=former, logged=predictions([0] + [1] * 14, [1] * 15))
    gates = by_name(judge(best, LENIENT))
    assert gates["not worse than version 3"].passed
    assert not gates["not worse than version 2"].passed
    assert "version 2, the best champion so far, on 1" in gates["not worse than version 2"].says


def test_a_champion_that_cannot_be_compared_with_is_a_gate_failed_that_says_why() -> None:
    gone = Champion(version=3, predicted=None, problem="its model is gone")
    [gate] = failed(judge(evidence(champion=gone), RULES))
    assert gate.says == "the champion cannot be compared: its model is gone"
    assert failing(evidence(champion=gone), replace(RULES, alpha=None)) == []
