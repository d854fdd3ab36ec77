"""Finds the runs to compare; reads whole pages of runs, never one request per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.config.rules import choose
from pipeline.config.schema import Config
from pipeline.system.errors import RequestError
from pipeline.tracking.client import connect, experiment_name
from pipeline.tracking.runs import WHOLE, by_id, find_best, find_runs, find_sweep
from pipeline.tracking.values import Query, RecordedRun, Status

_FINISHED = Query(status=(Status.FINISHED,), is_sweep=False)


@dataclass(frozen=True, kw_only=True)
class ChosenRuns:
    """Runs, a description of where they come from, and their sweep if they are its jobs."""

    runs: list[RecordedRun]
    source: str
    sweep: str | None = None


def best_runs(config: Config, metric: str, *, most: int, lower_is_better: bool) -> ChosenRuns:
    """The `most` finished runs of the experiment that have the metric, best first.

    Raises:
        RequestError: there is none; the message lists the available metrics.
    """
    name = experiment_name(config)
    asked = replace(_FINISHED, experiment=name, has_metric=metric)
    runs = find_best(
        connect(config.tracking.uri),
        asked,
        metric,
        most=most,
        lower_is_better=lower_is_better,
    )
    if not runs:
        raise RequestError(_without_metric(config, name, metric))
    number = f"best {len(runs):,} finished runs" if len(runs) > 1 else "best finished run"
    return ChosenRuns(runs=runs, source=f"{number} of experiment {name}")


def named_runs(config: Config, asked: Sequence[str]) -> ChosenRuns:
    """Finds the runs with the given ids, or first characters of ids, in that order.

    Raises:
        RequestError: a name matches no run, several, or a sweep's own run; or all are the same.
    """
    names = list(dict.fromkeys(asked))
    whole = [name for name in names if len(name) == WHOLE]
    listed = Query(ids=whole)
    found = {run.id: run for run in find_runs(listed, config.tracking)} if whole else {}
    client, runs = connect(config.tracking.uri), {}
    for name in names:
        run = found.get(name) or by_id(client, name, key="runs")
        if run.is_sweep:
            raise RequestError(
                f"runs: {name} is a sweep's own run; to compare its jobs, use sweep={name}"
            )
        runs[run.id] = run
    if len(runs) < 2:
        raise RequestError(f"runs: all of {', '.join(names)} are the same run; name two or more")
    return ChosenRuns(runs=list(runs.values()), source=f"{len(runs)} named runs")


def sweep_runs(config: Config, asked: str) -> ChosenRuns:
    """The finished jobs of the sweep with that id, or of the latest one.

    Raises:
        RequestError: there is no such sweep, or none of its jobs has finished.
    """
    sweep = find_sweep(asked, config, key="sweep")
    of_sweep = Query(experiment=sweep.experiment, parent=sweep.id, order=("started",))
    jobs = find_runs(of_sweep, config.tracking)
    runs = [run for run in jobs if run.status == Status.FINISHED]
    if not runs:
        raise RequestError(f"sweep={asked}: none of its {len(jobs)} jobs has finished")
    others = f" ({len(jobs) - len(runs)} did not finish)" if len(jobs) > len(runs) else ""
    source = f"{len(runs):,} jobs of sweep {sweep.id}{others}"
    return ChosenRuns(runs=runs, source=source, sweep=sweep.id)


def _without_metric(config: Config, name: str, metric: str) -> str:
    one = replace(_FINISHED, experiment=name, limit=1)
    newest = find_runs(one, config.tracking)
    if newest:
        other = choose(metric, sorted(newest[0].metrics))
        return f"metric={metric}: no finished run of experiment {name} has it; {other}"
    state = "finished run" if find_runs(Query(experiment=name, limit=1), config.tracking) else "run"
    return f"experiment {name} has no {state} yet; tracking.experiment=… names another"
