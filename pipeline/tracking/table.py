"""Finds the runs to compare: whole pages of them, no request for a single one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.config.messages import choose
from pipeline.config.schema import Config
from pipeline.data.values import Array
from pipeline.sweeps.runs import find_sweep
from pipeline.system.errors import RequestError
from pipeline.tracking.client import connect
from pipeline.tracking.ids import find_by_beginning
from pipeline.tracking.lifecycle import FOLDER, PARENT
from pipeline.tracking.ranking import best_by_kept
from pipeline.tracking.records import RunRecord, of_kept_weights

PAGE = 5_000  # runs asked for at once
FINISHED = "attributes.status = 'FINISHED'"
NOT_A_SWEEP = f"tags.`{FOLDER}` IS NULL"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Runs, where they come from in words, and the sweep whose jobs they are, if they are that."""

    runs: list[RunRecord]
    source: str
    sweep: str | None = None


def best_runs(config: Config, *, lower_is_better: bool) -> Found:
    """The `compare.top` finished runs of the experiment that have the metric, best first.

    Raises:
        RequestError: there is none; says which metrics there are.
    """
    request, name = config.compare, config.tracking.experiment or config.choices.dataset
    client = connect(config.tracking.uri)
    known = client.get_experiment_by_name(name)
    if known is None or known.lifecycle_stage != "active":
        raise RequestError(f"experiment {name} has no run yet; tracking.experiment=… names another")
    where = f"{FINISHED} AND {NOT_A_SWEEP} AND metrics.`{request.metric}` > -1.7e308"

    def search(order: Sequence[str], most: int) -> list[Run]:
        return list(islice(_search(client, [known.experiment_id], where, order, most), most))

    best = best_by_kept(search, request.metric, most=request.top, lower_is_better=lower_is_better)
    runs = [_record(run) for run in best]
    if not runs:
        raise RequestError(_without_metric(client, known.experiment_id, name, request.metric))
    number = f"best {len(runs):,} finished runs" if len(runs) > 1 else "best finished run"
    return Found(runs=runs, source=f"{number} of experiment {name}")


def named_runs(config: Config) -> Found:
    """The runs that `compare.runs` names by id or by its first characters, in that order.

    Raises:
        RequestError: a name fits no run, several, or a sweep's own run; or all name the same.
    """
    names = list(dict.fromkeys(config.compare.runs))
    client = connect(config.tracking.uri)
    experiments = [e.experiment_id for e in client.search_experiments(max_results=PAGE)]
    whole = [name for name in names if re.fullmatch("[0-9a-f]{32}", name)]
    found: dict[str, Run] = {}
    if whole:
        listed = ", ".join(f"'{name}'" for name in whole)
        where = f"attributes.run_id IN ({listed})"
        found = {run.info.run_id: run for run in _search(client, experiments, where)}
    runs = {}
    for name in names:
        run = found.get(name) or find_by_beginning(client, name, experiments, key="runs")
        if FOLDER in run.data.tags:
            raise RequestError(f"runs: {name} is a sweep's own run; its jobs are sweep={name}")
        runs[run.info.run_id] = run
    if len(runs) < 2:
        raise RequestError(f"runs: all of {', '.join(names)} are one run; name two or more")
    return Found(runs=[_record(run) for run in runs.values()], source=f"{len(runs)} named runs")


def sweep_runs(config: Config) -> Found:
    """The finished jobs of the sweep `compare.sweep`.

    Raises:
        RequestError: there is no such sweep, or none of its jobs has finished.
    """
    asked = str(config.compare.sweep)
    parent, _ = find_sweep(asked, config, asked_as="sweep")
    client = connect(config.tracking.uri)
    experiment = client.get_run(parent).info.experiment_id
    where = f"tags.`{PARENT}` = '{parent}'"
    jobs = [_record(run) for run in _search(client, [experiment], where)]
    runs = [run for run in jobs if run.status == "FINISHED"]
    if not runs:
        raise RequestError(f"sweep={asked}: none of its {len(jobs)} jobs has finished")
    others = f" ({len(jobs) - len(runs)} did not finish)" if len(jobs) > len(runs) else ""
    return Found(runs=runs, source=f"{len(runs):,} jobs of sweep {parent}{others}", sweep=parent)


def load_predictions(run: RunRecord) -> dict[str, Array] | None:
    """`<split>_labels` i32[N] and `<split>_probs` f32[N,K] as the run stored them; None: not."""
    try:
        path = mlflow.artifacts.download_artifacts(f"{run.artifact_uri}/predictions.npz")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (MlflowException, OSError, ValueError):
        return None


def load_environment(run: RunRecord) -> str | None:
    """The run's `environment.txt`; None if it has stored none."""
    try:
        path = mlflow.artifacts.download_artifacts(f"{run.artifact_uri}/environment.txt")
        return Path(path).read_text(encoding="utf-8")
    except (MlflowException, OSError, ValueError):
        return None


def log_comparison(sweep: str, files: Sequence[Path], config: Config) -> None:
    """Puts files among the artefacts of a sweep's own run, under `compare/`."""
    client = connect(config.tracking.uri)
    for path in files:
        client.log_artifact(sweep, str(path), "compare")


def _search(
    client: mlflow.MlflowClient,
    experiments: Sequence[str],
    where: str,
    order: Sequence[str] = ("attributes.start_time ASC",),
    most: int = PAGE,
) -> Iterator[Run]:
    token = None
    while True:
        with _left_as_read():
            page = client.search_runs(
                list(experiments),
                where,
                max_results=min(most, PAGE),
                order_by=list(order),
                page_token=token,
            )
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _left_as_read() -> Iterator[None]:
    """While open, SQLAlchemy lets what a database transaction has read be, once it has ended.

    It would note of each of a thousand runs' hundred values that it may have changed since: 0.4 s,
    and MLflow does not look at them again.
    """
    if "sqlalchemy.orm" not in sys.modules:  # the store is a server's
        yield
        return
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    def begun(session: Session, *_: Any) -> None:
        session.expire_on_commit = False

    event.listen(Session, "after_begin", begun)
    try:
        yield
    finally:
        event.remove(Session, "after_begin", begun)


def _without_metric(client: mlflow.MlflowClient, experiment: str, name: str, metric: str) -> str:
    newest = client.search_runs([experiment], f"{FINISHED} AND {NOT_A_SWEEP}", max_results=1)
    if not newest:
        return f"experiment {name} has no finished run yet; tracking.experiment=… names another"
    other = choose(metric, newest[0].data.metrics)
    return f"metric={metric}: no finished run of experiment {name} has it; {other}"


def _record(run: Run) -> RunRecord:
    return RunRecord(
        id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        started=run.info.start_time,
        params=run.data.params,
        tags=run.data.tags,
        metrics=of_kept_weights(run.data.metrics),
        sizes=_sizes(run),
        artifact_uri=run.info.artifact_uri,
    )


def _sizes(run: Run) -> Mapping[str, int]:
    """Images by split, from the data that the run logged."""
    for logged in run.inputs.dataset_inputs if run.inputs else ():
        profile: dict[str, Any] = json.loads(logged.dataset.profile or "{}")
        sizes = {key.removesuffix("_images"): profile[key] for key in profile}
        if "test" in sizes:
            return sizes
    return {}
