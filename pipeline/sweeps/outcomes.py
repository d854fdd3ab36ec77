"""What a sweep knows of its jobs: what they are to try, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FINISHED, PRUNED, FAILED, KILLED, RUNNING = "finished", "pruned", "failed", "killed", "running"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A metric of the outcomes' runs that is to become high or low."""

    metric: str
    maximize: bool


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
