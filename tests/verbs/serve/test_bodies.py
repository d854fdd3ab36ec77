"""What a request may hold: JSON with images, or a picture, read as `predict` reads a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpies
from PIL import Image

from pipeline.data.pictures import load_picture
from pipeline.data.reading import read_blocks as predicted
from pipeline.verbs.serve.bodies import Refused, Shape, images_in, picture_in
from tests.pictures import noise, put
from tests.pictures import read as packed_copy
from tests.stress.matrix import matrix

SHAPE = (2, 3, 1)
GREY = np.arange(12, dtype=np.uint8).reshape(2, *SHAPE) * 21  # 0–231
COLOURED = np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 3)
RULE = "pixels are whole numbers 0–255 (uint8), unscaled: the model scales them itself"


def read(values: Any, shape: Shape = SHAPE, *, most: int = 9, name: str = "inputs") -> Any:
    return images_in(json.dumps({name: values}).encode(), shape, most=most)


def reason(values: Any, shape: Shape = SHAPE, *, most: int = 9, status: int = 400) -> str:
    with pytest.raises(Refused) as refused:
        read(values, shape, most=most)
    assert refused.value.status == status
    return str(refused.value)


def spoilt(value: Any) -> Any:
    """The second image with one of its pixels replaced."""
    values = GREY.tolist()
    values[1][0][2][0] = value
    return values


@pytest.mark.parametrize("name", ["inputs", "instances"])
def test_images_are_read_under_either_name(name: str) -> None:
    images = read(GREY.tolist(), name=name)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, GREY)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(GREY[..., 0], GREY, id="grey images without channels"),
        pytest.param(GREY[0], GREY[:1], id="one image"),
        pytest.param(GREY[0, ..., 0], GREY[:1], id="one grey image without channels"),
    ],
)
def test_dimensions_that_say_nothing_may_be_left_out(values: Any, expected: Any) -> None:
    np.testing.assert_array_equal(read(values.tolist()), expected)


def test_one_coloured_image_may_stand_alone() -> None:
    np.testing.assert_array_equal(read(COLOURED[0].tolist(), (2, 3, 3)), COLOURED)


@given(numpies.arrays(np.uint8, (3, *SHAPE)))
def test_any_bytes_come_back_as_they_were(images: Any) -> None:
    np.testing.assert_array_equal(read(images.tolist()), images)


@given(
    st.one_of(
        st.floats(),
        st.booleans(),
        st.none(),
        st.text(),
        st.integers(max_value=-1),
        st.integers(min_value=256),
        st.dictionaries(st.text(), st.integers()),
    )
)
def test_whatever_is_no_byte_is_refused_with_its_place(value: Any) -> None:
    assert reason(spoilt(value)).startswith("inputs[1][0][2][0] is ")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, "0.5, a float"),
        (255.0, "255.0, a float"),
        (float("nan"), "NaN, a float"),
        (True, "true, a boolean"),
        (None, "null"),
        ("12", '"12", a text'),
        (256, "256"),
        (-1, "-1"),
        (10**50, "100000000000000000000000000000000000000…"),
    ],
)
def test_a_refused_value_is_told_with_its_kind_and_the_rule(value: Any, said: str) -> None:
    assert reason(spoilt(value)) == f"inputs[1][0][2][0] is {said}; {RULE}"


def test_booleans_alone_are_no_bytes() -> None:
    assert reason((GREY > 99).tolist()) == f"inputs[0][0][0][0] is false, a boolean; {RULE}"


@pytest.mark.parametrize("values", [[[1, 2], [3]], spoilt([1]), spoilt([])])
def test_lists_of_differing_lengths_are_refused(values: Any) -> None:
    assert reason(values) == (
        "inputs is ragged: every image, row and pixel must have the same length"
    )


@pytest.mark.parametrize("values", [[], [[]], [[[]]]])
def test_no_image_is_refused(values: Any) -> None:
    assert reason(values) == "inputs holds no image"


def test_a_wrong_shape_is_told_beside_the_right_one() -> None:
    assert reason([[1, 2]]) == "inputs has the shape [1,2]; the model takes [N,2,3,1] or [N,2,3]"
    grey = GREY[0, ..., 0].tolist()
    assert reason(grey, (2, 3, 3)) == "inputs has the shape [2,3]; the model takes [N,2,3,3]"


def test_more_images_than_allowed_are_too_large_a_request() -> None:
    assert reason(GREY.tolist(), most=1, status=413) == "inputs holds 2 images; send at most 1"
    assert len(read(GREY.tolist(), most=2)) == 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is not JSON: Expecting value"),
        (b"{", "the body is not JSON: "),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", "the body is not JSON: "),
        (b'{"inputs": "\xff"}', "the body is not text in UTF-8"),
        ('{"inputs": [1]}'.encode("utf-16"), "the body is not text in UTF-8"),
        (b"[" * 100_000, "the body's JSON is nested too deeply"),
        (b'{"inputs": ' + b"[" * 100 + b"]" * 100 + b"}", "inputs is ragged"),
        (b"[1]", 'the body must be a JSON object, {"inputs": [image, …]}'),
        (b"{}", "the body needs one of inputs and instances"),
        (b'{"inputs": [1], "instances": [1]}', "the body needs one of inputs and instances"),
        (b'{"inputs": 5}', "inputs must be a list of images"),
        (b'{"inputs": {"images": [1]}}', "inputs must be a list of images"),
        (b'{"dataframe_split": {}}', '"dataframe_split" is not taken; send {"inputs"'),
        (b'{"inputs": [1], "params": {}}', '"params" is not taken; send {"inputs"'),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(Refused) as refused:
        images_in(body, SHAPE, most=9)
    assert refused.value.status == 400
    assert str(refused.value).startswith(said)


@given(st.binary(max_size=200))
@matrix(41)
def test_no_body_whatever_brings_more_than_a_refusal(body: bytes) -> None:
    with pytest.raises(Refused):
        images_in(body, SHAPE, most=9)


def drawn(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).resize((width, height))


def files(folder: Path) -> Iterator[Path]:
    def saved(name: str, picture: Image.Image, **options: Any) -> Path:
        picture.save(folder / name, **options)
        return folder / name

    exif = Image.Exif()
    exif[0x0112] = 6
    large, small = drawn(911, 811), drawn(40, 30)
    yield saved("large.jpg", large, quality=90)
    yield saved("turned.jpg", drawn(900, 500), exif=exif)
    yield saved("progressive.jpg", large, progressive=True)
    yield saved("cmyk.jpg", small.convert("CMYK"))
    yield saved("grey.png", small.convert("L"))
    yield saved("large.png", large)
    yield saved("palette.png", small.quantize(8))
    yield saved("bit.png", small.convert("1"))
    yield saved("key.png", small, transparency=(0, 0, 0))
    alpha = large.copy()
    alpha.putalpha(small.convert("L").resize(large.size))
    yield saved("alpha.png", alpha)
    yield saved("alpha.webp", alpha.resize((40, 30)), lossless=True)
    yield saved("deep.png", Image.fromarray(np.asarray(small.convert("L")).astype("u2") * 257))
    yield saved("many.gif", small.quantize(8), save_all=True, append_images=[small.rotate(90)])
    yield saved("plain.bmp", small)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    put(folder / "other/1.png", noise(1))
    put(folder / "other/2.png", noise(2))
    (folder / "some").mkdir()
    assert [*files(folder / "some")]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "fit"), [((28, 28, 1), "pad"), ((32, 48, 3), "pad"), ((32, 48, 3), "crop")]
)
def test_a_file_gives_the_same_image_by_every_way_in(
    tmp_path: Path, photos: Path, shape: tuple[int, int, int], fit: str
) -> None:
    paths = sorted((photos / "some").iterdir())
    raw = packed_copy(photos, tmp_path / "data", size=list(shape[:2]), channels=shape[2], fit=fit)
    assert raw.index is not None
    packed = dict(zip(raw.index.files, raw.train.images, strict=True))
    blocks = predicted(paths, shape, at_once=3, listener=lambda _: None, fit=fit)
    for file, predicted_image in zip(paths, (i for b in blocks for i in b.images), strict=True):
        sent, _ = picture_in(file.read_bytes(), shape, None, fit)
        expected = load_picture(file, shape, fit=fit)
        for image in (sent[0], predicted_image, packed[f"some/{file.name}"]):
            np.testing.assert_array_equal(image, expected, err_msg=file.name)


def test_values_of_unknown_range_are_refused_with_the_reason(tmp_path: Path) -> None:
    deep = np.full((8, 8), 16 * 255, np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    with pytest.raises(Refused, match=r"16-bit values end at 4,080 .* or scaled to 16\)"):
        picture_in((tmp_path / "a.png").read_bytes(), (8, 8, 1), None)
