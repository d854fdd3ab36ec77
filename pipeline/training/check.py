"""Checks that an untrained model gives probabilities and can be saved and loaded again."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np

from pipeline.config.trusted import checksums, trusted
from pipeline.data.values import Array, Shape, flaw_in
from pipeline.system.errors import RequestError, first_line
from pipeline.training.graph import require_one_input, takes
from pipeline.training.saved import MOST_VALUES, largest_output, load_saved

_IMAGES = 4
_SOFTMAX = "end it in keras.layers.Dense(classes, activation='softmax')"
_SAVABLE = (
    "use layers of keras.layers or functions of keras.ops in place of a Lambda, and register "
    "classes of your own with @keras.saving.register_keras_serializable()"
)
_checked: set[str] = set()  # structures checked in this process: most jobs of a sweep share one


def check_model(model: keras.Model, classes: int, *, called: str) -> None:
    """Checks the untrained `model`, and a copy that was saved and loaded again.

    `called` names it in messages, such as `model=mlp`. The check does not change the random numbers
    that are drawn afterwards.

    Raises:
        RequestError: it does not take images u8[N,H,W,C], does not give probabilities
            f32[N, classes], is too large, cannot be saved, or cannot be loaded again by
            `training/saved.py`.
    """
    state = random.getstate(), np.random.get_state()
    try:
        _check_shapes(model, classes, called)
        key = _structure(model)
        if key is None or key not in _checked:
            copy = _saved_and_loaded(model, called)
            _check_probabilities(copy, called)
            if key is not None:
                _checked.add(key)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


def check_given(model: keras.Model, image_shape: Shape, classes: int) -> None:
    """Checks a model of the caller's own, which may be trained and need not be compiled.

    A `Sequential` model without a shape is built for these images.

    Raises:
        RequestError: it does not take images of `image_shape`, or does not give probabilities
            f32[N, classes].
    """
    if isinstance(model, keras.Sequential) and not model.built:
        model.build((None, *image_shape))
    require_one_input(model)
    if not takes(model, image_shape):
        wanted = tuple(model.inputs[0].shape[1:])
        raise RequestError(f"model: takes images {wanted}, not {image_shape}")
    _check_shapes(model, classes, "model")
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, *image_shape), np.uint8)
    _require_probabilities(model, images, "model")


def _check_shapes(model: keras.Model, classes: int, called: str) -> None:
    if (shape := model.output_shape) != (None, classes):
        raise RequestError(
            f"{called}: gives {shape}, but the data set's {classes} classes need "
            f"(None, {classes}); {_SOFTMAX}"
        )
    if (largest := largest_output(model)) > MOST_VALUES:
        raise RequestError(
            f"{called}: one of its layers gives {largest:,} numbers for one image; a "
            f"model with more than {MOST_VALUES:,} is not loaded again; use smaller images "
            "(dataset.size) or fewer filters"
        )


def _structure(model: keras.Model) -> str | None:
    """A text that is equal for models with equal layers and code; None if unknown."""
    try:
        described = [model.get_config(), checksums(trusted())]
        return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()
    except Exception:  # a user's `get_config` may raise anything
        return None


def _saved_and_loaded(model: keras.Model, called: str) -> keras.Model:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
            return load_saved(path, called="the saved model")
        except Exception as error:  # the code of a user's layer may raise anything
            raise RequestError(
                f"{called}: cannot be loaded again after saving: "
                f"{first_line(str(error))}; {_SAVABLE}"
            ) from error


def _check_probabilities(model: keras.Model, called: str) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_IMAGES, *model.input_shape[1:]), np.uint8)
    _require_probabilities(model, images, called)
    # With a last layer of zeros, outputs such as two sigmoids would happen to sum to one.
    for weight in model.trainable_variables[-2:]:
        spread = 0.5 / math.sqrt(math.prod(weight.shape[:-1]))
        weight.assign_add(rng.normal(0, spread, weight.shape))
    _require_probabilities(model, images, called)


def _require_probabilities(model: keras.Model, images: Array, called: str) -> None:
    given = model(images, training=False)
    if isinstance(given, dict | list | tuple):
        raise RequestError(f"{called}: gives a {type(given).__name__}, not one tensor; {_SOFTMAX}")
    tolerance = 1e-3 if model.outputs[0].dtype == "float32" else 1e-2
    probabilities = keras.ops.convert_to_numpy(keras.ops.cast(given, "float32"))
    if flaw := flaw_in(probabilities, tolerance):
        raise RequestError(f"{called}: its outputs are not probabilities: {flaw}; {_SOFTMAX}")
