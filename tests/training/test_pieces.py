"""The augmentation that changes batches, on arrays small enough to be checked pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.schema import Config, validate
from pipeline.data.values import Array
from pipeline.training.batches import training_batch
from tests.commands import composed, configured

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
NOISE = RNG.integers(1, 256, (64, 6, 8, 3), np.uint8)  # no black
TARGETS = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 64)]


def changed(*overrides: str, step: int = 3, epoch: int = 0, images: Array = NOISE) -> Any:
    return changed_by(validate(composed("augment=combined", *overrides)), step, epoch, images)


def changed_by(config: Config, step: int, epoch: int, images: Array) -> Any:
    batch = training_batch(
        config,
        tf.constant(images),
        tf.constant(TARGETS[: len(images)]),
        tf.constant(step),
        tf.constant(epoch),
    )
    assert batch.images.shape == images.shape
    assert batch.images.dtype == tf.uint8
    np.testing.assert_allclose(batch.targets.numpy().sum(axis=1), 1, atol=1e-6)
    return batch


def images_of(*overrides: str, **more: Any) -> Array:
    found: Array = changed(*overrides, **more).images.numpy()
    return found


def mirrored(seen: Array) -> Array:
    """Which images are mirrored; the others must be as they were."""
    flips = (seen == NOISE[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((seen == NOISE).all(axis=(1, 2, 3)) != flips).all()
    return flips


EVERYTHING = """
augment.flip=random augment.crop=2 augment.colour=0.3 augment.rand_augment=2 augment.erasing=0.5
augment.cutout=0.2 augment.mixup=1 augment.cutmix=1
"""


def test_what_is_off_changes_nothing() -> None:
    batch = changed(step=0)
    np.testing.assert_array_equal(batch.images, NOISE)
    np.testing.assert_array_equal(batch.targets, TARGETS)


def test_all_pieces_together_follow_the_seed_and_the_step() -> None:
    one, same, later = (images_of(*EVERYTHING.split(), step=step) for step in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != later).mean() > 0.5
    assert (images_of(*EVERYTHING.split(), "seed=1") != one).mean() > 0.5


def test_random_flips_mirror_about_half_of_the_images_in_each_step() -> None:
    first, second = (mirrored(images_of("augment.flip=random", step=step)) for step in (0, 1))
    assert 20 < first.sum() < 44
    assert 20 < (first != second).sum() < 44


def test_alternating_flips_mirror_each_image_in_every_other_epoch() -> None:
    turns = [
        mirrored(images_of("augment.flip=alternating", step=9 * epoch, epoch=epoch))
        for epoch in range(3)
    ]
    assert 20 < turns[0].sum() < 44
    np.testing.assert_array_equal(turns[1], ~turns[0])
    np.testing.assert_array_equal(turns[2], turns[0])
    other = mirrored(images_of("augment.flip=alternating", "seed=1"))
    assert 16 < (other != turns[0]).sum() < 48


def test_crops_move_images_by_whole_pixels_and_mirror_what_enters() -> None:
    seen, moves = images_of("augment.crop=2"), set()
    padded = np.pad(NOISE, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    for image, wide in zip(seen, padded, strict=True):
        places = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if (wide[row : row + 6, column : column + 8] == image).all()
        ]
        assert len(places) == 1
        moves |= set(places)
    assert {row for row, _ in moves} == {column for _, column in moves} == set(range(5))


@pytest.mark.parametrize("side", [1, 2])
def test_crops_of_images_smaller_than_the_move_stay_inside(side: int) -> None:
    tiny = np.full((5, side, side, 1), 7, np.uint8)
    np.testing.assert_array_equal(images_of("augment.crop=9", images=tiny), tiny)


def test_colour_changes_stay_within_their_strength() -> None:
    flat = np.full((64, 4, 4, 3), 100, np.uint8)  # no contrast, no saturation
    seen = images_of("augment.colour=0.2", images=flat)
    assert (seen == seen[:, :1, :1, :1]).all()
    assert 80 <= seen.min() < 85
    assert 115 < seen.max() <= 120
    assert (images_of("augment.colour=0.2") != NOISE).mean() > 0.9


def test_erasing_fills_a_rectangle_with_noise_in_its_share_of_the_images() -> None:
    black = np.zeros((64, 20, 20, 1), np.uint8)
    seen = images_of("augment.erasing=0.5", images=black)[..., 0] > 0
    erased = seen.any(axis=(1, 2))
    assert 20 < erased.sum() < 44
    for mask in seen[erased]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.9  # one of 256 values of noise is black
        assert 0.01 < box.size / mask.size < 0.4
    np.testing.assert_array_equal(images_of("augment.erasing=0"), NOISE)


def test_cutout_blackens_a_square_of_its_size() -> None:
    white = np.full((64, 12, 12, 1), 255, np.uint8)
    black = images_of("augment.cutout=0.5", images=white)[..., 0] == 0
    rows, columns = black.any(axis=2).sum(axis=1), black.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(black.sum(axis=(1, 2)), rows * columns)
    assert rows.max() == columns.max() == 6  # whole squares; others reach beyond the edge
    assert rows.min() >= 3


def test_mixup_mixes_images_and_targets_by_the_same_share() -> None:
    batch = changed("augment.mixup=1", step=5)
    others, other_targets = np.roll(NOISE, 1, axis=0), np.roll(TARGETS, 1, axis=0)
    place = int(np.flatnonzero((TARGETS != other_targets).any(axis=1))[0])
    share = float(batch.targets[place].numpy() @ TARGETS[place])
    assert 0 < share < 1
    mixed = share * NOISE.astype(float) + (1 - share) * others
    assert np.abs(batch.images.numpy() - mixed).max() <= 0.5 + 1e-3
    expected = share * TARGETS + (1 - share) * other_targets
    np.testing.assert_allclose(batch.targets, expected, atol=1e-6)


def test_cutmix_mixes_targets_by_the_pixels_that_are_left() -> None:
    batch = changed("augment.cutmix=1", step=5)
    pasted = (batch.images.numpy() != NOISE).any(axis=3).mean(axis=0) > 0
    share = 1 - pasted.mean()
    assert 0 < share < 1
    others = np.roll(NOISE, 1, axis=0)
    np.testing.assert_array_equal(batch.images, np.where(pasted[..., None], others, NOISE))
    expected = share * TARGETS + (1 - share) * np.roll(TARGETS, 1, axis=0)
    np.testing.assert_allclose(batch.targets, expected, atol=1e-6)


def test_the_share_of_mixup_has_the_beta_distribution() -> None:
    config = configured("augment=combined", "augment.mixup=0.2")
    pair, targets = np.zeros((2, 1, 1, 1), np.uint8), TARGETS[:2]
    assert (targets[0] != targets[1]).any()
    shares = [
        float(changed_by(config, step, 0, pair).targets.numpy()[0] @ targets[0])
        for step in range(100)
    ]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.12)
    assert np.var(shares) == pytest.approx(0.25 / 1.4, abs=0.05)  # 1 / (4 (2a + 1))


def test_mixup_and_cutmix_take_turns() -> None:
    flat = np.repeat(np.array([10, 250], np.uint8), 6 * 8).reshape(2, 6, 8, 1)
    config = configured("augment=combined", "augment.mixup=1", "augment.cutmix=1")
    kinds = {
        len(np.unique(changed_by(config, step, 0, flat).images.numpy()[0])) for step in range(12)
    }
    assert kinds == {1, 2}  # one grey, or a rectangle of the other's


def test_rand_augment_of_magnitude_0_changes_nothing() -> None:
    seen = images_of("augment.rand_augment=2", "augment.magnitude=0")
    np.testing.assert_array_equal(seen, NOISE)


def test_each_operation_of_rand_augment_does_what_its_name_says() -> None:
    from pipeline.training.pieces import retoned, warped

    ramp = np.tile(np.arange(0, 240, 30, dtype=np.uint8)[None, None, :, None], (10, 6, 1, 1))
    operations, strength = tf.range(10), tf.fill([10], 0.5)
    batch = changed(step=0, images=ramp)
    moved = warped(batch.images, operations, strength).numpy()
    for untouched in (0, 6, 7, 8, 9):
        np.testing.assert_array_equal(moved[untouched], ramp[0])
    for turned in (1, 2, 3, 4):
        assert (moved[turned] != ramp[0]).any()
    np.testing.assert_array_equal(moved[5][:-1], ramp[0][:-1])  # rows are alike
    assert (moved[5][-1] == 0).all()
    toned = retoned(batch.images, operations, strength).numpy()[:, 0, :, 0].astype(int)
    line = ramp[0, 0, :, 0].astype(int)
    np.testing.assert_array_equal(toned[:6], np.tile(line, (6, 1)))
    np.testing.assert_array_equal(toned[6], np.minimum(np.round(line * 1.45), 255))
    bright = np.round(105 + (line - 105) * 1.45)
    np.testing.assert_array_equal(toned[7], np.clip(bright, 0, 255))
    np.testing.assert_array_equal(toned[8], np.where(line >= 128, 255 - line, line))
    np.testing.assert_array_equal(toned[9], line // 4 * 4)
