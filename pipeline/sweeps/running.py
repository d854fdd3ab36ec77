"""The jobs of a sweep under way: launched, watched, settled, and the best of them kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.words import quoted
from pipeline.sweeps.board import Board
from pipeline.sweeps.jobs import Job, Multirun, Source, brief
from pipeline.sweeps.launch import Launch, Workers
from pipeline.sweeps.outcomes import FAILED, FINISHED, PRUNED, Outcome, ranked
from pipeline.sweeps.runs import Children
from pipeline.system.errors import PipelineError
from pipeline.system.files import remove


@dataclass(kw_only=True)
class SweepJobs:
    """Runs what its source proposes until there is no more of it, or too much has failed."""

    multirun: Multirun
    workers: Workers
    source: Source
    runs: Children
    folder: Path
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def catch_up(self) -> None:
        """Takes note of what the sweep had got done before it was interrupted."""
        self.runs.close_orphans()
        known = self.runs.outcomes(self.source.known_jobs())
        self.source.catch_up(known)
        self.outcomes = {i: t for i, t in known.items() if t.state in (FINISHED, PRUNED)}

    def carry_out(self, report: Callable[[Sequence[Outcome]], None]) -> list[Outcome]:
        """Runs the jobs, then completes the best; returns what became of all, by index.

        What the jobs gave does not change by completing the best, beside which `report` is called.

        Raises:
            PipelineError: so many jobs failed that the sweep is to stop.
        """
        settings = self.multirun.config.sweep
        limit = 1 if settings.on_failure == "stop" else settings.max_failures or math.inf
        try:
            board = Board(self.runs.objectives, self.source.total, self.outcomes)
            with board:
                for outcome in self._ended(board):
                    self.outcomes[outcome.index] = outcome
                    board.end(outcome)
                    self._drop_checkpoints()
                    if sum(t.state == FAILED for t in self.outcomes.values()) >= limit:
                        raise PipelineError(
                            f"stopped after job {outcome.index} failed ({outcome.error}); "
                            f"go on with sweep.resume={self.runs.parent.id}"
                        )
                with ThreadPoolExecutor(1) as beside:
                    reported = beside.submit(report, self._by_index())
                    self._keep_best(board)
                reported.result()
        finally:
            self.workers.stop()
            self.runs.close_orphans()
        return self._by_index()

    def _by_index(self) -> list[Outcome]:
        return [self.outcomes[index] for index in sorted(self.outcomes)]

    def _ended(self, board: Board) -> Iterator[Outcome]:
        started: dict[int, Job] = {}

        def launches() -> Iterator[Launch]:
            for job in self.source.jobs():
                started[job.index] = job
                board.start(job)
                yield self._launch(job, ["evaluate.test=false", "tracking.log_model=false"])

        for ended in self.workers.run(launches(), at_once=self.source.at_once):
            outcome = self.runs.settle(started[ended.key], ended.error)
            self.source.tell(outcome)
            yield outcome

    def _keep_best(self, board: Board) -> None:
        """Logs the models of the best and evaluates them on the test split; only now is it seen."""
        jobs = self.source.known_jobs()
        best = [outcome for outcome in self._best() if not outcome.kept]
        launches = [
            self._launch(jobs[t.index], ["sweep.job.keep=true", f"run_id={t.run_id}"]) for t in best
        ]
        board.keeping(len(launches))
        for ended in self.workers.run(launches):
            if ended.error is not None:
                raise PipelineError(f"job {ended.key} could not be completed: {ended.error}")
            self.outcomes[ended.key] = self.runs.settle(jobs[ended.key], None)

    def _best(self) -> list[Outcome]:
        best = ranked(list(self.outcomes.values()), self.runs.objectives)
        return best[: self.multirun.config.sweep.keep_models]

    def _drop_checkpoints(self) -> None:
        kept = {outcome.index for outcome in self._best()}
        for index in self.outcomes.keys() - kept:
            remove(self.folder / str(index) / "checkpoints", ignore_errors=True)

    def _launch(self, job: Job, words: list[str]) -> Launch:
        values = ", ".join(map(brief, job.params.values()))  # short: the UI's column is narrow
        told = {
            "sweep.job.parent": self.runs.parent.id,
            "sweep.job.index": str(job.index),
            "sweep.job.command": quoted(self.multirun.command(job)),
            "tracking.experiment": quoted(self.runs.experiment),
            "tracking.run_name": quoted(f"{job.index}: {values}"),
            "hydra.sweep.dir": quoted(str(self.folder)),
            "hydra.sweep.subdir": quoted(str(job.index)),
            **{key: quoted(value) for key, value in self.source.told.items()},
        }
        return Launch(
            index=job.index,
            words=[
                *self.multirun.fixed,
                *job.overrides,
                *(f"{key}={value}" for key, value in told.items()),
                *words,
            ],
            folder=self.folder / str(job.index),
        )
