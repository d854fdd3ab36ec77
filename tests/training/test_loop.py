from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.values import Array, Split
from pipeline.system.errors import PipelineError
from pipeline.training import loop
from pipeline.training.fused import fused_norms
from tests.stress.matrix import matrix, only_stressed

pytestmark = pytest.mark.slow
CLASSES = 3


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
    layers = keras.layers
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
    xla: bool = False,
    stream: bool | None = None,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
) -> keras.callbacks.History:
    history = keras.callbacks.History()
    followers = keras.callbacks.CallbackList([history, *callbacks], model=model, epochs=epochs)
    loop.fit(
        model, (train, val), followers, batch_size=batch_size, seed=seed, xla=xla, stream=stream
    )
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
