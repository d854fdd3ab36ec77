"""The picture in a request's body is read as `predict` reads the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.pictures import load
from pipeline.verbs.serve.bodies import Refused
from pipeline.verbs.serve.picture_body import picture_in


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


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 48, 3)])
def test_a_file_gives_the_same_image_by_every_way_in(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    for file in files(tmp_path):
        sent, _ = picture_in(file.read_bytes(), shape, None)
        np.testing.assert_array_equal(sent[0], load(file, shape), err_msg=file.name)


def test_values_of_unknown_range_are_refused_with_the_reason(tmp_path: Path) -> None:
    deep = np.full((8, 8), 16 * 255, np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    with pytest.raises(Refused, match="16-bit values end at 4,080"):
        picture_in((tmp_path / "a.png").read_bytes(), (8, 8, 1), None)
