"""Finds image files and opens them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data import Array
from pipeline.errors import RequestError
from pipeline.images import Picture

# Not all that Pillow knows: it hands EPS to Ghostscript, and of some formats reads the header only.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI"),
    *("TGA", "TIFF", "WEBP"),
)
ARRAY_SUFFIX = ".npy"


def find(images: str) -> list[Path]:
    """The files that a file's name, a folder (searched through) or a pattern stands for, in order.

    The order is natural (`9.png` before `10.png`). In folders, what is hidden or has no ending of
    an image stays out; a file that is named, or matches, does not.

    Raises:
        RequestError: there is none.
    """
    named = Path(images).expanduser()
    # Path.glob takes no absolute pattern. Of `nowhere/**` the glob would return `nowhere/`.
    matched = filter(os.path.lexists, glob.glob(str(named), recursive=True))  # noqa: PTH207
    matches = [named] if named.exists() else [Path(match) for match in matched]
    found = {file for match in matches for file in (_inside(match) if match.is_dir() else [match])}
    if not found:
        what = "no images in this folder" if named.is_dir() else "no such file, and nothing matches"
        raise RequestError(f"images={images}: {what}")
    return sorted(found, key=_natural)


def is_array(file: Path) -> bool:
    """Whether a file is read as an array of images."""
    return file.suffix.lower() == ARRAY_SUFFIX


def open_array(file: Path) -> Array:
    """The array in a `.npy` file, read where it is touched.

    Raises:
        OSError, ValueError: it cannot be read or is damaged.
    """
    return np.lib.format.open_memmap(_regular(file), mode="r")


def open_picture(file: Path, *, side: int) -> Picture:
    """The picture in a file, of which the first frame counts.

    A JPEG far larger than `side` pixels a side is decoded at a fraction of its size.

    Raises:
        Exception: whatever Pillow raises for what it cannot read.
    """
    with Image.open(_regular(file), formats=FORMATS) as picture:
        picture.draft(None, (2 * side, 2 * side))  # None: in the mode it has
        picture.load()
    return picture


def printable(file: Path) -> str:
    r"""The path as text that every format can hold: bytes that are no UTF-8 as `\xff`."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _inside(folder: Path) -> Iterator[Path]:
    Image.init()
    known = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    known.add(ARRAY_SUFFIX)
    for place, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in known:
                yield Path(place, name)


def _refuse_folder(error: OSError) -> None:
    raise RequestError(f"images: {error.filename}: {error.strerror}") from error


def _regular(file: Path) -> Path:
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise ValueError("is no file")
    return file


def _natural(path: Path) -> tuple[list[list[tuple[str, int]]], str]:
    """Numbers by value, letters whatever their case; the whole path where that is the same."""
    pairs = [re.findall(r"([^0-9]*)([0-9]*)", part.casefold()) for part in path.parts]
    return [[(text, int(digits or -1)) for text, digits in part] for part in pairs], str(path)
