"""A sweep in the tracking store: its own run, the parent, and those of its jobs, the children."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pipeline.config.schema import Config
from pipeline.sweeps.jobs import Job
from pipeline.sweeps.outcomes import FAILED, FINISHED, KILLED, RUNNING, Objective, Outcome
from pipeline.sweeps.outcomes import PRUNED as PRUNED_STATE
from pipeline.system.errors import RequestError
from pipeline.tracking.client import connect, experiment
from pipeline.tracking.heartbeat import GONE
from pipeline.tracking.ids import find_by_id
from pipeline.tracking.lifecycle import FOLDER, INDEX, PARENT, PRUNED, close
from pipeline.tracking.recording import Recording
from pipeline.tracking.records import of_kept_weights

_STATES = {"FINISHED": FINISHED, "FAILED": FAILED, "KILLED": KILLED}
_SAMPLE = 50  # earlier runs that a preview's estimate is made from


@dataclass(frozen=True, kw_only=True)
class Children:
    """The runs of a sweep's jobs."""

    parent: Recording
    experiment: str
    experiment_id: str
    objectives: Sequence[Objective]
    earlier: set[str] = field(default_factory=set)
    """Ids of the runs that this sweep, now resumed, had made before."""

    def outcomes(self, jobs: Mapping[int, Job]) -> dict[int, Outcome]:
        """What became of the jobs that have been started, by index; one that finished stays so."""
        found: dict[int, Outcome] = {}
        for run in self._runs():  # oldest first: a later try replaces an earlier one
            index = int(run.data.tags[INDEX])
            known = found.get(index)
            if index in jobs and not (known and known.state == FINISHED):
                found[index] = self._outcome(run, jobs[index])
        return found

    def settle(self, job: Job, error: str | None) -> Outcome:
        """What became of a job that has just ended; closes its run if its process could not."""
        runs = list(self._runs(f" AND tags.`{INDEX}` = '{job.index}'"))
        finished = [run for run in runs if run.info.status == "FINISHED"]
        tries = finished or [run for run in runs if run.info.run_id not in self.earlier]
        if not tries:
            return _without_run(job, len(self.objectives), error or "opened no run")
        run = tries[-1]
        if run.info.status == "RUNNING":
            close(self.parent.client, run, "FAILED", error or "ended without closing its run")
            run = self.parent.client.get_run(run.info.run_id)
        return self._outcome(run, job)

    def close_orphans(self) -> None:
        """Marks as KILLED what a killed sweep left running; the caller holds the sweep's lock."""
        for run in self._runs():
            self.earlier.add(run.info.run_id)
            if run.info.status == "RUNNING":
                close(self.parent.client, run, "KILLED", GONE)

    def _runs(self, condition: str = "") -> Iterator[Run]:
        where = f"tags.`{PARENT}` = '{self.parent.id}'{condition}"
        token = None
        while True:
            page = self.parent.client.search_runs(
                [self.experiment_id], where, order_by=["start_time ASC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _outcome(self, run: Run, job: Job) -> Outcome:
        state = _STATES.get(run.info.status, RUNNING)
        if PRUNED in run.data.tags:
            state = PRUNED_STATE
        ended = run.info.end_time or run.info.start_time
        metrics = of_kept_weights(run.data.metrics)
        return Outcome(
            index=job.index,
            state=state,
            params=job.params,
            values=tuple(metrics.get(one.metric, float("nan")) for one in self.objectives),
            run_id=run.info.run_id,
            seconds=(ended - run.info.start_time) / 1000,
            error=run.data.tags.get("error") if state in (FAILED, KILLED) else None,
            kept="model_uri" in run.data.tags,
        )


def children(parent: Recording, objectives: Sequence[Objective]) -> Children:
    """The runs of the jobs of the sweep that `parent` records, in the same experiment."""
    experiment_id = parent.client.get_run(parent.id).info.experiment_id
    name = str(parent.client.get_experiment(experiment_id).name)
    return Children(
        parent=parent, experiment=name, experiment_id=experiment_id, objectives=objectives
    )


def find_sweep(sweep_id: str, config: Config, *, asked_as: str = "sweep.resume") -> tuple[str, str]:
    """Run id and folder of the sweep with that id or beginning of one, or of the `latest`.

    `asked_as`: the key that names it, for the message.

    Raises:
        RequestError: there is no such sweep.
    """
    client = connect(config.tracking.uri)
    name = config.tracking.experiment or config.choices.dataset
    try:
        if sweep_id != "latest":
            run = find_by_id(client, sweep_id, key=asked_as, kind="sweep")
        else:
            known = client.get_experiment_by_name(name)
            runs = known and client.search_runs(
                [known.experiment_id],
                f"tags.`{FOLDER}` != ''",
                max_results=1,
                order_by=["start_time DESC"],
            )
            if not runs:
                raise RequestError(f"{asked_as}=latest: experiment {name} has no sweep")
            run = runs[0]
        return run.info.run_id, run.data.tags[FOLDER]
    except (MlflowException, KeyError) as error:
        raise RequestError(f"{asked_as}={sweep_id}: there is no such sweep") from error


def typical_seconds(config: Config) -> float | None:
    """Median duration of finished runs of this model on this data set for as many epochs.

    From runs of other lengths, if there are none, in proportion to the epochs. None: no run yet.
    """
    client = connect(config.tracking.uri)
    name = config.tracking.experiment or config.choices.dataset
    found = client.search_runs(
        [experiment(client, name)],
        f"attributes.status = 'FINISHED' AND tags.model = '{config.choices.model}' "
        f"AND tags.dataset = '{config.choices.dataset}'",
        ViewType.ACTIVE_ONLY,
        max_results=_SAMPLE,
        order_by=["start_time DESC"],
    )
    epochs = str(config.train.epochs)
    timed = [
        run for run in found if "time/total_s" in run.data.metrics and FOLDER not in run.data.tags
    ]
    alike = [run for run in timed if run.data.params.get("train.epochs") == epochs]
    durations = [
        run.data.metrics["time/total_s"] * _stretch(run, config.train.epochs)
        for run in (alike or timed)
    ]
    return statistics.median(durations) if durations else None


def _stretch(run: Run, epochs: int) -> float:
    return epochs / int(run.data.params.get("train.epochs", epochs))


def _without_run(job: Job, objectives: int, error: str) -> Outcome:
    values = (float("nan"),) * objectives
    return Outcome(index=job.index, state=FAILED, params=job.params, values=values, error=error)
