"""Feeds images to training from a packed array that is larger than memory.

Threads read parts of an epoch ahead, in the order of the file, into two buffers: one is trained on
while the other is filled. Every epoch is a permutation of all images, as with images in memory, and
gives the same weights.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.data.cache import read_rows
from pipeline.data.values import Array, Split
from pipeline.system.processes import memory_limit
from pipeline.training.xla import Gather, LabelledBatch

RESIDENT = 0.5  # share of the memory that images may take before they are streamed
RESIDENT_ON_GPU = 4_000_000_000  # most bytes that are copied to a GPU as a whole
BUFFER_BYTES = 2**24  # of one of the two buffers
READERS = 4  # threads that read one part together: a disk answers several requests at once
ALIGNMENT = 64  # bytes; TensorFlow's kernels crash with less


def is_too_large(images: Array) -> bool:
    """Whether a packed array u8[N,H,W,C] should be streamed instead of kept in memory."""
    if tf.config.list_physical_devices("GPU"):
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
    if not whole or tf.config.list_physical_devices("GPU"):
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
        self.on_gpu = bool(tf.config.list_physical_devices("GPU"))
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
