"""Fits a compiled Keras model: `Prepared → Fitted`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import keras

from pipeline.config.schema import Config, Train
from pipeline.data.values import Fitted, Prepared, Split
from pipeline.system.files import remove
from pipeline.training import loop
from pipeline.training.batches import changed_batches, needs_images, preview
from pipeline.training.build import build_model, kept
from pipeline.training.callbacks import (
    Checkpoint,
    EpochEnd,
    EpochListener,
    ProgressDisplay,
    Restore,
    run_metric_name,
    stopper,
)
from pipeline.training.checkpoint import Progress
from pipeline.training.features import head_of
from pipeline.training.memory import enough_memory
from pipeline.training.precision import has_gpu
from pipeline.training.pretrained import joins, rate_shares

# XLA fuses what lies between matrix products, which takes as long as these do on a CPU. Its
# convolutions are slower than TensorFlow's, and for other layers it may lack a kernel.
FASTER_WITH_XLA = (
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.BatchNormalization,
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.InputLayer,
    keras.layers.LayerNormalization,
    keras.layers.Rescaling,
    keras.layers.Reshape,
)
ENOUGH_STEPS = 5_000  # per training; with fewer, compiling takes longer than it saves


@enough_memory()
def train(  # noqa: PLR0913 (what a run has decided by then)
    model: keras.Model,
    prepared: Prepared,
    config: Config,
    folder: Path,
    listeners: Sequence[EpochListener],
    progress: Progress | None = None,
    teachers: Sequence[keras.Model] = (),
) -> Fitted:
    """Fits a compiled model and keeps the epoch that `train.keep` names.

    With a frozen backbone only the head is trained, on features that are computed once, and
    checkpoints hold the head. The fitted model is always whole, and computes in float32 whatever
    `train.precision` is.

    Checkpoints and the TensorBoard log go to `folder`; `listeners` receive each epoch's metrics;
    `teachers` are the models of the runs that `train.teacher` names. With `progress`, that of the
    last checkpoint there, training resumes from that checkpoint and ends with the same weights as
    an uninterrupted one.

    Raises:
        PipelineError: the loss became NaN or infinite, or there is not enough memory.
    """
    settings = config.train
    trained, splits, untrained = _trained_part(model, prepared, config)
    history = keras.callbacks.History()
    best = _best_epoch(settings) if len(prepared.val) else None
    started = time.perf_counter()
    followers = [history, *map(EpochEnd, listeners), *([best] if best else [])]
    followers += [_tensorboard(folder)] if settings.tensorboard else []
    shown = closing(ProgressDisplay(len(prepared.train)))
    with shown as display, changed_batches(trained, prepared, config, teachers):
        checkpoints = _checkpoints(folder / "checkpoints", followers, best, progress)
        loop.fit(
            trained,
            splits,
            keras.callbacks.CallbackList(
                [*followers, *checkpoints, display],
                model=trained,
                epochs=settings.epochs,
                initial_epoch=len(progress.epochs) if progress else 0,
            ),
            batch_size=settings.batch_size,
            seed=config.seed,
            xla=_with_xla(trained, config, images=len(prepared.train)),
            shares=rate_shares(model, config.model),
            joins=joins(model, config.model),
            stream=_streamed(splits[0], settings.stream),
        )
    seconds = time.perf_counter() - started + (progress.seconds if progress else 0.0)
    return Fitted(
        model=kept(model),
        history={run_metric_name(key): values for key, values in history.history.items()},
        images_per_s=len(history.epoch) * len(prepared.train) / seconds,
        best_epoch=best.best_epoch + 1 if best else None,
        kept_epoch=best.best_epoch + 1 if best and settings.keep == "best" else len(history.epoch),
        untrained=untrained,
        augmented=preview(prepared, config) if settings.plots else None,
    )


def _trained_part(
    model: keras.Model, prepared: Prepared, config: Config
) -> tuple[keras.Model, tuple[Split, Split], Callable[[], keras.Model]]:
    """The model to train, its splits, and what builds it anew; the head if the rest is frozen."""
    head = head_of(model, config)
    if head is None:
        untrained = partial(build_model, config, prepared, checked=True)
        return model, (prepared.train, prepared.val), untrained
    return head.model, (head.of(prepared.train), head.of(prepared.val)), head.untrained()


def _checkpoints(
    folder: Path,
    followers: Sequence[keras.callbacks.Callback],
    best: keras.callbacks.EarlyStopping | None,
    progress: Progress | None,
) -> list[keras.callbacks.Callback]:
    """Callbacks that restore the last checkpoint, if any, and save one after each epoch."""
    restore = [Restore(progress, folder, followers, best)] if progress else []
    return [*restore, Checkpoint(folder, best, progress)]


def _streamed(split: Split, wanted: bool | None) -> bool:
    return loop.is_too_large(split.images) if wanted is None else wanted


def _with_xla(model: keras.Model, config: Config, *, images: int) -> bool:
    settings = config.train
    if settings.xla is None:
        steps = settings.epochs * (images // settings.batch_size)
        return not needs_images(config) and xla_is_faster(model, steps)  # with them: not measured
    return settings.xla


def xla_is_faster(model: keras.Model, steps: int) -> bool:
    """Whether XLA is known to speed up training `model` for this number of `steps` here."""
    return (
        steps >= ENOUGH_STEPS
        and not has_gpu()  # not measured
        and all(type(layer) in FASTER_WITH_XLA for layer in model.layers)
    )


def _best_epoch(settings: Train) -> keras.callbacks.EarlyStopping:
    return stopper(
        settings.monitor,
        patience=settings.patience,
        epochs=settings.epochs,
        restore=settings.keep == "best",
    )


def _tensorboard(folder: Path) -> keras.callbacks.TensorBoard:
    log = folder / "artifacts" / "tensorboard"
    remove(log, ignore_errors=True)  # a resumed run rewrites all its epochs
    return keras.callbacks.TensorBoard(log)
