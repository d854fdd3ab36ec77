"""A cache of named arrays: each entry is built once and verified before it is used.

An entry is a folder of `.npy` files and an `entry.json`, which holds the entry's own description
and the SHA-256 of everything in it. Once all bytes have been verified, `.checked.json` records the
size, times and inode of each file: as long as these stay, the bytes need not be read again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import mmap
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from pipeline.data.values import BLOCK_BYTES, Array
from pipeline.system.files import file_state, replacing

log = logging.getLogger(__name__)

TICK_S = 0.02
"""Seconds within which two changes of a file may have the same time (a kernel tick is 0.01 s)."""
_CHECKED = ".checked.json"  # not part of the entry: hidden files never are
ENTRY_FILE = "entry.json"
_NAME = re.compile(r"[a-z]+-[0-9a-f]{16}")
_BESIDE = re.compile(rf"\.{_NAME.pattern}(\..+)?")
# Errors that tell of an entry that lacks a file, not of one that cannot be read.
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

# Per file: name, size, modification and change times, inode
EntryStamp = tuple[tuple[str | int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """An array that is written in `parts`, which follow one another along its first dimension."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: Iterable[Array]


Content = tuple[Mapping[str, Array | Stream | Path], Mapping[str, Any]]
"""The arrays of an entry and its description. A path stands for an array's file on the same disk,
which the entry takes over as it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """Read-only memory-mapped arrays and the JSON-able description they were stored with.

    `cached`: whether the entry existed already.
    """

    arrays: Mapping[str, Array]
    meta: Mapping[str, Any]
    cached: bool


class _Damaged(Exception):
    """The content of an entry is not what was written."""


def load_or_build(folder: Path, build: Callable[[], Content], *, verify: bool = False) -> Entry:
    """Loads the entry at `folder`, and builds it first if it is missing or damaged.

    If several processes need it at once, one builds it and the others wait. The content is compared
    with its checksums on first use, after a file has changed, and with `verify`.

    Raises:
        OSError: the entry cannot be written (read-only, full, no permission); names the file.
    """
    try:
        return _load(folder, cached=True, verify=verify)
    except (_Damaged, FileNotFoundError):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        try:
            return _load(folder, cached=True, verify=verify)
        except FileNotFoundError:
            pass
        except _Damaged as damage:
            log.warning("The cache %s is damaged (%s); rebuilding it", folder, damage)
        _remove_leftovers(folder)
        arrays, meta = build()
        with naming(folder), replacing(folder) as part:
            _write(part, arrays, meta)
        _take_over(arrays, folder)
        return _load(folder, cached=False)


def _take_over(arrays: Mapping[str, Array | Stream | Path], folder: Path) -> None:
    """Removes the other names of files that became arrays of an entry.

    If that came after the check of the entry, it would change their times, as new content does.
    """
    for name, array in arrays.items():
        with suppress(OSError):  # another process may have a file of that name by now
            if isinstance(array, Path) and array.samefile(folder / f"{name}.npy"):
                array.unlink()


def load_stored(folder: Path) -> Entry:
    """Loads the entry at `folder`.

    Raises:
        FileNotFoundError: there is none, or it is damaged.
    """
    try:
        return _load(folder, cached=True)
    except _Damaged as damage:
        raise FileNotFoundError(f"{folder} is damaged ({damage})") from damage


def damage(folder: Path) -> str | None:
    """Why the entry at `folder` cannot be trusted; None if every byte matches its checksum.

    Raises:
        FileNotFoundError: there is no entry.
        OSError: it cannot be read: whether it is damaged is not known.
    """
    try:
        _load(folder, cached=True, verify=True)
    except _Damaged as reason:
        cause = reason.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, _ABSENT):
            raise cause from None
        return str(reason)
    return None


def key(**parts: Any) -> str:
    """A short name (16 hex digits) derived from the JSON-able values that determine an entry."""
    return _digest(parts)[:16]


def is_entry_name(name: str) -> bool:
    """Whether a folder is called as entries are: a kind and a `key`."""
    return _NAME.fullmatch(name) is not None


def is_beside_entries(name: str) -> bool:
    """Whether a file or folder is called as the lock of an entry or an unfinished part of it."""
    return _BESIDE.fullmatch(name) is not None


def checksum(array: Array) -> str:
    """SHA-256 (hex) that identifies an array of any shape and dtype.

    It is that of the file if the array is a whole file of an entry, else that of the values.
    """
    file = getattr(array, "filename", None)
    offset = getattr(array, "offset", 0)
    if file is not None and offset + array.nbytes == Path(file).stat().st_size:
        with suppress(OSError, ValueError, KeyError, TypeError, _Damaged):
            return str(_described(Path(file).parent)["sha256"][Path(file).stem])
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    rows = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start : start + rows]).data)
    return digest.hexdigest()


def let_go(array: Array) -> None:
    """Releases the memory of an entry's array, of any shape and dtype, until it is read again."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def read_rows(array: Array, rows: Array, slots: Array, into: Array) -> None:
    """Copies `array[rows[slots]]` to `into[slots]`; reads the file of an array mapped as a whole.

    `array` [N,…] and `into` [m,…] have rows of one shape and any dtype. `rows` i64[n]
    are rows of `array`; `slots` i64[k] index both `rows` and `into`.

    Raises:
        OSError: the file has become shorter.
    """
    if not (isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)):
        into[slots] = array[rows[slots]]
        return
    # Through the mapping, the system would also read much around each row.
    size = into[:1].nbytes
    with Path(str(array.filename)).open("rb", buffering=0) as file:
        for slot in slots.tolist():
            start, room = array.offset + int(rows[slot]) * size, memoryview(into[slot]).cast("B")
            while len(room):
                taken = os.preadv(file.fileno(), [room], start)
                if not taken:
                    raise OSError(f"{array.filename} has become shorter")
                start, room = start + taken, room[taken:]


def _load(folder: Path, *, cached: bool, verify: bool = False) -> Entry:
    try:
        stamp = _stamp(folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error
    if verify or not _is_checked(folder, stamp):
        _check(folder, stamp)
    return _read_once(folder.absolute(), stamp, cached=cached)


def _stamp(folder: Path) -> EntryStamp:
    files = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    return tuple((path.name, *file_state(path)) for path in files)


def _is_checked(folder: Path, stamp: EntryStamp) -> bool:
    try:
        return bool(json.loads((folder / _CHECKED).read_text()) == [list(file) for file in stamp])
    except (OSError, ValueError, RecursionError):
        return False


def _check(folder: Path, stamp: EntryStamp) -> None:
    """Compares every byte of an entry with its checksums, and records that they match."""
    changed = max((int(file[3]) for file in stamp), default=0) / 1e9
    # A file that changes after this check must get a time other than its current one.
    time.sleep(min(TICK_S, max(0.0, changed + TICK_S - time.time())))
    with _damage_of_all_kinds():
        for name, checksum in _described(folder)["sha256"].items():
            with (folder / f"{name}.npy").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                    raise _Damaged(f"{name}.npy was changed")
    with suppress(OSError), replacing(folder / _CHECKED) as path:  # the folder may be read-only
        path.write_text(json.dumps(stamp))


@lru_cache(maxsize=6)  # three for a data set, three for the previous one
def _read_once(folder: Path, stamp: EntryStamp, *, cached: bool) -> Entry:
    with _damage_of_all_kinds():
        entry = _described(folder)
        arrays = {name: _mapped(folder / f"{name}.npy") for name in entry["sha256"]}
        return Entry(arrays=arrays, meta=entry["meta"], cached=cached)


def _described(folder: Path) -> Mapping[str, Any]:
    entry: Mapping[str, Any] = json.loads((folder / ENTRY_FILE).read_text())
    if _digest(entry["meta"]) != entry["meta_sha256"]:
        raise _Damaged("entry.json was changed")
    return entry


@contextmanager
def _damage_of_all_kinds() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error


def _mapped(path: Path) -> Array:
    # A private mapping: TensorFlow reads in place only from memory that is writable.
    array: Array = np.load(path, mmap_mode="c", allow_pickle=False)
    array.flags.writeable = False
    return array


def _write(
    folder: Path, arrays: Mapping[str, Array | Stream | Path], meta: Mapping[str, Any]
) -> None:
    folder.mkdir()
    checksums = {name: _save(folder / f"{name}.npy", array) for name, array in arrays.items()}
    entry = {"meta": meta, "meta_sha256": _digest(meta), "sha256": checksums}
    (folder / ENTRY_FILE).write_text(json.dumps(entry, indent=2))


def write_header(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
    """Writes the first `size` bytes of an array's file, whose other bytes are there already.

    Raises:
        ValueError: the header has another size.
    """
    header = io.BytesIO()
    description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    if header.tell() != size:
        raise ValueError(f"the header of an array {dtype}{shape} has {header.tell()} bytes")
    with path.open("r+b") as file:
        file.write(header.getvalue())


def _save(path: Path, array: Array | Stream | Path) -> str:
    """Writes the same file as `numpy.save`; returns its SHA-256 (hex)."""
    if isinstance(array, Path):
        try:
            path.hardlink_to(array)
        except OSError:  # not every file system has links
            shutil.copyfile(array, path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    parts = [array] if isinstance(array, np.ndarray) else array.parts
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    digest, written = hashlib.sha256(), 0
    with path.open("w+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.seek(0)
        digest.update(file.read())
        for part in parts:
            content = np.ascontiguousarray(part, array.dtype).reshape(-1).view(np.uint8).data
            file.write(content)
            digest.update(content)
            written += len(content)
    if written != np.prod(array.shape, dtype=np.int64) * array.dtype.itemsize:
        raise ValueError(f"{path.name}: {written} bytes do not make {array.dtype}{array.shape}")
    return digest.hexdigest()


def _remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left half-written; the caller holds the lock."""
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(leftover)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the entry's path to errors while writing; the error of a full disk names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        code = error.errno or errno.ENOSPC
        raise OSError(code, error.strerror or f"cannot write ({error})", str(path)) from error
