"""The story of a run, from the configuration to a recorded, evaluated, saved model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras

from pipeline.config.schema import Config
from pipeline.config.sweep import JobSettings
from pipeline.data.load import ingest, ingest_recorded, preprocess
from pipeline.data.own_pictures import Pictures
from pipeline.data.values import Identity, Predictions, Prepared, RawData
from pipeline.evaluation.evaluate import alternative_metrics, draw_training, evaluate
from pipeline.evaluation.metrics import accuracy
from pipeline.reports.write import check_data, describe_and_report, require_division, with_report
from pipeline.tracking.lifecycle import record
from pipeline.tracking.recording import Recording
from pipeline.tracking.runs import load_teachers, precision_tag, require_sound_leakage, with_weights
from pipeline.training.batches import augmenter
from pipeline.training.build import build_model, kept, prepare_keras
from pipeline.training.callbacks import EpochListener
from pipeline.training.checkpoint import Start
from pipeline.training.features import Head, head_of, takes_images, whole
from pipeline.training.leakage import leakage_of
from pipeline.training.predictor import predict
from pipeline.training.summary import summarise
from pipeline.training.train import train


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run; an accuracy that was not evaluated is NaN, an unsaved model None."""

    run_id: str
    val_accuracy: float
    test_accuracy: float
    model_uri: str | None

    def __str__(self) -> str:
        """The last line of output, which scripts read."""
        return (
            f"run_id={self.run_id} val_accuracy={self.val_accuracy:.4f} "
            f"test_accuracy={self.test_accuracy:.4f} model_uri={self.model_uri}"
        )


def run(
    config: Config,
    folder: Path,
    *listeners: EpochListener,
    start: Start | None = None,
    job: JobSettings | None = None,
    identity: Identity | None = None,
    pictures: Pictures | None = None,
) -> Result:
    """Trains, evaluates and records one model, or resumes the run of `start`.

    `folder` keeps log and checkpoints; `listeners` receive each epoch's metrics once recorded. The
    run of a `job` has no report until it is kept. `identity` and `pictures` are as in `ingest`.
    """
    alone = job is None
    opened = record(config, folder, start=start, job=job)
    with opened as recording, with_report(recording, config, wanted=alone):
        prepare_keras(config, keeps_programs=alone)
        find = partial(ingest, config, identity=identity, pictures=pictures)
        prepared = _load_data(config, recording, find, shown=alone)
        config = with_weights(config, recording.log_tags)
        with recording.stage("train"):
            teachers = load_teachers(config, prepared, recording.log_tags)
            model = build_model(config, prepared)
            recording.log_tags(precision_tag(config, model.compute_dtype))
            recording.log(summarise(model, batch_size=config.train.batch_size).recorded)
            progress = start.progress if start else None
            listeners = (recording.log_epoch, *listeners)
            fitted = train(model, prepared, config, folder, listeners, progress, teachers)
            recording.log(draw_training(fitted, config.train.plots))
        predictions = _evaluate(fitted.model, prepared, config, recording)
        with recording.stage("save"):
            if config.tracking.log_model:
                recording.log_model(fitted.model, prepared)
    return _result(recording.id, predictions, recording.model_uri)


def complete(
    config: Config,
    recorded: Config,
    model: keras.Model,
    recording: Recording,
    *,
    uri: str | None = None,
    identity: Identity | None = None,
) -> Result:
    """Evaluates and reports a run of configuration `recorded`; without a `uri`, saves its model.

    Raises:
        RequestError: the data here has another `identity` or division than that of the run.
    """
    prepare_keras(config)
    prepared = _load_data(config, recording, partial(ingest_recorded, config, identity))
    require_division(recording.known(), prepared)
    model = kept(model if takes_images(model) else whole(model, prepared, with_weights(config)))
    predictions = _evaluate(model, prepared, config, recording)
    describe_and_report(recording, recorded, report=config.evaluate.report)
    recording.upload()
    uri = uri or recording.log_model(model, prepared)  # last: a run with a model is complete
    return _result(recording.id, predictions, uri)


def _load_data(
    config: Config, recording: Recording, find: Callable[[], RawData], *, shown: bool = True
) -> Prepared:
    with recording.stage("ingest"):
        raw = find()
        check_data(raw, config, recording, shown=shown, augment=augmenter(config, raw))
    with recording.stage("preprocess"):
        prepared = preprocess(raw, config)
        recording.log_data(prepared, config.choices.dataset)
        recording.log_cache(ingest=raw.cached, preprocess=prepared.cached)
    require_sound_leakage(config, prepared)
    return prepared


def _evaluate(
    model: keras.Model, prepared: Prepared, config: Config, recording: Recording
) -> dict[str, Predictions]:
    settings = config.evaluate
    splits = {"val": prepared.val} if len(prepared.val) else {}
    splits |= {"test": prepared.test} if settings.test else {}

    def predicted(head: Head | None = None, views: str | None = None) -> dict[str, Predictions]:
        of = partial(predict, model, batch_size=settings.batch_size, head=head, views=views)
        return {name: prepared.predictions(split, of(split)) for name, split in splits.items()}

    with recording.stage("evaluate"):
        predictions = predicted(head=head_of(model, config))
        recording.save_predictions(predictions)
        if settings.test:
            recording.log(evaluate(predictions["test"], settings.metrics, settings.plots))
        views = predicted(views=settings.views) if settings.views else {}
        recording.log(alternative_metrics(predictions, views, settings))
    if settings.leakage:
        with recording.stage("leakage"):
            honest = predictions.get("test")
            recording.log(leakage_of(with_weights(config), prepared, honest, recording.folder))
    return predictions


def _result(run_id: str, predictions: dict[str, Predictions], model_uri: str | None) -> Result:
    found = {f"{split}_accuracy": accuracy(of) for split, of in predictions.items()}
    none = dict.fromkeys(("val_accuracy", "test_accuracy"), float("nan"))
    return Result(run_id=run_id, model_uri=model_uri, **(none | found))
