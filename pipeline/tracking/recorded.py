"""Reads a finished run: its configuration and its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.exceptions import MlflowException

from pipeline.config import Config, Tracking, validate
from pipeline.errors import RequestError
from pipeline.tracking.recording import Recording
from pipeline.tracking.store import connect


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run as the tracking store has it; `config` is the one it ran with."""

    id: str
    config: Config
    model_uri: str

    def load_model(self) -> Any:
        """The Keras model that the run saved."""
        return mlflow.tensorflow.load_model(self.model_uri)


def find_run(run_id: str, tracking: Tracking, *, experiment: str) -> RecordedRun:
    """The run with that id, or the newest finished one of `experiment` for `latest`.

    Raises:
        RequestError: there is no such run, or it has no model or configuration.
    """
    client = connect(tracking.uri)
    found = run_id if run_id != "latest" else _latest(client, experiment)
    try:
        run = client.get_run(found)
        text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml")
    except (MlflowException, OSError) as error:
        raise RequestError(f"run_id={run_id}: no such run, or one without config.yaml") from error
    if "model_uri" not in run.data.tags:
        raise RequestError(f"run_id={run_id} ({run.info.status}) has saved no model")
    return RecordedRun(
        id=run.info.run_id,
        config=validate(yaml.safe_load(text)),
        model_uri=run.data.tags["model_uri"],
    )


def reopen(run_id: str, tracking: Tracking, folder: Path) -> Recording:
    """To add to a run; its status and all it has stay."""
    return Recording(id=run_id, client=connect(tracking.uri), folder=folder)


def _latest(client: mlflow.MlflowClient, experiment: str) -> str:
    known = client.get_experiment_by_name(experiment)
    runs = known and client.search_runs(
        [known.experiment_id],
        "attributes.status = 'FINISHED' AND tags.model_uri != ''",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if not runs:
        raise RequestError(f"run_id=latest: experiment {experiment} has no finished run")
    return str(runs[0].info.run_id)
