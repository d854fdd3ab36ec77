"""A cache of named arrays: built once, whoever asks, and never trusted without a look.

An entry is a folder of `.npy` files and an `entry.json`, which holds the entry's own description
and the SHA-256 of everything in it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import mmap
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from pipeline.data.values import Array
from pipeline.system.files import replacing

log = logging.getLogger(__name__)

Content = tuple[Mapping[str, Array], Mapping[str, Any]]


Stamp = tuple[tuple[str, int, int, int], ...]  # name, bytes, time of change and inode of each file


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """Read-only memory-mapped arrays and the JSON-able description they were stored with.

    `cached`: whether the entry was there before it was asked for.
    """

    arrays: Mapping[str, Array]
    meta: Mapping[str, Any]
    cached: bool


class _Damaged(Exception):
    """An entry whose content is not what was written."""


def load_or_build(folder: Path, build: Callable[[], Content]) -> Entry:
    """The entry at `folder`, built first if it is not there or damaged.

    Of several processes that ask at once, one builds and the others wait for it. Who asks again
    while the files are as they were gets the same entry, without another look at the content.

    Raises:
        OSError: the entry cannot be written (read-only, full, no permission); names the file.
    """
    try:
        return _load(folder, cached=True)
    except (_Damaged, FileNotFoundError):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        try:
            return _load(folder, cached=True)
        except FileNotFoundError:
            pass
        except _Damaged as damage:
            log.warning("The cache %s is damaged (%s); building it again", folder, damage)
        arrays, meta = build()
        _remove_leftovers(folder)
        with _naming(folder), replacing(folder) as part:
            _write(part, arrays, meta)
        return _load(folder, cached=False)


def damage(folder: Path) -> str | None:
    """Why the entry at `folder` cannot be trusted; None if all of it is as it was written.

    Raises:
        FileNotFoundError: there is no entry.
    """
    try:
        _read(folder, cached=True)
    except _Damaged as reason:
        return str(reason)
    return None


def key(**parts: Any) -> str:
    """A short name (16 hex digits) for the JSON-able values that determine an entry."""
    return _digest(parts)[:16]


def let_go(array: Array) -> None:
    """Gives back the memory that an entry's array fills, until it is read again."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def _load(folder: Path, *, cached: bool) -> Entry:
    try:
        files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error
    stamp = tuple((name, at.st_size, at.st_mtime_ns, at.st_ino) for name, at in files)
    return _read_once(folder.absolute(), stamp, cached=cached)


@lru_cache(maxsize=4)  # the two of a data set, and those of the one before
def _read_once(folder: Path, stamp: Stamp, *, cached: bool) -> Entry:
    return _read(folder, cached=cached)


def _read(folder: Path, *, cached: bool) -> Entry:
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        entry = json.loads((folder / "entry.json").read_text())
        checksums, meta = entry["sha256"], entry["meta"]
        if _digest(meta) != entry["meta_sha256"]:
            raise _Damaged("entry.json was changed")
        arrays = {name: _array(folder / f"{name}.npy", checksums[name]) for name in checksums}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error
    return Entry(arrays=arrays, meta=meta, cached=cached)


def _array(path: Path, checksum: str) -> Array:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
            raise _Damaged(f"{path.name} was changed")
    # A private mapping: to read from it in place, TensorFlow wants memory that could be written.
    array: Array = np.load(path, mmap_mode="c", allow_pickle=False)
    array.flags.writeable = False
    return array


def _write(folder: Path, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    folder.mkdir()
    checksums = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        np.save(path, array, allow_pickle=False)
        with path.open("rb") as file:
            checksums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    entry = {"meta": meta, "meta_sha256": _digest(meta), "sha256": checksums}
    (folder / "entry.json").write_text(json.dumps(entry, indent=2))


def _remove_leftovers(folder: Path) -> None:
    """What a killed process was writing; whoever holds the lock knows that nobody is now."""
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(leftover)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A full disk names no file, and numpy's complaint about it not even the reason."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        code = error.errno or errno.ENOSPC
        raise OSError(code, error.strerror or f"cannot write ({error})", str(path)) from error
