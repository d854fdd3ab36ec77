from __future__ import annotations

import keras
import numpy as np
import pytest

from pipeline.data.values import Array
from pipeline.training.augment import flip_and_shift

LEFT = np.zeros((400, 4, 4, 1), np.float32)
LEFT[:, :, 0] = 1  # the left column is white


def model(**settings: float) -> keras.Model:
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 1), name="images")
    outputs = flip_and_shift(images, **settings)
    return keras.Model(images, outputs)


def trained_on(**settings: float) -> Array:
    return np.array(model(**settings)(LEFT, training=True))


def test_about_every_second_image_is_mirrored_while_training() -> None:
    seen = trained_on(horizontal_flip=True, shift=0)
    mirrored = LEFT[:, :, ::-1]
    flips = (seen == mirrored).all(axis=(1, 2, 3))
    assert ((seen == LEFT).all(axis=(1, 2, 3)) != flips).all()
    assert 150 < flips.sum() < 250


def test_images_move_by_no_more_than_their_share_of_the_size() -> None:
    ramp = np.tile(np.arange(4, dtype=np.float32)[:, np.newaxis], (400, 1, 4))[..., np.newaxis]
    moved = np.array(model(horizontal_flip=False, shift=0.25)(ramp, training=True))
    # A row of value v shows what was at row v: a quarter of four rows is at most one.
    distance = np.abs(moved - ramp)
    assert 0.9 < distance.max() <= 1 + 1e-5
    # Columns are alike, so moving sideways shows nothing, and the edge is repeated.
    assert moved.min() >= 0
    assert moved.max() <= 3


def test_a_move_sideways_is_bounded_too() -> None:
    ramp = np.tile(np.arange(4, dtype=np.float32), (400, 4, 1))[..., np.newaxis]
    moved = np.array(model(horizontal_flip=False, shift=0.25)(ramp, training=True))
    assert 0.9 < np.abs(moved - ramp).max() <= 1 + 1e-5


def test_nothing_changes_when_predicting() -> None:
    augmented = model(horizontal_flip=True, shift=0.25)
    np.testing.assert_array_equal(np.array(augmented(LEFT, training=False)), LEFT)
    np.testing.assert_array_equal(augmented.predict(LEFT, verbose=0), LEFT)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"horizontal_flip": True, "shift": 0.1}, ["mirror", "shift"]),
        ({"horizontal_flip": True, "shift": 0}, ["mirror"]),
        ({"horizontal_flip": False, "shift": 0.1}, ["shift"]),
        ({"horizontal_flip": False, "shift": 0}, []),
    ],
)
def test_what_is_turned_off_adds_no_layer(settings: dict[str, float], names: list[str]) -> None:
    assert [layer.name for layer in model(**settings).layers] == ["images", *names]


def test_augmentation_has_nothing_to_train() -> None:
    assert model(horizontal_flip=True, shift=0.1).trainable_weights == []


def test_changes_follow_the_seed() -> None:
    first, second = (trained_on(horizontal_flip=True, shift=0.25) for _ in range(2))
    np.testing.assert_array_equal(first, second)
