from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.values import Array, Split
from pipeline.system import processes
from pipeline.training import streaming
from pipeline.training.streaming import Buffers, Streamed, is_too_large
from tests.training.test_loop import adam, fit, network, same_weights, split

SHAPE = (4, 4, 1)


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of 20 images."""
    monkeypatch.setattr(streaming, "BUFFER_BYTES", 20 * split(1).images[0].nbytes)
    monkeypatch.setattr("pipeline.training.loop.EVALUATED_AT_ONCE", 1)


def on_disk(path: Path, data: Split, rows: Array) -> Split:
    """The images of `data` as rows of a memory-mapped array, in another order."""
    packed = np.zeros((len(data) + 3, *data.image_shape), np.uint8)
    packed[rows] = data.images
    np.save(path, packed)
    images = np.load(path, mmap_mode="c")
    images.flags.writeable = False
    return Split(images=images, rows=rows, labels=data.labels)


@pytest.mark.slow
@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_streamed_images_give_the_weights_and_metrics_of_resident_ones(
    tmp_path: Path, kind: str
) -> None:
    data, val = split(53), split(21, seed=1)
    rows = np.random.default_rng(0).permutation(56)[:53]
    from_disk = on_disk(tmp_path / "images.npy", data, rows)
    one, other = network(adam(), kind), network(adam(), kind)
    expected = fit(one, data, val, stream=False).history
    found = fit(other, from_disk, val, stream=True).history
    assert same_weights(one, other)
    assert [len(batch) for batch in other.batches] == [len(batch) for batch in one.batches]
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)


def parts(data: Split, order: Array, size: int, capacity: int) -> tuple[Array, Array]:
    """What the parts of a streamed epoch hold, copied before the next is asked for."""
    buffers = Buffers(data.images[:1], capacity)
    found = []
    for slots in Streamed(data, buffers).parts(order, size):
        assert len(slots) <= size
        images, labels = buffers.gather(tf.constant(slots))
        found.append((images.numpy(), labels.numpy()))
    images, labels = zip(*found, strict=True)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("mapped", [False, True])
def test_the_parts_of_an_epoch_are_all_images_in_order(
    tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BUFFER_BYTES", 1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (101, *SHAPE), np.uint8)
    data = Split(images=images, labels=rng.integers(0, 9, 101, np.int32))
    if mapped:
        data = on_disk(tmp_path / "images.npy", data, rng.permutation(104)[:101])
    order = rng.permutation(101)
    found, labels = parts(data, order, size=7, capacity=9)
    np.testing.assert_array_equal(found, images[order])
    np.testing.assert_array_equal(labels, data.labels[order])


def test_an_epoch_that_is_left_early_leaves_no_thread_behind() -> None:
    data = Split(images=np.zeros((50, *SHAPE), np.uint8), labels=np.zeros(50, np.int32))
    epoch = Streamed(data, Buffers(data.images, 5)).parts(np.arange(50), 5)
    next(epoch)
    before = {thread.name for thread in __import__("threading").enumerate()}
    epoch.close()
    after = {thread.name for thread in __import__("threading").enumerate()}
    assert len(before) > len(after)


def test_a_file_that_becomes_shorter_is_named(tmp_path: Path) -> None:
    images = np.zeros((4, *SHAPE), np.uint8)
    data = on_disk(
        tmp_path / "images.npy",
        Split(images=images, labels=np.zeros(4, np.int32)),
        np.arange(4),
    )
    with (tmp_path / "images.npy").open("r+b") as file:
        file.truncate(150)
    with pytest.raises(OSError, match="images.npy has become shorter"):
        parts(data, np.arange(4), 4, 4)


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/", "memory.max"),
        ("0::/user/run-7.scope", "user/run-7.scope/memory.max"),
        ("0::/user/run-7.scope", "user/memory.max"),
        ("0::/of/the/host", "memory.max"),
        ("9:name=systemd:/x\n4:cpu,memory:/job_7", "memory/job_7/memory.limit_in_bytes"),
    ],
)
@pytest.mark.parametrize(("limit", "expected"), [("1000", True), ("max", False), ("", False)])
def test_images_are_streamed_if_they_take_more_than_half_of_the_memory_of_a_control_group(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    file: str,
    limit: str,
    expected: bool,
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(limit)
    (tmp_path / "own").write_text(f"{groups}\n1:pids:/user\n")
    monkeypatch.setattr(processes, "OWN_CONTROL_GROUPS", tmp_path / "own")
    monkeypatch.setattr(processes, "CONTROL_GROUPS", tmp_path)
    assert is_too_large(np.zeros((2, 16, 16, 1), np.uint8)) is expected


def aligned(shape: tuple[int, ...], offset: int = 0) -> Array:
    """Random pixels that begin `offset` bytes behind a multiple of the alignment."""
    size = int(np.prod(shape))
    memory = np.random.default_rng(0).integers(0, 256, size + 2 * streaming.ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % streaming.ALIGNMENT + offset
    return memory[start : start + size].reshape(shape)


def is_shared(array: Array) -> bool:
    """Whether the tensor lies where the array does."""
    tensor = streaming.resident(array)
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
    tensor, expected = streaming.resident(array), array.copy()
    del array
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_a_gather_in_a_graph_reads_the_shared_rows() -> None:
    array = aligned((64, 28))
    tensor = streaming.resident(array)
    rows = tf.function(lambda places: tf.gather(tensor, places))(tf.constant([3, 1]))
    np.testing.assert_array_equal(rows.numpy(), array[[3, 1]])
