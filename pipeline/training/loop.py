"""Trains a compiled Keras model on splits, with many steps per call of TensorFlow.

A part of an epoch (some tens of steps, each a shuffled gather and Keras' own `train_step`) is one
compiled graph, so that Python is entered a few times per epoch rather than once per batch.

The images stay u8[N,H,W,C] in one resident tensor; each split refers to rows of it. If they are
too large for memory, threads read parts of an epoch ahead, in the order of the file, into two
buffers: one is trained on while the other is filled. Either way every epoch is a permutation of
all images and gives the same weights.

If XLA is requested, it compiles the loop over the full batches of a part, without the kernels of
`fused.py`, in whose place it has its own.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.data.cache import let_go, read_rows
from pipeline.data.values import Array, Split, images_at_once
from pipeline.system.errors import PipelineError
from pipeline.system.processes import memory_limit
from pipeline.training.fused import fused_norms, fused_updates
from pipeline.training.precision import has_gpu
from pipeline.training.programs import forget_programs

EVALUATED_AT_ONCE = 1024  # validation images of 28×28
_PARTS = 20  # returns to Python per epoch, for the progress bar, Ctrl-C and the check for NaN

RESIDENT = 0.5  # share of the memory that images may take before they are streamed
RESIDENT_ON_GPU = 4_000_000_000  # most bytes that are copied to a GPU as a whole
BUFFER_BYTES = 2**24  # of one of the two buffers
READERS = 4  # threads that read one part together: a disk answers several requests at once
ALIGNMENT = 64  # bytes; TensorFlow's kernels crash with less

# Functions that draw random numbers, with the name of their generator argument.
_GENERATORS = (
    (tf.random, "stateless_uniform", "alg"),
    (tf.random, "stateless_normal", "alg"),
    (tf.random, "stateless_truncated_normal", "alg"),
    (tf.nn.experimental, "stateless_dropout", "rng_alg"),
)

Positions = Array  # i64[n]: those of images in a split, in the order of training
LabelledBatch = tuple[tf.Tensor, tf.Tensor]  # images u8[n,H,W,C] and labels i32[n]
Step = Callable[[LabelledBatch], object]
Gather = Callable[[tf.Tensor], LabelledBatch]  # from positions i64[n] in a split


def fit(  # noqa: PLR0913 (as `keras.Model.fit`)
    model: keras.Model,
    splits: tuple[Split, Split],
    callbacks: keras.callbacks.CallbackList,
    *,
    batch_size: int,
    seed: int,
    xla: bool = False,
    shares: Sequence[float] | None = None,
    joins: Sequence[int] | None = None,
    stream: bool = False,
) -> None:
    """Fits `model` on the first of `splits` and validates it on the second, if that is not empty.

    Runs the epochs set in `callbacks` (`initial_epoch` to `epochs`), or until the model should
    stop. The callbacks are called as by `model.fit`, except that their batches are parts of an
    epoch. If the optimizer averages weights, the model has the averages at the end of each epoch.
    `stream` reads the images part by part, which images that are too large for memory need.
    Neither this nor the size of a part changes the weights.

    `shares` are factors of the learning rate, one per trainable variable, and `joins` the epochs
    (from 0) before which a variable is not changed.

    Raises:
        PipelineError: the loss became NaN or infinite.
    """
    train, val = splits
    _create_state(model, train)
    logs: dict[str, float] = {}
    model.stop_training = False
    since = [join * -(-len(train) // batch_size) for join in joins or ()] or None
    callbacks.on_train_begin()
    # XLA compiles the full batches at once and fuses by itself. What is left of an epoch is traced
    # as it is first run.
    with fused_updates(model.optimizer, shares, since, kernels=False):
        passes = _passes(model, train, val, batch_size=batch_size, xla=xla, stream=stream)
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


def _create_state(model: keras.Model, split: Split) -> None:
    """Creates the variables of optimizer and metrics, which a graph can use but not create."""
    if not model.optimizer.built:  # twice would add variables to one that scales the loss
        model.optimizer.build(model.trainable_variables)
    model.test_step((split.batch(0, 1), split.labels[:1]))


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
    stream: bool,
) -> _Passes:
    """Compiles the passes; the images stay in memory or are streamed."""
    tested_at_once = images_at_once(train.images.shape[1:], max(batch_size, EVALUATED_AT_ONCE))
    train_size, val_size = _part_size(len(train), batch_size), max(1, len(val))
    train_feed: Resident | Streamed
    val_feed: Resident | Streamed
    if stream:
        buffers = Buffers(train.images, max(batch_size, tested_at_once))
        train_feed, val_feed = Streamed(train, buffers), Streamed(val, buffers)
        train_size = min(train_size, buffers.capacity // batch_size * batch_size)
        val_size = buffers.capacity // tested_at_once * tested_at_once
    else:
        images = resident(train.images)
        shared = val.images is train.images
        train_feed = Resident(train, images)
        val_feed = Resident(val, images if shared else resident(val.images))
    xla_part = train_size if xla and len(train) >= batch_size else 0
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
        results=tf.function(model.get_metrics_result, autograph=False).get_concrete_function(),
    )


def _part_size(images: int, batch_size: int) -> int:
    steps = -(-images // batch_size)
    return -(-steps // _PARTS) * batch_size


def _finite(results: Mapping[str, tf.Tensor], epoch: int) -> dict[str, float]:
    metrics = {name: float(value) for name, value in results.items()}
    if not np.isfinite(metrics["loss"]):
        raise PipelineError(
            f"the loss became {metrics['loss']} in epoch {epoch + 1}: training diverged; "
            "lower optimizer.learning_rate or set optimizer.clipnorm=1"
        )
    return metrics


def _steps(
    step: Step, gather: Gather, batch_size: int, *, xla_part: int = 0
) -> Callable[[Positions], None]:
    """A function that runs `step` on batches of positions; XLA takes up to `xla_part` at once."""

    # Keras' steps need no AutoGraph, which would take as long as tracing them.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    def run(positions: tf.Tensor) -> None:
        def take_batch(start: tf.Tensor) -> list[tf.Tensor]:
            step(gather(positions[start : start + batch_size]))
            return [start + batch_size]

        tf.while_loop(lambda start: start < tf.size(positions), take_batch, [0])

    # TensorFlow would warn a process of several trainings that each one is traced.
    traced = cache(run.get_concrete_function)

    def run_traced(positions: Positions) -> None:
        traced()(tf.constant(positions))

    if not xla_part:
        return run_traced
    full_batches = _compiled_by_xla(step, gather, (xla_part // batch_size, batch_size))

    def run_with_xla(positions: Positions) -> None:
        full = len(positions) // batch_size * batch_size
        if full:
            full_batches(positions[:full])
        if full < len(positions):
            run_traced(positions[full:])

    return run_with_xla


def _compiled_by_xla(
    step: Step, gather: Gather, shape: tuple[int, int]
) -> Callable[[Positions], None]:
    """Makes a function of positions i64[n] that runs `step` on each batch that `gather` returns.

    `shape` is (maximum batches per call, images per batch); n must be a multiple of the latter.

    It is compiled at once, so that each attempt traces the same operations.

    Raises:
        PipelineError: XLA lacks an operation of `step`.
    """
    try:
        compiled = _compiled(step, gather, shape)
    except tf.errors.OpError as error:
        _require_known_operations(error)
        if not forget_programs():  # a damaged cached program must not fail the run
            raise
        compiled = _compiled(step, gather, shape)

    def take(positions: Positions) -> None:
        # One program serves any number of batches: those beyond `count` are ignored.
        padded = tf.constant(np.resize(positions, shape))
        compiled(padded, tf.constant(len(positions) // shape[1]))

    return take


def _compiled(
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
    traced(tf.zeros(shape, tf.int64), tf.constant(0))  # compiles; takes no batch
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


def is_too_large(images: Array) -> bool:
    """Whether a packed array u8[N,H,W,C] should be streamed instead of kept in memory."""
    if has_gpu():
        return images.nbytes > RESIDENT_ON_GPU
    return images.nbytes > RESIDENT * memory_limit()


def resident(array: Array) -> tf.Tensor:
    """Makes a tensor that shares the array's memory, or a copy if TensorFlow cannot read in place.

    The array may have any shape and dtype. A memory-mapped one stays on the pages of its file. It
    must not be written while the tensor is read.
    """
    shared = array.view()
    try:
        # DLPack has no read-only memory; a private mapping can safely be declared writeable.
        shared.flags.writeable = True
    except ValueError:
        return tf.constant(array)
    whole = shared.size and shared.flags.c_contiguous and shared.ctypes.data % ALIGNMENT == 0
    if not whole or has_gpu():
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(shared.__dlpack__())


class Resident:
    """Images that TensorFlow reads in place, or that fit on the GPU as a whole."""

    def __init__(self, split: Split, images: tf.Tensor) -> None:
        rows, labels = resident(split.rows), resident(split.labels)
        self.gather: Gather = lambda positions: (
            tf.gather(images, tf.gather(rows, positions)),
            tf.gather(labels, positions),
        )

    def parts(self, order: Array, size: int) -> Generator[Array]:
        """Yields `order` i64[n], positions in the split, in parts of `size`, for `gather`."""
        for start in range(0, len(order), size):
            yield order[start : start + size]


class Buffers:
    """Room for two parts of an epoch, [2,capacity,…] as the images, with i64[2,capacity] labels.

    TensorFlow reads them in place. On a GPU it reads a copy of one part.
    """

    def __init__(self, images: Array, at_least: int) -> None:
        size = max(1, images[:1].nbytes)
        self.capacity = max(at_least, BUFFER_BYTES // size)
        self.images = _aligned((2, self.capacity, *images.shape[1:]), images.dtype)
        self.labels = _aligned((2, self.capacity), np.dtype(np.int64))
        self.on_gpu = has_gpu()
        pair = (self.images, self.labels)
        self.read: list[Any] = (
            [tf.Variable(one[0]) for one in pair]
            if self.on_gpu
            else [resident(one.reshape(-1, *one.shape[2:])) for one in pair]
        )

    def gather(self, slots: tf.Tensor) -> LabelledBatch:
        """Images u8[n,H,W,C] and labels i32[n] in these slots i64[n]."""
        images, labels = (one.value() if self.on_gpu else one for one in self.read)
        return tf.gather(images, slots), tf.cast(tf.gather(labels, slots), tf.int32)


class Streamed:
    """A split whose images are read part by part into buffers that splits may share."""

    def __init__(self, split: Split, buffers: Buffers) -> None:
        self.split, self.buffers, self.gather = split, buffers, buffers.gather

    def parts(self, order: Array, size: int) -> Generator[Array]:
        """Yields the slots i64[m] of successive parts of `order` i64[n], while it reads the next.

        `order` are positions in the split. A part has at most `size` images, which must fit.
        """
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(READERS) as readers:
            coming = deque([ahead.submit(self._fill, 0, parts[0], readers)] if parts else [])
            for number, positions in enumerate(parts):
                filled = coming.popleft().result()
                if number + 1 < len(parts):
                    half = (number + 1) % 2
                    coming.append(ahead.submit(self._fill, half, parts[number + 1], readers))
                for variable, copy in zip(self.buffers.read, filled, strict=False):
                    variable.assign(copy)
                first = 0 if self.buffers.on_gpu else number % 2 * self.buffers.capacity
                yield np.arange(first, first + len(positions))

    def _fill(self, half: int, positions: Array, readers: Executor) -> list[tf.Tensor]:
        """Reads a part into one of the buffers; returns its copies on the GPU, if there is one."""
        images, labels = self.buffers.images[half], self.buffers.labels[half]
        rows = self.split.rows[positions]
        labels[: len(positions)] = self.split.labels[positions]
        by_row = np.argsort(rows)
        edges = np.linspace(0, len(rows), READERS + 1).astype(int)
        shares = [by_row[start:stop] for start, stop in pairwise(edges)]
        list(readers.map(lambda slots: read_rows(self.split.images, rows, slots, images), shares))
        return [tf.constant(images), tf.constant(labels)] if self.buffers.on_gpu else []


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
