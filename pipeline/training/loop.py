"""Trains a compiled Keras model on splits in memory, with many steps per call of TensorFlow.

The images stay u8[N,H,W,C] in one resident tensor; each split refers to rows of it. A part of an
epoch (some tens of steps, each a shuffled gather and Keras' own `train_step`) is one compiled
graph, so that Python is entered a few times per epoch rather than once per batch. If XLA is
requested, it compiles the loop over the full batches of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from pipeline.data.cache import let_go
from pipeline.data.values import Array, Split
from pipeline.system.errors import PipelineError
from pipeline.training.averages import show_average, show_trained
from pipeline.training.fused import fused_updates
from pipeline.training.xla import Gather, compiled

EVALUATED_AT_ONCE = 1024  # validation images
ALIGNMENT = 64  # bytes; TensorFlow's kernels crash with less
PARTS = 20  # returns to Python per epoch, for the progress bar, Ctrl-C and the check for NaN

Places = Array  # i64[n]: positions of images in a split, in the order of training


def fit(  # noqa: PLR0913
    model: keras.Model,
    splits: tuple[Split, Split],
    callbacks: keras.callbacks.CallbackList,
    *,
    batch_size: int,
    seed: int,
    xla: bool = False,
    shares: Sequence[float] | None = None,
) -> None:
    """Fits `model` on the first of `splits` and validates it on the second, if that is not empty.

    Runs the epochs set in `callbacks` (`initial_epoch` to `epochs`), or until the model should
    stop. The callbacks are called as by `model.fit`, except that their batches are parts of an
    epoch. If the optimizer averages weights, the model has the averages at the end of each epoch.

    `shares` are factors of the learning rate, one per trainable variable.

    Raises:
        PipelineError: the loss became NaN or infinite.
    """
    train, val = splits
    part_size = _part_size(len(train), batch_size)
    _create_state(model, train)
    images = resident(train.images)
    val_images = images if val.images is train.images else resident(val.images)
    train_steps = _steps(
        model.train_step,
        _gatherer(train, images),
        batch_size,
        xla_part=part_size if xla else 0,
    )
    test_steps = _steps(
        model.test_step, _gatherer(val, val_images), max(batch_size, EVALUATED_AT_ONCE)
    )
    results = tf.function(model.get_metrics_result)  # ten times faster than eager execution
    logs: dict[str, float] = {}
    model.stop_training = False
    callbacks.on_train_begin()
    with fused_updates(model.optimizer, shares):
        for epoch in range(callbacks.params.get("initial_epoch", 0), callbacks.params["epochs"]):
            if model.stop_training:
                break
            callbacks.on_epoch_begin(epoch)
            if epoch:
                show_trained(model.optimizer)
            model.reset_metrics()
            # Each epoch has its own generator, so that a resumed run shuffles like a whole one.
            order = np.random.default_rng([seed, epoch]).permutation(len(train))
            for part, start in enumerate(range(0, len(order), part_size)):
                places = order[start : start + part_size]
                callbacks.on_train_batch_begin(part)
                train_steps(places)
                logs = _finite(results(), epoch)
                callbacks.on_train_batch_end(part, {**logs, "images": len(places)})
            show_average(model.optimizer)
            if len(val):
                model.reset_metrics()
                test_steps(np.arange(len(val)))
                logs |= {f"val_{k}": v for k, v in _finite(results(), epoch).items()}
            callbacks.on_epoch_end(epoch, logs)
    let_go(train.images)
    callbacks.on_train_end(logs)


def _gatherer(split: Split, images: tf.Tensor) -> Gather:
    """A function from places i64[n] in `split` to images u8[n,H,W,C] and labels i32[n]."""
    rows, labels = resident(split.rows), resident(split.labels)
    return lambda places: (tf.gather(images, tf.gather(rows, places)), tf.gather(labels, places))


def _steps(
    step: Callable[..., object], gather: Gather, batch_size: int, *, xla_part: int = 0
) -> Callable[[Places], None]:
    """A function that runs `step` on each batch of places; XLA takes up to `xla_part` at once."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
    def run(places: tf.Tensor) -> None:
        for start in tf.range(0, tf.size(places), batch_size):
            step(gather(places[start : start + batch_size]))

    if not xla_part:
        return run
    full_batches = compiled(step, gather, (xla_part // batch_size, batch_size))

    def run_with_xla(places: Places) -> None:
        full = len(places) // batch_size * batch_size
        if full:
            full_batches(places[:full])
        if full < len(places):
            run(places[full:])

    return run_with_xla


def _part_size(images: int, batch_size: int) -> int:
    steps = -(-images // batch_size)
    return -(-steps // PARTS) * batch_size


def _create_state(model: keras.Model, split: Split) -> None:
    """Creates the variables of optimizer and metrics, which a graph can use but not create."""
    if not model.optimizer.built:  # twice would add variables to one that scales the loss
        model.optimizer.build(model.trainable_variables)
    model.test_step((split.batch(0, 1), split.labels[:1]))


def _finite(results: Mapping[str, tf.Tensor], epoch: int) -> dict[str, float]:
    metrics = {name: float(value) for name, value in results.items()}
    if not np.isfinite(metrics["loss"]):
        raise PipelineError(
            f"the loss became {metrics['loss']} in epoch {epoch + 1}: training diverged; "
            "lower optimizer.learning_rate or set optimizer.clipnorm=1"
        )
    return metrics


def resident(array: Array) -> tf.Tensor:
    """Makes a tensor that shares the array's memory, or a copy if TensorFlow cannot read in place.

    A memory-mapped array stays on the pages of its file. The array must not be written afterwards.
    """
    shared = array.view()
    try:
        # DLPack has no read-only memory; a private mapping can safely be declared writeable.
        shared.flags.writeable = True
    except ValueError:
        return tf.constant(array)
    whole = shared.size and shared.flags.c_contiguous and shared.ctypes.data % ALIGNMENT == 0
    if not whole or tf.config.list_physical_devices("GPU"):
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(shared.__dlpack__())
