"""Shows the progress of a sweep on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.sweeps.jobs import Job, job_name
from pipeline.sweeps.outcomes import FAILED, KILLED, PRUNED, Outcome, SweepObjective, ranked
from pipeline.system.terminal import on_terminal, plain_console

REFRESHES = 4  # per second


class Board:
    """One line that is updated as jobs start and end; in a file, one line per job that ended."""

    def __init__(
        self,
        objectives: Sequence[SweepObjective],
        total: int,
        outcomes: Mapping[int, Outcome],
        console: Console | None = None,
    ) -> None:
        self.objectives, self.total = objectives, total
        self.outcomes, self.running = dict(outcomes), dict[int, float]()
        self.before, self.started = len(outcomes), time.monotonic()
        self.busiest, self.kept_models = 1, 0
        self.console = console or plain_console()
        self.live = Live(
            get_renderable=self.line,
            console=self.console,
            refresh_per_second=REFRESHES,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> Board:
        if on_terminal(self.console):
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def start(self, job: Job) -> None:
        """Notes that a job was passed to the launcher."""
        self.running[job.index] = time.monotonic()
        self.busiest = max(self.busiest, len(self.running))

    def end(self, outcome: Outcome) -> None:
        """Notes that a job ended, whatever its outcome."""
        self.running.pop(outcome.index, None)
        self.outcomes[outcome.index] = outcome
        if not on_terminal(self.console) or not outcome.is_complete:
            self.console.print(self._ended(outcome), soft_wrap=True)

    def keeping(self, models: int) -> None:
        """Notes that all jobs are done and that the best `models` of them are being completed."""
        self.kept_models = models
        if models and not on_terminal(self.console):
            self.console.print(f"evaluating and saving the best {models}", soft_wrap=True)

    def line(self) -> Text:
        """Counts by status, the best so far, and the time left."""
        if self.kept_models:
            return Text(f"evaluating and saving the best {self.kept_models}", overflow="ellipsis")
        words = [f"{len(self.outcomes)}/{self.total} done", f"{len(self.running)} running"]
        words += [
            f"{count} {status}"
            for status in (PRUNED, FAILED, KILLED)
            if (count := sum(outcome.status == status for outcome in self.outcomes.values()))
        ]
        if best := ranked(list(self.outcomes.values()), self.objectives):
            value = _value(best[0].values, self.objectives)
            words.append(f"best {value} ({job_name(best[0].params)})")
        return Text(" · ".join([*words, self._left()]), no_wrap=True, overflow="ellipsis")

    def _ended(self, outcome: Outcome) -> str:
        result = outcome.error or _value(outcome.values, self.objectives)
        return (
            f"job {outcome.index} {outcome.status}  {job_name(outcome.params)}  {result}  "
            f"{outcome.seconds:.1f} s  {len(self.outcomes)}/{self.total}  {self._left()}"
        )

    def _left(self) -> str:
        done = len(self.outcomes) - self.before
        if not done:
            return "time left unknown"
        seconds = (time.monotonic() - self.started) / done * (self.total - len(self.outcomes))
        return f"{rough_duration(seconds)} left"


def rough_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def short_number(value: float) -> str:
    """A value of an objective: `0.1234`, `12,345`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _value(values: Iterable[float], objectives: Sequence[SweepObjective]) -> str:
    return "  ".join(
        f"{objective.metric} {short_number(value)}"
        for objective, value in zip(objectives, values, strict=True)
    )
