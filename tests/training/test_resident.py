from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.values import Array
from pipeline.training.resident import ALIGNMENT, resident

pytestmark = pytest.mark.slow


def aligned(shape: tuple[int, ...], offset: int = 0) -> Array:
    """Random pixels that begin `offset` bytes behind a multiple of the alignment."""
    size = int(np.prod(shape))
    memory = np.random.default_rng(0).integers(0, 256, size + 2 * ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT + offset
    return memory[start : start + size].reshape(shape)


def is_shared(array: Array) -> bool:
    """Whether the tensor lies where the array does."""
    tensor = resident(array)
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.dtype == tf.as_dtype(array.dtype)
    first = tensor.__array__().ctypes.data if tensor.shape.num_elements() else 0
    return bool(first == array.ctypes.data)


def test_an_aligned_array_is_not_copied() -> None:
    assert is_shared(aligned((5, 4, 4, 1)))


def test_a_memory_mapped_array_is_read_from_the_pages_of_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", aligned((5, 4, 4, 1)))
    array = np.load(tmp_path / "images.npy", mmap_mode="c")
    array.flags.writeable = False
    assert is_shared(array)
    assert not array.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(aligned((5, 4, 4, 1), offset=1), id="unaligned"),
        pytest.param(aligned((6, 4))[::2], id="every second row"),
        pytest.param(aligned((0, 4)), id="empty"),
        pytest.param(np.frombuffer(bytes(256), np.uint8), id="read-only"),
    ],
)
def test_what_cannot_be_read_in_place_is_copied(array: Array) -> None:
    assert not is_shared(array)


def test_the_tensor_keeps_its_memory_after_the_array_is_gone() -> None:
    array = aligned((1000, 1000))
    tensor, expected = resident(array), array.copy()
    del array
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_a_gather_in_a_graph_reads_the_shared_rows() -> None:
    array = aligned((64, 28))
    tensor = resident(array)
    rows = tf.function(lambda places: tf.gather(tensor, places))(tf.constant([3, 1]))
    np.testing.assert_array_equal(rows.numpy(), array[[3, 1]])
