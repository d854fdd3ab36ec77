"""What a sweep knows of its jobs: what they are to try, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config.sweep import Sweep
from pipeline.evaluation.metrics import scale_of
from pipeline.system.errors import RequestError

FINISHED, PRUNED, FAILED, KILLED, RUNNING = "finished", "pruned", "failed", "killed", "running"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A metric of the outcomes' runs that is to become high or low."""

    metric: str
    maximize: bool

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """As Optuna and `sweep.direction` name it."""
        return "maximize" if self.maximize else "minimize"


def objectives(settings: Sweep) -> list[Objective]:
    """What a sweep's jobs are compared by; each metric says itself which way is better.

    Raises:
        RequestError: `sweep.direction` contradicts a metric, or its length differs.
    """
    names, given = settings.objective, settings.direction
    natural = [Objective(metric=name, maximize=scale_of(name).better == "higher") for name in names]
    if given is None:
        return natural
    if len(given) != len(names):
        raise RequestError(
            f"sweep.direction: {len(given)} for {len(names)} objectives; give one for each, "
            "or leave it out: each metric says which way is better"
        )
    for objective, direction in zip(natural, given, strict=True):
        if direction != objective.direction:
            raise RequestError(
                f"sweep.direction: {objective.metric} is to {objective.direction}, not to "
                f"{direction}; leave sweep.direction out"
            )
    return natural


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job: `values` has the objectives in order, NaN where one is missing.

    `params` are the swept parameters as they would stand on a command line; `error` is a line;
    `kept`: whether its model is logged.
    """

    index: int
    state: str
    params: Mapping[str, str]
    values: tuple[float, ...]
    run_id: str | None = None
    seconds: float = 0.0
    error: str | None = None
    kept: bool = False


def ranked(outcomes: Sequence[Outcome], objectives: Sequence[Objective]) -> list[Outcome]:
    """The finished outcomes, best first by the first objective; equals in their order."""
    finished = [outcome for outcome in outcomes if outcome.state == FINISHED]
    sign = -1 if objectives[0].maximize else 1
    known = [outcome for outcome in finished if outcome.values[0] == outcome.values[0]]
    return sorted(known, key=lambda outcome: (sign * outcome.values[0], outcome.index))
