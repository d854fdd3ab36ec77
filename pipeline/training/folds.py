"""Out-of-fold probabilities: of each image, by a model that was not trained on it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.config.schema import Config
from pipeline.data.grouping import held_out
from pipeline.data.values import Array, Prepared, Split
from pipeline.system.errors import RequestError
from pipeline.system.files import remove
from pipeline.training.build import build_model
from pipeline.training.features import head_of
from pipeline.training.predictor import predict
from pipeline.training.train import train

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """The images of training and validation with probabilities f32[n,K] of models without them.

    `fold` i64[n] is the fold (from 0) whose model was not trained on an image. `known` bool[n] says
    whether that model was trained on the image's class at all.
    """

    split: Split
    probabilities: Array
    fold: Array
    known: Array


def out_of_fold(config: Config, prepared: Prepared, folder: Path, *, folds: int) -> OutOfFold:
    """Trains the configured model once per fold and predicts the images of that fold.

    Each model is trained like that of a run, with a validation part of the usual size taken from
    the other folds. Features of a frozen backbone are computed once. Working files in `folder` are
    removed afterwards.

    Raises:
        RequestError: there are fewer images than folds, or all of them belong together.
    """
    everything = Split.joined([prepared.train, prepared.val])
    labels, index = everything.labels, prepared.index
    groups = np.arange(len(labels)) if index is None else index.groups[everything.rows]
    fold = into_folds(labels, groups, folds, seed=config.seed)
    probabilities = np.empty((len(labels), len(prepared.class_names)), np.float32)
    known = np.zeros(len(labels), bool)
    settings = replace(config, train=replace(config.train, tensorboard=False, plots=[]))
    for number in range(folds):
        held, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        share, val = len(prepared.val) / len(labels), np.zeros(len(rest), bool)
        if share:
            val = held_out(labels[rest], groups[rest], share, seed=config.seed).mask
        part = replace(
            prepared,
            train=everything.select(rest[~val]),
            val=everything.select(rest[val]),
            test=everything.select(held),
        )
        log.info("fold %d of %d: training without %s images", number + 1, folds, f"{len(held):,}")
        probabilities[held] = of_test_images(settings, part, folder / f"fold-{number + 1}")
        known[held] = np.isin(labels[held], part.train.labels)
    return OutOfFold(split=everything, probabilities=probabilities, fold=fold, known=known)


def of_test_images(config: Config, prepared: Prepared, folder: Path) -> Array:
    """Trains the configured model and returns its probabilities f32[N,K] for the test images.

    Working files in `folder` are removed.
    """
    try:
        model = train(
            build_model(config, prepared, checked=True), prepared, config, folder, ()
        ).model
    finally:
        remove(folder, ignore_errors=True)
    head, size = head_of(model, config), config.evaluate.batch_size
    return predict(model, prepared.test, batch_size=size, head=head)


def into_folds(labels: Array, groups: Array, folds: int, *, seed: int) -> Array:
    """The fold of each image, i64[n] from 0: groups stay whole, classes are spread about evenly.

    `labels` i32[n], `groups` i64[n]. Images of a class that is one group are in the last fold,
    unless a fold would be empty since all classes have fewer groups than there are folds.

    Raises:
        RequestError: there are fewer groups than folds.
    """
    if (count := len(np.unique(groups))) < folds:
        raise RequestError(
            f"audit.folds={folds}: {len(labels):,} images in {count:,} groups are too few for so "
            "many folds"
        )
    fold = _drawn(labels, groups, folds, seed=seed)
    return fold if len(np.unique(fold)) == folds else _dealt(labels, groups, folds, seed=seed)


def _drawn(labels: Array, groups: Array, folds: int, *, seed: int) -> Array:
    """Draws one fold after the other like a test split; no class gives its last group away."""
    fold = np.full(len(labels), folds - 1, np.int64)
    left = np.arange(len(labels))
    for number in range(folds - 1):
        share = 1 / (folds - number)
        mask = held_out(labels[left], groups[left], share, seed=seed + number).mask
        fold[left[mask]] = number
        left = left[~mask]
    return fold


def _dealt(labels: Array, groups: Array, folds: int, *, seed: int) -> Array:
    """Deals the groups to the folds, class by class; a group counts as of its first image's class.

    Each class begins where the one before has ended, so that the folds have equally many groups.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(len(first))
    order = drawn[np.argsort(labels[first][drawn], kind="stable")]
    fold = np.empty(len(first), np.int64)
    fold[order] = np.arange(len(first)) % folds
    return fold[group]
