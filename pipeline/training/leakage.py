"""Measures leakage: the accuracy that a split without regard to groups would have claimed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config.schema import Config
from pipeline.data.grouping import held_out
from pipeline.data.values import Evaluation, Predictions, Prepared, Split
from pipeline.system.files import remove
from pipeline.training.build import build_model
from pipeline.training.features import head_of
from pipeline.training.predictor import predict
from pipeline.training.train import train

log = logging.getLogger(__name__)


def leakage_of(
    config: Config, prepared: Prepared, honest: Predictions | None, folder: Path
) -> Evaluation:
    """The accuracy that a split without groups would have claimed, `leakage/test_accuracy`.

    With the `honest` predictions on the test split, also `leakage/difference` between the two.
    Takes as long as the training. `folder` is the run's.
    """
    claimed = float(careless(config, prepared, folder / "careless").correct.mean())
    metrics = {"leakage/test_accuracy": claimed}
    if honest is not None:
        truth = float(honest.correct.mean())
        metrics["leakage/difference"] = claimed - truth
        log.info("accuracy %.4f; a split without regard to groups claims %.4f", truth, claimed)
    return Evaluation(metrics=metrics)


def careless(config: Config, prepared: Prepared, folder: Path) -> Predictions:
    """Trains and tests the same model on splits of the same sizes, drawn picture by picture.

    Pictures of one group, such as duplicates and frames of one film, may then be in several splits.
    Working files in `folder` are removed afterwards.
    """
    drawn = carelessly_divided(prepared, seed=config.seed)
    log.info("training once more, on a split without regard to groups")
    try:
        model = train(build_model(config, drawn, checked=True), drawn, config, folder, ()).model
    finally:
        remove(folder, ignore_errors=True)
    head, size = head_of(model, drawn, config), config.evaluate.batch_size
    probabilities = predict(model, drawn.test, batch_size=size, head=head)
    return Predictions(
        split=drawn.test, probabilities=probabilities, class_names=prepared.class_names
    )


def carelessly_divided(prepared: Prepared, *, seed: int) -> Prepared:
    """Divides the same pictures into splits of about the same sizes, by class, ignoring groups."""
    splits = (prepared.train, prepared.val, prepared.test)
    everything = Split(
        images=prepared.train.images,
        rows=np.concatenate([split.rows for split in splits]),
        labels=np.concatenate([split.labels for split in splits]),
    )
    positions = np.arange(len(everything))
    test = held_out(
        everything.labels, positions, len(prepared.test) / len(positions), seed=seed
    ).mask
    rest = positions[~test]
    share = len(prepared.val) / len(rest)
    val = np.zeros(len(rest), bool)
    if share:
        val = held_out(everything.labels[rest], rest, share, seed=seed).mask
    return replace(
        prepared,
        train=everything.select(rest[~val]),
        val=everything.select(rest[val]),
        test=everything.select(positions[test]),
    )
