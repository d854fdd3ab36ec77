"""Runs the jobs of a sweep: launches and watches them, and completes the best."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.words import quoted
from pipeline.sweeps.board import Board
from pipeline.sweeps.jobs import Job, JobSource, Multirun
from pipeline.sweeps.launch import Workers
from pipeline.sweeps.outcomes import KILLED, Outcome, ranked
from pipeline.sweeps.runs import Children
from pipeline.system.errors import PipelineError, RequestError
from pipeline.system.files import remove
from pipeline.tracking.client import awaited

_LEAVE_S = 10.0  # for jobs of a killed sweep to end

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SweepJobs:
    """Runs the jobs of its source until there are no more, or too many failed or were killed."""

    multirun: Multirun
    workers: Workers
    source: JobSource
    runs: Children
    folder: Path
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    with_checkpoints: set[int] = field(default_factory=set)

    def catch_up(self) -> None:
        """Reads the results of the sweep from before it was interrupted.

        Raises:
            RequestError: some of its jobs are still running, elsewhere or in a batch system.
        """
        self._require_none_alive()
        known = self.runs.outcomes(self.source.known_jobs())
        self.source.catch_up(known)
        self.outcomes = {i: o for i, o in known.items() if o.is_complete}
        self.with_checkpoints = set(self.outcomes)

    def carry_out(self, report: Callable[[Sequence[Outcome]], None]) -> list[Outcome]:
        """Runs the jobs, then completes the best; returns all outcomes, by index.

        `report` is called while the best are completed, which does not change the outcomes.

        Raises:
            PipelineError: the sweep stops because too many jobs failed.
        """
        settings = self.multirun.config.sweep
        limit = 1 if settings.on_failure == "stop" else settings.max_failures or math.inf
        with (
            self._workers_ended(),
            Board(self.runs.objectives, self.source.total, self.outcomes) as board,
        ):
            for outcome in self._ended(board):
                self.outcomes[outcome.index] = outcome
                board.end(outcome)
                self._drop_checkpoints(outcome)
                if sum(not one.is_complete for one in self.outcomes.values()) >= limit:
                    how = "was killed" if outcome.status == KILLED else "failed"
                    raise PipelineError(
                        f"stopped after job {outcome.index} {how} ({outcome.error}); "
                        f"continue with sweep.resume={self.runs.parent.id}"
                    )
            with ThreadPoolExecutor(1) as beside:
                reported = beside.submit(report, self._by_index())
                self._keep_best(board)
            reported.result()
        return self._by_index()

    def require_complete(self) -> None:
        """Checks, at the end, that each job has done its work.

        Raises:
            PipelineError: some failed or were killed.
        """
        if lost := [one.status for one in self.outcomes.values() if not one.is_complete]:
            how = "failed or were killed" if KILLED in lost else "failed"
            raise PipelineError(
                f"{len(lost)} of {len(self.outcomes)} jobs {how}; what each printed is in "
                f"{self.folder}; run them again with sweep.resume={self.runs.parent.id}"
            )

    @contextmanager
    def _workers_ended(self) -> Iterator[None]:
        """Stops the workers at the end and closes the runs that they left open.

        Waits for a store that is away, unless the sweep was stopped or failed, which it then shows.
        """
        try:
            yield
        except BaseException:
            self.workers.stop()
            try:
                self.runs.close_orphans()
            except Exception as error:
                log.warning("Runs that the sweep left open could not be closed: %s", error)
            raise
        self.workers.stop()
        awaited(self.runs.close_orphans)

    def _by_index(self) -> list[Outcome]:
        return [self.outcomes[index] for index in sorted(self.outcomes)]

    def _ended(self, board: Board) -> Iterator[Outcome]:
        started: dict[int, Job] = {}

        def starting() -> Iterator[Job]:
            for job in self.source.jobs():
                started[job.index] = job
                board.start(job)
                yield job

        for ended in self.workers.run(starting(), self._words, known=self.source.known):
            outcome = self.runs.settle(started[ended.key], ended.error)
            self.source.tell(outcome)
            yield outcome

    def _keep_best(self, board: Board) -> None:
        """Logs the best models and evaluates them on the test split, which is first used here."""
        jobs = self.source.known_jobs()
        unsaved = [o.index for o in self._best(self.outcomes.values()) if not o.kept]
        best = [jobs[index] for index in unsaved]
        board.keeping(len(best))
        for ended in self.workers.run(best, self._words_to_complete):
            if ended.error is not None:
                raise PipelineError(f"job {ended.key} could not be completed: {ended.error}")
            self.outcomes[ended.key] = self.runs.settle(jobs[ended.key], None)

    def _best(self, among: Collection[Outcome]) -> list[Outcome]:
        best = ranked(list(among), self.runs.objectives)
        return best[: self.multirun.config.sweep.keep_models]

    def _drop_checkpoints(self, ended: Outcome) -> None:
        """Removes the checkpoints of the job that has dropped out of the best, if any.

        When a job ends, at most one drops out: that job itself, or the last of the best.
        """
        candidates = self.with_checkpoints | {ended.index}
        best = self._best([self.outcomes[index] for index in candidates])
        self.with_checkpoints = {outcome.index for outcome in best}
        for index in candidates - self.with_checkpoints:
            remove(self.folder / str(index) / "checkpoints", ignore_errors=True)

    def _require_none_alive(self) -> None:
        until = time.monotonic() + _LEAVE_S
        while alive := self.runs.close_orphans():
            if time.monotonic() > until:
                jobs = ", ".join(map(str, sorted(alive)))
                raise RequestError(
                    f"sweep.resume: jobs {jobs} of the sweep still run; wait until they have ended"
                )
            time.sleep(0.2)

    def _words(self, job: Job) -> list[str]:
        return self._overrides_of(job, **self.source.job_settings)

    def _words_to_complete(self, job: Job) -> list[str]:
        return self._overrides_of(job, completes=str(self.outcomes[job.index].run_id))

    def _overrides_of(self, job: Job, **further: str) -> list[str]:
        """The overrides of a job; the last one holds the sweep's settings for it."""
        told = {
            "parent": self.runs.parent.id,
            "name": str(job),
            "experiment": self.runs.experiment,
            "command": self.multirun.command(job),
            **further,
        }
        texts = ",".join(f"{key}:{quoted(text)}" for key, text in told.items())
        return [*self.multirun.words(job), f"sweep.job={{index:{job.index},{texts}}}"]
