"""The precision of training, 16 or 32 bits: `train.precision`.

Weights, losses and optimizers stay in float32 ("mixed precision", Micikevicius et al. 2018); the
layers compute in 16 bits. A model is kept and saved in float32, so that it gives the same
predictions on processors without 16-bit arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from pipeline.system.errors import RequestError
from pipeline.training.pretrained import WHITENING
from pipeline.training.programs import processor_features
from pipeline.training.saved import uncompiled

LOW = ("bfloat16", "float16")
MEASURED = "avx512_bf16"  # a CPU with this computes convolutions in bfloat16 in half the time
_WIDTHS = 16  # if every width is a multiple of it; else it takes longer in bfloat16


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Makes layers that are built in the block compute in `precision`, by Keras' global setting."""
    keras.config.set_dtype_policy(f"mixed_{precision}" if precision in LOW else precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


def require_sensible(precision: str) -> None:
    """Checks that the device can compute in `precision`.

    Raises:
        RequestError: float16 on a CPU, which has no arithmetic for it.
    """
    if precision == "float16" and not has_gpu():
        raise RequestError(
            "train.precision=float16 needs a GPU, and TensorFlow sees none here; "
            "CPUs take bfloat16 or float32"
        )


def best_for(model: keras.Model) -> str:
    """The precision that `auto` means: bfloat16 if that was measured to be faster, else float32.

    It was faster on a CPU with AVX512_BF16 for networks of ordinary convolutions, batch
    normalisation and dense layers, if their numbers of filters are multiples of 16. A layer of the
    user's own may work in float32 alone.
    """
    layers = keras.layers
    every = [*nested_layers(model)]
    weighted = [layer for layer in every if layer.weights and layer.name != WHITENING]
    measured = all(type(layer).__module__.startswith("keras.") for layer in every) and all(
        type(layer) in (layers.Conv2D, layers.BatchNormalization, layers.Dense)
        for layer in weighted
    )
    widths = [layer.filters for layer in weighted if type(layer) is layers.Conv2D]
    fast = measured and bool(widths) and all(width % _WIDTHS == 0 for width in widths)
    here = not has_gpu() and MEASURED in processor_features().split()
    return "bfloat16" if fast and here else "float32"


def computes_in_float32(model: keras.Model) -> bool:
    """Whether no layer of `model` computes in 16 bits."""
    return all(layer.compute_dtype not in LOW for layer in nested_layers(model))


def in_float32(model: keras.Model) -> keras.Model:
    """A copy of `model` with the same weights that computes in float32; it is not compiled.

    The same layers of it are trained.
    """
    described = uncompiled(_widened(keras.saving.serialize_keras_object(model)))
    copy: keras.Model = keras.saving.deserialize_keras_object(described)
    copy.set_weights(model.get_weights())
    # Descriptions of blocks do not tell which of their layers are frozen.
    for layer, same in zip(model._flatten_layers(), copy._flatten_layers(), strict=True):
        same.trainable = layer.trainable  # and all within it, which follow
    return copy


def _widened(described: Any) -> Any:
    """A description of a model in which every 16-bit type is float32."""
    if isinstance(described, dict):
        return {key: _widened(value) for key, value in described.items()}
    if isinstance(described, list | tuple):
        return [_widened(value) for value in described]
    narrow = isinstance(described, str) and described.removeprefix("mixed_") in LOW
    return "float32" if narrow else described


def quicken(model: keras.Model) -> None:
    """Lets a trained model compute in bfloat16, in place, if `best_for` says that this is faster.

    Weights, and what precedes its first convolution or follows its last weights, stay in float32.
    """
    if best_for(model) == "float32":
        return
    layers = [*nested_layers(model)]
    weighted = [
        place for place, layer in enumerate(layers) if layer.weights and layer.name != WHITENING
    ]
    first = next(place for place in weighted if type(layers[place]) is keras.layers.Conv2D)
    for layer in layers[first : weighted[-1]]:
        layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")


def nested_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a model, including those of models nested in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from nested_layers(layer)
        else:
            yield layer


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))
