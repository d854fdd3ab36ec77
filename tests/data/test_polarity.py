import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.polarity import (
    dark_border_share,
    has_bright_border,
    is_shown_inverted,
    to_invert,
)
from pipeline.data.values import BLOCK_BYTES, Array, Split

DARK = np.zeros((1, 4, 4, 1), np.uint8)
DARK[:, 1:3, 1:3] = 255
BOTH = np.concatenate([DARK, 255 - DARK])


def test_the_border_counts_and_not_what_is_inside() -> None:
    assert has_bright_border(BOTH).tolist() == [False, True]


def test_most_of_the_border_decides_not_a_corner_that_is_touched() -> None:
    touched = DARK.copy()
    touched[:, 0, :] = 255  # four of twelve
    assert has_bright_border(touched).tolist() == [False]


def test_one_row_or_one_pixel_is_all_border() -> None:
    assert has_bright_border(np.full((1, 1, 5, 3), 200, np.uint8)).tolist() == [True]
    assert has_bright_border(np.full((1, 1, 1, 1), 100, np.uint8)).tolist() == [False]


def test_the_share_of_dark_borders_is_counted() -> None:
    assert dark_border_share(np.concatenate([DARK, DARK, DARK, 255 - DARK])) == 0.75


@pytest.mark.parametrize(
    ("trained_dark", "inverted"),
    [
        (1.0, [False, True]),
        (0.9, [False, True]),
        (0.0, [True, False]),
        (0.5, [False, False]),  # photos: no rule to follow
        (None, [False, False]),
    ],
)
def test_only_the_opposite_of_what_the_model_was_trained_on_is_inverted(
    trained_dark: float | None, inverted: list[bool]
) -> None:
    assert to_invert(BOTH, trained_dark).tolist() == inverted


@given(st.integers(0, 255), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]))
def test_an_image_and_its_negative_are_never_both_left_alone(
    value: int, height: int, width: int, channels: int
) -> None:
    image = np.full((1, height, width, channels), value, np.uint8)
    assert to_invert(image, 1.0)[0] != to_invert(255 - image, 1.0)[0]


def test_only_arrays_of_images_that_agree_on_a_dark_border_are_shown_inverted() -> None:
    def shown(images: Array, index: Any = None) -> bool:
        split = Split(images=images, labels=np.zeros(len(images), np.int32))
        return is_shown_inverted(split, index)

    assert shown(DARK)
    assert not shown(255 - DARK)
    assert not shown(BOTH)
    assert not shown(DARK, index=object())
    assert not shown(DARK[:0])


def test_large_images_are_not_all_in_memory_to_see_their_borders() -> None:
    images = np.broadcast_to(np.uint8(0), (250, 1000, 1000, 1))
    split = Split(images=images, labels=np.zeros(250, np.int32))
    tracemalloc.start()
    assert is_shown_inverted(split, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * BLOCK_BYTES
