"""The story of a run, from the configuration to a recorded, evaluated, saved model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras

from pipeline.config.schema import Config
from pipeline.data.load import describe, ingest, prepare, text
from pipeline.data.values import Predictions, Prepared, Split
from pipeline.evaluation.evaluate import answers, draw_training, evaluate, stored
from pipeline.evaluation.metrics import accuracy
from pipeline.reports.write import reported, save_report
from pipeline.tracking.lifecycle import record
from pipeline.tracking.recording import Recording, reopen
from pipeline.tracking.runs import find_trained
from pipeline.training.build import build_model
from pipeline.training.callbacks import EpochListener
from pipeline.training.checkpoint import Start
from pipeline.training.predictor import predict
from pipeline.training.summary import summarise
from pipeline.training.train import train

Found = dict[str, Predictions]  # by split


def run(config: Config, folder: Path, *watchers: EpochListener, start: Start | None = None) -> str:
    """Trains, evaluates and records one model, or goes on with the run of `start`; returns its id.

    `folder` keeps its log and checkpoints; `watchers` are told each epoch's metrics once recorded.
    """
    run_id, progress = (start.run_id, start.progress) if start else (None, None)
    opened = record(config, folder, run_id=run_id, spent_s=progress.seconds if progress else None)
    with opened as recording, reported(recording, config) as found:
        prepared = _load_data(config, recording)
        with recording.stage("train"):
            model = build_model(config, prepared)
            summary = summarise(model, batch_size=config.train.batch_size)
            recording.log_metrics(summary.metrics)
            recording.save_text("model_summary.txt", str(summary))
            listeners = (recording.log_epoch, *watchers)
            fitted = train(model, prepared, config, folder, listeners, progress)
            recording.log_report(draw_training(fitted, config.train.plots))
        with recording.stage("evaluate"):
            found.update(_evaluate(model, prepared, config, recording))
        with recording.stage("save"):
            uri = recording.log_model(model, prepared) if config.tracking.log_model else None
    print(_result(recording.id, found, uri), flush=True)
    return recording.id


def train_only(config: Config, folder: Path) -> None:
    """Like `run`, but leaves the test split alone; `evaluate run_id=…` completes the run."""
    run(replace(config, evaluate=replace(config.evaluate, test=False)), folder)


def evaluate_recorded(config: Config, folder: Path) -> None:
    """Evaluates the model of an earlier run on that run's data and adds what it finds to the run.

    The run's own configuration says which data; `evaluate.*` and `data_dir` are today's.

    Raises:
        RequestError: `run_id` is missing or names no run with a model.
    """
    recorded = find_trained(config.run_id, config)
    then = replace(recorded.config, evaluate=config.evaluate, data_dir=config.data_dir)
    recording = reopen(recorded.id, config.tracking, folder)
    complete(then, recorded.config, recorded.load_model(), recording, recorded.model_uri)


def complete(
    config: Config, began: Config, model: keras.Model, recording: Recording, uri: str | None = None
) -> None:
    """Adds to the run that `began` so what its model is worth, and the model if it has no URI."""
    prepared = _load_data(config, recording)
    with recording.stage("evaluate"):
        found = _evaluate(model, prepared, config, recording)
    if config.evaluate.report:
        save_report(recording, began, found)
    recording.upload()
    if uri is None:  # last: what has a model is taken to be complete
        uri = recording.log_model(model, prepared)
    print(_result(recording.id, found, uri), flush=True)


def _load_data(config: Config, recording: Recording) -> Prepared:
    name, data_dir = config.choices.dataset, Path(config.data_dir)
    with recording.stage("ingest"):
        raw = ingest(config.dataset, name=name, data_dir=data_dir)
        recording.save_text("data.txt", text(describe(raw)))
    with recording.stage("preprocess"):
        prepared = prepare(raw, vars(config.preprocess), name=name, data_dir=data_dir)
        recording.log_data(prepared, name)
        recording.log_cache(ingest=raw.cached, preprocess=prepared.cached)
    return prepared


def _evaluate(
    model: keras.Model, prepared: Prepared, config: Config, recording: Recording
) -> Found:
    settings = config.evaluate
    splits: dict[str, Split] = {"val": prepared.val} if len(prepared.val) else {}
    if settings.test:
        splits["test"] = prepared.test
    predictions = {
        name: answers(split, predict(model, split.images, batch_size=settings.batch_size), prepared)
        for name, split in splits.items()
    }
    recording.save_arrays("predictions", stored(predictions))
    if settings.test:
        recording.log_report(evaluate(predictions["test"], settings.metrics, settings.plots))
    return predictions


def _result(run_id: str, found: Found, model_uri: str | None) -> str:
    """The line that scripts read; `nan` stands for what was not evaluated."""
    val, test = (accuracy(found[s]) if s in found else float("nan") for s in ("val", "test"))
    return f"run_id={run_id} val_accuracy={val:.4f} test_accuracy={test:.4f} model_uri={model_uri}"
