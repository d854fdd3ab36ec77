"""Compiles the training steps of a model into one loop with XLA, if that is faster.

XLA fuses the operations between the matrix products of a dense network; on a CPU these cost as much
as the products themselves. Its convolutions are slower than TensorFlow's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from pipeline.data.values import Array
from pipeline.system.errors import PipelineError
from pipeline.training.programs import forget_programs

# The layers that were measured; others may be convolutions, or have no XLA kernel at all.
FASTER = (
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

# Functions that draw random numbers, with the name of their generator argument.
_GENERATORS = (
    (tf.random, "stateless_uniform", "alg"),
    (tf.random, "stateless_normal", "alg"),
    (tf.random, "stateless_truncated_normal", "alg"),
    (tf.nn.experimental, "stateless_dropout", "rng_alg"),
)

LabelledBatch = tuple[tf.Tensor, tf.Tensor]  # images u8[n,H,W,C] and labels i32[n]
Step = Callable[[LabelledBatch], object]
Gather = Callable[[tf.Tensor], LabelledBatch]  # from positions i64[n] in a split


def is_faster(model: keras.Model, steps: int) -> bool:
    """Whether XLA is known to speed up training `model` for this number of `steps` here."""
    return (
        steps >= ENOUGH_STEPS
        and not tf.config.list_physical_devices("GPU")  # not measured
        and all(type(layer) in FASTER for layer in model.layers)
    )


def compiled(step: Step, gather: Gather, shape: tuple[int, int]) -> Callable[[Array], None]:
    """Makes a function of positions i64[n] that runs `step` on each batch that `gather` returns.

    `shape` is (maximum batches per call, images per batch); n must be a multiple of the latter.

    Raises:
        PipelineError: on the first call, if XLA lacks an operation of `step`.
    """
    traced = _trace(step, gather, shape)

    def take(positions: Array) -> None:
        nonlocal traced
        # One program serves any number of batches: those beyond `count` are ignored.
        padded = tf.constant(np.resize(positions, shape))
        count = tf.constant(len(positions) // shape[1])
        try:
            traced(padded, count)
        except tf.errors.OpError as error:
            _require_known_operations(error)
            if not forget_programs():  # a damaged cached program must not fail the run
                raise
            traced = _trace(step, gather, shape)
            traced(padded, count)

    return take


def _trace(
    step: Step, gather: Gather, shape: tuple[int, int]
) -> Callable[[tf.Tensor, tf.Tensor], None]:
    none = gather(tf.zeros([0], tf.int64))
    batches = [tf.TensorSpec((*shape, *part.shape[1:]), part.dtype) for part in none]

    total = tf.TensorSpec((), tf.int32)

    @tf.function(jit_compile=True, input_signature=[*batches, total], autograph=False)
    def loop(images: tf.Tensor, labels: tf.Tensor, count: tf.Tensor) -> None:
        def take_batch(number: tf.Tensor) -> list[tf.Tensor]:
            step((images[number], labels[number]))
            return [number + 1]

        tf.while_loop(lambda number: number < count, take_batch, [0])

    # The gather stays outside: XLA would copy all of `images` on each call.
    @tf.function(input_signature=[tf.TensorSpec(shape, tf.int64), total], autograph=False)
    def run(positions: tf.Tensor, count: tf.Tensor) -> None:
        loop(*gather(positions), count)

    with _threefry():
        traced: Callable[[tf.Tensor, tf.Tensor], None] = run.get_concrete_function()
        return traced


def _require_known_operations(error: tf.errors.OpError) -> None:
    if unknown := re.search(r"unsupported operations .*?: (\w+)", str(error)):
        raise PipelineError(
            f"XLA has no {unknown[1]}, which the training step of this model uses; "
            "set train.xla=false"
        ) from error


@contextmanager
def _threefry() -> Iterator[None]:
    """Traces random numbers with the ThreeFry generator.

    XLA's default generator on a CPU takes 10 ms for 32,768 numbers, this one takes 0.1 ms.
    Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    originals = [(module, name, getattr(module, name)) for module, name, _ in _GENERATORS]
    for (module, name, keyword), (*_, original) in zip(_GENERATORS, originals, strict=True):
        setattr(module, name, partial(original, **{keyword: "threefry"}))
    try:
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)
