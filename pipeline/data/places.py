"""Folders and archives as sets of files that are listed and read alike."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from pipeline.data import cache, embedded, label_lists
from pipeline.data.files import LINKED, SYSTEM, is_folder, is_hidden, natural, opened
from pipeline.data.values import Array
from pipeline.system.errors import RequestError
from pipeline.system.folders import MADE_BY, STORES
from pipeline.system.terminal import printable

_HIDDEN, EMPTY = "hidden file", "empty folder"  # as counted in what is left out
Stamp = tuple[int, int, int, int]
NO_FILE: Stamp = (-1, -1, -1, -1)
_PROGRAMS = re.compile(r"[0-9a-f]{16}")  # of one machine, in the cache's folder `xla`


def in_63_bits(number: int) -> int:
    """A number that fits into a stamp (i64); inodes have 64 bits, times in ns may have more."""
    return number % 2**63


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a place: `files` in natural order, as POSIX paths relative to its root.

    `linked` are the linked folders that were not entered. `left_out` counts these and whatever else
    holds no file of the user's: hidden files, empty folders, links in an archive. `made` has the
    first of the folders that runs and programs made, which are not entered, by who made them.
    """

    files: tuple[str, ...]
    linked: tuple[str, ...] = ()
    left_out: Counter[str]
    made: Mapping[str, str] = field(default_factory=dict)


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
        """Lists all files; of the linked folders, enters those with a name in `enter`, and splits.

        A name in `enter` may be of several parts: `right` or `train/right`. Splits are `train` and
        `test`, for example, beside one another. A link that leads back to a folder above it is
        never entered, nor is a folder that a run or program has made (its results, a cache).

        Raises:
            RequestError: a folder cannot be opened, or folders are nested too deeply.
        """
        found = _Search(enter)
        try:
            found.folder(os.fspath(self.root), "")
        except RecursionError as error:
            raise RequestError(f"{self.root}: its folders lie too deep in one another") from error
        return Contents(
            files=tuple(found.files),
            linked=tuple(found.linked),
            left_out=found.left_out,
            made=found.made,
        )

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The open file of that name.

        Raises:
            OSError, ValueError: it cannot be read, or is a folder or pipe.
        """
        try:
            return opened(self.root / name)
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


class _Search:
    """The contents of a folder so far."""

    def __init__(self, enter: Collection[str]) -> None:
        self.enter = enter
        self.files: list[str] = []
        self.linked: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.made: dict[str, str] = {}
        self.visited: set[str] = set()  # through links

    def folder(self, folder: str, prefix: str) -> None:
        """Takes the files below a folder; `prefix` begins their names."""
        entries = sorted(_entries(folder), key=lambda entry: natural(entry.name))
        if not entries and prefix:
            self.left_out[EMPTY] += 1
        if prefix and (maker := _maker(prefix, {entry.name for entry in entries})):
            self.made.setdefault(maker, prefix)
            return
        folders = {
            entry.name for entry in entries if not is_hidden(entry.name) and is_folder(entry)
        }
        splits = label_lists.splits_among(folders)
        for entry in entries:
            name = prefix + entry.name
            if is_hidden(entry.name):
                if not cache.is_beside_entries(entry.name):
                    self.left_out[hidden_kind(entry.name)] += 1
            elif entry.name not in folders:
                self.files.append(name)
            elif not entry.is_symlink() or self.may_enter(entry, name, splits):
                self.folder(entry.path, f"{name}/")
            else:
                self.linked.append(name)
                self.left_out[LINKED] += 1

    def may_enter(self, link: os.DirEntry[str], name: str, splits: Collection[str]) -> bool:
        """Whether to enter a linked folder that has `splits` beside it; it is entered once."""
        target = os.path.realpath(link.path)
        above = os.path.realpath(Path(link.path).parent)
        named = any(f"/{name}".endswith(f"/{wanted}") for wanted in self.enter)
        if not (named or link.name in splits):
            return False
        if target in self.visited or f"{above}/".startswith(f"{target}/"):
            return False
        self.visited.add(target)
        return True


def _maker(prefix: str, inside: Collection[str]) -> str | None:
    """Who made the folder of that prefix with these names in it; None if the user did."""
    name = prefix[:-1].rpartition("/")[2]
    if name in STORES:
        return "MLflow"
    if cache.is_entry_name(name) and cache.ENTRY_FILE in inside:
        return "the data cache"
    if name == "xla" and inside and all(map(_PROGRAMS.fullmatch, inside)):
        return "the data cache"
    return next((maker for mark, maker in MADE_BY.items() if mark in inside), None)


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
        raise RequestError(f"{printable(folder)} cannot be opened: {reason}") from error
