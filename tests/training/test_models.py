from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from pipeline.data.values import Array, Prepared, Split
from pipeline.system.errors import RequestError
from pipeline.training.build import build_model
from tests.commands import CONF, configured

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def prepared(*shape: int, mean: float = 0, std: float = 1) -> Prepared:
    """Ten black images of ten classes with the given pixel statistics."""
    split = Split(images=np.zeros((10, *shape), np.uint8), labels=np.arange(10, dtype=np.int32))
    return Prepared(
        train=split,
        val=split,
        test=split,
        class_names=tuple("0123456789"),
        mean=np.full(shape[-1], mean, np.float32),
        std=np.full(shape[-1], std, np.float32),
        fingerprint="f",
        source="s",
    )


def built(*overrides: str, data: Prepared | None = None) -> keras.Model:
    return build_model(configured(*overrides), data or prepared(28, 28, 1))


def parameters(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def kinds(model: keras.Model) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(x.name, type(x).__name__, tuple(x.output.shape[1:])) for x in model.layers]


def test_the_classic_network_has_235146_parameters() -> None:
    assert parameters(built()) == 235_146 == 785 * 256 + 257 * 128 + 129 * 10


def test_the_classic_network_is_784_256_128_10() -> None:
    assert kinds(built()) == [
        ("images", "InputLayer", (28, 28, 1)),
        ("scaling", "Rescaling", (28, 28, 1)),
        ("flatten", "Flatten", (784,)),
        ("dense_1", "Dense", (256,)),
        ("dropout_1", "Dropout", (256,)),
        ("dense_2", "Dense", (128,)),
        ("dropout_2", "Dropout", (128,)),
        ("probabilities", "Dense", (10,)),
    ]


def test_the_settings_of_the_file_reach_the_layers() -> None:
    model = built("model.hidden=[5]", "model.activation=tanh", "model.dropout=0.25")
    assert model.get_layer("dense_1").units == 5
    assert model.get_layer("dense_1").activation is keras.activations.tanh
    assert model.get_layer("dropout_1").rate == 0.25
    assert model.get_layer("probabilities").activation is keras.activations.softmax


def test_kernels_start_glorot_uniform_and_biases_at_zero() -> None:
    model = built()
    for name, fan_in, fan_out in (("dense_1", 784, 256), ("dense_2", 256, 128)):
        kernel, bias = model.get_layer(name).get_weights()
        limit = np.sqrt(6 / (fan_in + fan_out))
        assert np.abs(kernel).max() <= limit
        # A uniform draw comes close to its ends and has the standard deviation limit / √3.
        assert np.abs(kernel).max() > 0.999 * limit
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.01)
        assert not bias.any()


def test_the_convolutional_network_pools_each_block_to_half() -> None:
    model = built("model=cnn", "model.filters=[4,8]", "model.dense=16")
    assert kinds(model)[2:] == [
        ("conv_1", "Conv2D", (28, 28, 4)),
        ("pool_1", "MaxPooling2D", (14, 14, 4)),
        ("conv_2", "Conv2D", (14, 14, 8)),
        ("pool_2", "MaxPooling2D", (7, 7, 8)),
        ("flatten", "Flatten", (392,)),
        ("dense_1", "Dense", (16,)),
        ("dropout_1", "Dropout", (16,)),
        ("probabilities", "Dense", (10,)),
    ]
    assert parameters(model) == 4 * 10 + 8 * (4 * 9 + 1) + 16 * 393 + 10 * 17


def test_the_linear_model_is_one_dense_layer() -> None:
    assert parameters(built("model=linear")) == 785 * 10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (32, 32, 3), (1, 1, 1)])
def test_every_model_turns_images_of_any_size_into_probabilities(
    name: str, shape: tuple[int, ...]
) -> None:
    model = built(f"model={name}", data=prepared(*shape))
    assert model.name == name
    assert model.input_shape == (None, *shape)
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    probs = np.array(model(images))
    assert probs.dtype == np.float32
    assert probs.shape == (3, 10)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-6)


def scaled(model: keras.Model, value: int) -> Array:
    inner = keras.Model(model.input, model.get_layer("scaling").output)
    return np.array(inner(np.full((1, *model.input_shape[1:]), value, np.uint8)))[0, 0, 0]


def test_the_model_takes_bytes_and_unit_scaling_maps_them_to_0_to_1() -> None:
    model = built("model=linear")
    assert model.input.dtype == "uint8"
    np.testing.assert_allclose(scaled(model, 0), [0])
    np.testing.assert_allclose(scaled(model, 51), [0.2], rtol=1e-6)
    np.testing.assert_allclose(scaled(model, 255), [1], rtol=1e-6)


def test_standard_scaling_takes_the_mean_off_and_divides_by_the_standard_deviation() -> None:
    data = prepared(4, 4, 3, mean=100, std=50)
    data.mean[2], data.std[2] = 50, 25
    model = built("model=linear", "train.scaling=standard", data=data)
    np.testing.assert_allclose(scaled(model, 100), [0, 0, 2], atol=1e-6)
    np.testing.assert_allclose(scaled(model, 200), [2, 2, 6], rtol=1e-6)


def test_a_channel_of_one_colour_is_scaled_to_zero_and_not_to_nan() -> None:
    data = prepared(4, 4, 1, mean=7, std=0)
    np.testing.assert_allclose(
        scaled(built("model=linear", "train.scaling=standard", data=data), 7), [0], atol=1e-3
    )


def test_initial_weights_follow_the_seed() -> None:
    def kernel(*overrides: str) -> Any:
        return built("model=linear", *overrides).get_layer("probabilities").get_weights()[0]

    np.testing.assert_array_equal(kernel("seed=1"), kernel("seed=1"))
    assert not np.array_equal(kernel("seed=1"), kernel("seed=2"))


def test_a_model_that_keras_refuses_is_a_bad_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(images: Any, classes: int) -> None:
        raise ValueError("Negative dimension size\ndetails")

    valid = configured("model=linear")
    monkeypatch.setattr("pipeline.training.models.linear", refuse)
    with pytest.raises(RequestError, match=r"^model=linear: Negative dimension size$"):
        build_model(valid, prepared(28, 28, 1))
