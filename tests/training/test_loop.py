from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.values import Array, Split
from pipeline.system import processes
from pipeline.system.errors import PipelineError
from pipeline.training import loop
from pipeline.training.fused import fused_norms
from pipeline.training.loop import Buffers, Streamed, is_too_large
from pipeline.training.train import FASTER_WITH_XLA
from tests.stress.matrix import matrix, only_stressed
from tests.warm import call_warm

pytestmark = pytest.mark.slow
CLASSES = 3
Layers = list[keras.layers.Layer]
layers = keras.layers


def split(images: int, seed: int = 0) -> Split:
    """Noise with the index of each image in its first pixel."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, 4, 4, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(images)
    return Split(images=pixels, labels=rng.integers(0, CLASSES, images).astype(np.int32))


NONE = split(0)


def adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(0.01)


def sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)


class Watched(keras.Model):  # type: ignore[misc]
    """A model that notes the indices of the images of every batch it is trained on."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.batches: list[Array] = []

    def train_step(self, data: Any) -> Any:
        tf.numpy_function(lambda seen: self.batches.append(seen.copy()), [data[0][:, 0, 0, 0]], [])
        return super().train_step(data)


def network(
    optimizer: keras.optimizers.Optimizer, kind: str = "mlp", *, dropout: float = 0, seed: int = 0
) -> Watched:
    keras.utils.set_random_seed(seed)
    images = keras.Input((4, 4, 1), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255)(images)
    if kind == "cnn":
        x = layers.MaxPooling2D()(layers.Conv2D(4, 3, padding="same", activation="relu")(x))
    if kind == "norms":
        x = layers.BatchNormalization()(layers.Conv2D(4, 3, use_bias=False)(x))
        x = layers.Dense(8, use_bias=False)(layers.Flatten()(layers.ReLU()(x)))
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dense(8, activation="relu")(layers.Flatten()(x))
    x = layers.Dropout(dropout)(x)
    model = Watched(images, layers.Dense(CLASSES, activation="softmax")(x))
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return model


def fit(
    model: keras.Model,
    train: Split,
    val: Split = NONE,
    *,
    epochs: int = 2,
    batch_size: int = 8,
    seed: int = 0,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
    **more: Any,
) -> keras.callbacks.History:
    history = keras.callbacks.History()
    followers = keras.callbacks.CallbackList([history, *callbacks], model=model, epochs=epochs)
    loop.fit(model, (train, val), followers, batch_size=batch_size, seed=seed, **more)
    return history


def same_weights(one: keras.Model, other: keras.Model) -> bool:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("optimizer", "kind"),  # of norms, the network also has the convolution and the dense layers
    [
        pytest.param(adam, "mlp", marks=only_stressed),
        pytest.param(adam, "cnn", marks=only_stressed),
        (adam, "norms"),
        (sgd, "mlp"),
    ],
)
def test_weights_are_those_of_keras_own_steps_on_the_same_batches(
    optimizer: Callable[[], keras.optimizers.Optimizer], kind: str
) -> None:
    data = split(53)  # six full batches of 8 and one of 5
    ours, keras_own = network(optimizer(), kind), network(optimizer(), kind)
    assert same_weights(ours, keras_own)
    fit(ours, data, epochs=2)
    assert [len(batch) for batch in ours.batches] == [8, 8, 8, 8, 8, 8, 5] * 2
    for rows in ours.batches:
        keras_own.train_on_batch(data.images[rows], data.labels[rows])
    assert not same_weights(ours, network(optimizer(), kind))
    for one, other in zip(ours.get_weights(), keras_own.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert int(ours.optimizer.iterations) == int(keras_own.optimizer.iterations) == 14


def test_the_history_is_that_of_model_fit_on_the_same_batches() -> None:
    train, val = split(53), split(21, seed=1)
    ours, keras_own = network(adam()), network(adam())
    history = fit(ours, train, val, epochs=1)
    order = np.concatenate(ours.batches)
    expected = keras_own.fit(
        train.images[order],
        train.labels[order],
        batch_size=8,
        shuffle=False,
        verbose=0,
        validation_data=(val.images, val.labels),
        validation_batch_size=8,
    )
    assert history.history.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for name, values in history.history.items():
        assert values == pytest.approx(expected.history[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("images", "batch_size"),
    [
        (53, 8),
        (5, 8),
        (200, 1),
        pytest.param(8, 8, marks=only_stressed),
        pytest.param(64, 16, marks=only_stressed),
    ],
)
def test_every_image_is_visited_exactly_once_an_epoch(images: int, batch_size: int) -> None:
    model = network(sgd())
    fit(model, split(images), epochs=2, batch_size=batch_size)
    visited = np.concatenate(model.batches)
    for epoch in (visited[:images], visited[images:]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(images))
    assert max(len(batch) for batch in model.batches) == min(batch_size, images)


def test_each_epoch_has_an_order_of_its_own_that_follows_the_seed() -> None:
    def orders(seed: int) -> list[Array]:
        model = network(sgd())
        fit(model, split(50), epochs=2, seed=seed)
        return np.split(np.concatenate(model.batches), 2)

    first, second = orders(0)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(orders(0), [first, second])
    assert not np.array_equal(orders(1)[0], first)


@only_stressed  # test_train.py shows it of a training, test_run.py of a run
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    def trained(seed: int) -> keras.Model:
        model = network(adam(), dropout=0.5, seed=seed)
        fit(model, split(53), seed=seed)
        return model

    one = trained(0)
    assert same_weights(one, trained(0))
    assert not same_weights(one, trained(1))


def test_the_order_of_images_alone_changes_the_result() -> None:
    one, other = network(adam()), network(adam())
    fit(one, split(53), seed=0)
    fit(other, split(53), seed=1)
    assert not same_weights(one, other)


def test_callbacks_hear_of_every_event_in_order() -> None:
    heard: list[str] = []
    listener = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: heard.append("train"),
        on_epoch_begin=lambda epoch, logs: heard.append(f"epoch {epoch}"),
        on_train_batch_end=lambda batch, logs: heard.append(f"{batch}: {logs['images']:.0f}"),
        on_epoch_end=lambda epoch, logs: heard.append(" ".join(sorted(logs))),
        on_train_end=lambda logs: heard.append("end"),
    )
    fit(network(sgd()), split(20), split(9), callbacks=(listener,))
    epoch = ["0: 8", "1: 8", "2: 4", "accuracy loss val_accuracy val_loss"]
    assert heard == ["train", "epoch 0", *epoch, "epoch 1", *epoch, "end"]


def test_an_epoch_of_many_steps_returns_to_callbacks_20_times() -> None:
    parts: list[int] = []
    listener = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: parts.append(logs["images"])
    )
    fit(network(sgd()), split(200), epochs=1, batch_size=2, callbacks=(listener,))
    assert parts == [10] * 20


def test_without_validation_images_the_history_has_training_metrics_alone() -> None:
    assert fit(network(sgd()), split(20)).history.keys() == {"loss", "accuracy"}


def test_a_callback_can_stop_training() -> None:
    def stop(epoch: int, logs: Any) -> None:
        model.stop_training = epoch == 1

    model = network(sgd())
    listener = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    assert fit(model, split(20), epochs=9, callbacks=(listener,)).epoch == [0, 1]


def test_keras_early_stopping_works() -> None:
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=2, min_delta=100)
    history = fit(network(sgd()), split(20), split(9), epochs=9, callbacks=(stopping,))
    assert history.epoch == [0, 1, 2]


def test_a_stopped_model_can_be_fitted_again() -> None:
    model = network(sgd())
    model.stop_training = True
    assert fit(model, split(20), epochs=2).epoch == [0, 1]


class Weights(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes all weights after each step, and at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[Array] = []
        self.shown: list[Array] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.trained.append(flat(self.model))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.shown.append(flat(self.model))


def flat(model: keras.Model) -> Array:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def test_at_the_end_of_an_epoch_the_model_has_the_moving_averages_of_its_weights() -> None:
    weights = Weights()
    model = network(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.75))
    history = fit(model, split(24), split(9), callbacks=(weights,))  # 2 epochs of 3 steps
    average, expected = weights.trained[0], []
    for step, trained in enumerate(weights.trained):
        average = 0.75 * average + 0.25 * trained if step else trained
        expected += [average] if step % 3 == 2 else []
    np.testing.assert_allclose(weights.shown, expected, atol=1e-6)
    np.testing.assert_allclose(flat(model), expected[-1], atol=1e-6)
    val = split(9)
    found = model.evaluate(val.images, val.labels, verbose=0, return_dict=True)
    assert history.history["val_loss"][-1] == pytest.approx(found["loss"], rel=1e-5)


def test_averaging_weights_does_not_change_how_they_are_trained() -> None:
    with_averages, without = Weights(), Weights()
    fit(network(keras.optimizers.Adam(0.01, use_ema=True)), split(24), callbacks=(with_averages,))
    fit(network(adam()), split(24), callbacks=(without,))
    np.testing.assert_array_equal(with_averages.trained, without.trained)


def told_by_tensorflow() -> list[str]:
    """What TensorFlow logs while one process trains one small network after the other."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    tf.get_logger().addHandler(handler)
    for _ in range(6):
        fit(network(adam()), split(8), split(4), epochs=1)
    return [record.getMessage() for record in records]


def test_trainings_one_after_the_other_bring_no_warnings_of_tensorflow() -> None:
    assert call_warm(told_by_tensorflow, timeout=240) == []


@matrix(25)
def test_a_diverging_loss_stops_training_with_the_epoch_and_the_mend() -> None:
    model = network(keras.optimizers.SGD(1e30))
    with pytest.raises(
        PipelineError,
        match=r"^the loss became nan in epoch 1: training diverged; lower optimizer.learning_rate",
    ):
        fit(model, split(53))
    assert len(model.batches) < 14


@matrix(25)
def test_a_model_that_its_last_step_spoilt_is_found_out_on_the_validation_images() -> None:
    with pytest.raises(PipelineError, match="the loss became nan in epoch 1"):
        fit(network(keras.optimizers.SGD(np.nan)), split(8), split(9), epochs=1)


def test_only_ordinary_normalisations_are_fused_and_only_while_training() -> None:
    class Own(keras.layers.BatchNormalization):  # type: ignore[misc]
        pass

    kinds: dict[str, keras.layers.Layer] = {
        "plain": keras.layers.BatchNormalization(),
        "frozen": keras.layers.BatchNormalization(trainable=False),
        "of rows": keras.layers.BatchNormalization(axis=1),
        "without a scale": keras.layers.BatchNormalization(scale=False),
        "too small an epsilon for a GPU": keras.layers.BatchNormalization(epsilon=1e-7),
        "of 64 bits": keras.layers.BatchNormalization(dtype="float64"),
        "another class": Own(),
    }
    images = keras.Input((4, 5, 3))
    x = images
    for layer in kinds.values():
        x = layer(x)
    model = keras.Model(images, keras.Model(images, x)(images))  # one model within another
    batch = np.random.default_rng(0).normal(2, 3, (6, 4, 5, 3)).astype(np.float32)
    before = model(batch, training=False)
    with fused_norms(model):
        fused = {name for name, layer in kinds.items() if "call" in vars(layer)}
        np.testing.assert_array_equal(model(batch, training=False), before)
        statistics = kinds["frozen"].get_weights()
        model(batch, training=True)
        np.testing.assert_array_equal(kinds["frozen"].get_weights(), statistics)
    assert fused == {"plain", "frozen"}
    assert not any("call" in vars(layer) for layer in kinds.values())


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of 20 images."""
    monkeypatch.setattr(loop, "BUFFER_BYTES", 20 * split(1).images[0].nbytes)
    monkeypatch.setattr(loop, "EVALUATED_AT_ONCE", 1)


def on_disk(path: Path, data: Split, rows: Array) -> Split:
    """The images of `data` as rows of a memory-mapped array, in another order."""
    packed = np.zeros((len(data) + 3, *data.image_shape), np.uint8)
    packed[rows] = data.images
    np.save(path, packed)
    images = np.load(path, mmap_mode="c")
    images.flags.writeable = False
    return Split(images=images, rows=rows, labels=data.labels)


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
    monkeypatch.setattr(loop, "BUFFER_BYTES", 1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (101, 4, 4, 1), np.uint8)
    data = Split(images=images, labels=rng.integers(0, 9, 101, np.int32))
    if mapped:
        data = on_disk(tmp_path / "images.npy", data, rng.permutation(104)[:101])
    order = rng.permutation(101)
    found, labels = parts(data, order, size=7, capacity=9)
    np.testing.assert_array_equal(found, images[order])
    np.testing.assert_array_equal(labels, data.labels[order])


def test_an_epoch_that_is_left_early_leaves_no_thread_behind() -> None:
    data = Split(images=np.zeros((50, 4, 4, 1), np.uint8), labels=np.zeros(50, np.int32))
    epoch = Streamed(data, Buffers(data.images, 5)).parts(np.arange(50), 5)
    next(epoch)
    before = {thread.name for thread in threading.enumerate()}
    epoch.close()
    after = {thread.name for thread in threading.enumerate()}
    assert len(before) > len(after)


def test_a_file_that_becomes_shorter_is_named(tmp_path: Path) -> None:
    images = np.zeros((4, 4, 4, 1), np.uint8)
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
    memory = np.random.default_rng(0).integers(0, 256, size + 2 * loop.ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % loop.ALIGNMENT + offset
    return memory[start : start + size].reshape(shape)


def is_shared(array: Array) -> bool:
    """Whether the tensor lies where the array does."""
    tensor = loop.resident(array)
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
    tensor, expected = loop.resident(array), array.copy()
    del array
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_a_gather_in_a_graph_reads_the_shared_rows() -> None:
    array = aligned((64, 28))
    tensor = loop.resident(array)
    rows = tf.function(lambda places: tf.gather(tensor, places))(tf.constant([3, 1]))
    np.testing.assert_array_equal(rows.numpy(), array[[3, 1]])


def with_hidden(hidden: Callable[[], Layers], optimizer: Any = "adam") -> keras.Model:
    """The same weights at each call."""
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(images))
    for layer in hidden():
        x = layer(x)
    model = keras.Model(images, layers.Dense(3, activation="softmax")(x))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def both(
    hidden: Callable[[], Layers],
    data: Split,
    optimizer: Callable[[], Any] = lambda: "adam",
    **more: Any,
) -> tuple[keras.Model, keras.Model]:
    """A network fitted with XLA and its twin fitted without."""
    with_xla, without = with_hidden(hidden, optimizer()), with_hidden(hidden, optimizer())
    histories = [
        fit(one, data, split(9), xla=one is with_xla, **more) for one in (with_xla, without)
    ]
    for name, values in histories[0].history.items():
        assert values == pytest.approx(histories[1].history[name], rel=1e-4), name
    return with_xla, without


def assert_alike(one: keras.Model, other: keras.Model) -> None:
    for mine, its in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-6)
    states = zip(one.optimizer.variables, other.optimizer.variables, strict=True)
    for mine, its in states:
        np.testing.assert_allclose(mine.numpy(), its.numpy(), rtol=1e-4, atol=1e-6)


class Residual(layers.Layer):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.add = layers.Dense(16, activation="relu"), layers.Add()

    def call(self, x: Any) -> Any:
        return self.add([x, self.dense(x)])


def dense() -> Layers:
    return [layers.Dense(6, activation="relu", kernel_regularizer="l2")]


def one_of_each() -> Layers:
    """Every layer that is known to be faster, but those of every network, and a block of them."""
    return [
        *(layers.Reshape((4, 4)), layers.Flatten(), layers.Rescaling(2.0, offset=1.0)),
        # A bias before it would have no gradient but rounding errors, which Adam would blow up.
        *(layers.Dense(6, use_bias=False), layers.BatchNormalization(), layers.Dropout(0.0)),
        *dense(),
        *(layers.Dense(16), Residual()),
        *(layers.Dense(6), layers.Activation("gelu"), layers.LayerNormalization()),
    ]


def test_every_layer_trains_to_the_same_weights_as_without_xla() -> None:
    assert_alike(*both(one_of_each, split(53)))


def test_every_layer_that_is_known_to_be_faster_is_tested() -> None:
    tested = {layers.InputLayer, layers.Add, *map(type, one_of_each())} - {Residual}
    assert tested == set(FASTER_WITH_XLA)


@pytest.mark.parametrize(
    "optimizer",  # Adam's state is compared above
    [
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=1.0),
        pytest.param(
            lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), marks=only_stressed
        ),
        pytest.param(
            lambda: keras.optimizers.RMSprop(keras.optimizers.schedules.CosineDecay(0.01, 20)),
            marks=only_stressed,
        ),
    ],
)
def test_every_optimizer_ends_in_the_same_state_as_without_xla(optimizer: Any) -> None:
    assert_alike(*both(dense, split(53), optimizer))


def test_with_xla_too_variables_have_their_shares_of_the_rate_and_wait_for_their_epochs() -> None:
    def decaying() -> keras.optimizers.Optimizer:
        return keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1, global_clipnorm=0.5)

    shares, joins = [0.0, 0.1, 1.0, 1.0], [0, 1, 0, 0]  # kernel and bias of two layers
    with_xla, without = both(dense, split(53), decaying, shares=shares, joins=joins)
    assert_alike(with_xla, without)
    weights = zip(with_xla.get_weights(), with_hidden(dense).get_weights(), strict=True)
    assert [np.array_equal(*pair) for pair in weights] == [True, False, False, False]


def test_with_xla_too_ftrl_takes_no_step_where_the_rate_is_0() -> None:
    def warming() -> keras.optimizers.Optimizer:
        rates = keras.optimizers.schedules.PolynomialDecay(0.0, 3, end_learning_rate=0.1)
        return keras.optimizers.Ftrl(rates)

    assert_alike(*both(dense, split(53), warming))


@pytest.mark.parametrize(
    "images",  # less than, just, and more than full batches
    [5, pytest.param(8, marks=only_stressed), 323],
)
def test_weights_are_those_of_keras_own_steps_whatever_is_left_over_in_the_last_batch(
    images: int,
) -> None:
    data = split(images)
    ours, keras_own = with_hidden(dense), with_hidden(dense)
    fit(ours, data, xla=True, epochs=1)
    order = np.random.default_rng([0, 0]).permutation(images)
    for start in range(0, images, 8):
        rows = order[start : start + 8]
        keras_own.train_on_batch(data.images[rows], data.labels[rows])
    assert_alike(ours, keras_own)


def dropped_out(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = with_hidden(lambda: [layers.Dense(8), layers.Dropout(0.5, seed=seed)])
    fit(model, split(320), xla=True, epochs=1)
    return model


@pytest.fixture(scope="module")
def dropped() -> keras.Model:
    draws = tf.random.stateless_uniform, tf.nn.experimental.stateless_dropout
    model = dropped_out(0)
    # Whoever draws random numbers elsewhere is left alone.
    assert (tf.random.stateless_uniform, tf.nn.experimental.stateless_dropout) == draws
    return model


def test_with_xla_too_the_bits_follow_the_seed(dropped: keras.Model) -> None:
    assert same_weights(dropped, dropped_out(0))
    assert not same_weights(dropped, dropped_out(1))


class Draws(keras.Model):  # type: ignore[misc]
    """Notes what its dropout lets through: the sum of it, its square and its lag-one product."""

    def train_step(self, data: Any) -> Any:
        kept = self.layers[-1](tf.ones((8, 1000)), training=True)
        self.seen.assign_add(
            [tf.reduce_mean(kept), tf.reduce_mean(kept[:-1] * kept[1:]), tf.math.reduce_max(kept)]
        )
        self.last.assign(tf.reduce_mean(tf.cast(tf.equal(kept, self.previous), tf.float32)))
        self.previous.assign(kept)
        return super().train_step(data)


def test_dropout_drops_its_share_and_differently_at_every_step() -> None:
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 1), dtype="uint8")
    x = layers.Dense(3, activation="softmax")(layers.Flatten()(layers.Rescaling(1 / 255)(images)))
    model = Draws(images, layers.Dropout(0.25)(x))
    model.seen, model.last = tf.Variable([0.0, 0.0, 0.0]), tf.Variable(0.0)
    model.previous = tf.Variable(tf.zeros((8, 1000)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    fit(model, split(320), xla=True, epochs=1)
    mean, neighbours, largest = model.seen.numpy() / 40
    # 320,000 draws: the standard error of the mean is 0.001.
    assert mean == pytest.approx(1, abs=0.004)
    assert neighbours == pytest.approx(1, abs=0.008)
    assert largest == pytest.approx(1 / 0.75, rel=1e-4)
    # Two draws agree where both or neither dropped: 0.75² + 0.25².
    assert model.last.numpy() == pytest.approx(0.625, abs=0.03)


def test_random_functions_are_restored_when_tracing_fails() -> None:
    def broken(batch: Any) -> None:
        raise RuntimeError("no such step")

    draws, model = tf.random.stateless_uniform, with_hidden(dense)
    model.train_step = broken
    with pytest.raises(RuntimeError, match="no such step"):
        fit(model, split(8), xla=True)
    assert tf.random.stateless_uniform is draws


def test_what_is_compiled_anew_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def normalised() -> Layers:
        return [layers.Dense(6), layers.BatchNormalization(), layers.Activation("gelu")]

    failures = [tf.errors.InternalError(None, None, "a damaged program")]
    whole, again = with_hidden(normalised), with_hidden(normalised)
    step = again.train_step

    def fails_at_first(batch: Any) -> Any:
        if failures:
            raise failures.pop()
        return step(batch)

    monkeypatch.setattr(loop, "forget_programs", lambda: True)
    monkeypatch.setattr(again, "train_step", fails_at_first)
    for model in (whole, again):
        fit(model, split(53), xla=True)
    assert not failures
    assert same_weights(whole, again)


def test_an_operation_that_xla_does_not_know_is_named_with_the_mend() -> None:
    def turn() -> Layers:
        return [layers.Reshape((4, 4, 1)), layers.RandomRotation(0.1), layers.Flatten()]

    with pytest.raises(
        PipelineError, match=r"^XLA has no \w+Transform\w+, which .*; set train.xla=false$"
    ):
        fit(with_hidden(turn), split(20), xla=True)


def test_a_saved_model_says_nothing_of_xla(dropped: keras.Model, tmp_path: Path) -> None:
    model = dropped
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_compile_config()["jit_compile"] == model.get_compile_config()["jit_compile"]
    assert not again.jit_compile
