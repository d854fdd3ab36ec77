"""Measures leakage: the accuracy that a split without regard to groups would have claimed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config.schema import Config
from pipeline.data.grouping import held_out
from pipeline.data.values import Evaluation, Predictions, Prepared, Split
from pipeline.training.folds import of_test_images

log = logging.getLogger(__name__)


def leakage_of(
    config: Config, prepared: Prepared, honest: Predictions | None, folder: Path
) -> Evaluation:
    """The accuracy that a split without groups would have claimed, `leakage/test_accuracy`.

    With the `honest` predictions on the test split, also `leakage/difference` between the two.
    Takes as long as the training. `folder` is the run's.
    """
    claimed = float(ignoring_groups(config, prepared, folder / "ignoring-groups").correct.mean())
    metrics = {"leakage/test_accuracy": claimed}
    if honest is not None:
        truth = float(honest.correct.mean())
        metrics["leakage/difference"] = claimed - truth
        log.info("accuracy %.4f; a split without regard to groups claims %.4f", truth, claimed)
    return Evaluation(metrics=metrics)


def ignoring_groups(config: Config, prepared: Prepared, folder: Path) -> Predictions:
    """Trains and tests the same model on splits of the same sizes, drawn picture by picture.

    Pictures of one group, such as duplicates and frames of one film, may then be in several splits.
    Working files in `folder` are removed afterwards.
    """
    drawn = divided_ignoring_groups(prepared, seed=config.seed)
    log.info("training once more, on a split without regard to groups")
    probabilities = of_test_images(config, drawn, folder)
    return Predictions(
        split=drawn.test, probabilities=probabilities, class_names=prepared.class_names
    )


def divided_ignoring_groups(prepared: Prepared, *, seed: int) -> Prepared:
    """Divides the same pictures into splits of about the same sizes, by class, ignoring groups."""
    everything = Split.joined([prepared.train, prepared.val, prepared.test])
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
