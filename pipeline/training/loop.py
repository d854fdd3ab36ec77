"""Trains a compiled Keras model on splits, with many steps per call of TensorFlow.

The images stay u8[N,H,W,C] in one resident tensor; each split refers to rows of it. If they are too
large, they are streamed (`streaming.py`). A part of an epoch (some tens of steps, each a shuffled
gather and Keras' own `train_step`) is one compiled graph, so that Python is entered a few times per
epoch rather than once per batch. If XLA is requested, it compiles the loop over the full batches of
a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.data.cache import let_go
from pipeline.data.values import Array, Split, images_at_once
from pipeline.system.errors import PipelineError
from pipeline.training.fused import fused_norms, fused_updates
from pipeline.training.streaming import Buffers, Resident, Streamed, is_too_large, resident
from pipeline.training.xla import Gather, compiled

EVALUATED_AT_ONCE = 1024  # validation images of 28×28
_PARTS = 20  # returns to Python per epoch, for the progress bar, Ctrl-C and the check for NaN

Positions = Array  # i64[n]: those of images in a split, in the order of training


def fit(  # noqa: PLR0913
    model: keras.Model,
    splits: tuple[Split, Split],
    callbacks: keras.callbacks.CallbackList,
    *,
    batch_size: int,
    seed: int,
    xla: bool = False,
    shares: Sequence[float] | None = None,
    joins: Sequence[int] | None = None,
    stream: bool | None = None,
) -> None:
    """Fits `model` on the first of `splits` and validates it on the second, if that is not empty.

    Runs the epochs set in `callbacks` (`initial_epoch` to `epochs`), or until the model should
    stop. The callbacks are called as by `model.fit`, except that their batches are parts of an
    epoch. If the optimizer averages weights, the model has the averages at the end of each epoch.
    `stream` reads the images part by part; None does so if they are too large for memory.
    Neither this nor the size of a part changes the weights.

    `shares` are factors of the learning rate, one per trainable variable, and `joins` the epochs
    (from 0) before which a variable is not changed.

    Raises:
        PipelineError: the loss became NaN or infinite.
    """
    train, val = splits
    _create_state(model, train)
    passes = _passes(model, train, val, batch_size=batch_size, xla=xla, stream=stream)
    logs: dict[str, float] = {}
    model.stop_training = False
    callbacks.on_train_begin()
    since = [join * -(-len(train) // batch_size) for join in joins or ()] or None
    with fused_updates(model.optimizer, shares, since), fused_norms(model):
        for epoch in range(callbacks.params.get("initial_epoch", 0), callbacks.params["epochs"]):
            if model.stop_training:
                break
            callbacks.on_epoch_begin(epoch)
            if epoch:
                _show_trained(model.optimizer)
            # Each epoch has its own generator, so that a resumed run shuffles like a whole one.
            order = np.random.default_rng([seed, epoch]).permutation(len(train))
            logs = passes.train(order, epoch, callbacks)
            _show_average(model.optimizer)
            if len(val):
                logs |= {f"val_{name}": value for name, value in passes.validate(epoch).items()}
            callbacks.on_epoch_end(epoch, logs)
    let_go(train.images)
    callbacks.on_train_end(logs)


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """The compiled passes through both splits; sizes are those of a part, in images."""

    model: keras.Model
    train_feed: Resident | Streamed
    train_steps: Callable[[Positions], None]
    train_size: int
    val: Split
    val_feed: Resident | Streamed
    val_steps: Callable[[Positions], None]
    val_size: int
    results: Callable[[], Mapping[str, tf.Tensor]]

    def train(
        self, order: Positions, epoch: int, callbacks: keras.callbacks.CallbackList
    ) -> dict[str, float]:
        """Trains on the images in this order; returns the metrics of the epoch (from 0)."""
        logs: dict[str, float] = {}
        self.model.reset_metrics()
        with closing(self.train_feed.parts(order, self.train_size)) as parts:
            for part, positions in enumerate(parts):
                callbacks.on_train_batch_begin(part)
                self.train_steps(positions)
                logs = _finite(self.results(), epoch)
                callbacks.on_train_batch_end(part, {**logs, "images": len(positions)})
        return logs

    def validate(self, epoch: int) -> dict[str, float]:
        """The metrics on the validation split, by their plain names."""
        self.model.reset_metrics()
        for positions in self.val_feed.parts(np.arange(len(self.val)), self.val_size):
            self.val_steps(positions)
        return _finite(self.results(), epoch)


def _passes(
    model: keras.Model,
    train: Split,
    val: Split,
    *,
    batch_size: int,
    xla: bool,
    stream: bool | None,
) -> _Passes:
    """Compiles the passes; the images stay in memory or are streamed."""
    tested_at_once = images_at_once(train.images.shape[1:], max(batch_size, EVALUATED_AT_ONCE))
    train_size, val_size = _part_size(len(train), batch_size), max(1, len(val))
    train_feed: Resident | Streamed
    val_feed: Resident | Streamed
    if is_too_large(train.images) if stream is None else stream:
        buffers = Buffers(train.images, max(batch_size, tested_at_once))
        train_feed, val_feed = Streamed(train, buffers), Streamed(val, buffers)
        train_size = min(train_size, buffers.capacity // batch_size * batch_size)
        val_size = buffers.capacity // tested_at_once * tested_at_once
    else:
        images = resident(train.images)
        shared = val.images is train.images
        train_feed = Resident(train, images)
        val_feed = Resident(val, images if shared else resident(val.images))
    xla_part = train_size if xla else 0
    return _Passes(
        model=model,
        train_feed=train_feed,
        train_steps=_steps(model.train_step, train_feed.gather, batch_size, xla_part=xla_part),
        train_size=train_size,
        val=val,
        val_feed=val_feed,
        val_steps=_steps(model.test_step, val_feed.gather, tested_at_once),
        val_size=val_size,
        # A graph is ten times faster than eager execution.
        results=tf.function(model.get_metrics_result, autograph=False),
    )


def _steps(
    step: Callable[..., object], gather: Gather, batch_size: int, *, xla_part: int = 0
) -> Callable[[Positions], None]:
    """A function that runs `step` on batches of positions; XLA takes up to `xla_part` at once."""

    # Keras' steps need no AutoGraph, which would take as long as tracing them.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    def run(positions: tf.Tensor) -> None:
        def take_batch(start: tf.Tensor) -> list[tf.Tensor]:
            step(gather(positions[start : start + batch_size]))
            return [start + batch_size]

        tf.while_loop(lambda start: start < tf.size(positions), take_batch, [0])

    if not xla_part:
        return run
    full_batches = compiled(step, gather, (xla_part // batch_size, batch_size))

    def run_with_xla(positions: Positions) -> None:
        full = len(positions) // batch_size * batch_size
        if full:
            full_batches(positions[:full])
        if full < len(positions):
            run(positions[full:])

    return run_with_xla


def _part_size(images: int, batch_size: int) -> int:
    steps = -(-images // batch_size)
    return -(-steps // _PARTS) * batch_size


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


def _show_average(optimizer: keras.optimizers.Optimizer) -> None:
    """Gives the model the averages of its weights, if `optimizer` keeps any.

    Weights and averages are exchanged at the end of an epoch, so that validation, checkpoints and
    the kept model have the averages, and exchanged back when the next epoch begins.
    """
    inner: Any = getattr(optimizer, "inner_optimizer", optimizer)  # of a scaled loss
    if hasattr(inner, "show_average"):
        inner.show_average()
    elif inner.use_ema:
        _exchange(inner)


def _show_trained(optimizer: keras.optimizers.Optimizer) -> None:
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
