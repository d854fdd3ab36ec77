from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.data.values import Array, Split
from pipeline.training import models
from pipeline.training.explain import GRAD_CAM, OCCLUSION, Importance, explain, features_of
from tests.stress.matrix import only_stressed

pytestmark = pytest.mark.slow

SIDE = 16


def spots(corners: Sequence[tuple[int, int]]) -> Array:
    """Dark images u8[N,16,16,1] with a bright square in one corner each."""
    images = np.full((len(corners), SIDE, SIDE, 1), 0, np.uint8)
    for image, (row, column) in zip(images, corners, strict=True):
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 230
    return images


def assembled(*layers: keras.layers.Layer) -> keras.Model:
    images = keras.Input((SIDE, SIDE, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    for layer in layers:
        x = layer(x)
    return keras.Model(images, x)


def bright(scale: float = 5.0, **head: Any) -> keras.Model:
    """A network of one convolution: class 1 if the image is bright, by `scale`."""
    model = assembled(
        keras.layers.Conv2D(1, 3, padding="same", use_bias=False),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(2, **({"activation": "softmax"} | head)),
        *([keras.layers.Softmax()] if head else []),
    )
    kernel, _, bias = model.get_weights()
    model.set_weights([np.ones_like(kernel) / 9, np.array([[-scale, scale]]), bias])
    return model


def left_or_right() -> keras.Model:
    """A linear model: class 0 for brightness at the left, 1 for that at the right."""
    model = assembled(keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax"))
    side = np.zeros((SIDE, SIDE, 2))
    side[:, : SIDE // 2, 0] = side[:, SIDE // 2 :, 1] = 0.1
    model.set_weights([side.reshape(-1, 2), np.zeros(2)])
    return model


def quadrants(maps: Array) -> Array:
    """Means of each quarter of a map, f32[N,2,2]."""
    return maps.reshape(len(maps), 2, SIDE // 2, 2, SIDE // 2).mean(axis=(2, 4))


@pytest.mark.parametrize("scale", [5.0, 5000.0], ids=["unsure", "saturated"])
@pytest.mark.parametrize("head", [{}, {"activation": None}], ids=["dense", "softmax layer"])
def test_grad_cam_shows_the_place_that_the_network_answers_by(
    scale: float, head: dict[str, Any]
) -> None:
    corners = [(0, 0), (1, 0), (1, 1)]
    found = explain(bright(scale, **head), spots(corners), np.ones(3, int))
    assert found.method == GRAD_CAM
    assert found.maps.dtype == np.float32
    assert (found.maps.min(), found.maps.max()) == (0, 1)
    brightest = quadrants(found.maps).reshape(3, 4).argmax(axis=1)
    assert brightest.tolist() == [2 * row + column for row, column in corners]


def test_what_speaks_against_a_class_is_not_shown_for_it() -> None:
    found = explain(bright(), spots([(0, 1)]), np.zeros(1, int))
    assert not found.maps.any()


def test_occlusion_shows_what_a_network_without_convolutions_answers_by() -> None:
    found = explain(left_or_right(), spots([(0, 0), (1, 1)]), np.array([0, 1]))
    assert found.method == OCCLUSION
    assert quadrants(found.maps).reshape(2, 4).argmax(axis=1).tolist() == [0, 3]
    assert quadrants(found.maps)[0, 1, 1] < 0.01


class Subclassed(keras.Model):
    """A model without a graph of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = left_or_right()

    def call(self, images: Any, training: bool = False) -> Any:
        return self.inner(images, training=training)


def test_the_convolution_that_whitens_the_images_makes_no_convolutional_network() -> None:
    whitening = keras.layers.Conv2D(2, 3, padding="same", trainable=False, name="whitening")
    head = keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")
    assert explain(assembled(whitening, *head), spots([(0, 0)]), [0]).method == OCCLUSION


def test_any_model_is_explained_even_if_its_layers_cannot_be_asked() -> None:
    model = Subclassed()
    images = spots([(0, 0)])
    model(images)
    found = explain(model, images, np.zeros(1, int))
    assert quadrants(found.maps).argmax() == 0
    split = Split(images=images, labels=np.zeros(1, np.int32))
    assert features_of(model, split, batch_size=4) is None


def test_a_nested_network_is_explained() -> None:
    inner = keras.Sequential([keras.Input((SIDE, SIDE, 1)), keras.layers.Conv2D(2, 3)])
    flat = (keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax"))
    found = explain(assembled(inner, *flat), spots([(0, 0)]), np.zeros(1, int))
    assert found.method == GRAD_CAM
    assert np.isfinite(found.maps).all()


def nested(*, size: int | None, returned: bool = False) -> keras.Model:
    """A model around a network that takes images of `size`, or of any."""
    inner = keras.Input((size, size, 1))
    x = keras.layers.Conv2D(2, 3, padding="same", activation="relu")(inner)
    head = (keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, activation="softmax"))
    for layer in head if returned else ():
        x = layer(x)
    return assembled(keras.Model(inner, x), *(() if returned else head))


@pytest.mark.parametrize("size", [SIDE, None])
def test_a_network_that_a_model_calls_is_explained_by_its_maps_and_has_features(
    size: int | None,
) -> None:
    model, images = nested(size=size), spots([(0, 0), (1, 1)])
    found = explain(model, images, np.zeros(2, int))
    assert (found.method, found.maps.shape) == (GRAD_CAM, (2, SIDE, SIDE))
    features = features_of(model, Split(images=images, labels=np.zeros(2, np.int32)), batch_size=2)
    assert features is not None
    assert features.shape == (2, 2)


@pytest.mark.parametrize("size", [SIDE, None])
def test_a_model_that_only_returns_a_network_is_explained_without_its_features(
    size: int | None,
) -> None:
    model, images = nested(size=size, returned=True), spots([(0, 0)])
    assert explain(model, images, np.zeros(1, int)).method == OCCLUSION
    split = Split(images=images, labels=np.zeros(1, np.int32))
    assert features_of(model, split, batch_size=2) is None


SIZES: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"hidden": [8], "activation": "relu", "dropout": 0.1},
    "cnn": {"filters": [4, 4], "dense": 6, "activation": "relu", "dropout": 0.1},
    "resnet": {
        "widths": [4, 8],
        "blocks": 1,
        "stem_stride": 1,
        "activation": "relu",
        "dropout": 0.0,
    },
    "convnext": {"widths": [4], "blocks": [1], "patch": 2, "drop_path": 0.0, "dropout": 0.0},
    "vit": {"width": 8, "depth": 1, "heads": 2, "patch": 4, "drop_path": 0.0, "dropout": 0.0},
    "mixer": {"width": 8, "depth": 1, "patch": 4, "drop_path": 0.0, "dropout": 0.0},
}
FEATURES = {"linear": 256, "mlp": 8, "cnn": 6, "resnet": 8, "convnext": 4, "vit": 8, "mixer": 8}


@pytest.mark.parametrize(
    "name",  # a mixer is explained as a vision transformer is
    [pytest.param(one, marks=only_stressed if one == "mixer" else ()) for one in SIZES],
)
def test_every_kind_of_network_is_explained_and_has_features(name: str) -> None:
    images = keras.Input((SIDE, SIDE, 1), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    model = keras.Model(images, getattr(models, name)(scaled, 3, **SIZES[name]))
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 1), np.uint8)
    found: Importance = explain(model, pixels, np.arange(5) % 3)
    assert found.method == (GRAD_CAM if name in ("cnn", "resnet", "convnext") else OCCLUSION)
    assert found.maps.shape == (5, SIDE, SIDE)
    assert np.isfinite(found.maps).all()
    split = Split(images=pixels, labels=np.zeros(5, np.int32))
    features = features_of(model, split, batch_size=2)
    assert features is not None
    assert features.shape == (5, FEATURES[name])
