"""Arrays as tensors of TensorFlow without a copy: a memory-mapped one stays on its file's pages."""

from __future__ import annotations

import tensorflow as tf

from pipeline.data.values import Array

ALIGNMENT = 64  # bytes; TensorFlow's kernels end the process on less


def resident(array: Array) -> tf.Tensor:
    """`array` itself as a tensor; a copy of it where TensorFlow cannot read it in place.

    The array must not be written to any more.
    """
    shared = array.view()
    try:
        # DLPack cannot say that memory is read-only; a private mapping may be called writeable.
        shared.flags.writeable = True
    except ValueError:
        return tf.constant(array)
    whole = shared.size and shared.flags.c_contiguous and shared.ctypes.data % ALIGNMENT == 0
    if not whole or tf.config.list_physical_devices("GPU"):
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(shared.__dlpack__())
