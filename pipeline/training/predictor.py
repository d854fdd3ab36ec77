"""A Keras model as a function from images to probabilities, compiled once for any batch."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from pipeline.data.values import Array
from pipeline.system.errors import RequestError
from pipeline.verbs.serve.bodies import Shape

WARM_UP = (1, 1, 2, 64)  # images at once: kernels are chosen and memory is taken at first use


def compiled(model: keras.Model, image_shape: Shape, classes: int) -> Callable[[Array], Array]:
    """The function u8[N,H,W,C] → f32[N,K] of `model`, warm, and safe to call from many threads.

    Raises:
        RequestError: the model does not take such images or give `classes` probabilities.
    """
    images = tf.TensorSpec([None, *image_shape], tf.uint8)
    forward = tf.function(lambda batch: model(batch, training=False), input_signature=[images])
    try:
        graph = forward.get_concrete_function()
    except (TypeError, ValueError) as error:
        raise RequestError(f"the model takes no images u8{[None, *image_shape]}") from error

    def predict(batch: Array) -> Array:
        return graph(tf.constant(batch)).numpy()

    for size in WARM_UP:
        probs = predict(np.zeros((size, *image_shape), np.uint8))
        if probs.shape != (size, classes):
            raise RequestError(
                f"the model gives {probs.shape[-1]} probabilities for {classes} class names"
            )
    return predict
