"""Reads of a run what promoting it takes: how it ended, what it predicted, where its model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.config.flat import config_sha256
from pipeline.config.schema import Config, Tracking
from pipeline.data.values import Array
from pipeline.system.errors import RequestError
from pipeline.tracking.client import connect
from pipeline.tracking.ranking import best_by_kept
from pipeline.tracking.recorded import find_run
from pipeline.tracking.records import of_kept_weights

METRIC = "val/accuracy"  # chooses the best run; the test split is for judging it afterwards
_AS_THEY_ARE = (
    "data.fingerprint",
    "data.source",
    "code.dirty",
    "dataset",
    "model",
    "version.tensorflow",
    "version.keras",
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run that may be promoted: the `config` it ran with and what the tracking store has of it.

    `lineage` are the tags for a version of its model: what it is made of and how good it is.
    """

    id: str
    config: Config
    model_uri: str
    status: str
    fingerprint: str
    lineage: Mapping[str, str]


def find_candidate(run_id: str, tracking: Tracking, *, experiment: str) -> Candidate:
    """The run with that id, or for `best` the finished one whose model has the best `val/accuracy`.

    Raises:
        RequestError: there is no such run, or it has no model or configuration.
    """
    client = connect(tracking.uri)
    chosen = _best(client, experiment) if run_id == "best" else run_id
    recorded = find_run(chosen, tracking, experiment=experiment)
    run = client.get_run(recorded.id)
    tags, metrics = run.data.tags, of_kept_weights(run.data.metrics)
    lineage = {key: tags[key] for key in _AS_THEY_ARE if key in tags} | {
        "run_id": recorded.id,
        "model_uri": recorded.model_uri,
        "config.sha256": config_sha256(recorded.config),
        "code.commit": tags.get("mlflow.source.git.commit", "unknown"),
        **{key.replace("/", "."): f"{metrics[key]:.6g}" for key in _SHOWN if key in metrics},
    }
    return Candidate(
        id=recorded.id,
        config=recorded.config,
        model_uri=recorded.model_uri,
        status=run.info.status,
        fingerprint=tags.get("data.fingerprint", ""),
        lineage=lineage,
    )


_SHOWN = ("val/accuracy", "test/accuracy", "test/macro_f1", "test/ece", "test/loss")


def test_predictions(run_id: str, tracking: Tracking) -> tuple[Array, Array] | None:
    """Labels i32[N] and probabilities f32[N,K] that a run logged for the test split, if it did."""
    client = connect(tracking.uri)
    try:
        uri = f"{client.get_run(run_id).info.artifact_uri}/predictions.npz"
        path = mlflow.artifacts.download_artifacts(artifact_uri=uri)
        with np.load(path) as stored:
            return stored["test_labels"], stored["test_probs"]
    except (MlflowException, OSError, KeyError):
        return None


def fetch_model(uri: str) -> Path:
    """The folder of a saved model on this machine, downloaded if need be.

    Raises:
        OSError: it is not there, or incomplete.
    """
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except MlflowException as error:
        raise OSError(f"{uri}: {error.message}") from error


def _best(client: mlflow.MlflowClient, experiment: str) -> str:
    known = client.get_experiment_by_name(experiment)
    experiments = [known.experiment_id] if known else []
    where = "attributes.status = 'FINISHED' AND tags.model_uri != ''"

    def search(order: Sequence[str], most: int) -> list[Run]:
        return list(client.search_runs(experiments, where, max_results=most, order_by=list(order)))

    runs = best_by_kept(search, METRIC, most=1) if experiments else []
    if not runs or METRIC not in runs[0].data.metrics:
        raise RequestError(
            f"run_id=best: experiment {experiment} has no finished run with a model and {METRIC}; "
            "make one, or name another with dataset=… or tracking.experiment=…"
        )
    return str(runs[0].info.run_id)
