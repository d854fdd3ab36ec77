from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from pipeline.data import pictures
from pipeline.data.files import opened
from pipeline.data.pictures import (
    as_stack,
    contained,
    fitted,
    load_picture,
    open_picture,
    picture_of,
    upright_size,
)
from pipeline.data.values import Array
from tests.pictures import blank_png
from tests.stress.matrix import matrix

GREY, COLOUR = (4, 4, 1), (4, 4, 3)
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
MODES += ["I;16", "I;16B", "I"]


def solid(mode: str, size: tuple[int, int], colour: Any = 0) -> Image.Image:
    return Image.new(mode, size, colour)


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


# Rounding makes the box of these sides larger than the picture.
@pytest.mark.parametrize("side", [225, 232, 239, 246, 253, 450])
@pytest.mark.parametrize("cropped", [224, 240])
def test_a_picture_of_any_size_is_cropped(side: int, cropped: int) -> None:
    for size in ((side, side), (side, side + 1), (side + 1, side)):
        made = fitted(solid("L", size, 9), (cropped, cropped, 1), fit="crop")
        assert np.unique(made).tolist() == [9]


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
        (np.zeros((2, 4, 4), np.float32), r"float32, .* \(x \* 255\).* x.round.* from 0 to 255$"),
        (np.zeros((2, 4, 4), np.int64), "holds int64, .* x.astype.* if its values are 0–255$"),
        (np.zeros((2, 4, 4), bool), r"holds bool, .* \* 255$"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((0, 4, 4), np.uint8), r"shape \(0, 4, 4\), which holds no image$"),
        (np.zeros((1, 2, 4, 4, 1), np.uint8), "shape"),
        (np.zeros((2, 4, 4, 5), np.uint8), "has 5 channels"),
    ],
)
def test_an_array_of_anything_else_is_refused(array: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_stack(array, GREY)


@pytest.mark.parametrize("channels", [2, 5])
def test_images_of_channels_that_no_picture_has_are_read_as_they_are_or_refused(
    channels: int,
) -> None:
    shape = (4, 4, channels)
    assert as_stack(np.zeros((3, *shape), np.uint8), shape).shape == (3, *shape)
    reason = rf"cannot be fitted to {channels} channels, .* arrays \[N,4,4,{channels}\]$"
    for other in ((3, 9, 8, channels), (3, 4, 4, 3), (4, 4)):
        with pytest.raises(ValueError, match=reason):
            as_stack(np.zeros(other, np.uint8), shape)
    with pytest.raises(ValueError, match=reason):
        fitted(Image.new("RGB", (9, 8)), shape)


def test_one_image_has_the_channels_of_the_model() -> None:
    image = np.zeros((4, 6, 5), np.uint8)
    assert as_stack(image, image.shape).shape == (1, 4, 6, 5)


@pytest.mark.parametrize("count", [1, 5])
def test_rows_of_pixels_are_as_many_images_as_there_are_rows(count: int) -> None:
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 3, 4)
    stack = as_stack(images.reshape(count, 12), (3, 4, 1))
    np.testing.assert_array_equal(stack[..., 0], images)
    np.testing.assert_array_equal(as_stack(images[0].reshape(12), (3, 4, 1))[0, :, :, 0], images[0])


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((5, 48), r"flat images save x.reshape\(-1, 4, 4, 3\), or .*transpose\(0, 2, 3, 1\)"),
        ((48,), r"flat images"),
        (
            (3, 4, 4),
            r"use x.transpose\(1, 2, 0\) for one colour image, x\[..., None\] for three grey",
        ),
        ((5, 16, 1), r"x.reshape\(-1, 4, 4\) for flat images, x\[None\] for one image"),
        ((5, 1, 16), r"x.reshape\(-1, 4, 4\) for flat images"),
        ((5, 16, 3), r"x.reshape\(-1, 4, 4, 3\) for flat images, x\[None\] for one image"),
        ((5, 17), r"x\[:, 1:\] for flat images after their labels, x\[..., None\] for one"),
    ],
)
def test_an_array_that_can_be_read_in_two_ways_is_refused_with_both(
    shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        as_stack(np.zeros(shape, np.uint8), COLOUR)


def test_channels_that_come_first_are_refused_with_the_way_to_put_them_last() -> None:
    with pytest.raises(ValueError, match=r"has 28 channels .*; x.transpose\(0, 2, 3, 1\) puts"):
        as_stack(np.zeros((5, 1, 28, 28), np.uint8), (28, 28, 1))


DISC = (np.hypot(*(np.indices((48, 48)) - 24)) < 12) * 200 + 30  # 30 and 230


def saved(path: Path, values: Array, **options: Any) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_in_sixteen_are_refused_and_not_shown_black(
    tmp_path: Path, ending: str, bits: int
) -> None:
    values = (DISC * 2 ** (bits - 8)).astype(np.uint16)
    with pytest.raises(ValueError, match=r"16-bit values end at [\d,]+ of 65,535, .* 8 to 14 bits"):
        load_picture(saved(tmp_path / f"a.{ending}", values), (28, 28, 1))


@pytest.mark.parametrize("scale", [1, 16, 257])
def test_values_are_scaled_by_what_a_tiff_says_is_its_highest(tmp_path: Path, scale: int) -> None:
    path = saved(tmp_path / "a.tif", (DISC * scale).astype(np.uint16), tiffinfo={281: 255 * scale})
    plain = saved(tmp_path / "b.png", DISC.astype(np.uint8))
    np.testing.assert_array_equal(load_picture(path, (28, 28, 1)), load_picture(plain, (28, 28, 1)))


def test_integers_of_32_bits_are_refused_and_not_shown_black(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="end at 230 of 65,535"):
        load_picture(saved(tmp_path / "a.tif", DISC.astype(np.int32)), (28, 28, 1))


def test_dark_pictures_of_a_format_that_says_its_range_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535 " + np.array([0, 2570], ">u2").tobytes())
    assert load_picture(tmp_path / "a.pgm", (1, 2, 1)).ravel().tolist() == [0, 10]
    (tmp_path / "b.pgm").write_bytes(b"P5 2 1 4095 " + np.array([0, 4095], ">u2").tobytes())
    assert load_picture(tmp_path / "b.pgm", (1, 2, 1)).ravel().tolist() == [0, 255]


def png16(values: Array, *, transparent: int | None = None) -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads but does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    if transparent is not None:
        body += chunk(b"tRNS", struct.pack(">H", transparent))
    body += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_colours_of_fewer_than_sixteen_bits_are_refused_too() -> None:
    colours = np.stack([DISC, DISC, DISC], axis=-1)
    with pytest.raises(ValueError, match="16-bit values end at"):
        load_picture(io.BytesIO(png16(colours * 16)), (28, 28, 3))
    opaque = np.full((*DISC.shape, 1), 65_535)
    with pytest.raises(ValueError, match="16-bit values end at"):
        load_picture(io.BytesIO(png16(np.concatenate([colours * 16, opaque], -1))), (28, 28, 3))
    right = load_picture(io.BytesIO(png16(colours * 257)), (48, 48, 3))
    assert (right.min(), right.max()) == (30, 230)


def test_colours_of_fewer_bits_than_a_tiff_can_hold_are_refused_where_it_declares_them(
    tmp_path: Path,
) -> None:
    def tiff(values: Array, highest: int) -> Path:
        height, width, channels = values.shape
        entries = {256: width, 257: height, 259: 1, 262: 2, 277: channels, 281: highest}
        entries |= {338: 2} if channels == 4 else {}  # the fourth is opacity
        body = values.astype("<u2").tobytes()
        start = 8 + 2 + 12 * (len(entries) + 3) + 4
        entries |= {258: start, 273: start + 2 * channels, 279: len(body)}
        rows = b"".join(
            struct.pack("<HHII", tag, 3, channels, value)
            if tag == 258
            else struct.pack("<HHII", tag, 4, 1, value)
            for tag, value in sorted(entries.items())
        )
        head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4)
        path = tmp_path / f"{highest}.tif"
        path.write_bytes(head + struct.pack("<H", 16) * channels + body)
        return path

    colours = np.stack([DISC, DISC, DISC], axis=-1)
    with pytest.raises(ValueError, match="16-bit values end at 4,095 of 65,535"):
        load_picture(tiff(colours * 16, 4095), (48, 48, 3))
    opaque = np.concatenate([colours * 16, np.full((*DISC.shape, 1), 65_535)], axis=-1)
    with pytest.raises(ValueError, match="16-bit values end at 4,095 of 65,535"):
        load_picture(tiff(opaque, 4095), (48, 48, 3))
    dark = load_picture(tiff(colours * 16, 65_535), (48, 48, 3))
    assert (dark.min(), dark.max()) == (30 // 16, 230 // 16)


@pytest.mark.parametrize("colours", [1, 3])
def test_black_ink_on_transparency_may_have_sixteen_bits(colours: int) -> None:
    values = np.zeros((4, 4, colours + 1))
    values[1:3, 1:3, -1] = 65_535
    made = load_picture(io.BytesIO(png16(values)), GREY)[..., 0]
    assert (made[0, 0], made[1, 1]) == (255, 0)


def test_the_transparent_value_of_sixteen_bits_is_transparent() -> None:
    values = np.full((4, 4, 1), 65_535)
    values[1:3, 1:3] = 0
    values[1, 1] = 40_000
    shown = load_picture(io.BytesIO(png16(values, transparent=0)), GREY)[..., 0]
    assert shown[0, 0] == 255
    assert shown[2, 2] == 0, "the visible parts are bright, so the others become black"
    values[values == 65_535] = 20_000
    values[1, 1] = 0
    assert load_picture(io.BytesIO(png16(values, transparent=0)), GREY)[1, 1, 0] == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(40, 30), (1000, 700), (701, 999)])
def test_a_reduced_picture_is_turned_as_a_small_one_is(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize(size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    made = load_picture(tmp_path / "a.png", (28, 28, 3)).astype(int)
    whole = contained(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")), (28, 28))
    expected = np.asarray(whole).astype(int)
    top, left = (28 - whole.height) // 2, (28 - whole.width) // 2
    shown = made[top : top + whole.height, left : left + whole.width]
    assert np.abs(shown - expected).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "webp"])
def test_the_upright_size_is_known_without_decoding(
    tmp_path: Path, orientation: int, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    solid("RGB", (40, 30)).save(tmp_path / f"a.{ending}", exif=exif)
    solid("RGB", (40, 30)).save(tmp_path / f"plain.{ending}")
    with opened(tmp_path / f"a.{ending}") as file:
        size = open_picture(file, side=8).info["size"]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("was decoded"))
    assert size == ((40, 30) if orientation > 4 else (30, 40))
    with Image.open(tmp_path / f"a.{ending}") as picture:
        assert upright_size(picture) == size
    with Image.open(tmp_path / f"plain.{ending}") as picture:
        assert upright_size(picture) == (30, 40)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_picture_with_damaged_exif_data_is_taken_for_upright(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    solid("RGB", (4, 4), (9, 9, 9)).save(path, exif=b"Exif\0\0" + bytes(40), lossless=True)
    assert load_picture(path, GREY).shape == GREY


@matrix(29)
def test_a_picture_that_would_take_too_much_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGBA", (300, 200)).save(tmp_path / "a.png")
    Image.init()  # some of Pillow's plugins load a picture of their own when they are imported
    monkeypatch.setattr(pictures, "AT_WORK", 1_000_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match="has 60,000 pixels, which take 2 MB to decode; make it"):
        load_picture(tmp_path / "a.png", GREY)


@matrix(29)
def test_pictures_wait_for_each_other_when_together_they_take_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGBA", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "AT_WORK", 4_000_000)  # two of them
    at_once, most, lock = 0, 0, threading.Lock()
    real = pictures.made_plain

    def slowly(picture: Image.Image, **settings: Any) -> Image.Image:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return real(picture, **settings)

    def decode(_: int) -> None:
        with opened(tmp_path / "a.png") as file:
            open_picture(file, side=4)

    monkeypatch.setattr(pictures, "made_plain", slowly)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, range(12)))
    assert 1 <= most <= 2


MEMORY = """
import re, sys
from pathlib import Path
from pipeline.data.pictures import load_picture
try:
    load_picture(Path(sys.argv[1]), (28, 28, 1))
except ValueError as error:
    print(error)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("colour", "side", "bits", "refused"),
    [(6, 13_300, 8, True), (6, 9_400, 8, False), (0, 13_300, 1, False), (0, 9_400, 16, False)],
)
@matrix(29)
def test_a_picture_of_few_bytes_and_many_pixels_takes_little_memory(
    tmp_path: Path, colour: int, side: int, bits: int, refused: bool
) -> None:
    path = blank_png(tmp_path / "a.png", side, colour, bits=bits, whole=not refused)
    command = [sys.executable, "-c", MEMORY, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert any("to decode; make it smaller" in line for line in said) == refused
    assert int(said[-1]) < 550_000  # kB, 100 MB of them for Python and numpy


def in_scans(width: int, height: int, channels: int) -> bytes:
    """A sequential JPEG with a scan of its own for each channel."""
    grey = io.BytesIO()
    Image.new("L", (width, height), 90).save(grey, "JPEG")
    whole = grey.getvalue()
    frame, scan = whole.index(b"\xff\xc0"), whole.index(b"\xff\xda")
    tables = whole[frame + 2 + int.from_bytes(whole[frame + 2 : frame + 4], "big") : scan]
    made = whole[:frame] + struct.pack(
        ">2sHBHHB", b"\xff\xc0", 8 + 3 * channels, 8, height, width, channels
    )
    made += b"".join(bytes([number, 0x11, 0]) for number in range(channels)) + tables
    for number in range(channels):
        made += b"\xff\xda\0\x08\x01" + bytes([number, 0, 0, 63, 0]) + whole[scan + 10 : -2]
    return made + b"\xff\xd9"


def in_runs(width: int, height: int) -> bytes:
    """A BMP whose rows are runs of one colour."""
    row = bytes([255, 7]) * (width // 255) + bytes([width % 255, 7, 0, 0])
    packed, palette = row * height + b"\0\1", bytes(1024)
    sizes = (40, width, height, 1, 8, 1, len(packed), 0, 0, 256, 0)
    start = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(packed), 0, 0, start)
    return head + struct.pack("<IiiHHIIiiII", *sizes) + palette + packed


def in_a_tile(side: int) -> bytes:
    """A TIFF of 16 × 16 pixels, stored in one compressed tile of `side` × `side`."""
    packed = zlib.compress(bytes(side * side), 1)
    entries = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    entries |= {324: 8 + 2 + 12 * 10 + 4, 325: len(packed)}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4) + packed


def in_an_icon(side: int) -> bytes:
    """A file of icons with one that is a PNG."""
    png = io.BytesIO()
    Image.new("RGBA", (side, side)).save(png, "PNG")
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(png.getvalue()), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png.getvalue()


def in_several_pictures(content: bytes) -> bytes:
    """A JPEG as one of several pictures in a file."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(
        file, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    start = file.getvalue()
    segment = start.index(b"\xff\xe2")
    end = segment + 2 + int.from_bytes(start[segment + 2 : segment + 4], "big")
    return content[:2] + start[segment:end] + content[2:]


@pytest.mark.parametrize(
    ("content", "needed"),
    [
        (in_scans(800, 800, 3), 3_840_000),
        (in_scans(800, 800, 4), 5_120_000),
        (in_several_pictures(in_scans(800, 800, 3)), 3_840_000),
        (in_runs(1000, 1000), 4_000_000),
        (in_a_tile(800), 5_120_000),
    ],
    ids=["scans", "four scans", "scans of several pictures", "runs", "tile"],
)
def test_what_a_decoder_takes_beside_the_picture_is_counted_before_it_starts(
    content: bytes, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_picture(io.BytesIO(content), GREY).shape == GREY
    monkeypatch.setattr(pictures, "AT_WORK", needed)
    monkeypatch.setattr(pictures, "PIXELS_AT_ONCE", 0)
    with pytest.raises(ValueError, match="MB to decode; make it smaller"):
        load_picture(io.BytesIO(content), GREY)
    plain = io.BytesIO()
    Image.new("RGB", (800, 800)).save(plain, "JPEG")
    assert load_picture(plain, GREY).shape == GREY  # libjpeg keeps no more than a row


def test_a_large_icon_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.ico").write_bytes(in_an_icon(256))
    assert load_picture(tmp_path / "small.ico", GREY).shape == GREY
    large = in_an_icon(1025)
    (tmp_path / "large.ico").write_bytes(large)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match="is an icon of 1,050,625 pixels; save it as PNG"):
        load_picture(tmp_path / "large.ico", GREY)
    with pytest.raises(ValueError, match="is an icon"):
        load_picture(io.BytesIO(large), GREY)


@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
def test_a_negative_of_sixteen_bits_is_read_as_one_of_eight(
    tmp_path: Path, compression: str | None
) -> None:
    negative = {"tiffinfo": {262: 0}, "compression": compression}
    deep = saved(tmp_path / "a.tif", (65_535 - DISC * 257).astype(np.uint16), **negative)
    made = load_picture(deep, (48, 48, 1))
    np.testing.assert_array_equal(made[..., 0], DISC)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC; convert it to JPEG or PNG"),
        (b"\n<!DOCTYPE html><html><body>403", "is a web page instead of the picture"),
        (b"<HTML>", "is a web page"),
        (b"no picture", "cannot identify"),
    ],
)
def test_a_file_with_the_ending_of_a_picture_is_told_what_it_is(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=reason):
        load_picture(tmp_path / "a.jpg", GREY)
