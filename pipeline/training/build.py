"""Builds the untrained, compiled Keras model of a configuration."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline.config.builders import build
from pipeline.config.schema import Config
from pipeline.data.values import Prepared
from pipeline.system.errors import RequestError, first_line
from pipeline.training.check import check_model
from pipeline.training.programs import keep_programs


def build_model(
    config: Config, prepared: Prepared, programs: Path | None = None, *, checked: bool = False
) -> keras.Model:
    """Builds the untrained, compiled network: images u8[N,H,W,C] → probabilities f32[N,K].

    Scaling and augmentation are its first layers, so that they cannot be forgotten in serving.
    Seeds all random numbers of Keras with `config.seed`. Compiled programs are kept in the folder
    `programs` for later processes. A model that was already `checked` is not checked again.

    Raises:
        RequestError: the model cannot be built on images of this size, does not give
            probabilities, or cannot be saved and loaded again.
    """
    if programs is not None:
        keep_programs(programs)
    # A user's keras.json may set other values.
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
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
    if not checked:
        check_model(model, len(prepared.class_names))
    _compile(model, config, images=len(prepared.train))
    return model


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
        # Equals cross-entropy on one-hot labels, without creating those.
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )


def _scaling(kind: str, prepared: Prepared) -> keras.layers.Layer:
    if kind == "unit":
        return keras.layers.Rescaling(1 / 255, name="scaling")
    std = np.maximum(prepared.std, 1e-6)  # a channel may be constant
    return keras.layers.Rescaling(
        scale=(1 / std).tolist(), offset=(-prepared.mean / std).tolist(), name="scaling"
    )
