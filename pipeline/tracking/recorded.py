"""Reads a recorded run: what the store knows of it, its configuration and its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import yaml
from mlflow.exceptions import MlflowException

from pipeline.config.schema import Config, Tracking, validate
from pipeline.data.values import Array
from pipeline.system.errors import RequestError
from pipeline.system.folders import owner
from pipeline.tracking.client import connect
from pipeline.tracking.ids import find_by_id
from pipeline.tracking.lifecycle import FOLDER, RUN_FOLDER
from pipeline.tracking.recording import Recording

CONFIG = "config.yaml"


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run as the tracking store has it; `config` is the one it ran with."""

    id: str
    config: Config
    model_uri: str

    def load_model(self) -> Any:
        """The Keras model that the run saved."""
        return mlflow.tensorflow.load_model(self.model_uri)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the tracking store says of a run, whatever state it is in.

    `metrics` has the latest value of each; `artifacts` is the address of its artefacts.
    """

    id: str
    experiment: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    artifacts: str

    @property
    def folder(self) -> Path | None:
        """Where its log and checkpoints lie, on the machine it ran on."""
        return Path(self.tags[RUN_FOLDER]) if RUN_FOLDER in self.tags else None

    @property
    def is_sweep(self) -> bool:
        """Whether it is a sweep's own run, which has trained nothing itself."""
        return FOLDER in self.tags

    @property
    def config(self) -> Config:
        """The configuration it ran with.

        Raises:
            RequestError: there is none among its artefacts.
        """
        return validate(yaml.safe_load(self.text(CONFIG)))

    def text(self, name: str) -> str:
        """A text among its artefacts, byte for byte.

        Raises:
            RequestError: there is none of that name.
        """
        return self._fetched(name).read_bytes().decode("utf-8", errors="surrogateescape")

    def has(self, name: str) -> bool:
        """Whether a file of that name is among its artefacts."""
        listed = mlflow.artifacts.list_artifacts(artifact_uri=self.artifacts)
        return any(found.path == name for found in listed) or self._left(name) is not None

    def predictions(self) -> dict[str, Array]:
        """`<split>_labels` i32[N] and `<split>_probs` f32[N,K] of each split it was evaluated on.

        Raises:
            RequestError: it was not evaluated.
        """
        with np.load(self._fetched("predictions.npz"), allow_pickle=False) as stored:
            return dict(stored)

    def _fetched(self, name: str) -> Path:
        try:
            return Path(mlflow.artifacts.download_artifacts(f"{self.artifacts}/{name}"))
        except (MlflowException, OSError) as error:
            if left := self._left(name):
                return left
            raise RequestError(f"run_id={self.id}: the run has no {name}") from error

    def _left(self, name: str) -> Path | None:
        """What lies in its folder still: a run that was killed outright brought nothing home."""
        if self.folder is None or owner(self.folder) != self.id:
            return None
        path = self.folder / "artifacts" / name
        return path if path.exists() else None


def find_run(run_id: str | None, tracking: Tracking, *, experiment: str) -> RecordedRun:
    """The run with that id or beginning of one; for `latest` `experiment`'s newest finished one.

    Raises:
        RequestError: there is no such run, or it has no model or configuration.
    """
    where = "attributes.status = 'FINISHED' AND tags.model_uri != ''"
    entry = find_entry(run_id, tracking, experiment=experiment, latest=("finished run", where))
    config = entry.config
    if "model_uri" not in entry.tags:
        raise RequestError(f"run_id={run_id} ({entry.status}) has saved no model")
    return RecordedRun(id=entry.id, config=config, model_uri=entry.tags["model_uri"])


def find_entry(
    run_id: str | None, tracking: Tracking, *, experiment: str, latest: tuple[str, str]
) -> Entry:
    """The run with that id or beginning of one; for `latest` the newest such one of `experiment`.

    `latest` says which: what such a run is called, and MLflow's condition for it.

    Raises:
        RequestError: there is no such run, or none was named.
    """
    if run_id is None:
        raise RequestError("run_id: say which run, run_id=<id> or run_id=latest")
    client = connect(tracking.uri)
    run = find_by_id(client, _latest(client, experiment, latest) if run_id == "latest" else run_id)
    known = client.get_experiment(run.info.experiment_id)
    return Entry(
        id=run.info.run_id,
        experiment=known.name,
        status=run.info.status,
        tags=run.data.tags,
        params=run.data.params,
        metrics=run.data.metrics,
        artifacts=run.info.artifact_uri,
    )


def reopen(run_id: str, tracking: Tracking, folder: Path) -> Recording:
    """To add to a run; its status and all it has stay."""
    return Recording(id=run_id, client=connect(tracking.uri), folder=folder)


def _latest(client: mlflow.MlflowClient, experiment: str, wanted: tuple[str, str]) -> str:
    called, where = wanted
    known = client.get_experiment_by_name(experiment)
    runs = known and client.search_runs(
        [known.experiment_id], where, max_results=1, order_by=["attributes.start_time DESC"]
    )
    if not runs:
        raise RequestError(f"run_id=latest: experiment {experiment} has no {called}")
    return str(runs[0].info.run_id)
