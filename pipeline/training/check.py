"""Checks an untrained model: it gives probabilities, and can be saved and loaded again."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np

from pipeline.data.values import Array, flaw_in
from pipeline.system.errors import RequestError, first_line
from pipeline.training.saved import load_saved

IMAGES = 4
_SOFTMAX = "end it in keras.layers.Dense(classes, activation='softmax')"
_SAVABLE = (
    "use layers of keras.layers or functions of keras.ops in place of a Lambda, and register "
    "classes of your own with @keras.saving.register_keras_serializable()"
)
_checked: set[str] = set()  # what this process has checked: jobs of a sweep are mostly alike


def check_model(model: keras.Model, classes: int) -> None:
    """Tries the untrained `model` and a copy of it that was saved and loaded again.

    Random numbers drawn afterwards are those that would be drawn without the check.

    Raises:
        RequestError: it takes no images u8[N,H,W,C], gives no probabilities f32[N, classes], or
            cannot be saved, or not be loaded again as saved models are (`training/saved.py`).
    """
    state = random.getstate(), np.random.get_state()
    try:
        _check_shape(model, classes)
        key = _structure(model)
        if key is None or key not in _checked:
            copy = _saved_and_loaded(model)
            _check_answers(copy)
            if key is not None:
                _checked.add(key)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


def _check_shape(model: keras.Model, classes: int) -> None:
    if (shape := model.output_shape) != (None, classes):
        raise RequestError(
            f"model={model.name}: gives {shape} where the data set's {classes} classes need "
            f"(None, {classes}); {_SOFTMAX}"
        )


def _structure(model: keras.Model) -> str | None:
    """A text that is the same for models of the same layers, but for the names; None: unknown."""
    try:
        return hashlib.sha256(json.dumps(model.get_config(), default=str).encode()).hexdigest()
    except Exception:  # as whoever wrote a layer's `get_config` has it
        return None


def _saved_and_loaded(model: keras.Model) -> keras.Model:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
            return load_saved(path, called="the saved model")
        except Exception as error:  # of whatever kind the code of a user's layer raises
            raise RequestError(
                f"model={model.name}: nothing could load it again once it is saved: "
                f"{first_line(str(error))}; {_SAVABLE}"
            ) from error


def _check_answers(model: keras.Model) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, *model.input_shape[1:]), np.uint8)
    tolerance = 1e-3 if model.outputs[0].dtype == "float32" else 1e-2
    _require_probabilities(model, images, tolerance)
    # A last layer of zeros would let pass what only happens to sum to one, such as two sigmoids.
    for weight in model.trainable_variables[-2:]:
        spread = 0.5 / math.sqrt(math.prod(weight.shape[:-1]))
        weight.assign_add(rng.normal(0, spread, weight.shape))
    _require_probabilities(model, images, tolerance)


def _require_probabilities(model: keras.Model, images: Array, tolerance: float) -> None:
    answers = keras.ops.convert_to_numpy(keras.ops.cast(model(images, training=False), "float32"))
    if flaw := flaw_in(answers, tolerance):
        raise RequestError(
            f"model={model.name}: its answers are no probabilities: {flaw}; {_SOFTMAX}"
        )
