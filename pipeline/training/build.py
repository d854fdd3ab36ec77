"""Builds the untrained, compiled Keras model of a configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from threading import RLock
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.config.builders import Leaf, build, has_backbone
from pipeline.config.schema import Config
from pipeline.config.trusted import checksums, trusted
from pipeline.data.values import Array, Prepared
from pipeline.system.errors import RequestError, first_line
from pipeline.training import pretrained
from pipeline.training.batches import augmented_by_layers
from pipeline.training.check import check_model
from pipeline.training.memory import enough_memory
from pipeline.training.precision import (
    best_for,
    computes_in_float32,
    computing_in,
    in_float32,
    require_sensible,
)
from pipeline.training.pretrained import SCALING, WHITENING
from pipeline.training.programs import keep_programs

BACKBONES = 4  # frozen backbones kept in memory, about 20 MB each
_PATCH = 3  # side of the patches that `whitened` decorrelates, in pixels
PATCH_IMAGES, PATCHES_PER_IMAGE = 1_000, 256  # sample from which their covariance is estimated
_CONSTANT = 1e-6  # standard deviation, in levels, up to which a channel does not vary
_NOISE = 5e-4  # added to each variance, so that directions that hardly vary are not amplified
_backbones: dict[str, tuple[keras.Model, str]] = {}  # and the checksum of the weights
_one_at_a_time = RLock()  # initial weights follow Python's random numbers, which threads share
_DETERMINISM = "determinism"
_begun: set[str] = set()  # what this module has switched on for the process


def prepare_keras(config: Config, *, keeps_programs: bool = False) -> None:
    """Makes the settings of Keras and TensorFlow that hold for the process.

    This must be called before its first operation. Random numbers are seeded later, by
    `build_model`. With `keeps_programs`, what XLA compiles is kept beside the cached data; the next
    job of a sweep in the same process could not use it.
    """
    # A user's keras.json or notebook may set other values.
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
    if config.train.deterministic:
        _begin_determinism()
    else:
        _end_determinism()
    if keeps_programs:
        keep_programs(Path(config.data_dir) / "xla")


def _begin_determinism() -> None:
    from tensorflow.python.framework import config

    # `TF_DETERMINISTIC_OPS=1` or a notebook may have asked for it, too.
    if not config.is_op_determinism_enabled():
        tf.config.experimental.enable_op_determinism()
        _begun.add(_DETERMINISM)


def _end_determinism() -> None:
    """Undoes what an earlier job of the process asked for; TensorFlow has no public way."""
    from tensorflow.python.framework import config

    if _DETERMINISM in _begun:
        config.disable_op_determinism()
        _begun.discard(_DETERMINISM)


@enough_memory()
def build_model(config: Config, prepared: Prepared, *, checked: bool = False) -> keras.Model:
    """Builds the untrained, compiled network: images u8[N,H,W,C] → probabilities f32[N,K].

    Scaling and augmentation are its first layers, so that they cannot be forgotten in serving.
    Its `compute_dtype` is the precision of the configuration, or what `auto` means for it.
    Seeds all random numbers of Keras with `config.seed`. A model that was already `checked` is not
    checked again.

    Raises:
        RequestError: the model cannot be built on images of this size, does not give
            probabilities, or cannot be saved and loaded again; there is no GPU for float16; weights
            that `model.weights` names are missing or do not fit.
        PipelineError: there is not enough memory for its weights.
    """
    require_sensible(config.train.precision)
    with _one_at_a_time:
        if has_backbone(config.model) and config.model["trainable"] == "head":
            model = _with_frozen_backbone(config, prepared)
        else:
            model = _prepared(config, prepared)
        if not checked:  # which restores their state
            check_model(model, len(prepared.class_names), called=_called(config))
    compile_model(model, config, images=len(prepared.train))
    return model


def _prepared(config: Config, prepared: Prepared) -> keras.Model:
    """The network with its initial weights, in the precision of the configuration."""
    precision = config.train.precision
    model = _network(config, prepared, "float32" if precision == "auto" else precision)
    if precision == "auto" and (best := best_for(model)) != "float32":
        model = _network(config, prepared, best)
    pretrained.prepare_backbone(model, config.model, called=_called(config))
    return model


def _with_frozen_backbone(config: Config, prepared: Prepared) -> keras.Model:
    """Like `_prepared`, for a model whose frozen backbone is shared with later models.

    The jobs of a sweep in one process would otherwise spend most of their time building it.
    """
    scaling, classes = _scaling(config.train.scaling, prepared).get_config(), prepared.class_names
    settings = (config.model, config.augment, config.train.precision, prepared.image_shape)
    # Files that may change within the process: of weights, and the user's modules.
    read = (pretrained.state(config.model["weights"]), checksums(trusted()))
    key = json.dumps([*settings, scaling, len(classes), *read])
    shared = _kept_backbone(key)
    model = shared or _prepared(config, prepared)
    if not pretrained.is_fixed(model):
        return model  # random numbers of one job would depend on those of another
    # The head starts alike, whether the backbone was built just now or not.
    keras.utils.set_random_seed(config.seed)
    outputs = pretrained.head_on(
        model,
        pretrained.features_tensor(model),
        copied=lambda layer: type(layer).from_config(layer.get_config()),
    )
    if outputs is None:
        return model  # its head is part of it, and would be trained further by a later job
    if shared is None:
        _backbones[key] = model, pretrained.backbone_checksum(model)
        while len(_backbones) > BACKBONES:
            del _backbones[next(iter(_backbones))]
    with computing_in(model.compute_dtype):
        return keras.Model(model.input, outputs, name=_keras_name(config))


def _kept_backbone(key: str) -> keras.Model | None:
    """The model with that frozen backbone; None if a model that shares it was trained further."""
    model, checksum = _backbones.get(key, (None, ""))
    if model is None or not pretrained.is_fixed(model):
        return None
    return model if pretrained.backbone_checksum(model) == checksum else None


def _network(config: Config, prepared: Prepared, precision: str) -> keras.Model:
    keras.utils.set_random_seed(config.seed)
    images = keras.Input(prepared.image_shape, dtype="uint8", name="images")
    try:
        x = _scaling(config.train.scaling, prepared)(images)
        x = augmented_by_layers(x, config)
        if config.train.scaling == "whitened":
            x = _whitening(prepared)(x)
        with computing_in(precision):
            outputs = build(config.model, x, len(prepared.class_names))
            return keras.Model(images, outputs, name=_keras_name(config))
    except ValueError as error:
        said = f"{_called(config)}: {first_line(str(error))}"
        if config.train.scaling == "whitened" and "channels" in said:
            said += "; train.scaling=whitened makes 9 of each: set unit"
        raise RequestError(said) from error


def _called(config: Config) -> str:
    """The chosen model in messages."""
    return f"model={config.choices.model}"


def _keras_name(config: Config) -> str:
    """The name of the chosen model, as in `model=mine/net`, in letters that Keras takes."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", config.choices.model)
    return plain if re.match(r"[A-Za-z0-9.]", plain) else f"model{plain}"


def kept(model: keras.Model) -> keras.Model:
    """The trained `model` as it is evaluated and saved: in float32, of Keras' classes, for labels.

    It is `model` itself unless that computes in 16 bits; then it is a copy with the same weights.
    An optimizer of Keras' own keeps its state; a model without an optimizer gets a new one.
    """
    if not computes_in_float32(model):
        wide = in_float32(model)
        wide.compile(optimizer=_keras_own(model, wide), **loss_and_metrics())
        return wide
    targets = model.compiled and isinstance(model.loss, keras.losses.CategoricalCrossentropy)
    if targets or not model.compiled or not _is_keras_own(model.optimizer):
        model.compile(optimizer=_keras_own(model, model), **loss_and_metrics())
    return model


def _keras_own(model: keras.Model, copy: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer of `model`, without the scaling of the loss, for its `copy`.

    A new one if that has none, or has one that cannot be loaded without this package.
    """
    optimizer = model.optimizer if model.compiled else None
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None or not _is_keras_own(optimizer):
        plain = keras.optimizers.SGD()
        plain.build(copy.trainable_variables)
        return plain
    if copy is model:
        return optimizer
    same = type(optimizer).from_config(optimizer.get_config())
    same.build(copy.trainable_variables)
    for variable, value in zip(same.variables, optimizer.variables, strict=True):
        variable.assign(value)
    return same


def _is_keras_own(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether an optimizer and its schedule, if it has one, can be loaded without this package."""
    rate = optimizer._learning_rate  # `learning_rate` is what a schedule gives now
    is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    parts = [optimizer, *([rate] if is_schedule else [])]
    return all(type(part).__module__.startswith("keras.") for part in parts)


def compile_model(model: keras.Model, config: Config, *, images: int) -> None:
    """Compiles `model` with the optimizer, schedule and precision of a configuration.

    `images` is the number of training images, on which the length of a schedule depends.

    Raises:
        RequestError: the optimizer or its schedule is none of Keras' kind, or checkpoints cannot
            describe it.
    """
    ema = config.train.ema
    averaging = {} if ema is None else {"use_ema": True, "ema_momentum": ema}
    optimizer = _built((keras.optimizers.Optimizer,), config.optimizer, **averaging)
    if config.schedule["_target_"] is not None:
        optimizer.learning_rate = _built(
            (keras.optimizers.schedules.LearningRateSchedule, float, int),
            config.schedule,
            config.optimizer["learning_rate"],
            config.train.epochs * -(-images // config.train.batch_size),
        )
    _require_savable(optimizer, config)
    if config.train.precision == "float16":  # Keras looks only at the policy of the whole model
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer=optimizer, **loss_and_metrics())


def _built(kinds: tuple[type, ...], leaf: Leaf, *runtime: Any, **more: Any) -> Any:
    """What the builder of a leaf makes, which may be the user's own.

    Raises:
        RequestError: it is of none of these kinds. Keras would take the name of an optimizer,
            without the learning rate, and a function, which the compiled graph calls only once.
    """
    made = build(leaf, *runtime, **more)
    if not isinstance(made, kinds):
        found, wanted = type(made).__name__, kinds[0].__name__
        raise RequestError(f"{leaf['_target_']}: returns {found}, not a Keras {wanted}")
    return made


def _require_savable(optimizer: keras.optimizers.Optimizer, config: Config) -> None:
    """Checks that checkpoints can describe an optimizer and its schedule.

    Raises:
        RequestError: one of them has no `get_config`, or one that fails; gradients are accumulated,
            so that the optimizer does not count steps.
    """
    if getattr(optimizer, "gradient_accumulation_steps", None):
        raise RequestError(
            f"optimizer={config.choices.optimizer}: gradient_accumulation_steps is not supported; "
            "leave it out, and lower train.batch_size if memory is short"
        )
    try:
        json.dumps(keras.saving.serialize_keras_object(optimizer))
    except Exception as error:  # a user's `get_config` may raise anything
        chosen = f"optimizer={config.choices.optimizer} schedule={config.choices.schedule}"
        raise RequestError(
            f"{chosen}: checkpoints cannot describe it: {first_line(str(error))}; return all "
            "parameters of its __init__ from get_config"
        ) from error


def loss_and_metrics() -> dict[str, Any]:
    """The loss and metrics with which a model is compiled."""
    return {
        # Equals cross-entropy on one-hot labels, without creating them.
        "loss": keras.losses.SparseCategoricalCrossentropy(),
        "metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    }


def _scaling(kind: str, prepared: Prepared) -> keras.layers.Layer:
    if kind == "unit":
        return keras.layers.Rescaling(1 / 255, name=SCALING)
    std = _deviation(prepared)
    return keras.layers.Rescaling(
        scale=(1 / std).tolist(), offset=(-prepared.mean / std).tolist(), name=SCALING
    )


def _deviation(prepared: Prepared) -> Array:
    """The standard deviation of each channel, f32[C], in levels; 1 for a constant channel.

    An image that differs there by a level, as a later one may, would be scaled beyond all bounds.
    """
    deviation: Array = np.where(prepared.std > _CONSTANT, prepared.std, 1).astype(np.float32)
    return deviation


def _whitening(prepared: Prepared) -> keras.layers.Layer:
    """A frozen convolution f32[N,H,W,C] → f32[N,H,W,9·C] of standardised images.

    Its outputs on the training images have mean 0, variance 1 and no correlation. They are ordered
    by how much patches of 3 × 3 pixels vary along them (principal components).

    Raises:
        RequestError: the images are smaller than a patch.
    """
    height, width, channels = prepared.image_shape
    if min(height, width) < _PATCH:
        raise RequestError(
            f"train.scaling=whitened: the images have {height} × {width} pixels, a patch "
            f"{_PATCH} × {_PATCH}; use standard"
        )
    patches = _patches(prepared)
    mean = patches.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(patches, rowvar=False))
    kernel = (directions / np.sqrt(np.maximum(variances, 0) + _NOISE))[:, ::-1]
    size = len(kernel)
    layer = keras.layers.Conv2D(
        size, _PATCH, padding="same", kernel_initializer="zeros", trainable=False, name=WHITENING
    )
    layer.build((None, height, width, channels))
    layer.set_weights([kernel.reshape(_PATCH, _PATCH, channels, size), -mean @ kernel])
    return layer


def _patches(prepared: Prepared) -> Array:
    """Standardised patches f64[n, 3·3·C] at random places of images spread over the training."""
    rng, split = np.random.default_rng(0), prepared.train
    height, width, _ = prepared.image_shape
    found = []
    for position in np.linspace(0, len(split) - 1, min(len(split), PATCH_IMAGES)).astype(int):
        image = (split.batch(position, position + 1)[0] - prepared.mean) / _deviation(prepared)
        windows = sliding_window_view(image, (_PATCH, _PATCH), axis=(0, 1))  # [y, x, C, 3, 3]
        rows = rng.integers(0, height - _PATCH + 1, PATCHES_PER_IMAGE)
        columns = rng.integers(0, width - _PATCH + 1, PATCHES_PER_IMAGE)
        found.append(windows[rows, columns].transpose(0, 2, 3, 1).reshape(PATCHES_PER_IMAGE, -1))
    return np.concatenate(found).astype(np.float64)
