"""Folders and archives as sets of files that are listed and read alike."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from pipeline.data import embedded
from pipeline.data.files import LINKED, SYSTEM, is_folder, is_hidden, natural
from pipeline.data.values import Array
from pipeline.system.errors import RequestError

_HIDDEN, EMPTY = "hidden file", "empty folder"  # as counted in what is left out
Stamp = tuple[int, int, int, int]
NO_FILE: Stamp = (-1, -1, -1, -1)


def in_63_bits(number: int) -> int:
    """A number that fits into a stamp (i64); inodes have 64 bits, times in ns may have more."""
    return number % 2**63


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a place: `files` in natural order, as POSIX paths relative to its root.

    `linked` are the linked folders that were not entered. `left_out` counts these and whatever else
    holds no file of the user's: hidden files, empty folders, links in an archive.
    """

    files: tuple[str, ...]
    linked: tuple[str, ...] = ()
    left_out: Counter[str]


class Place(Protocol):
    """A folder or an archive; reading is safe from several threads."""

    @property
    def root(self) -> Path:
        """The folder, or the file of the archive."""
        ...

    @property
    def absolute(self) -> tuple[str, ...]:
        """The absolute paths of a folder, as it is named and without links; none of an archive."""
        ...

    def contents(self, enter: Collection[str] = ()) -> Contents:
        """Lists all files; of the linked folders, enters those with a name in `enter`."""
        ...

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The open file of that name.

        Raises:
            OSError, ValueError: it cannot be read, with the reason.
        """
        ...

    def stamps(self, names: Sequence[str]) -> Iterator[Stamp]:
        """Four numbers per file that change when its content does; NO_FILE if it is no file."""
        ...

    def order(self, names: Sequence[str]) -> Array:
        """The indices i64[n] of the files in the order in which reading them is fastest."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on disk; pictures inside its Parquet files count as files too (`embedded.py`)."""

    root: Path

    @property
    def absolute(self) -> tuple[str, ...]:
        """The absolute paths of the folder, as it is named and without links."""
        return str(self.root.absolute()), os.path.realpath(self.root)

    def contents(self, enter: Collection[str] = ()) -> Contents:
        """Lists all files; of the linked folders, enters those with a name in `enter`.

        A name in `enter` may be of several parts: `right` or `train/right`. A link that leads back
        to a folder above it is never entered.

        Raises:
            RequestError: a folder cannot be opened, or folders are nested too deeply.
        """
        files: list[str] = []
        linked: list[str] = []
        left_out: Counter[str] = Counter()
        visited: set[str] = set()  # through links

        def may_enter(link: os.DirEntry[str], folder: str, name: str) -> bool:
            target, above = os.path.realpath(link.path), os.path.realpath(folder)
            named = any(f"/{name}".endswith(f"/{wanted}") for wanted in enter)
            if not named or target in visited or f"{above}/".startswith(f"{target}/"):
                return False
            visited.add(target)
            return True

        def search(folder: str, prefix: str) -> None:
            entries = _entries(folder)
            if not entries and prefix:
                left_out[EMPTY] += 1
            for entry in sorted(entries, key=lambda entry: natural(entry.name)):
                name = prefix + entry.name
                if is_hidden(entry.name):
                    left_out[hidden_kind(entry.name)] += 1
                elif not is_folder(entry):
                    files.append(name)
                elif not entry.is_symlink() or may_enter(entry, folder, name):
                    search(entry.path, f"{name}/")
                else:
                    linked.append(name)
                    left_out[LINKED] += 1

        try:
            search(os.fspath(self.root), "")
        except RecursionError as error:
            raise RequestError(f"{self.root}: its folders lie too deep in one another") from error
        return Contents(files=tuple(files), linked=tuple(linked), left_out=left_out)

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The open file of that name.

        Raises:
            OSError, ValueError: it cannot be read, or is a folder or pipe.
        """
        path = self.root / name
        if path.exists() and not path.is_file():
            raise ValueError("is not a file")
        try:
            return path.open("rb")
        except NotADirectoryError:
            if (picture := embedded.picture_at(self.root, name)) is None:
                raise
            return picture

    def stamps(self, names: Sequence[str]) -> Iterator[Stamp]:
        """Size, times of modification and change in ns, and inode per file, or NO_FILE."""
        root = os.fspath(self.root)
        for name in names:
            try:
                yield _stamp(f"{root}/{name}")
            except NotADirectoryError:
                holder = embedded.file_of(name)
                yield _stamp(f"{root}/{holder}") if holder else NO_FILE
            except (OSError, ValueError):  # a name may hold a zero byte
                yield NO_FILE

    def order(self, names: Sequence[str]) -> Array:
        """The indices i64[n] of the files in their own order."""
        return np.arange(len(names))


def _stamp(path: str) -> Stamp:
    at = os.stat(path)  # noqa: PTH116 (Path takes twice as long)
    if not stat.S_ISREG(at.st_mode):
        return NO_FILE
    times = in_63_bits(at.st_mtime_ns), in_63_bits(at.st_ctime_ns)
    return at.st_size, *times, in_63_bits(at.st_ino)


def hidden_kind(name: str) -> str:
    """The kind under which a hidden entry is counted: its name if it is the system's."""
    return name if name.lower() in SYSTEM else _HIDDEN


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        reason = error.strerror or "for an unknown reason"
        raise RequestError(f"{folder} cannot be opened: {reason}") from error
