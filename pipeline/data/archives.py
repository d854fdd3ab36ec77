"""Reads files in zip and tar archives where they are.

Only compressed tar archives, once, and arrays are unpacked, to unnamed temporary files.

Archives are not trusted: what they declare is checked before memory is taken for it, and an archive
with a member outside itself is refused as a whole.
"""

from __future__ import annotations

import bz2
import difflib
import gzip
import io
import lzma
import math
import os
import re
import stat
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO, TypeVar, cast

import numpy as np

from pipeline.data.files import in_natural_order, is_hidden
from pipeline.data.places import (
    EMPTY,
    NO_FILE,
    Contents,
    Folder,
    Place,
    Stamp,
    hidden_kind,
    in_63_bits,
)
from pipeline.data.values import Array
from pipeline.system.errors import RequestError, one_line
from pipeline.system.files import file_state, user_path
from pipeline.system.terminal import as_line, printable

LARGEST = 2**30
"""Most bytes of one member."""
EXPANSION = 100
"""How many times its own size an archive may unpack to, if that is more than LARGEST."""
MOST_MEMBERS = 5_000_000
_ENDINGS = (".zip", ".tar", ".gz", ".tgz", ".xz", ".txz", ".bz2", ".tbz", ".tbz2")
LINK, SPECIAL, REPEATED = "link", "device or pipe", "repeated member"  # as counted

_HEADER_BYTES = 2**20  # most bytes of one header of a tar archive
_CHUNK = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags of a member
_PACKED: Mapping[bytes, Callable[[Path], io.BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}
_ZIP = (b"PK\3\4", b"PK\5\6")  # how a zip archive begins
_ARRAY = b"\x93NUMPY"  # how a `.npy` file begins
_OTHER_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
Member = TypeVar("Member")


class _Refused(Exception):
    """Raised for an archive that is not to be read; says what is wrong and what to do."""


def place_at(root: Path) -> Place | None:
    """Opens a folder or archive; None if it is neither, or cannot be read any more."""
    if root.is_dir():
        return Folder(root)
    try:
        return archive_at(root)
    except (OSError, RequestError):
        return None


def archive_at(path: Path) -> Place | None:
    """The archive in a file, recognised by its content; None if it is none.

    The archive opened last is kept, and read again only if its file has changed.

    Raises:
        RequestError: it is damaged, encrypted or hostile.
        OSError: it cannot be opened.
    """
    return _archive_at(path, file_state(path))


def is_in_archive(text: str) -> bool:
    """Whether a path names an archive that can be opened, or what may be in one.

    Raises:
        RequestError: the archive is damaged, encrypted or hostile.
    """
    path = user_path(text)
    for place in (path, *path.parents):
        with suppress(OSError):
            if place.is_file() and archive_at(place):
                return True
    return False


@lru_cache(maxsize=1)
def _archive_at(path: Path, state: tuple[int, ...]) -> Place | None:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_ZIP):
        with _refusing(path):
            return _zip(path)
    empty = len(start) == tarfile.BLOCKSIZE and not start.strip(b"\0")
    if start.startswith(tuple(_PACKED)) or start[257:262] == b"ustar" or empty:
        with _refusing(path):
            return _tar(path)
    if path.suffix.lower() in _ENDINGS:
        raise RequestError(
            f"{path}: the file is empty or damaged: it does not begin as an archive does; make it "
            "or fetch it again"
        )
    return None


def arrays_at(text: str, key: str) -> Zip:
    """The `.npz` file of that name, which is a zip archive.

    Raises:
        RequestError: it does not exist, is another file or damaged; names `key` or the file.
    """
    path = user_path(text)
    if not path.is_file():
        place, below = located(text, key)
        if below:
            raise RequestError(f"{key}={text} lies in the archive {place.root}; unpack it first")
        raise RequestError(f"{key}={text} is a folder; name a file that numpy.savez wrote")
    with _refusing(path):
        with path.open("rb") as file:
            start = file.read(max(map(len, (*_ZIP, _ARRAY))))
        if not start.startswith(_ZIP):
            what = "a single array" if start.startswith(_ARRAY) else "no file of numpy.savez"
            raise _Refused(
                f"this is {what}; save images and labels together, "
                "numpy.savez('data.npz', x_train=…, y_train=…, x_test=…, y_test=…)"
            )
        return _zip(path)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turns any error while reading an archive into a RequestError that names it."""
    try:
        yield
    except _Refused as error:
        raise RequestError(f"{path}: {error}") from error
    except Exception as error:  # the modules raise anything for a damaged archive
        reason = one_line(error)
        raise RequestError(
            f"{path}: the archive is damaged or cut off ({reason}); make it or fetch it again"
        ) from error


def located(
    text: str, key: str, *, refused: Callable[[Path], str | None] = lambda _: None
) -> tuple[Place, str]:
    """Finds the folder or archive that a path of the configuration leads into, and the rest of it.

    The rest is "" for the whole place, `dataset/` for a folder in an archive, `labels.csv` for a
    file.
    `refused` says why a file of that name is not to be opened.

    Raises:
        RequestError: nothing lies there, or it cannot be opened; the message begins with `key`.
    """
    path = user_path(text)
    if not text.strip():
        raise RequestError(f"{key} is empty; name a folder, an archive or a file")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise RequestError(f"{key}={text} is an address; download it first")
    try:
        if path.is_dir():
            return Folder(path), ""
        if path.is_file():
            if why := refused(path):
                raise RequestError(f"{key}={text} {why}")
            archive = archive_at(path)
            return (archive, "") if archive else (Folder(path.parent), path.name)
        if path.exists():
            raise RequestError(f"{key}={text} is neither a folder nor a file")
        for above in path.parents:
            if above.is_file() and (archive := archive_at(above)):
                return archive, _below(archive, path.relative_to(above).as_posix(), key)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{key}={text} cannot be opened: {reason}") from error
    raise RequestError(f"{key}={text}: no such file or folder{_similar(path)}")


def _similar(path: Path) -> str:
    try:
        names = os.listdir(path.parent)  # noqa: PTH208 (names, not paths)
    except OSError:
        return f"; there is no folder {printable(path.parent)} either"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {printable(path.parent / near[0])}?" if near else ""


def _below(archive: Place, name: str, key: str) -> str:
    files = archive.contents().files
    if name in files:
        return name
    if any(file.startswith(f"{name}/") for file in files):
        return f"{name}/"
    raise RequestError(f"{key}={archive.root / name}: {archive.root.name} has no {as_line(name)}")


@dataclass(frozen=True, eq=False)
class Zip:
    """A zip archive."""

    root: Path
    archive: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]
    found: Contents
    absolute: tuple[str, ...] = ()

    def contents(self, enter: Collection[str] = ()) -> Contents:
        """Lists all files."""
        return self.found

    def array(self, name: str) -> Array:
        """The array in a member, as `numpy.save` writes it, of any shape and dtype.

        It is mapped from a file without a name, to which the member is unpacked.

        Raises:
            RequestError: it is damaged, not an array, or holds Python objects.
        """
        try:
            with self.archive.open(_member(self.members, name)) as member:
                unpacked = _Unpacked(member)
                size = unpacked.seek(sys.maxsize)
            unpacked.end()
            unpacked.file.seek(0)
            return _mapped(unpacked.file, size)
        except _Refused as error:
            raise RequestError(f"{self.root}: {error}") from error
        except Exception as error:  # each method of compression raises its own
            reason = str(error) if isinstance(error, ValueError) else one_line(error)
            raise RequestError(
                f"{self.root}: {as_line(name)}: {reason}; save it again with numpy.savez"
            ) from error

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """The unpacked file, in memory; its CRC has been checked."""
        info = _member(self.members, name)
        _check_size(info.file_size)
        try:
            content = self.archive.read(info)
        except Exception as error:  # each method of compression raises its own
            raise ValueError(f"is damaged in its archive ({one_line(error)})") from error
        yield io.BytesIO(content)

    def stamps(self, names: Sequence[str]) -> Iterator[Stamp]:
        """Size and CRC of each file; adding other files to the archive does not change them."""
        for name in names:
            info = self.members.get(name)
            yield (info.file_size, info.CRC, 0, 0) if info else NO_FILE

    def order(self, names: Sequence[str]) -> Array:
        """The indices i64[n] of the files in the order of the archive."""
        return np.argsort([self.members[name].header_offset for name in names], kind="stable")


def _mapped(file: IO[bytes], size: int) -> Array:
    """The array in a file of `size` bytes, checked before it is mapped."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError(
            "holds Python objects, which are never loaded; make texts by y.astype(str), one array "
            "of images by np.stack(x)"
        )
    start, count = file.tell(), math.prod(shape)
    if start + count * dtype.itemsize != size:
        raise ValueError(
            f"its header declares {dtype}{list(shape)}, but it has another number of bytes"
        )
    if count == 0:
        raise ValueError("is empty")
    return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")


def _zip(path: Path) -> Zip:
    declared = _check_directory(path)
    archive = zipfile.ZipFile(path)
    if len(archive.infolist()) % 2**16 != declared:
        raise _Refused(
            f"the archive is damaged: it declares {declared:,} members, but has "
            f"{len(archive.infolist()):,}; make it or fetch it again"
        )
    left_out: Counter[str] = Counter()
    members: dict[str, zipfile.ZipInfo] = {}
    folders = []
    for info in archive.infolist():
        name = _inside(_name(info))
        kind = stat.S_IFMT(info.external_attr >> 16)
        if _name(info).endswith("/"):
            folders.append(name)
        elif kind not in (0, stat.S_IFREG):
            left_out[LINK if kind == stat.S_IFLNK else SPECIAL] += 1
        else:
            _check_readable(info, name)
            left_out[REPEATED] += name in members
            members[name] = info
    total = sum(info.file_size for info in members.values())
    _check_total(total, path)
    return Zip(path, archive, members, _contents(members, folders, left_out))


def _name(info: zipfile.ZipInfo) -> str:
    """The name of a member; old programs mark UTF-8 as something else, or write backslashes."""
    name = info.filename
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _check_readable(info: zipfile.ZipInfo, name: str) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise _Refused(f"{as_line(name)} is encrypted; unpack it yourself, and name the folder")
    if info.compress_type not in _METHODS:
        method = _OTHER_METHODS.get(info.compress_type, f"number {info.compress_type}")
        raise _Refused(
            f"{as_line(name)} is compressed by a method that cannot be read ({method}); "
            "unpack it yourself, and name the folder"
        )


def _check_directory(path: Path) -> int:
    """Counts the members in the directory of a zip archive before zipfile makes objects of them.

    Returns the number that the archive declares, modulo 2¹⁶.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - 22 - 2**16)
        file.seek(start)
        tail = file.read()
        at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" else tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) - at < 22:
            raise _Refused("the zip archive is cut off: it has no directory; fetch it again")
        declared, length = struct.unpack_from("<HI", tail, at + 10)
        if at >= 76 and tail[at - 20 : at - 16] == b"PK\6\7":  # zip64 records stand before
            declared, length = struct.unpack_from("<QQ", tail, at - 76 + 32)
        file.seek(max(0, start + at - length - 76))
        left, count = min(length + 76, size), 0
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            count += chunk.count(b"PK\1\2")
            left -= len(chunk)
    _check_count(count)
    return int(declared) % 2**16


class _Unpacked:
    """A compressed archive or member as a stream that is unpacked to an unnamed file.

    An archive is unpacked once; then several threads can read its members in any order. The file is
    gone when the process ends.
    """

    def __init__(self, packed: io.BufferedIOBase | IO[bytes]) -> None:
        self.packed = packed
        self.file = tempfile.TemporaryFile(dir=_large_temporary())  # noqa: SIM115 (it stays open)
        self.place = 0

    def read(self, size: int) -> bytes:
        """The next bytes of the content."""
        chunk = self.packed.read(size)
        with _writing():
            self.file.write(chunk)
        self.place += len(chunk)
        return chunk

    def seek(self, place: int) -> int:
        """Goes forward, up to the end of the content.

        Raises:
            ValueError: that place has been passed.
        """
        if place < self.place:
            raise ValueError("a header leads back")
        while self.place < place and self.read(min(_CHUNK, place - self.place)):
            pass
        return self.place

    def tell(self) -> int:
        """The position of the next byte."""
        return self.place

    def end(self) -> None:
        """Ends the unpacking; from now on any part can be read."""
        with _writing():
            self.file.flush()

    def part(self, start: int, size: int) -> bytes:
        """Bytes at a position in the content."""
        return os.pread(self.file.fileno(), size, start)

    def __del__(self) -> None:
        with suppress(OSError):
            self.file.close()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Refused(
            f"it cannot be unpacked to {_large_temporary()} ({error.strerror}); set TMPDIR to a "
            "folder with more space"
        ) from error


def _large_temporary() -> str:
    """The folder for large temporary files, which is on disk: /tmp may be in memory."""
    named = any(map(os.environ.get, ("TMPDIR", "TEMP", "TMP")))
    usable = not named and os.access("/var/tmp", os.W_OK)
    return "/var/tmp" if usable else tempfile.gettempdir()


@dataclass(frozen=True, eq=False)
class _Tar:
    root: Path
    members: Mapping[str, tuple[int, int, int]]  # place and size of the content, time
    found: Contents
    unpacked: _Unpacked | None  # None if the archive is not compressed
    absolute: tuple[str, ...] = ()

    def contents(self, enter: Collection[str] = ()) -> Contents:
        return self.found

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """The file, in memory."""
        start, size, _ = _member(self.members, name)
        _check_size(size)
        try:
            content = self._read(start, size)
        except Exception as error:  # each method of compression raises its own
            raise ValueError(f"is damaged in its archive ({one_line(error)})") from error
        if len(content) != size:
            raise ValueError("is cut off: its archive ends before")
        yield io.BytesIO(content)

    def _read(self, start: int, size: int) -> bytes:
        if self.unpacked is not None:
            return self.unpacked.part(start, size)
        with self.root.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def stamps(self, names: Sequence[str]) -> Iterator[Stamp]:
        """Size and time of each file, times and inode of the archive: tar has no checksums."""
        at = self.root.stat()
        # Their sum, since writing sets both to the same time.
        times, inode = in_63_bits(at.st_mtime_ns + at.st_ctime_ns), in_63_bits(at.st_ino)
        for name in names:
            if name in self.members:
                _, size, time = self.members[name]
                yield size, time, times, inode
            else:
                yield NO_FILE

    def order(self, names: Sequence[str]) -> Array:
        return np.argsort([self.members[name][0] for name in names], kind="stable")


def _tar(path: Path) -> _Tar:
    """Reads the headers of a tar archive; a compressed one is unpacked meanwhile."""
    left_out: Counter[str] = Counter()
    members: dict[str, tuple[int, int, int]] = {}
    folders = []
    unpack = _unpacker(path)
    with unpack(path) if unpack else path.open("rb") as file:
        unpacked = _Unpacked(file) if unpack else None
        stream = _Bounded(unpacked or file, path)
        with tarfile.TarFile(fileobj=cast(BinaryIO, stream)) as archive:
            for info in _infos(archive):
                name = _inside(info.name)
                content = (info.offset_data, info.size, in_63_bits(int(info.mtime)))
                if info.islnk():  # another name of a member before it
                    content = members.get(_inside(info.linkname), (-1, -1, -1))
                if info.isdir():
                    folders.append(name)
                elif (info.isreg() and not info.issparse()) or (info.islnk() and content[0] >= 0):
                    left_out[REPEATED] += name in members
                    members[name] = content
                else:
                    left_out[LINK if info.islnk() or info.issym() else SPECIAL] += 1
        stream.check_end()
        if unpacked:
            unpacked.end()
    return _Tar(path, members, _contents(members, folders, left_out), unpacked)


def _infos(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    count = 0
    while (info := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        _check_count(count := count + 1)
        if not 0 <= info.size < 2**62:
            raise _Refused(
                f"{as_line(info.name)} has the size {info.size}; fetch the archive again"
            )
        yield info


def _unpacker(path: Path) -> Callable[[Path], io.BufferedIOBase] | None:
    with path.open("rb") as file:
        start = file.read(6)
    return next((unpack for magic, unpack in _PACKED.items() if start.startswith(magic)), None)


class _Bounded:
    """A stream from which tarfile reads headers; bounds the size of each and of all content."""

    def __init__(self, stream: io.BufferedIOBase | _Unpacked, path: Path) -> None:
        self.stream = stream
        self.path = path
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise _Refused(f"the archive is damaged: a header of {size:,} bytes; fetch it again")
        self.last = self.stream.read(size)
        return self.last

    def seek(self, place: int) -> int:
        _check_total(place, self.path)
        return self.stream.seek(place)

    def tell(self) -> int:
        return self.stream.tell()

    def check_end(self) -> None:
        """Checks that the headers ended as an archive does, since tarfile also stops at damage.

        Reading to the end also checks the checksum of a compressed archive.
        """
        if len(self.last) < tarfile.BLOCKSIZE:
            raise _Refused("the archive is cut off: its end is missing; make it or fetch it again")
        where = self.tell() - tarfile.BLOCKSIZE
        while not self.last.strip(b"\0"):
            _check_total(self.tell(), self.path)
            if not (chunk := self.stream.read(_CHUNK)):
                return
            self.last = chunk
        raise _Refused(
            f"the archive is damaged, or several follow one another, at byte {where:,}; make it or "
            "fetch it again"
        )


def _inside(name: str) -> str:
    """The name of a member as a path relative to the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    drive = bool(parts) and re.fullmatch("[A-Za-z]:", parts[0])
    if name.startswith("/") or ".." in parts or drive:
        raise _Refused(
            f"its member {as_line(name)} lies outside the archive, as in none that was made from "
            "inside a folder; if you trust it, unpack it yourself, and name the folder"
        )
    return "/".join(parts)


def _contents(members: Iterable[str], folders: Sequence[str], left_out: Counter[str]) -> Contents:
    """The files of an archive in natural order, without hidden ones, which are counted."""
    hidden: dict[str, str] = {}
    above: set[str] = {""}  # folders that hold anything

    def is_visible(path: str) -> bool:
        parts = path.split("/")
        for count, part in enumerate(parts, 1):
            if is_hidden(part):
                hidden["/".join(parts[:count])] = hidden_kind(part)
                return False
        return True

    for path in (*members, *folders):
        while (path := path.rpartition("/")[0]) not in above:
            above.add(path)
    files = in_natural_order(filter(is_visible, members))
    left_out[EMPTY] += len({one for one in folders if one not in above and is_visible(one)})
    left_out.update(hidden.values())
    return Contents(files=tuple(files), left_out=+left_out)


def _member(members: Mapping[str, Member], name: str) -> Member:
    if name not in members:
        raise ValueError("is not in the archive")
    return members[name]


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"has {size:,} bytes; a picture has {LARGEST:,} at most")


def _check_count(count: int) -> None:
    if count > MOST_MEMBERS:
        raise _Refused(
            f"it has more than {MOST_MEMBERS:,} members; if you trust it, unpack it yourself, and "
            "name the folder"
        )


def _check_total(size: int, path: Path) -> None:
    if size > max(LARGEST, EXPANSION * path.stat().st_size):
        raise _Refused(
            f"it unpacks to {size:,} bytes or more, over {EXPANSION} times its size, as archives "
            "of pictures do not; if you trust it, unpack it yourself, and name the folder"
        )
