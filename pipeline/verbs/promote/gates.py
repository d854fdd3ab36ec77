"""The gates that a run must pass to become the champion: `Evidence → list[Gate]`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.values import Array, Predictions
from pipeline.evaluation import metrics
from pipeline.evaluation.intervals import coverage
from pipeline.evaluation.paired import accuracy_change, mcnemar
from pipeline.tracking.values import Status
from pipeline.verbs.promote import Promote

LOADS = "model loads"  # the only gate that `force` does not override
TEST_ACCURACY = "test accuracy"
_SHOWN = 12  # characters of a fingerprint


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One requirement: the value found, the limit, and an explanation."""

    name: str
    value: float | str
    limit: float | str
    passed: bool
    says: str


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The current champion or a former one, with its predictions on the candidate's test images.

    `predicted`: classes i32[N]; None if unavailable, and `problem` says why.
    """

    version: int
    predicted: Array | None
    problem: str = ""
    is_former: bool = False


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the gates judge a run by.

    `fingerprint` identifies the data that the run recorded, `fingerprint_now` the current data.
    `logged`: the run's own test predictions, None if it was not evaluated. `reproduced`: the saved
    model's probabilities for the same images, f32[N,K]; None if it does not load, and `load_error`
    says why. `champion` is None if there is none; `best` is a former champion of the same line that
    was right more often than the current one, if there is one, or the best of all without one.
    """

    status: str
    fingerprint: str
    fingerprint_now: str
    logged: Predictions | None
    reproduced: Array | None
    load_error: str
    model_mb: float
    latency_ms: float
    champion: Champion | None
    best: Champion | None = None


def judge(evidence: Evidence, rules: Promote) -> list[Gate]:
    """Judges the evidence; leaves out gates that `rules` disable or that cannot be judged.

    A gate can only be impossible to judge because another one failed: a run that was not evaluated
    has no accuracy, and a model that does not load has no latency.
    """
    return [*_is_sound(evidence, rules), *_is_good(evidence, rules), *_is_fit(evidence, rules)]


def failed(gates: list[Gate]) -> list[Gate]:
    """The gates that failed."""
    return [gate for gate in gates if not gate.passed]


def _is_sound(evidence: Evidence, rules: Promote) -> Iterator[Gate]:
    """Gates on whether the run, its data and its model are consistent."""
    status, then, now = evidence.status, evidence.fingerprint[:_SHOWN], evidence.fingerprint_now
    yield Gate(
        name="run finished",
        value=status,
        limit=Status.FINISHED,
        passed=status == Status.FINISHED,
        says=f"its status is {status}",
    )
    evaluated = evidence.logged is not None
    yield Gate(
        name="evaluated on test",
        value="yes" if evaluated else "no",
        limit="yes",
        passed=evaluated,
        says="test predictions are logged" if evaluated else "first: evaluate run_id=<id>",
    )
    yield Gate(
        name="same data",
        value=now[:_SHOWN],
        limit=then,
        passed=now == evidence.fingerprint,
        says="fingerprint of the data, now and in the run",
    )
    loads = evidence.reproduced is not None
    yield Gate(
        name=LOADS,
        value="yes" if loads else "no",
        limit="yes",
        passed=loads,
        says="from its saved bytes" if loads else evidence.load_error,
    )
    if rules.max_prediction_gap is not None and evidence.logged and loads:
        yield _reproduces(
            evidence.logged.probabilities, evidence.reproduced, rules.max_prediction_gap
        )


def _reproduces(logged: Array, now: Array | None, limit: float) -> Gate:
    alike = now is not None and now.shape == logged.shape
    # NaN is not a probability, but compares as not greater than any limit.
    gap = float(np.nan_to_num(np.abs(logged - now), nan=1.0).max()) if alike else 1.0
    return Gate(
        name="reproduces predictions",
        value=gap,
        limit=limit,
        passed=gap <= limit,
        says="largest difference of a probability from the one logged"
        if alike
        else "its probabilities differ in shape from those logged",
    )


def _is_good(evidence: Evidence, rules: Promote) -> Iterator[Gate]:
    """Gates on whether it predicts well enough, and not worse than earlier champions."""
    logged = evidence.logged
    if logged is None:
        return
    images = f"on {len(logged.labels):,} test images"
    if rules.min_test_accuracy is not None:
        yield _floor(TEST_ACCURACY, metrics.accuracy(logged), rules.min_test_accuracy, images)
    if rules.min_class_recall is not None:
        _, recall, _, count = metrics.class_scores(logged)
        worst = int(np.where(count > 0, recall, np.inf).argmin())  # among classes with test images
        says = f"of {logged.class_names[worst]!r}, the worst class"
        yield _floor("worst-class recall", float(recall[worst]), rules.min_class_recall, says)
    if rules.max_ece is not None:
        says = f"expected calibration error {images}"
        yield _ceiling("calibration (ECE)", metrics.ece(logged), rules.max_ece, says)
    if rules.alpha is not None:
        for champion in filter(None, (evidence.champion, evidence.best)):
            yield _not_worse(logged, champion, rules, rules.alpha)


def _not_worse(logged: Predictions, champion: Champion, rules: Promote, alpha: float) -> Gate:
    """Fails unless the accuracy is shown to be at most a margin below the champion's.

    This is a test of non-inferiority: if there are too few images to tell, the champion stays. A
    candidate that is right on every image on which the champion is right passes.
    """
    name, whose = f"not worse than version {champion.version}", "the champion"
    if champion.is_former:
        whose = f"version {champion.version}, the best champion so far,"
    if champion.predicted is None:
        return Gate(
            name=name,
            value="unknown",
            limit=-rules.margin,
            passed=False,
            says=f"the champion cannot be compared: {champion.problem}",
        )
    change = accuracy_change(logged.labels, champion.predicted, logged.predicted, 1 - alpha)
    test = mcnemar(logged.labels, logged.predicted, champion.predicted)
    points = [f"{100 * x:+.2f}" for x in (change.value, change.low, change.high)]
    passed = change.low > -rules.margin or not test.only_second
    unclear = not passed and change.high > -rules.margin
    return Gate(
        name=name,
        value=change.low,
        limit=-rules.margin,
        passed=passed,
        says=f"{points[0]} points, {coverage(1 - alpha)} interval {points[1]} to {points[2]}: "
        f"alone right on {test.only_first} of {len(logged.labels):,} images, {whose} on "
        f"{test.only_second} (McNemar's exact p = {test.p_value:.2g})"
        + "; too few images to rule out such a loss"
        * unclear,
    )


def _is_fit(evidence: Evidence, rules: Promote) -> Iterator[Gate]:
    """Gates on whether it can be served."""
    if evidence.reproduced is None:
        return
    if rules.max_model_mb is not None:
        yield _ceiling("model size, MB", evidence.model_mb, rules.max_model_mb, "on disk")
    if rules.max_latency_ms is not None:
        says = "median of single images, on this machine"
        yield _ceiling("latency, ms", evidence.latency_ms, rules.max_latency_ms, says)


def _floor(name: str, value: float, limit: float, says: str) -> Gate:
    return Gate(name=name, value=value, limit=limit, passed=value >= limit, says=says)


def _ceiling(name: str, value: float, limit: float, says: str) -> Gate:
    return Gate(name=name, value=value, limit=limit, passed=value <= limit, says=says)
