"""Folders and archives as sets of files that are listed and read alike."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.data.files import LINKED, SYSTEM, is_hidden, natural
from pipeline.system.errors import RequestError

LARGEST = 2**30
"""Bytes that a single file may have."""
HIDDEN = "hidden file"
Stamp = tuple[int, int, int, int]
GONE: Stamp = (-1, -1, -1, -1)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What lies in a place: `files` in natural order, as POSIX paths relative to its root.

    `folders` are those without files below them, `linked` the linked folders, which are not
    entered; `left_out` counts hidden files and those of the system.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    left_out: Counter[str]


class Place(Protocol):
    """A folder or an archive; reading is safe from several threads."""

    @property
    def root(self) -> Path:
        """The folder, or the file of the archive."""
        ...

    def contents(self, enter: Collection[str] = ()) -> Contents:
        """Lists all files; of the linked folders, enters those that `enter` names."""
        ...

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The open file of that name.

        Raises:
            OSError, ValueError: it cannot be read, with the reason.
        """
        ...

    def stamps(self, names: Sequence[str]) -> Iterator[Stamp]:
        """Four numbers per file that change when its content does; GONE if it does not exist."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on disk."""

    root: Path

    def contents(self, enter: Collection[str] = ()) -> Contents:
        """Lists all files; of the linked folders, enters those that `enter` names.

        Raises:
            RequestError: a folder cannot be opened.
        """
        files: list[str] = []
        folders: list[str] = []
        linked: list[str] = []
        left_out: Counter[str] = Counter()

        def search(folder: str, prefix: str) -> None:
            before = len(files)
            for entry in sorted(_entries(folder), key=lambda entry: natural(entry.name)):
                name = prefix + entry.name
                if is_hidden(entry.name):
                    left_out[hidden_kind(entry.name)] += 1
                elif not entry.is_dir():
                    files.append(name)
                elif not entry.is_symlink() or name in enter:
                    search(entry.path, f"{name}/")
                else:
                    linked.append(name)
                    left_out[LINKED] += 1
            if len(files) == before and prefix:
                folders.append(prefix[:-1])

        search(os.fspath(self.root), "")
        return Contents(
            files=tuple(files), folders=tuple(folders), linked=tuple(linked), left_out=left_out
        )

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The open file of that name.

        Raises:
            OSError, ValueError: it cannot be read, or is a folder or pipe.
        """
        path = self.root / name
        if path.exists() and not path.is_file():
            raise ValueError("is not a file")
        return path.open("rb")

    def stamps(self, names: Sequence[str]) -> Iterator[Stamp]:
        """Size, times of modification and change in ns, and inode per file; GONE if it is gone."""
        root = os.fspath(self.root)
        for name in names:
            try:
                at = os.stat(f"{root}/{name}")  # noqa: PTH116 (Path takes twice as long)
            except OSError:
                yield GONE
            else:
                yield at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino


def hidden_kind(name: str) -> str:
    """How a hidden entry is counted: those of the system by name."""
    return name if name.lower() in SYSTEM else HIDDEN


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise RequestError(f"{folder} cannot be opened: {reason}") from error
