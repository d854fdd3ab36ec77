from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.pictures import as_stack, fitted, picture_of

GREY, COLOUR = (4, 4, 1), (4, 4, 3)
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
MODES += ["I;16", "I;16B", "I"]


def solid(mode: str, size: tuple[int, int], colour: Any = 0) -> Image.Image:
    return Image.new(mode, size, colour)


@settings(deadline=None)
@given(
    st.sampled_from(MODES),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])),
)
def test_a_picture_of_any_mode_and_size_becomes_what_the_model_takes(
    mode: str, size: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    made = fitted(solid(mode, size), shape)
    assert (made.shape, made.dtype) == (shape, np.uint8)


@settings(deadline=None)
@given(st.integers(0, 255), st.integers(1, 60), st.integers(1, 60))
def test_a_picture_of_one_colour_stays_of_one_colour(value: int, width: int, height: int) -> None:
    assert np.unique(fitted(solid("L", (width, height), value), (28, 28, 1))).tolist() == [value]


@pytest.mark.parametrize("shape", [(5, 7, 1), (5, 7, 3)])
def test_a_picture_of_the_models_size_keeps_every_pixel(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(fitted(picture_of(pixels), shape), pixels)


def test_a_wide_picture_is_kept_whole_in_the_middle_on_the_colour_of_its_border() -> None:
    pixels = np.full((2, 4), 9, np.uint8)
    pixels[1, 1] = 200
    expected = np.full((4, 4), 9)
    expected[2, 1] = 200
    np.testing.assert_array_equal(fitted(picture_of(pixels), GREY)[..., 0], expected)


def test_a_tall_picture_is_padded_on_its_sides() -> None:
    made = fitted(solid("RGB", (2, 4), (10, 20, 30)), COLOUR)
    assert np.unique(made.reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]


def test_shrinking_averages_so_that_a_fine_pattern_turns_grey() -> None:
    board = (np.indices((400, 400)).sum(axis=0) % 2 * 255).astype(np.uint8)
    made = fitted(picture_of(board), GREY)
    assert 120 <= made.min() <= made.max() <= 135


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0)])
def test_what_is_drawn_on_transparency_stands_out(mode: str, ink: int, paper: int) -> None:
    channels = len(mode)
    pixels = np.zeros((4, 4, channels), np.uint8)
    pixels[..., :-1] = ink
    pixels[1:3, 1:3, -1] = 255
    made = fitted(picture_of(pixels), GREY)[..., 0]
    assert (made[0, 0], made[1, 1]) == (paper, ink)


def test_the_transparent_entry_of_a_palette_is_transparent() -> None:
    picture = solid("P", (4, 4), 0)
    picture.putpalette([255, 0, 0, 0, 0, 0])
    picture.putpixel((1, 1), 1)
    picture.info["transparency"] = 0
    made = fitted(picture, GREY)[..., 0]
    assert (made[0, 0], made[1, 1]) == (255, 0)


def test_a_wholly_transparent_picture_is_of_one_colour() -> None:
    assert len(np.unique(fitted(solid("RGBA", (4, 4), (5, 6, 7, 0)), GREY))) == 1


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_and_not_cut_off(mode: str) -> None:
    picture = solid(mode, (2, 1), 0)
    picture.putpixel((1, 0), 65_535)
    assert fitted(picture, (1, 2, 1)).ravel().tolist() == [0, 255]
    assert fitted(solid(mode, (1, 1), 128 * 257), (1, 1, 1)).item() == 128


@pytest.mark.parametrize(("mode", "value"), [("I", 65_536), ("I", -1), ("F", 0.5)])
def test_values_of_unknown_range_are_refused(mode: str, value: float) -> None:
    with pytest.raises(ValueError, match="save it with 8 or 16 bits"):
        fitted(solid(mode, (2, 2), value), GREY)


def test_the_orientation_of_the_camera_is_followed() -> None:
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0] = 255  # the camera's top, which orientation 6 says is the right
    picture = picture_of(pixels)
    picture.getexif()[0x0112] = 6
    assert fitted(picture, GREY)[..., 0].tolist() == [[0, 0, 0, 255]] * 4


def test_grey_is_the_luma_of_a_colour() -> None:
    assert fitted(solid("RGB", (1, 1), (255, 0, 0)), (1, 1, 1)).item() == 76  # 0.299 × 255
    assert fitted(solid("L", (1, 1), 76), (1, 1, 3)).ravel().tolist() == [76, 76, 76]


def test_inks_become_light() -> None:
    assert fitted(solid("CMYK", (1, 1), (0, 0, 0, 0)), (1, 1, 3)).ravel().tolist() == [255] * 3


@pytest.mark.parametrize(
    ("shape", "stacked"),
    [
        ((9, 8), (1, 9, 8, 1)),
        ((9, 8, 3), (1, 9, 8, 3)),
        ((9, 8, 4), (1, 9, 8, 4)),
        ((9, 8, 7), (9, 8, 7, 1)),
        ((9, 4, 4), (9, 4, 4, 1)),  # the model's size: a stack, for all that 4 may be channels
        ((9, 8, 7, 1), (9, 8, 7, 1)),
        ((9, 8, 7, 3), (9, 8, 7, 3)),
    ],
)
def test_the_shape_of_an_array_says_what_it_holds(
    shape: tuple[int, ...], stacked: tuple[int, ...]
) -> None:
    assert as_stack(np.zeros(shape, np.uint8), GREY).shape == stacked


def test_a_stack_is_the_array_itself_and_no_copy() -> None:
    array = np.zeros((9, 4, 4), np.uint8)
    assert np.shares_memory(as_stack(array, GREY), array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 4, 4), np.float32), r"holds float32, .* \(x \* 255\).* from 0 to 1$"),
        (np.zeros((2, 4, 4), np.int64), "holds int64, .* x.astype.* if its values are 0–255$"),
        (np.zeros((2, 4, 4), bool), r"holds bool, .* \* 255 of it$"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((0, 4, 4), np.uint8), r"shape \(0, 4, 4\), in which there is no image$"),
        (np.zeros((1, 2, 4, 4, 1), np.uint8), "shape"),
        (np.zeros((2, 4, 4, 5), np.uint8), "has 5 channels"),
    ],
)
def test_an_array_of_anything_else_is_refused(array: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_stack(array, GREY)
