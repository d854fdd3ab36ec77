from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.config.builders import build
from pipeline.data.datasets import synthetic
from pipeline.data.values import Array, Prepared, Split
from pipeline.system.errors import RequestError
from pipeline.training.build import build_model
from pipeline.training.checkpoint import progress_of
from pipeline.training.predictor import predictor
from pipeline.training.saved import load_saved
from pipeline.training.train import train
from tests.commands import CONF, configured
from tests.splits import in_splits
from tests.stress.matrix import only_stressed

pytestmark = pytest.mark.slow

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


def test_a_normalised_convolutional_network_pools_first_and_may_average() -> None:
    sizes = ("model.filters=[4,8]", "model.convolutions=2", "model.dense=0")
    model = built("model=cnn", "model.batch_norm=true", *sizes)
    assert [name for name, _, _ in kinds(model)][2:] == [
        *("conv_1", "pool_1", "norm_1", "activation_1", "conv_1_2", "norm_1_2", "activation_1_2"),
        *("conv_2", "pool_2", "norm_2", "activation_2", "conv_2_2", "norm_2_2", "activation_2_2"),
        *("features", "dropout", "probabilities"),
    ]
    assert parameters(model) == 9 * (4 + 16 + 32 + 64) + 2 * 2 * (4 + 8) + 9 * 10


def test_the_linear_model_is_one_dense_layer() -> None:
    assert parameters(built("model=linear")) == 785 * 10


# Pretrained ones have their own tests, in test_pretrained.py.
OWN = [name for name in MODELS if not name.startswith(("efficientnet", "keras_application"))]
# Small sizes: what is checked does not depend on them.
TINY: dict[str, tuple[str, ...]] = {
    "cnn": ("model.filters=[2,3]", "model.dense=4"),
    "convnext": ("model.widths=[4,8]", "model.blocks=[1,1]", "model.drop_path=0.5"),
    "depthwise": ("model.widths=[4,8]", "model.blocks=1"),
    "mixer": ("model.width=8", "model.depth=2", "model.drop_path=0.5"),
    "mlp": ("model.hidden=[4,4]", "model.batch_norm=true", "model.residual=true"),
    "resnet": ("model.widths=[4,8]", "model.blocks=1"),
    "vit": ("model.width=8", "model.depth=1", "model.heads=2"),
    "wide_resnet": ("model.depth=10", "model.widen=1", "model.dropout=0.1"),
}


@pytest.mark.parametrize("name", OWN)
def test_every_model_takes_images_of_any_size_and_any_number_of_classes(name: str) -> None:
    leaf = configured(f"model={name}", *TINY.get(name, ())).model
    for shape in ((28, 28, 1), (8, 8, 3), (1, 1, 1), (224, 200, 4)):
        assert build(leaf, keras.Input(shape), 7).shape == (None, 7), shape


@pytest.mark.parametrize("name", OWN)
def test_no_model_has_a_strided_1x1_convolution_whose_gradient_ends_the_process(name: str) -> None:
    images = keras.Input((64, 64, 3))
    model = keras.Model(
        images, build(configured(f"model={name}", *TINY.get(name, ())).model, images, 7)
    )
    convolutions = [one for one in model.layers if type(one) is keras.layers.Conv2D]
    assert not [one.name for one in convolutions if one.kernel_size == (1, 1) != one.strides]


# What these are made of is in the others too: convolutions, norms, attention, and dropped paths.
# test_train.py resumes dense and convolutional networks, and every run tries the model it saves.
SIMILAR = ("cnn", "convnext", "depthwise", "linear", "mixer", "mlp", "wide_resnet")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=only_stressed if one in SIMILAR else ()) for one in OWN]
)
def test_every_model_resumes_to_the_same_bits_and_predicts_the_same_once_saved_and_loaded(
    name: str, tmp_path: Path
) -> None:
    raw = synthetic(train_size=24, test_size=8, classes=3, image_shape=(8, 8, 3), noise=8.0, seed=0)
    data = in_splits(raw, validation_size=8, seed=0)
    config = configured(
        *(f"model={name}", *TINY.get(name, ()), "train.batch_size=8", "train.epochs=2"),
        "train.tensorboard=false",
    )

    def keep(epoch: int, metrics: Any) -> None:
        if epoch == 2:  # the checkpoint is still that of the first epoch
            shutil.copytree(tmp_path / "checkpoints", tmp_path / "cut" / "checkpoints")

    model = build_model(config, data, checked=True)
    before = model.get_weights()
    whole = train(model, data, config, tmp_path, [keep])  # of two steps each
    assert any((now != then).any() for now, then in zip(model.get_weights(), before, strict=True))
    start = progress_of(tmp_path / "cut" / "checkpoints" / "last.keras")
    again = build_model(config, data, checked=True)
    resumed = train(again, data, config, tmp_path / "cut", [], start)
    assert resumed.history == whole.history
    loaded = load_saved(tmp_path / "checkpoints" / "last.keras", called="it")
    images = data.test.batch(0, 8)
    probs = np.array(model(images, training=False))
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
    for other in (loaded, again):
        np.testing.assert_array_equal(other(images, training=False), probs)
    served = predictor(loaded)(images)  # as `serve` and `predict` call it
    np.testing.assert_allclose(served, probs, atol=1e-6)


def test_normalisation_and_residual_sums_are_keys_of_the_dense_network() -> None:
    plain = kinds(built("model.hidden=[6,6]", "model.batch_norm=true", "model.residual=true"))
    assert [kind for _, kind, _ in plain[3:]] == [
        *("Dense", "BatchNormalization", "Activation", "Dropout"),
        *("Dense", "BatchNormalization", "Activation", "Dropout", "Add"),
        "Dense",
    ]


def test_the_sizes_of_a_residual_network_are_keys() -> None:
    model = built("model=resnet", "model.widths=[4,8,8]", "model.blocks=1", "model.stem_stride=2")
    shapes = {name: shape for name, _, shape in kinds(model)}
    assert [shapes[f"stage_{stage}_block_1_add"] for stage in (1, 2, 3)] == [
        (14, 14, 4),
        (7, 7, 8),
        (4, 4, 8),
    ]
    # The stem; two convolutions a block with two norms; two 1×1 shortcuts; the last norm; the head.
    convolutions = 9 * (4 + 4 * 4 + 4 * 4 + 4 * 8 + 8 * 8 + 8 * 8 + 8 * 8) + 4 * 8 + 8 * 8
    norms = 2 * (4 + 4 + 4 + 8 + 8 + 8 + 8)
    assert parameters(model) == convolutions + norms + 9 * 10


def test_patches_grow_with_the_images_unless_their_size_is_given() -> None:
    leaf = configured("model=vit", *TINY["vit"]).model
    for size, patch, tokens in ((28, 4, 49), (8, 2, 16), (96, 8, 144), (224, 16, 196)):
        for key in (None, patch):
            images = keras.Input((size, size, 1))
            model = keras.Model(images, build(leaf | {"patch": key}, images, 7))
            assert model.get_layer("embedding").output.shape == (None, tokens, 8)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("model.residual=true", "model=mlp: residual needs two equal widths in a row"),
        ("model=wide_resnet model.depth=12", "model=wide_resnet: depth=12 is none of 10, 16, 22"),
        ("model=convnext model.blocks=[1]", r"model=convnext: blocks=\[1\] needs 3 numbers"),
        ("model=vit model.heads=5", "model=vit: heads=5 does not divide width=96"),
        ("model=vit model.patch=3", "model=vit: patch=3 is not a power of two"),
        ("model=mixer model.patch=1", "patch=1 makes 1,296 tokens of 36×36 pixels, more than"),
    ],
)
def test_sizes_that_make_no_network_are_refused_with_the_reason(choices: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        built(*choices.split(), data=prepared(36, 36, 1))


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
