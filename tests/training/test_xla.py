from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.values import Split
from pipeline.system.errors import PipelineError
from pipeline.training import loop, xla
from tests.stress.matrix import only_stressed

pytestmark = pytest.mark.slow
Layers = list[keras.layers.Layer]
layers = keras.layers


def split(images: int, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, 4, 4, 1), np.uint8)
    return Split(images=pixels, labels=rng.integers(0, 3, images).astype(np.int32))


def network(hidden: Callable[[], Layers], optimizer: Any = "adam") -> keras.Model:
    """The same weights at each call."""
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(images))
    for layer in hidden():
        x = layer(x)
    model = keras.Model(images, layers.Dense(3, activation="softmax")(x))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(model: keras.Model, data: Split, *, with_xla: bool, epochs: int = 2) -> dict[str, Any]:
    history = keras.callbacks.History()
    followers = keras.callbacks.CallbackList([history], model=model, epochs=epochs)
    loop.fit(model, (data, split(9)), followers, batch_size=8, seed=0, xla=with_xla)
    return dict(history.history)


def both(
    hidden: Callable[[], Layers], data: Split, optimizer: Callable[[], Any] = lambda: "adam"
) -> tuple[keras.Model, keras.Model]:
    """A network fitted with XLA and its twin fitted without."""
    with_xla, without = network(hidden, optimizer()), network(hidden, optimizer())
    histories = fit(with_xla, data, with_xla=True), fit(without, data, with_xla=False)
    for name, values in histories[0].items():
        assert values == pytest.approx(histories[1][name], rel=1e-4), name
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
    assert tested == set(xla.FASTER)


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


@pytest.mark.parametrize(
    "images",  # less than, just, and more than full batches
    [5, pytest.param(8, marks=only_stressed), 323],
)
def test_weights_are_those_of_keras_own_steps_whatever_is_left_over_in_the_last_batch(
    images: int,
) -> None:
    data = split(images)
    ours, keras_own = network(dense), network(dense)
    fit(ours, data, with_xla=True, epochs=1)
    order = np.random.default_rng([0, 0]).permutation(images)
    for start in range(0, images, 8):
        rows = order[start : start + 8]
        keras_own.train_on_batch(data.images[rows], data.labels[rows])
    assert_alike(ours, keras_own)


def dropped_out(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = network(lambda: [layers.Dense(8), layers.Dropout(0.5, seed=seed)])
    fit(model, split(320), with_xla=True, epochs=1)
    return model


@pytest.fixture(scope="module")
def dropped() -> keras.Model:
    draws = tf.random.stateless_uniform, tf.nn.experimental.stateless_dropout
    model = dropped_out(0)
    # Whoever draws random numbers elsewhere is left alone.
    assert (tf.random.stateless_uniform, tf.nn.experimental.stateless_dropout) == draws
    return model


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(dropped: keras.Model) -> None:
    def same(one: keras.Model, other: keras.Model) -> bool:
        pairs = zip(one.get_weights(), other.get_weights(), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    assert same(dropped, dropped_out(0))
    assert not same(dropped, dropped_out(1))


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
    fit(model, split(320), with_xla=True, epochs=1)
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

    def gather(places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(data.images, places), tf.gather(data.labels, places)

    draws, data = tf.random.stateless_uniform, split(8)
    with pytest.raises(RuntimeError, match="no such step"):
        xla.compiled(broken, gather, (1, 8))
    assert tf.random.stateless_uniform is draws


def test_an_operation_that_xla_does_not_know_is_named_with_the_mend() -> None:
    def turn() -> Layers:
        return [layers.Reshape((4, 4, 1)), layers.RandomRotation(0.1), layers.Flatten()]

    with pytest.raises(
        PipelineError, match=r"^XLA has no \w+Transform\w+, which .*; set train.xla=false$"
    ):
        fit(network(turn), split(20), with_xla=True)


def test_dense_networks_of_many_steps_are_known_to_be_faster() -> None:
    network_of_dense = network(dense)
    assert xla.is_faster(network_of_dense, xla.ENOUGH_STEPS)
    assert not xla.is_faster(network_of_dense, xla.ENOUGH_STEPS - 1)


@pytest.mark.parametrize(
    "hidden",
    [
        lambda: [layers.Reshape((4, 4, 1)), layers.Conv2D(2, 3), layers.Flatten()],
        lambda: [type("MyDense", (layers.Dense,), {})(4)],
    ],
)
def test_convolutions_and_layers_of_ones_own_are_not_known_to_be_faster(
    hidden: Callable[[], Layers],
) -> None:
    assert not xla.is_faster(network(hidden), xla.ENOUGH_STEPS)


def test_a_saved_model_says_nothing_of_xla(dropped: keras.Model, tmp_path: Path) -> None:
    model = dropped
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_compile_config()["jit_compile"] == model.get_compile_config()["jit_compile"]
    assert not again.jit_compile
