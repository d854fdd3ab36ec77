"""What the tracking store knows of a run, for its report."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from pipeline.reports.page import Facts
from pipeline.system.errors import RequestError
from pipeline.tracking.lifecycle import ending, status_of
from pipeline.tracking.recording import Recording
from pipeline.tracking.runs import by_id
from pipeline.tracking.values import RecordedRun, Status

WEIGHTS = "plots/weights.png"
STAGE = ("time/", "_s")  # around the name of a stage in that of its metric


def facts_of(recording: Recording, error: BaseException | None = None) -> Facts:
    """The run's facts, with the times of those stages that are not logged yet.

    `error` is what a run that is still open is about to end with.
    """
    run = by_id(recording.client, recording.id)
    # The report is the last thing that a run writes before it ends well.
    ends = status_of(error) if error else Status.FINISHED if recording.seconds else run.status
    by_epoch = [
        key
        for key in run.logged
        if key.startswith(("train/", "val/")) and key != "train/best_epoch"
    ]
    return Facts(
        run_id=run.id,
        name=run.name,
        experiment=run.experiment,
        status=ends if run.status == Status.RUNNING else run.status,
        started=datetime.fromtimestamp(run.started / 1000, UTC),
        seconds=_seconds(run) | recording.seconds,
        tags=dict(run.tags) | (ending(error) if error else {}),
        metrics=run.logged,
        history=recording.history(by_epoch),
        weights=_artifact(recording, run, WEIGHTS),
    )


def _seconds(run: RecordedRun) -> dict[str, float]:
    before, after = STAGE
    found = {
        key.removeprefix(before).removesuffix(after): value
        for key, value in run.logged.items()
        if key.startswith(before) and key.endswith(after) and key != "time/images_per_s"
    }
    total = run.seconds if run.ended else time.time() - run.started / 1000
    return {"total": total} | found


def _artifact(recording: Recording, run: RecordedRun, name: str) -> bytes | None:
    """What lies in the local folder or, for a run of another time, in the store."""
    if here := recording.written(name):
        return here.read_bytes()
    if run.status == Status.RUNNING:  # it would not be there yet
        return None
    try:
        return run.fetch(name).read_bytes()
    except RequestError:
        return None  # `train.plots` did not ask for it
