"""Says what to change if there is too little memory for a model, its training or its use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from pipeline.system.errors import PipelineError

_TO_TRAIN = "lower train.batch_size or the sizes of the model (model.*), or use smaller images"
TO_PREDICT = (
    "lower the number of images at once: evaluate.batch_size, or batch_size of predict and drift"
)


@contextmanager
def enough_memory(mend: str = _TO_TRAIN) -> Iterator[None]:
    """Explains a lack of memory, on the GPU or the CPU, in the block or the decorated function.

    `mend` is what to do about it.

    Raises:
        PipelineError: there was too little.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        found = re.search(r"shape *[\[(]([\d, ]+)", str(error))
        wanted = f" for an array of the shape [{found[1]}]" if found else ""
        raise PipelineError(f"there is not enough memory{wanted}; {mend}") from error
