from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.sweeps.outcomes import (
    FAILED,
    FINISHED,
    PRUNED,
    Outcome,
    SweepObjective,
    objectives,
    ranked,
)
from pipeline.system.errors import RequestError

ACCURACY = SweepObjective(metric="val/accuracy", maximize=True)
LOSS = SweepObjective(metric="val/loss", maximize=False)
NAN = float("nan")


def settings(*names: str, direction: list[str] | None = None) -> Any:
    return SimpleNamespace(objective=names, direction=direction)


def outcome(index: int, value: float, state: str = FINISHED) -> Outcome:
    return Outcome(index=index, status=state, params={}, values=(value,))


def test_each_metric_knows_its_better_direction() -> None:
    assert objectives(settings("val/accuracy", "val/loss")) == [ACCURACY, LOSS]
    assert [one.direction for one in (ACCURACY, LOSS)] == ["maximize", "minimize"]
    assert objectives(settings("val/loss", direction=["minimize"])) == [LOSS]


@pytest.mark.parametrize(
    ("direction", "said"),
    [
        (["minimize"], "sweep.direction: 1 for 2 objectives; give one for each"),
        (["maximize", "maximize"], "sweep.direction: val/loss is to minimize, not to maximize"),
    ],
)
def test_a_direction_that_contradicts_the_metrics_is_refused(
    direction: list[str], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        objectives(settings("val/accuracy", "val/loss", direction=direction))


def test_finished_jobs_with_a_value_are_ranked_and_ties_keep_their_order() -> None:
    jobs = [outcome(3, 0.5), outcome(1, 0.5), outcome(0, 0.7), outcome(2, NAN)]
    jobs += [outcome(4, 0.9, PRUNED), outcome(5, 0.9, FAILED)]
    assert [one.index for one in ranked(jobs, [ACCURACY])] == [0, 1, 3]
    assert [one.index for one in ranked(jobs, [LOSS])] == [1, 3, 0]
    assert ranked([], [ACCURACY]) == []
