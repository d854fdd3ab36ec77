"""Runs that only record, in this or other processes, and checks of what a store has of them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.config.schema import Config
from pipeline.data.values import Prepared, Split
from pipeline.tracking.journal import has_journal
from pipeline.tracking.lifecycle import record
from tests.commands import configured
from tests.stores import MADE_ONCE
from tests.warm import call_warm

SIX = tuple(f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy", "x"))


def prepared() -> Prepared:
    """A data set of four images."""
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1], np.int32)
    split = Split(images=images, labels=labels)
    return Prepared(
        train=split,
        val=split,
        test=split,
        class_names=("a", "b"),
        source="a test",
        fingerprint="0" * 64,
        mean=np.zeros(1, np.float32),
        std=np.ones(1, np.float32),
    )


def with_store(uri: str, *words: str) -> Config:
    """A configuration for the store at an address."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return configured(*words)


def record_only(folder: Path, uri: str, epochs: int, begin: float, real_tables: bool) -> str:
    """Records a run of some epochs and six metrics from a given moment on; returns its id."""
    if real_tables:
        os.environ.pop(MADE_ONCE, None)  # then MLflow makes the tables of a new store itself
    os.chdir(folder.parent)
    root = (
        [f"tracking.artifact_root={folder.parents[1]}/files"] if uri.startswith("postgres") else []
    )
    config = with_store(uri, *root)
    time.sleep(max(0.0, begin - time.time()))
    with record(config, folder) as recording:
        recording.log_data(prepared(), "four")
        for epoch in range(1, epochs + 1):
            recording.log_epoch(epoch, {name: epoch + n for n, name in enumerate(SIX)})
    return recording.id


def at_once(
    many: int, folder: Path, uri: str, *, epochs: int = 20, real_tables: bool = False
) -> list[str]:
    """Records runs at the same time, each in a process of its own; returns their ids."""
    begin = time.time() + 1.0
    with ThreadPoolExecutor(many) as callers:
        calls = []
        for number in range(many):
            place = folder / f"run{number}"
            given = (record_only, place, uri, epochs, begin, real_tables)
            calls.append(callers.submit(call_warm, *given, timeout=300))
        return [call.result() for call in calls]


def missing_points(client: MlflowClient, run_id: str, epochs: int, names: Sequence[str]) -> int:
    """The number of points of a run that are missing or occur more than once."""
    wanted, wrong = list(range(1, epochs + 1)), 0
    for name in names:
        steps = sorted(point.step for point in client.get_metric_history(run_id, name))
        wrong += len(set(wanted) - set(steps)) + len(steps) - len(set(steps))
    return wrong


def assert_recorded(
    client: MlflowClient, run_id: str, folder: Path, epochs: int, *, status: str = "FINISHED"
) -> Run:
    """Checks that the store has a run once, with each point once, its artefacts and its model."""
    run = client.get_run(run_id)
    assert run.info.status == status
    assert not has_journal(folder)
    assert missing_points(client, run_id, epochs, ("train/loss", "val/loss")) == 0
    local_id = run.data.tags["local_id"]
    [alone] = client.search_runs([run.info.experiment_id], f"tags.local_id = '{local_id}'")
    assert alone.info.run_id == run_id
    if status == "FINISHED":
        names = {artifact.path for artifact in client.list_artifacts(run_id)}
        assert {"config.yaml", "environment.txt", "predictions.npz"} <= names
        condition = f"source_run_id = '{run_id}'"
        [model] = client.search_logged_models([run.info.experiment_id], filter_string=condition)
        assert (str(model.status), model.model_uri) == ("READY", run.data.tags["model_uri"])
    return run
