"""What the tracking store knows of a run, for its report."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.reports.page import Facts
from pipeline.tracking.lifecycle import ending, status_of
from pipeline.tracking.recording import Recording

WEIGHTS = "plots/weights.png"
STAGE = ("time/", "_s")  # around the name of a stage in that of its metric


def facts_of(recording: Recording, error: BaseException | None = None) -> Facts:
    """The run's facts, with the times of those stages that are not logged yet.

    `error` is what a run that is still open is about to end with.
    """
    client = recording.client
    run = client.get_run(recording.id)
    metrics = run.data.metrics
    # The report is the last thing that a run writes before it ends well.
    ends = status_of(error) if error else "FINISHED" if recording.seconds else run.info.status
    return Facts(
        run_id=recording.id,
        name=run.info.run_name,
        experiment=client.get_experiment(run.info.experiment_id).name,
        status=ends if _is_open(run) else run.info.status,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        seconds=_seconds(run) | recording.seconds,
        tags=run.data.tags | (ending(error) if error else {}),
        metrics=metrics,
        history={
            key: {m.step: m.value for m in client.get_metric_history(recording.id, key)}
            for key in metrics
            if key.startswith(("train/", "val/")) and key != "train/best_epoch"
        },
        weights=_artifact(recording, run, WEIGHTS),
    )


def is_of_store(error: BaseException) -> bool:
    """Whether the tracking store itself is what failed: then it need not be asked again."""
    return isinstance(error, MlflowException)


def _is_open(run: Run) -> bool:
    return bool(run.info.status == "RUNNING")


def _seconds(run: Run) -> dict[str, float]:
    before, after = STAGE
    found = {
        key.removeprefix(before).removesuffix(after): value
        for key, value in run.data.metrics.items()
        if key.startswith(before) and key.endswith(after) and key != "time/images_per_s"
    }
    ended = run.info.end_time or time.time() * 1000
    return {"total": (ended - run.info.start_time) / 1000} | found


def _artifact(recording: Recording, run: Run, name: str) -> bytes | None:
    """What lies in the local folder or, for a run of another time, in the store."""
    here = recording.artifacts / name
    if here.exists():
        return here.read_bytes()
    if _is_open(run):  # it would not be there yet
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            uri = f"{run.info.artifact_uri}/{name}"
            path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
            return Path(path).read_bytes()
    except (MlflowException, OSError):
        return None  # `train.plots` did not ask for it
