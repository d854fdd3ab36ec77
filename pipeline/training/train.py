"""Builds, compiles and fits a Keras model: `Prepared → Fitted`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline.config.builders import build
from pipeline.config.schema import Config, Train
from pipeline.data.values import Array, Fitted, Prepared
from pipeline.system.errors import PipelineError, RequestError, first_line
from pipeline.training import loop
from pipeline.training.callbacks import (
    Checkpoint,
    EpochEnd,
    EpochListener,
    GoOn,
    ProgressDisplay,
    metric_name,
    stopper,
)
from pipeline.training.checkpoint import Progress
from pipeline.training.xla import is_faster, keep_programs


def build_model(config: Config, prepared: Prepared) -> keras.Model:
    """The untrained, compiled network: images u8[N,H,W,C] in, probabilities f32[N,K] out.

    Scaling and augmentation are its first layers, so that whoever serves it cannot forget them.
    Seeds every random number of Keras from `config.seed`.

    Raises:
        RequestError: the model cannot be built on images of this size.
    """
    if config.sweep.job.parent is None:  # a later job of a process has other names, never a hit
        keep_programs(Path(config.data_dir) / "xla")
    keras.utils.set_random_seed(config.seed)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    images = keras.Input(prepared.image_shape, dtype="uint8", name="images")
    try:
        x = _scaling(config.train.scaling, prepared)(images)
        if config.augment["_target_"] is not None:
            x = build(config.augment, x)
        outputs = build(config.model, x, len(prepared.class_names))
    except ValueError as error:
        raise RequestError(f"model={config.choices.model}: {first_line(str(error))}") from error
    model = keras.Model(images, outputs, name=config.choices.model)
    _compile(model, config, images=len(prepared.train))
    return model


def train(
    model: keras.Model,
    prepared: Prepared,
    config: Config,
    folder: Path,
    listeners: Sequence[EpochListener],
    start: Progress | None = None,
) -> Fitted:
    """Fits a compiled model and keeps the epoch that `train.keep` names.

    Checkpoints and the TensorBoard log go to `folder`; `listeners` are told each epoch's metrics.
    With `start`, the progress of the last checkpoint there, it ends as it would have unbroken.

    Raises:
        PipelineError: the loss became NaN or infinite.
    """
    settings = config.train
    layer, initial = first_kernel(model)
    history = keras.callbacks.History()
    best = _best_epoch(settings) if len(prepared.val) else None
    started = time.perf_counter()
    with closing(ProgressDisplay(len(prepared.train))) as progress:
        followers = [history, *map(EpochEnd, listeners), *([best] if best else [])]
        followers += [_tensorboard(folder)] if settings.tensorboard else []
        checkpoints = folder / "checkpoints"
        resumption = [GoOn(start, checkpoints, followers, best)] if start else []
        loop.fit(
            model,
            (prepared.train, prepared.val),
            keras.callbacks.CallbackList(
                [*followers, *resumption, Checkpoint(checkpoints, best, start), progress],
                model=model,
                epochs=settings.epochs,
                initial_epoch=len(start.epochs) if start else 0,
            ),
            batch_size=settings.batch_size,
            seed=config.seed,
            xla=_with_xla(model, settings, images=len(prepared.train)),
        )
    seconds = time.perf_counter() - started + (start.seconds if start else 0.0)
    return Fitted(
        model=model,
        history={metric_name(key): values for key, values in history.history.items()},
        images_per_s=len(history.epoch) * len(prepared.train) / seconds,
        best_epoch=best.best_epoch + 1 if best else None,
        kept_epoch=best.best_epoch + 1 if best and settings.keep == "best" else len(history.epoch),
        weights_layer=layer,
        initial_weights=initial,
        trained_weights=first_kernel(model)[1],
    )


def first_kernel(model: keras.Model) -> tuple[str, Array]:
    """Name of the first layer with a kernel, and that kernel as a matrix f32[inputs, units]."""
    for layer in model.layers:
        if getattr(layer, "kernel", None) is not None:
            kernel = np.array(layer.kernel)
            return layer.name, kernel.reshape(-1, kernel.shape[-1])
    raise PipelineError(f"model {model.name} has no layer with a kernel")


def _compile(model: keras.Model, config: Config, *, images: int) -> None:
    optimizer = build(config.optimizer)
    if config.schedule["_target_"] is not None:
        optimizer.learning_rate = build(
            config.schedule,
            initial_learning_rate=config.optimizer["learning_rate"],
            decay_steps=config.train.epochs * -(-images // config.train.batch_size),
        )
    model.compile(
        optimizer=optimizer,
        # Cross-entropy on integer labels is that on their one-hot rows, without making them.
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )


def _with_xla(model: keras.Model, settings: Train, *, images: int) -> bool:
    if settings.xla is None:
        return is_faster(model, settings.epochs * (images // settings.batch_size))
    return settings.xla


def _best_epoch(settings: Train) -> keras.callbacks.EarlyStopping:
    return stopper(
        settings.monitor,
        patience=settings.patience,
        epochs=settings.epochs,
        restore=settings.keep == "best",
    )


def _scaling(kind: str, prepared: Prepared) -> keras.layers.Layer:
    if kind == "unit":
        return keras.layers.Rescaling(1 / 255, name="scaling")
    std = np.maximum(prepared.std, 1e-6)  # a channel may be of one colour
    return keras.layers.Rescaling(
        scale=(1 / std).tolist(), offset=(-prepared.mean / std).tolist(), name="scaling"
    )


def _tensorboard(folder: Path) -> keras.callbacks.TensorBoard:
    log = folder / "artifacts" / "tensorboard"
    shutil.rmtree(log, ignore_errors=True)  # a run that goes on is told all its epochs again
    return keras.callbacks.TensorBoard(log)
