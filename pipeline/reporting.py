"""Writes a run's report: while the run is recorded, or anew for one that was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config import Config
from pipeline.data import Predictions, Prepared
from pipeline.errors import RequestError
from pipeline.evaluate import answers
from pipeline.ingest import ingest, prepare
from pipeline.report import html
from pipeline.storage import replacing
from pipeline.tracking import Recording, find_run, reopen
from pipeline.tracking.facts import facts_of, stored_arrays

NAME = "report.html"


def save_report(
    recording: Recording, config: Config, predictions: Mapping[str, Predictions]
) -> None:
    """Puts `report.html` among the artefacts, if `evaluate.report` asks for it.

    A job of a sweep gets one when it is kept as one of the best: nobody reads hundreds.
    """
    job = config.sweep.job
    if config.evaluate.report and (job.parent is None or job.keep):
        with recording.stage("report"):
            recording.save_text(NAME, html(facts_of(recording), config, predictions))


def report_recorded(config: Config, folder: Path) -> None:
    """Builds the report of a recorded run from what it stored, and prints where it lies.

    Raises:
        RequestError: `run_id` is missing or names no run with a model, or the data here is other
            data than the run's.
    """
    if config.run_id is None:
        raise RequestError("run_id: say which run to report on, run_id=<id> or run_id=latest")
    experiment = config.tracking.experiment or config.choices.dataset
    recorded = find_run(config.run_id, config.tracking, experiment=experiment)
    then = replace(recorded.config, data_dir=config.data_dir)
    recording = reopen(recorded.id, config.tracking, folder)
    facts = facts_of(recording)
    predictions = _stored_predictions(recording, _data(then, facts.tags["data.fingerprint"]))
    with replacing(folder / NAME) as path:
        path.write_text(html(facts, then, predictions), encoding="utf-8")
    print(folder / NAME, flush=True)


def _data(config: Config, fingerprint: str) -> Prepared:
    name, data_dir = config.choices.dataset, Path(config.data_dir)
    raw = ingest(config.dataset, name=name, data_dir=data_dir)
    prepared = prepare(raw, vars(config.preprocess), name=name, data_dir=data_dir)
    if prepared.fingerprint != fingerprint:
        raise RequestError(
            f"dataset={name}: the data here ({prepared.fingerprint[:12]}…) is not what the run "
            f"used ({fingerprint[:12]}…); bring that back, or choose its folder with data_dir=…"
        )
    return prepared


def _stored_predictions(recording: Recording, prepared: Prepared) -> dict[str, Predictions]:
    with np.load(stored_arrays(recording, "predictions")) as stored:
        return {
            name: answers(split, stored[f"{name}_probs"], prepared)
            for name, split in (("val", prepared.val), ("test", prepared.test))
            if f"{name}_probs" in stored.files
        }
