"""Writes the report of a run, while it is recorded or later."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from pipeline.config.schema import Config
from pipeline.data.checks import apply, findings_of
from pipeline.data.describe import describe, text
from pipeline.data.load import data_folder, ingest_recorded, preprocess
from pipeline.data.measures import SUMMARY_FILE, measured, summarised
from pipeline.data.values import JUDGED_SPLITS, Predictions, Prepared, RawData
from pipeline.reports import data_page
from pipeline.reports.explained import Explained
from pipeline.reports.notes import REPORT_PAGE, note_of_run
from pipeline.reports.originals import read_originals
from pipeline.reports.page import Facts, run_html
from pipeline.reports.template import template
from pipeline.system.errors import PipelineError, RequestError, one_line
from pipeline.system.folders import owner
from pipeline.tracking.client import STORE_ERRORS
from pipeline.tracking.lifecycle import ending, status_of
from pipeline.tracking.recording import Recording, reopen
from pipeline.tracking.runs import find_run
from pipeline.tracking.values import (
    PREDICTIONS,
    Query,
    RecordedRun,
    Status,
    StoredPredictions,
)

REPORTABLE = Query(has_folder=True)  # in any state
_WEIGHTS, AUGMENTATION = "plots/weights.png", "plots/augmentation.png"
STAGE = ("time/", "_s")  # prefix and suffix of a stage in the name of its metric

log = logging.getLogger(__name__)


@contextmanager
def with_report(recording: Recording, config: Config, *, wanted: bool) -> Iterator[None]:
    """Describes the run after the block and writes its report, if `wanted` and `evaluate.report`.

    The report of a run that fails or is stopped shows what exists by then, and the error.
    """
    wanted = wanted and config.evaluate.report
    try:
        yield
    except BaseException as error:
        # Does not contact an unreachable store again.
        if wanted and not isinstance(error, STORE_ERRORS):
            _at_least_try(recording, config, error)
        raise
    describe_and_report(recording, config, report=wanted)


def save_report(recording: Recording, config: Config, error: BaseException | None = None) -> None:
    """Adds `report.html` to the artefacts; `config` is the configuration of the run."""
    with recording.stage("report"):
        page = run_html(
            template("report.html"), facts_of(recording, error), config, recording.predictions
        )
        recording.save_text(REPORT_PAGE, page)


def describe_and_report(recording: Recording, config: Config, *, report: bool) -> None:
    """Writes the `report`, if it is wanted, and describes the run in MLflow.

    A run that is added to may have a report from before.
    """
    if report:
        save_report(recording, config)
    run = recording.known()
    is_new = bool(recording.records)
    has_report = report or (not is_new and run.has(REPORT_PAGE))
    note = note_of_run(
        config,
        recording.predictions,
        parameters={**run.logged, **recording.sizes}.get("model/parameters"),
        command=run.command,
        report=REPORT_PAGE if has_report else None,
    )
    recording.describe(note)


def check_data(
    raw: RawData,
    config: Config,
    recording: Recording,
    *,
    shown: bool,
    augment: data_page.Augment | None = None,
) -> None:
    """Adds descriptions of the data to the artefacts, and applies `ingest.checks`.

    They are `data.txt`, `data_summary.json` and, with `shown` and `evaluate.report`, the page
    `data.html`, with some images as `augment` changes them.

    Raises:
        RequestError: a check refuses the data set.
    """
    name, folder = config.choices.dataset, data_folder(config)
    measures = measured(raw, folder)
    found = findings_of(raw, measures, config.ingest.checks)
    recording.save_text("data.txt", text(describe(raw, measures)))
    recording.save_text(SUMMARY_FILE, summarised(raw, measures).to_json())
    if shown and config.evaluate.report:
        page = data_page.data_html(
            template(data_page.DATA_PAGE),
            raw,
            measures,
            read_originals(raw, folder),
            found,
            name=name,
            augment=augment,
        )
        recording.save_text(data_page.DATA_PAGE, page)
    apply(found)


def bring_home(config: Config, run_id: str) -> None:
    """Logs the artefacts of a run that was killed outright from its local folder, with a report.

    Does nothing if the run has no folder on this machine.
    """
    run = find_run(run_id, config)
    if run.folder is None or owner(run.folder) != run.id:
        return
    recording = reopen(run.id, config.tracking, run.folder)
    try:
        then = run.config
        if then.evaluate.report and run.parent is None:
            recording.save_text(REPORT_PAGE, page_of(run, recording, config.data_dir))
    finally:
        recording.upload()


def page_of(
    run: RecordedRun,
    recording: Recording,
    data_dir: str,
    explain: Callable[[Predictions], Explained] | None = None,
) -> str:
    """The report of a run, from the store and the data on this machine.

    `explain` is called with the predictions that the page is about, if there are any.
    """
    then = replace(run.config, data_dir=data_dir)
    predictions = _stored_predictions(run, then)
    split = next(filter(predictions.__contains__, JUDGED_SPLITS), None)
    explained = explain(predictions[split]) if explain and split else None
    return run_html(template("report.html"), facts_of(recording), then, predictions, explained)


def _stored_predictions(run: RecordedRun, config: Config) -> dict[str, Predictions]:
    if not run.has(PREDICTIONS):
        return {}  # it did not get that far
    stored = run.predictions()
    prepared = preprocess(ingest_recorded(config, run.identity), config)
    _require_same(run, stored, prepared)
    return {
        name: prepared.predictions(prepared.splits[name], one.probabilities)
        for name, one in stored.items()
    }


def require_division(run: RecordedRun, prepared: Prepared) -> None:
    """Checks that what a run has predicted so far is of the images here.

    Raises:
        RequestError: an earlier version has divided the same data in another way.
    """
    try:
        stored = run.predictions() if run.has(PREDICTIONS) else {}
    except RequestError:  # a kill has cut them off
        return
    _require_same(run, stored, prepared)


def _require_same(
    run: RecordedRun, stored: Mapping[str, StoredPredictions], prepared: Prepared
) -> None:
    for name, one in stored.items():
        if not np.array_equal(one.labels, prepared.splits[name].labels):
            raise RequestError(
                f"run {run.label}: its {JUDGED_SPLITS[name]} images were divided in another way "
                "than here, as by an earlier version; use that version, or train it again"
            )


def _at_least_try(recording: Recording, config: Config, error: BaseException) -> None:
    """Logs errors in a failed run's report instead of raising them: the first failure matters."""
    try:
        save_report(recording, config, error)
    except Exception as another:
        log.warning("The failed run has no report: %s", one_line(another))


def facts_of(recording: Recording, error: BaseException | None = None) -> Facts:
    """The recorded facts about a run, with the times of stages that are not logged yet.

    `error` is the exception that is about to end the run, if any.
    """
    run = recording.known()
    # The report is the last thing that a run writes before it finishes.
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
        metrics={**run.logged, **recording.sizes},
        history=recording.history(by_epoch),
        weights=_artifact(recording, run, _WEIGHTS),
        data_page=_has(recording, run, data_page.DATA_PAGE),
        augmentation=_artifact(recording, run, AUGMENTATION),
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
    """An artefact from the local folder or, for an earlier run, from the store."""
    if here := recording.written(name):
        return here.read_bytes()
    if run.status == Status.RUNNING:  # not logged yet
        return None
    try:
        return run.fetch(name).read_bytes()
    except PipelineError:
        return None  # `train.plots` does not include it, or the store is away


def _has(recording: Recording, run: RecordedRun, name: str) -> bool:
    """Whether a run has an artefact, without fetching it."""
    if recording.written(name):
        return True
    return run.status != Status.RUNNING and run.has(name)
