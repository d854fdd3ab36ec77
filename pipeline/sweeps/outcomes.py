"""Outcomes of jobs, and the objectives by which they are ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config.sweep import Sweep
from pipeline.evaluation.metrics import scale_of
from pipeline.system.errors import RequestError

FINISHED, PRUNED, FAILED, KILLED, RUNNING = "finished", "pruned", "failed", "killed", "running"


@dataclass(frozen=True, kw_only=True)
class SweepObjective:
    """A metric of the jobs' runs that is maximized or minimized."""

    metric: str
    maximize: bool

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The direction as named by Optuna and `sweep.direction`."""
        return "maximize" if self.maximize else "minimize"


def objectives(settings: Sweep) -> list[SweepObjective]:
    """The objectives of a sweep; each metric declares its better direction.

    Raises:
        RequestError: `sweep.direction` contradicts a metric, or its length differs.
    """
    names, given = settings.objective, settings.direction
    natural = [
        SweepObjective(metric=name, maximize=scale_of(name).better == "higher") for name in names
    ]
    if given is None:
        return natural
    if len(given) != len(names):
        raise RequestError(
            f"sweep.direction: {len(given)} for {len(names)} objectives; give one for each, "
            "or leave it out: each metric declares its direction"
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
    """The outcome of a job; `values` are the objectives in order, NaN if missing.

    `params` are the swept values as on a command line; `error` is one line; `kept` says whether its
    model is logged.
    """

    index: int
    status: str
    params: Mapping[str, str]
    values: tuple[float, ...]
    run_id: str | None = None
    seconds: float = 0.0
    error: str | None = None
    kept: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether the job has done its work: it neither failed nor was killed."""
        return self.status in (FINISHED, PRUNED)


def ranked(outcomes: Sequence[Outcome], objectives: Sequence[SweepObjective]) -> list[Outcome]:
    """The finished outcomes, best first by the first objective; ties keep their order."""
    finished = [outcome for outcome in outcomes if outcome.status == FINISHED]
    sign = -1 if objectives[0].maximize else 1
    known = [outcome for outcome in finished if outcome.values[0] == outcome.values[0]]
    return sorted(known, key=lambda outcome: (sign * outcome.values[0], outcome.index))
