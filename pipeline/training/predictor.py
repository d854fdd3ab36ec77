"""Turns a Keras model into a function from images to probabilities, compiled for any batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from pipeline.data.values import Array, Shape, Split, flaw_in, images_at_once
from pipeline.system.errors import PipelineError, RequestError
from pipeline.training.graph import head_input
from pipeline.training.memory import TO_PREDICT, enough_memory

if TYPE_CHECKING:
    from pipeline.training.features import Head

PredictFunction = Callable[[Array], Array]  # u8[N,H,W,C] → f32[N,K]

WARM_UP = (1, 2, 64)  # batch sizes: first uses choose kernels and allocate memory
UNTIMED, TIMED = 10, 100  # predictions of a single image


def predictor(model: keras.Model) -> PredictFunction:
    """Compiles `model` to one graph that predicts any number of images, without augmentation.

    The returned function raises PipelineError if the model's outputs are not probabilities, or if
    there is not enough memory.
    """
    dtype = model.inputs[0].dtype  # not uint8 if it takes features, or is the user's own
    graph = _graph(model, tf.TensorSpec([None, *model.input_shape[1:]], dtype))

    @enough_memory(TO_PREDICT)
    def forward(batch: Array) -> Array:
        probabilities: Array = graph(tf.constant(batch.astype(dtype, copy=False))).numpy()
        _require_probabilities(probabilities, PipelineError)
        return probabilities

    return forward


def with_features(model: keras.Model) -> Callable[[Array], tuple[Array | None, Array]]:
    """Compiles `model` to a function from images to features f32[N,F] and probabilities.

    The features are the input of its last layer with weights; of maps, the means over positions.
    They are None if the model has no single such input (`graph.head_input`).
    """
    features = head_input(model)
    if features is None:
        plain = predictor(model)
        return lambda images: (None, plain(images))
    both = keras.Model(model.inputs, [features, model.outputs[0]])
    dtype = model.inputs[0].dtype
    spec = tf.TensorSpec([None, *model.input_shape[1:]], dtype)

    @tf.function(input_signature=[spec], autograph=False)
    def graph(batch: tf.Tensor) -> list[tf.Tensor]:
        found, probabilities = both(batch, training=False)
        axes = list(range(1, len(found.shape) - 1))
        return [
            tf.cast(tf.reduce_mean(found, axes), tf.float32),
            tf.cast(probabilities, tf.float32),
        ]

    @enough_memory(TO_PREDICT)
    def forward(batch: Array) -> tuple[Array, Array]:
        given = tf.constant(batch.astype(dtype, copy=False))
        found, probabilities = (part.numpy() for part in graph(given))
        _require_probabilities(probabilities, PipelineError)
        return found, probabilities

    return forward


def predict(
    model: keras.Model,
    split: Split,
    *,
    batch_size: int,
    head: Head | None = None,
    views: str | None = None,
) -> Array:
    """Predicts probabilities f32[N,K] for the images of a split, in batches.

    With a `head`, the part of the model that `head_of` in features.py returns, these are computed
    from cached features. With `views`, for which there are no features, they are means over copies
    of each image: `flip` adds the mirrored image, `flip_and_shift` also both moved by a pixel up
    and left, and down and right.

    Raises:
        PipelineError: the model gives NaN or other numbers that are not probabilities, or there is
            not enough memory.
    """
    if head is not None:
        model, split = head.model, head.of(split)
    forward, size = predictor(model), images_at_once(split.images.shape[1:], batch_size)
    if views is None:
        return np.concatenate([forward(images) for images in split.batches(size)])
    means = [
        np.mean([forward(view) for view in views_of(images, views)], axis=0)
        for images in split.batches(size)
    ]
    return np.concatenate(means)


def views_of(images: Array, views: str) -> list[Array]:
    """The copies u8[N,H,W,C] of `images` that `views` names; the first is `images` itself."""
    moved = [images]
    if views == "flip_and_shift":
        wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        moved += [wide[:, 2:, 2:], wide[:, :-2, :-2]]
    return [*moved, *(view[:, :, ::-1] for view in moved)]


def warm_predictor(
    model: keras.Model, image_shape: Shape, classes: int, *, most: int = max(WARM_UP)
) -> PredictFunction:
    """Makes a checked and warmed-up predictor for a server; safe to call from many threads.

    It is warmed up with at most as many images as the server ever gives it, `most`.

    Raises:
        RequestError: the model does not take images u8[N, *image_shape], or does not give `classes`
            probabilities for each.
    """
    try:
        graph = _graph(model, tf.TensorSpec([None, *image_shape], tf.uint8))
    except (TypeError, ValueError) as error:
        raise RequestError(f"the model does not take images u8{[None, *image_shape]}") from error

    def forward(batch: Array) -> Array:
        return graph(tf.constant(batch)).numpy()

    for size in (1, *sorted({min(size, most) for size in WARM_UP})):
        probabilities = forward(np.zeros((size, *image_shape), np.uint8))
        if probabilities.shape != (size, classes):
            raise RequestError(
                f"the model gives {probabilities.shape[-1]} probabilities for {classes} class names"
            )
        _require_probabilities(probabilities, RequestError)
    return forward


def single_image_ms(model: keras.Model, split: Split) -> float:
    """Median time, ms, of a compiled and warmed-up prediction of a single image."""
    forward = predictor(model)
    times = []
    for number in range(UNTIMED + TIMED):
        position = number % len(split)
        image = np.ascontiguousarray(split.batch(position, position + 1))
        started = time.perf_counter()
        forward(image)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[UNTIMED:])


def _require_probabilities(outputs: Array, refused: type[PipelineError]) -> None:
    if flaw := flaw_in(outputs):
        raise refused(f"the model's outputs are not probabilities: {flaw}")


def _graph(model: keras.Model, images: tf.TensorSpec) -> Callable[[tf.Tensor], tf.Tensor]:
    forward = tf.function(
        lambda batch: tf.cast(model(batch, training=False), tf.float32),
        input_signature=[images],
        autograph=False,
    )
    return forward.get_concrete_function()
