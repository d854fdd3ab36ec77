"""A sweep in the tracking store: its own run (the parent) and its jobs' runs (the children)."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.sweeps.jobs import Job
from pipeline.sweeps.outcomes import (
    FAILED,
    FINISHED,
    KILLED,
    PRUNED,
    RUNNING,
    Outcome,
    SweepObjective,
)
from pipeline.system.errors import RequestError
from pipeline.tracking.client import (
    awaited,
    does_not_exist_yet,
    experiment_name,
    is_passing,
    why_away,
)
from pipeline.tracking.delivery import send_journal
from pipeline.tracking.heartbeat import GONE, Pulse, pulse
from pipeline.tracking.journal import is_open, journals_of_jobs, run_in_journal
from pipeline.tracking.lifecycle import close
from pipeline.tracking.recording import Recording
from pipeline.tracking.runs import by_id, find_runs, search
from pipeline.tracking.values import (
    CHOSEN_DATASET,
    CHOSEN_MODEL,
    Query,
    RecordedRun,
    Status,
)

log = logging.getLogger(__name__)
_STATUSES = {Status.FINISHED: FINISHED, Status.FAILED: FAILED, Status.KILLED: KILLED}
LAST_WORDS_S = 5.0  # for a job that has ended to send how
_SAMPLE = 50  # earlier runs used for a preview's estimate


@dataclass(frozen=True, kw_only=True)
class Children:
    """The runs of a sweep's jobs."""

    parent: Recording
    experiment: str
    objectives: Sequence[SweepObjective]
    earlier: set[str] = field(default_factory=set)
    """Ids of the runs from before this sweep was resumed."""
    _told: set[tuple[Path, str]] = field(default_factory=set)  # what is not sent, and why

    def outcomes(self, jobs: Mapping[int, Job] | None = None) -> dict[int, Outcome]:
        """The outcomes of the started jobs, by index; a finished outcome is never replaced.

        Without `jobs`, the outcomes of all jobs, without their parameters.
        """
        found: dict[int, Outcome] = {}
        for run in self._runs():  # oldest first: a later attempt replaces an earlier one
            if run.index is None or (jobs is not None and run.index not in jobs):
                continue
            job = jobs[run.index] if jobs else Job(index=run.index, params={})
            if not (job.index in found and found[job.index].status == FINISHED):
                found[job.index] = self._outcome(run, job)
        return found

    def settle(self, job: Job, error: str | None) -> Outcome:
        """The outcome of a job that has just ended; closes its run if its process could not.

        Waits for a store that is away; then sends records of the job that it lacks. If these cannot
        be sent yet, or the job's process still holds them, waiting for an answer of the store, the
        outcome is what they say.
        """
        awaited(lambda: self._runs(job.index))
        self._send_what_is_missing(job.index)
        runs = awaited(lambda: self._runs(job.index))
        finished = [run for run in runs if run.status == Status.FINISHED]
        tries = finished or [run for run in runs if run.id not in self.earlier]
        if not tries:
            return _without_run(job, len(self.objectives), error or "opened no run")
        run = tries[-1]
        if run.status == Status.RUNNING:
            close(self.parent.client, run, Status.FAILED, error or "ended without closing its run")
            run = by_id(self.parent.client, run.id)
        return self._outcome(run, job)

    def close_orphans(self) -> set[int]:
        """Marks runs whose processes are gone as KILLED; the caller must hold the sweep's lock.

        Returns the indices of the jobs that are still running according to their heartbeats.
        """
        alive = set()
        until = time.monotonic() + LAST_WORDS_S
        while self._send_what_is_missing() and time.monotonic() < until:
            time.sleep(0.2)
        for run in self._runs():
            self.earlier.add(run.id)
            if run.status != Status.RUNNING:
                continue
            if pulse(run.tags) is Pulse.ALIVE:
                alive.add(-1 if run.index is None else run.index)
            else:
                close(self.parent.client, run, Status.KILLED, GONE)
        return alive

    def _send_what_is_missing(self, index: int | None = None) -> bool:
        """Sends the unsent journals of ended jobs, of all or of one, as far as possible.

        Returns whether a process still holds one of these, which it is sending itself. `sync` sends
        what is left, as when the place of artefacts is away.
        """
        held = False
        for folder in journals_of_jobs(self.parent.folder):
            if index is not None and folder.name != str(index):
                continue
            try:
                send_journal(self.parent.client, folder, close=False)
            except RequestError as error:
                if is_open(folder):
                    here = run_in_journal(folder)
                    held |= here is not None and here.status != Status.RUNNING
                else:  # its run was deleted, or the like, which no waiting mends
                    self._tell_unsent(folder, str(error))
            except Exception as error:
                if not is_passing(error):
                    raise
                self._tell_unsent(folder, why_away(error))
        return held

    def _tell_unsent(self, folder: Path, why: str) -> None:
        if (folder, why) not in self._told:
            log.warning("job %s is not sent yet: %s", folder.name, why)
        self._told.add((folder, why))

    def _runs(self, index: int | None = None) -> list[RecordedRun]:
        """The runs of all jobs or of one, oldest first.

        One whose end the store does not know yet is as its journal says.
        """
        # Before the store is asked, since they may be sent any moment.
        here = [run_in_journal(folder) for folder in journals_of_jobs(self.parent.folder)]
        ended = {one.id: one for one in here if one and one.status != Status.RUNNING}
        asked = Query(
            experiment=self.experiment, parent=self.parent.id, index=index, order=("started",)
        )
        return [
            ended.get(run.id, run) if run.status == Status.RUNNING else run
            for run in search(self.parent.client, asked)
        ]

    def _outcome(self, run: RecordedRun, job: Job) -> Outcome:
        status = PRUNED if run.pruned is not None else _STATUSES.get(run.status, RUNNING)
        values = [run.metrics.get(one.metric, float("nan")) for one in self.objectives]
        return Outcome(
            index=job.index,
            status=status,
            params=job.params,
            values=tuple(values),
            run_id=run.id,
            seconds=run.seconds,
            error=run.error if status in (FAILED, KILLED) else None,
            kept=run.model_uri is not None,
        )


def children(parent: Recording, objectives: Sequence[SweepObjective]) -> Children:
    """The runs of the jobs of the sweep that `parent` records, in the same experiment."""
    experiment = by_id(parent.client, parent.id).experiment
    return Children(parent=parent, experiment=experiment, objectives=objectives)


def typical_seconds(config: Config) -> float | None:
    """Median duration of finished runs of this model on this data set with as many epochs.

    If there are none, it is scaled from runs with other numbers of epochs; None without any run.
    """
    if does_not_exist_yet(config.tracking):
        return None
    asked = Query(
        experiment=experiment_name(config),
        status=(Status.FINISHED,),
        is_sweep=False,
        tags={CHOSEN_MODEL: config.choices.model, CHOSEN_DATASET: config.choices.dataset},
        limit=_SAMPLE,
    )
    timed = [run for run in find_runs(asked, config.tracking) if "time/total_s" in run.metrics]
    epochs = str(config.train.epochs)
    alike = [run for run in timed if run.params.get("train.epochs") == epochs]
    durations = [
        run.metrics["time/total_s"] * _stretch(run, config.train.epochs) for run in alike or timed
    ]
    return statistics.median(durations) if durations else None


def _stretch(run: RecordedRun, epochs: int) -> float:
    return epochs / int(run.params.get("train.epochs", epochs))


def _without_run(job: Job, objectives: int, error: str) -> Outcome:
    values = (float("nan"),) * objectives
    return Outcome(index=job.index, status=FAILED, params=job.params, values=values, error=error)
