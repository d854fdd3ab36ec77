from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.split import pixel_statistics
from pipeline.data.values import Array, RawData, Split
from pipeline.system.errors import RequestError
from tests.splits import in_splits


def split(labels: list[int]) -> Split:
    """Images of 1×1 pixels, each with its own index as its value."""
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Split(images=images, labels=np.array(labels, np.int32))


def raw(labels: list[int]) -> RawData:
    return RawData(
        train=split(labels), test=split([0, 1]), class_names=("cat", "dog"), source="test"
    )


def of(images: Array) -> Split:
    return Split(images=images, labels=np.zeros(len(images), np.int32))


def pixels(split: Split) -> Array:
    return split.batch(0, len(split))


UNEVEN = raw([0] * 30 + [1] * 10)


def test_classes_keep_their_proportions_in_both_splits() -> None:
    prepared = in_splits(UNEVEN, validation_size=8, seed=0)
    np.testing.assert_array_equal(np.bincount(prepared.val.labels), [6, 2])
    np.testing.assert_array_equal(np.bincount(prepared.train.labels), [24, 8])


def test_every_image_is_in_one_split_with_its_own_label() -> None:
    prepared = in_splits(UNEVEN, validation_size=8, seed=0)
    indices = np.concatenate([pixels(prepared.train).ravel(), pixels(prepared.val).ravel()])
    labels = np.concatenate([prepared.train.labels, prepared.val.labels])
    np.testing.assert_array_equal(np.sort(indices), np.arange(40))
    np.testing.assert_array_equal(labels, UNEVEN.train.labels[indices])


def test_the_split_follows_its_seed_and_nothing_else() -> None:
    def held_out(seed: int) -> Array:
        return pixels(in_splits(UNEVEN, validation_size=8, seed=seed).val).ravel()

    np.testing.assert_array_equal(held_out(0), held_out(0))
    assert not np.array_equal(held_out(0), held_out(1))


def test_size_zero_trains_on_everything_and_leaves_an_empty_split() -> None:
    prepared = in_splits(UNEVEN, validation_size=0, seed=0)
    np.testing.assert_array_equal(pixels(prepared.train), UNEVEN.train.images)
    assert pixels(prepared.val).shape == (0, 1, 1, 1)
    assert prepared.val.labels.shape == (0,)


def test_the_test_split_and_the_identity_of_the_data_pass_through() -> None:
    prepared = in_splits(UNEVEN, validation_size=8, seed=0)
    assert prepared.test is UNEVEN.test
    assert prepared.fingerprint == UNEVEN.fingerprint
    assert prepared.class_names == ("cat", "dog")


@pytest.mark.parametrize("size", [2, 38])
def test_a_size_that_leaves_an_image_of_each_class_is_taken(size: int) -> None:
    assert len(in_splits(raw([0, 1] * 20), validation_size=size, seed=0).val) == size


@pytest.mark.parametrize("size", [1, 39, 40, 5000])
def test_a_size_out_of_range_is_refused_with_the_range(size: int) -> None:
    rule = f"preprocess.validation_size={size} is out of range: with 40 .* 2 classes .* 0 or 2–38"
    with pytest.raises(RequestError, match=rule):
        in_splits(raw([0, 1] * 20), validation_size=size, seed=0)


def test_a_class_with_one_image_cannot_be_split() -> None:
    with pytest.raises(RequestError, match=r"class 'dog' has only one training image; set it to 0"):
        in_splits(raw([0, 0, 0, 0, 1]), validation_size=2, seed=0)


def test_statistics_are_of_the_training_images_only() -> None:
    prepared = in_splits(UNEVEN, validation_size=8, seed=0)
    np.testing.assert_allclose(prepared.mean, [pixels(prepared.train).mean()], rtol=1e-6)
    np.testing.assert_allclose(prepared.std, [pixels(prepared.train).std()], rtol=1e-6)


def test_statistics_are_exact_and_one_for_each_channel() -> None:
    images = np.array([[[[0, 7], [255, 7]]], [[[0, 7], [255, 7]]]], np.uint8)
    mean, std = pixel_statistics(of(images))
    np.testing.assert_array_equal(mean, np.array([127.5, 7], np.float32))
    np.testing.assert_array_equal(std, np.array([127.5, 0], np.float32))
    assert mean.dtype == std.dtype == np.float32


def test_statistics_of_many_images_agree_with_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3000, 28, 28, 2), np.uint8)
    mean, std = pixel_statistics(of(images))
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize(("share", "expected"), [(0.2, 8), (0.01, 2)])
def test_a_share_is_counted_in_whole_images_one_of_each_class_at_least(
    share: float, expected: int
) -> None:
    assert len(in_splits(UNEVEN, validation_size=share, seed=0).val) == expected


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("dogs", "size", "expected"), [(3, 0.15, [29, 1]), (2, 30, [29, 1]), (2, 0.8, [161, 1])]
)
def test_a_rare_class_is_in_both_splits(
    dogs: int, size: float, expected: list[int], seed: int
) -> None:
    prepared = in_splits(raw([0] * (202 - dogs) + [1] * dogs), validation_size=size, seed=seed)
    assert np.bincount(prepared.val.labels).tolist() == expected
    assert np.bincount(prepared.train.labels).tolist() == [202 - dogs - expected[0], dogs - 1]
    assert (np.diff(pixels(prepared.val).ravel().astype(int)) > 0).all()
