from __future__ import annotations

import keras
import pytest

from pipeline.training.summary import Layer, summarise

# 2×3 grey images → 6 → 4 → 2: (6 + 1)·4 + (4 + 1)·2 = 38 parameters.
PARAMETERS = 38
# Scaling and flattening put out 6 numbers each, the layers 4 and 2.
ACTIVATIONS = 6 + 6 + 4 + 2


def tiny(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    images = keras.Input((2, 3, 1), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, name="scaling")(images)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(4, name="dense_1")(x)
    x = keras.layers.Dense(2, activation="softmax", name="probabilities")(x)
    model = keras.Model(images, x)
    model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy())
    return model


def test_each_layer_has_its_shape_parameters_and_activations() -> None:
    summary = summarise(tiny(keras.optimizers.Adam()), batch_size=5)
    assert summary.layers == (
        Layer(name="scaling", kind="Rescaling", shape=(2, 3, 1), parameters=0, activations=6),
        Layer(name="flatten", kind="Flatten", shape=(6,), parameters=0, activations=6),
        Layer(name="dense_1", kind="Dense", shape=(4,), parameters=28, activations=4),
        Layer(name="probabilities", kind="Dense", shape=(2,), parameters=10, activations=2),
    )
    assert (summary.parameters, summary.activations) == (PARAMETERS, ACTIVATIONS)


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (keras.optimizers.Adam, 2),
        (keras.optimizers.SGD, 0),
        (lambda: keras.optimizers.SGD(momentum=0.9), 1),
        (keras.optimizers.RMSprop, 1),
        (lambda: keras.optimizers.RMSprop(momentum=0.9, centered=True), 3),
        (lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 10)), 2),
    ],
    ids=["adam", "sgd", "sgd with momentum", "rmsprop", "rmsprop with all", "adam with schedule"],
)
def test_memory_counts_every_byte_of_a_training_step(optimizer: object, slots: int) -> None:
    model = tiny(optimizer())  # type: ignore[operator]
    memory = summarise(model, batch_size=5).memory
    assert memory == {
        "parameters": 4 * PARAMETERS,
        "gradients": 4 * PARAMETERS,
        f"optimizer state ({type(model.optimizer).__name__})": 4 * PARAMETERS * slots,
        "activations, batch of 5": 4 * 5 * ACTIVATIONS,
        "gradients of activations": 4 * 5 * ACTIVATIONS,
        "images (uint8)": 5 * 6,
    }


def test_the_totals_carry_the_names_of_the_run() -> None:
    summary = summarise(tiny(keras.optimizers.Adam()), batch_size=5)
    assert summary.recorded.metrics == {
        "model/parameters": 38,
        "model/activations": 18,
        "model/training_memory_mb": pytest.approx((4 * 38 * 4 + 2 * 4 * 5 * 18 + 30) / 1e6),
    }


def test_an_activation_in_half_precision_takes_two_bytes() -> None:
    images = keras.Input((4,), name="images")
    model = keras.Model(images, keras.layers.Dense(3, dtype="mixed_float16")(images))
    model.compile(optimizer="sgd", loss="mse")
    memory = summarise(model, batch_size=10).memory
    assert memory["activations, batch of 10"] == 10 * 3 * 2
    assert memory["parameters"] == 4 * 15


def test_the_page_shows_layers_and_totals() -> None:
    page = str(summarise(tiny(keras.optimizers.Adam()), batch_size=5))
    rows = [line.replace("│", " ").replace("┃", " ").split() for line in page.splitlines()]
    assert ["dense_1", "Dense", "4", "28", "4"] in rows
    assert ["scaling", "Rescaling", "2", "×", "3", "×", "1", "0", "6"] in rows
    assert ["total", "38", "18"] in rows
    assert ["total", "0.001"] in rows


def test_counting_changes_no_weight() -> None:
    model = tiny(keras.optimizers.Adam())
    before = [weight.copy() for weight in model.get_weights()]
    summarise(model, batch_size=5)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    assert int(model.optimizer.iterations) == 0


def test_a_layer_with_several_outputs_counts_them_all() -> None:
    images = keras.Input((4, 3), name="images")
    x, *state = keras.layers.LSTM(5, return_state=True, name="lstm")(images)
    x = keras.layers.Dense(2, name="probabilities")(keras.layers.Concatenate()([x, *state]))
    model = keras.Model(images, x)
    model.compile(optimizer=keras.optimizers.SGD())
    found = summarise(model, batch_size=1).layers[0]
    assert (found.name, found.shape, found.activations) == ("lstm", (5,), 15)


def test_a_nested_network_of_any_size_counts_its_outputs_at_the_size_of_the_images() -> None:
    inner = keras.Input((None, None, 1))
    base = keras.Model(inner, keras.layers.Conv2D(2, 3)(inner), name="base")
    images = keras.Input((6, 5, 1), name="images")
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(base(images))
    model = keras.Model(images, x)
    model.compile(optimizer=keras.optimizers.SGD())
    summary = summarise(model, batch_size=1)
    shapes = {layer.name: (layer.shape, layer.activations) for layer in summary.layers}
    assert shapes == {"base": ((4, 3, 2), 4 * 3 * 2), "pooling": ((2,), 2)}
    assert summary.parameters == 9 * 2 + 2


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    images = keras.Input((3,), name="images")
    shared = keras.layers.Dense(3, name="shared")
    model = keras.Model(images, shared(shared(images)))
    model.compile(optimizer=keras.optimizers.SGD())
    [layer] = summarise(model, batch_size=1).layers
    assert (layer.parameters, layer.activations) == (12, 6)


def test_a_size_that_is_not_known_is_left_out_of_the_count() -> None:
    images = keras.Input((None, 3), name="images")
    model = keras.Model(images, keras.layers.Dense(2, name="dense")(images))
    model.compile(optimizer=keras.optimizers.SGD())
    summary = summarise(model, batch_size=1)
    assert (summary.layers[0].shape, summary.activations) == ((None, 2), 2)
