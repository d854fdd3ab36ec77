"""Shows the averaged weights of a model where it is evaluated, and the trained ones in training.

An optimizer with averages keeps them beside the weights. At the end of an epoch the two change
places, so that validation, checkpoints and the kept model have the averages; the next epoch begins
by changing them back.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def show_average(optimizer: keras.optimizers.Optimizer) -> None:
    """Gives the model the averages of its weights, if `optimizer` keeps any."""
    inner: Any = getattr(optimizer, "inner_optimizer", optimizer)  # of a scaled loss
    if hasattr(inner, "show_average"):
        inner.show_average()
    elif inner.use_ema:
        _exchange(inner)


def show_trained(optimizer: keras.optimizers.Optimizer) -> None:
    """Gives the model back the weights that are trained."""
    inner: Any = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(inner, "show_trained"):
        inner.show_trained()
    elif inner.use_ema:
        _exchange(inner)


def _exchange(optimizer: Any) -> None:
    pairs = zip(
        optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True
    )
    for weight, average in pairs:
        trained = tf.identity(weight.value)
        weight.assign(average)
        average.assign(trained)
