"""Finds image files and opens them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.pictures import Picture
from pipeline.data.values import Array
from pipeline.system.errors import RequestError

# Not all that Pillow knows: it hands EPS to Ghostscript, and of some formats reads the header only.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI"),
    *("TGA", "TIFF", "WEBP"),
)
ARRAY_SUFFIX = ".npy"


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A file or folder that cannot be read, and why."""

    file: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """Files in order, and the folders that cannot be looked into."""

    files: tuple[Path, ...]
    unreadable: tuple[Unreadable, ...] = ()


def find(images: str) -> Found:
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
    closed: dict[Path, Unreadable] = {}
    found = {
        file
        for match in matches
        for file in (_inside(match, closed) if match.is_dir() else [match])
    }
    if not found:
        what = "no images in this folder" if named.is_dir() else "no such file, and nothing matches"
        told = [f"{printable(one.file)}: {one.reason}" for one in closed.values()]
        raise RequestError("; ".join([f"images={images}: {what}", *told[:1]]))
    unreadable = tuple(closed[folder] for folder in sorted(closed, key=_natural))
    return Found(files=tuple(sorted(found, key=_natural)), unreadable=unreadable)


def is_array(file: Path) -> bool:
    """Whether a file is read as an array of images."""
    return file.suffix.lower() == ARRAY_SUFFIX


def open_array(file: Path) -> Array:
    """The array in a `.npy` file, read where it is touched.

    Raises:
        OSError, ValueError: it cannot be read or is damaged.
    """
    try:
        return np.lib.format.open_memmap(_regular(file), mode="r")
    except ValueError as error:
        if "Python objects" in str(error):
            raise ValueError("holds Python objects, not uint8 with values 0–255") from error
        if "magic" in str(error):
            raise ValueError("no array as numpy.save writes it") from error
        raise


def open_picture(file: Path, *, side: int) -> Picture:
    """The picture in a file, of which the first frame counts.

    A JPEG far larger than `side` pixels a side is decoded at a fraction of its size.

    Raises:
        Exception: whatever Pillow raises for what it cannot read.
    """
    with _opened(file) as picture:
        picture.draft(None, (2 * side, 2 * side))  # None: in the mode it has
        picture.load()
    return picture


def _opened(file: Path) -> Picture:
    try:
        return Image.open(_regular(file), formats=FORMATS)
    except Image.DecompressionBombError as error:
        size = re.search(r"\d+", str(error))
        pixels = f"{int(size[0]):,}" if size else "too many"
        raise ValueError(f"has {pixels} pixels; make it smaller") from error


def printable(file: Path) -> str:
    r"""The path as text that every format can hold: bytes that are no UTF-8 as `\xff`."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _inside(folder: Path, closed: dict[Path, Unreadable]) -> Iterator[Path]:
    """The image files below a folder; those that cannot be looked into join `closed`."""

    def note(error: OSError) -> None:
        place = Path(error.filename)
        closed[place] = Unreadable(file=place, reason=error.strerror or "cannot be opened")

    Image.init()
    known = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    known.add(ARRAY_SUFFIX)
    for place, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in known:
                yield Path(place, name)


def _regular(file: Path) -> Path:
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise ValueError("is no file")
    return file


def _natural(path: Path) -> tuple[list[list[tuple[str, int]]], str]:
    """Numbers by value, letters whatever their case; the whole path where that is the same."""
    pairs = [re.findall(r"([^0-9]*)([0-9]*)", part.casefold()) for part in path.parts]
    return [[(text, int(digits or -1)) for text, digits in part] for part in pairs], str(path)
