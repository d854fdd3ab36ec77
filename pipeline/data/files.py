"""Finds files of pictures and arrays, and opens the arrays."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.data.values import Array
from pipeline.system.errors import RequestError, first_of
from pipeline.system.files import user_path
from pipeline.system.terminal import as_line, printable

# Not every format of Pillow: it passes EPS to Ghostscript, and only reads the header of some.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI"),
    *("TGA", "TIFF", "WEBP"),
)
# As Pillow has them; asking it would take a tenth of a second to import all its formats.
PICTURE_ENDINGS = frozenset(
    (
        *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".icb", ".ico", ".j2c", ".j2k"),
        *(".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx"),
        *(".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".vda", ".vst"),
        ".webp",
    )
)
ARRAY_SUFFIX = ".npy"
DAMAGED = "its header is damaged, or of a version of .npy that numpy cannot read"
_MOST_KINDS = 20  # of what was left out, told by name
LINKED, NO_ENDING = "linked folder", "without an ending"  # as counted in what is left out
# What systems and programs put beside a user's files, in lower case.
SYSTEM = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"),
        *("lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A file or folder that cannot be read, and why."""

    file: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """Files in order, the folders that cannot be opened, and counts of what was left out.

    `left_out` counts by ending (`.heic`), `without an ending` and `linked folder`.
    """

    files: tuple[Path, ...]
    unreadable: tuple[Unreadable, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()

    @property
    def rest(self) -> str:
        """What was left out, as `left out: 5 .heic, 1 linked folder`; empty if nothing was."""
        return rest(self.left_out)


def rest(left_out: Sequence[tuple[str, int]]) -> str:
    """Counts of what was left out as text: `left out: 5 .heic, 2 linked folders`; may be empty.

    A search of a home folder finds a hundred endings: only the first kinds are told by name.
    """
    things = ("folder", "file", "link", "picture")
    told = [
        f"{count:,} {as_line(what)}{'s' if count > 1 and what.endswith(things) else ''}"
        for what, count in left_out
    ]
    more = " kinds" if len(told) > _MOST_KINDS else ""
    return f"left out: {first_of(told, _MOST_KINDS)}{more}" if told else ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is one that systems put beside a user's files."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one.

    A link that leads in a circle counts as a file, so that reading it says what is wrong.
    """
    try:
        return entry.is_dir()
    except OSError:
        return False


def find_files(images: str) -> FoundFiles:
    """Finds, in order, the files that a path, a folder (with subfolders) or a pattern stands for.

    The order is natural (`9.png` before `10.png`). In folders, files that are hidden or belong to
    the system (`@eaDir`, `__MACOSX`) and files without the ending of a picture or array are left
    out; a file that is named, or matches, is always taken. A linked folder is entered only if it is
    named itself.

    Raises:
        RequestError: there are none.
    """
    if not images.strip():
        raise RequestError("images= is empty; name a file, a folder or a pattern")
    named = user_path(images)
    search = _Search()
    if os.path.lexists(named):
        search.named(named)
    else:
        start = Path(named.anchor)
        search.pattern(start, named.parts[1:] if named.anchor else named.parts)
    left_out = Counter(kind for place, kind in search.left_out.items() if place not in search.files)
    found = FoundFiles(
        files=tuple(sorted(search.files, key=_natural)),
        unreadable=tuple(search.closed[place] for place in sorted(search.closed, key=_natural)),
        left_out=tuple(left_out.most_common()),
    )
    if not found.files:
        what = "no images in this folder" if named.is_dir() else "no such file, and nothing matches"
        told = [f"{printable(one.file)}: {one.reason}" for one in found.unreadable]
        raise RequestError(
            "; ".join(filter(None, [f"images={images}: {what}", found.rest, *told[:1]]))
        )
    return found


class _Search:
    """The results of a search so far."""

    def __init__(self) -> None:
        self.endings = PICTURE_ENDINGS | {ARRAY_SUFFIX}
        self.files: set[Path] = set()
        self.closed: dict[Path, Unreadable] = {}
        self.left_out: dict[Path, str] = {}

    def named(self, path: Path) -> None:
        """Adds a file, or the picture files below a folder."""
        if path.is_dir():
            self.folder(path)
        else:
            self.files.add(path)

    def folder(self, folder: Path) -> None:
        """Takes the picture files below a folder."""
        for entry in self.entries(folder):
            if self.is_folder(entry):
                self.folder(folder / entry.name)
            elif not is_hidden(entry.name) and not is_folder(entry):
                self.file(folder / entry.name)

    def pattern(self, place: Path, parts: Sequence[str]) -> None:
        """Adds the files below a place that match the parts of a pattern, as in a shell."""
        if not parts:
            self.named(place)
            return
        first, *rest = parts
        if first == "**":
            rest = rest or ["*"]
            self.pattern(place, rest)
            for entry in filter(self.is_folder, self.entries(place)):
                self.pattern(place / entry.name, ["**", *rest])
        elif os.path.lexists(place / first):  # a name may have brackets
            self.pattern(place / first, rest)
        elif glob.has_magic(first):
            fits = re.compile(fnmatch.translate(first)).match
            for entry in self.entries(place):
                hidden = entry.name.startswith(".") and not first.startswith(".")
                if not hidden and fits(entry.name) and self.is_open(entry):
                    self.pattern(place / entry.name, rest)

    def file(self, file: Path) -> None:
        ending = file.suffix.lower()
        if ending in self.endings:
            self.files.add(file)
        else:
            self.left_out[file] = ending or NO_ENDING

    def is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a folder that the search may enter."""
        return is_folder(entry) and not is_hidden(entry.name) and self.is_open(entry)

    def is_open(self, entry: os.DirEntry[str]) -> bool:
        if not (entry.is_symlink() and is_folder(entry)):
            return True
        if not is_hidden(entry.name):
            self.left_out[Path(entry.path)] = LINKED
        return False

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Lists a folder; notes one that cannot be opened."""
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except (NotADirectoryError, FileNotFoundError):
            return []
        except OSError as error:
            reason = error.strerror or "cannot be opened"
            self.closed[folder] = Unreadable(file=folder, reason=reason)
            return []


def is_array(file: Path) -> bool:
    """Whether a file is read as an array of images."""
    return file.suffix.lower() == ARRAY_SUFFIX


def open_array(file: Path) -> Array:
    """The array in a `.npy` file, of any shape and dtype, memory-mapped.

    Raises:
        OSError, ValueError: it cannot be read or is damaged.
    """
    path = regular(file)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        if "Python objects" in str(error):
            raise ValueError("holds Python objects, not uint8 with values 0–255") from error
        if "magic" in str(error):
            raise ValueError("not an array as numpy.save writes it") from error
        if "mmap length" in str(error):
            raise ValueError(
                "is truncated: its header declares more bytes than the file has"
            ) from error
        raise ValueError(DAMAGED) from error
    except (OverflowError, SyntaxError, TypeError) as error:
        raise ValueError(DAMAGED) from error


def regular(file: Path) -> Path:
    """The file itself.

    Raises:
        ValueError: it is a folder, or a pipe, which would block.
    """
    if file.exists() and not file.is_file():
        raise ValueError("is not a file")
    return file


def opened(file: Path) -> BinaryIO:
    """Opens a file to read its bytes.

    Raises:
        OSError, ValueError: it cannot be opened, or is a folder or a pipe.
    """
    return regular(file).open("rb")


def natural(name: str) -> tuple[list[tuple[str, int]], str]:
    """Sort key of a name: numbers by value, letters regardless of case, then the name itself."""
    pairs = _PARTS(name.casefold())
    return [(text, int(digits or -1)) for text, digits in pairs], name


def in_natural_order(paths: Iterable[str]) -> list[str]:
    """POSIX paths in natural order, part by part, as a search through their folders finds them."""
    folders: dict[str, tuple[Any, ...]] = {"": ()}

    def key(path: str) -> tuple[Any, ...]:
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = key(folder)
        return (*folders[folder], natural(name))

    return sorted(paths, key=key)


_PARTS = re.compile(r"([^0-9]*)([0-9]*)").findall


def _natural(path: Path) -> tuple[list[list[tuple[str, int]]], str]:
    """Sort key of a path: as `natural` for each part; ties are broken by the whole path."""
    return [natural(part)[0] for part in path.parts], str(path)
