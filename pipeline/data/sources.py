"""Finds the four IDX files of a data set: takes the first source with the pinned content.

Every source yields a folder on this machine, so one function reads and verifies them all. IDX is
the format of MNIST and its descendants: a big-endian header, then plain values (Y. LeCun,
C. Cortes, C. Burges, "The MNIST database of handwritten digits", file formats).
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import os
import queue
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, BinaryIO, cast

import lazy_loader as lazy
import numpy as np

from pipeline.data.values import Array
from pipeline.system.errors import RequestError
from pipeline.system.files import replacing, user_path
from pipeline.system.terminal import on_terminal, printable

if TYPE_CHECKING:
    import requests
    from rich import console, progress
else:  # the check of a configuration imports this module; these would double its time
    requests = lazy.load("requests")
    console = lazy.load("rich.console", suppress_warning=True)
    progress = lazy.load("rich.progress", suppress_warning=True)

log = logging.getLogger(__name__)

FIRST_ANSWER_S = 4.0
"""Seconds in which a mirror must answer: name look-up, all its addresses, TLS, headers."""
STALL_S = 20.0
"""Seconds for which a download may stall."""
PACKAGE_S = 300.0
"""Seconds that each step of apt-get may take."""
_DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}  # by the third byte
_DIMENSIONS = range(1, 5)
_LARGEST = 2**30  # bytes; far above any data set in this format
_CHUNK = 2**20  # bytes
# A gzip file may unpack to so many times its size (images: about ten), and always to _ALWAYS bytes.
_RATIO, _ALWAYS = 100, 2**26


@dataclass(frozen=True, kw_only=True)
class IdxDataset:
    """Four IDX files and the places that publish them.

    `checksums`: SHA-256 (hex) of each file's decompressed bytes by its name without `.gz`: train
    images, train labels, test images, test labels, in this order. Compressed bytes differ between
    sources, because packagers compress the files again.
    """

    checksums: Mapping[str, str]
    mirrors: tuple[str, ...]
    system_folder: Path | None = None
    debian_package: str | None = None


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """Verified arrays u8[N,H,W] or u8[N] by file name, and the source they came from."""

    arrays: Mapping[str, Array]
    source: str


class Unavailable(Exception):
    """A source cannot be used; the message is a short reason."""


class DamagedFile(RequestError):
    """A data file is damaged or not the published one; `reason` says how, without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{printable(path)}: {reason}; replace it with an intact copy")
        self.reason = f"{printable(path.name)}: {reason}"


OpenSource = Callable[[], AbstractContextManager[Path]]


def retrieve(dataset: IdxDataset, *, folder: str | None, download: bool) -> Retrieved:
    """Reads the files from `folder` if it is given, else from the first source that has them.

    The sources, in order: the system's copy, the mirrors, the Debian package; the last two only if
    `download` is allowed.

    Raises:
        RequestError: `folder` lacks a file or holds a damaged one, or no source works; the message
            gives the reason for each.
    """
    if folder is not None:
        return _from_named_folder(dataset, user_path(folder))
    reasons = []
    for name, source in _candidates(dataset, download=download):
        try:
            with source() as place:
                return Retrieved(arrays=_read(dataset, place), source=name)
        except (Unavailable, OSError) as error:
            reason = str(error)
            log.info("%s: %s; trying the next source", name, reason)
        except DamagedFile as error:
            reason = error.reason
            log.warning("skipping %s: %s", name, reason)
        reasons.append(f"{name}: {reason}")
    raise RequestError(_no_source(dataset, reasons))


def _no_source(dataset: IdxDataset, reasons: list[str]) -> str:
    return (
        f"No source has the data set ({'; '.join(reasons) or 'dataset.download=false'}).\n"
        f"Name a folder that holds {', '.join(dataset.checksums)} (.gz or not): dataset.folder=…"
    )


def require_source(dataset: IdxDataset, folder: str | None, *, download: bool) -> None:
    """Checks that `retrieve` may find the files; reads none of them, and asks no mirror.

    Raises:
        RequestError: `folder` lacks one, or nothing may be downloaded and the system has no copy.
    """
    if folder is None and download:
        return
    place = dataset.system_folder if folder is None else user_path(folder)
    if place is None:
        raise RequestError(_no_source(dataset, []))
    try:
        for name in dataset.checksums:
            _existing(place, name)
    except Unavailable as error:
        if folder is not None:
            raise _of_named_folder(dataset, place, error) from error
        raise RequestError(_no_source(dataset, [f"{place}: {error}"])) from error


def _from_named_folder(dataset: IdxDataset, folder: Path) -> Retrieved:
    try:
        return Retrieved(arrays=_read(dataset, folder), source=str(folder))
    except Unavailable as error:
        raise _of_named_folder(dataset, folder, error) from error


def _of_named_folder(dataset: IdxDataset, folder: Path, error: Unavailable) -> RequestError:
    names = ", ".join(dataset.checksums)
    return RequestError(f"dataset.folder={folder}: {error}; it must hold {names} (.gz)")


def _candidates(dataset: IdxDataset, *, download: bool) -> Iterator[tuple[str, OpenSource]]:
    system = dataset.system_folder
    if system is not None:
        yield str(system), lambda: nullcontext(system)
    if not download:
        return
    for address in dataset.mirrors:
        yield address, partial(_mirror, address, tuple(dataset.checksums))
    package = dataset.debian_package
    if package is not None and system is not None:
        yield f"Debian package {package}", partial(_package, package, system)


def _read(dataset: IdxDataset, folder: Path) -> dict[str, Array]:
    paths = {name: _existing(folder, name) for name in dataset.checksums}
    return {name: _verified(path, dataset.checksums[name]) for name, path in paths.items()}


def _existing(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise Unavailable("no such folder")
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise Unavailable(f"{name}.gz is missing")


def _verified(path: Path, checksum: str) -> Array:
    content = decompressed(path)
    actual = hashlib.sha256(content).hexdigest()
    if actual != checksum:
        rule = f"SHA-256 {actual[:12]}… instead of {checksum[:12]}…, decompressed"
        raise DamagedFile(path, f"not the published file ({rule})")
    return decoded(content)


@contextmanager
def _mirror(address: str, names: tuple[str, ...]) -> Iterator[Path]:
    with TemporaryDirectory(prefix="mirror-") as scratch, requests.Session() as session:
        for name in names:
            _fetch(session, f"{address}{name}.gz", Path(scratch, f"{name}.gz"))
        yield Path(scratch)


@contextmanager
def downloaded(address: str, checksum: str) -> Iterator[Path]:
    """Downloads a file to a temporary folder; `checksum` is its SHA-256 (hex).

    Raises:
        RequestError: the address cannot be reached, or has another file.
    """
    name = address.rpartition("/")[2]
    mend = f"fetch it yourself, and type dataset.path=<folder>/{name}"
    with TemporaryDirectory(prefix="download-") as scratch, requests.Session() as session:
        path = Path(scratch, name)
        try:
            _fetch(session, address, path)
        except Unavailable as error:
            raise RequestError(f"{address}: {error}; {mend}") from error
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != checksum:
            told = f"SHA-256 {actual[:12]}… instead of {checksum[:12]}…"
            raise RequestError(f"{address} is not the published file ({told}); {mend}")
        yield path


def _fetch(session: requests.Session, address: str, path: Path) -> None:
    try:
        _download(session, address, path)
    except requests.HTTPError as error:
        raise Unavailable(f"HTTP {error.response.status_code} for {path.name}") from error
    except requests.Timeout as error:
        raise Unavailable("no answer in time") from error
    except requests.RequestException as error:
        raise Unavailable(f"cannot be reached ({type(error).__name__})") from error


def _download(session: requests.Session, url: str, path: Path) -> None:
    with _answer(session, url) as response, replacing(path) as part, _bar() as bar:
        response.raise_for_status()
        size = response.headers.get("Content-Length")
        task = bar.add_task(path.name, total=int(size) if size else None)
        with part.open("wb") as file:
            for chunk in response.iter_content(2**16):
                file.write(chunk)
                bar.advance(task, len(chunk))


def _answer(session: requests.Session, url: str) -> requests.Response:
    """The response with its headers, within FIRST_ANSWER_S seconds in total.

    The timeout of requests applies to each address of a host, of which there can be a dozen, and
    not to the name look-up: behind a firewall that drops packets it would wait for minutes.
    """
    answers: queue.SimpleQueue[requests.Response | requests.RequestException] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(session.get(url, stream=True, timeout=(FIRST_ANSWER_S, STALL_S)))
        except requests.RequestException as error:
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=FIRST_ANSWER_S)
    except queue.Empty:
        raise requests.ConnectTimeout(f"no answer in {FIRST_ANSWER_S:g} s") from None
    if isinstance(answer, requests.RequestException):
        raise answer
    return answer


@contextmanager
def _package(package: str, folder: Path) -> Iterator[Path]:
    """Fetches and unpacks a Debian package; works without root by using its own lists and cache."""
    with TemporaryDirectory(prefix="package-") as scratch, _bar() as bar:
        bar.add_task(f"apt-get download {package}", total=None)
        lists, archives = Path(scratch, "lists"), Path(scratch, "cache")
        for folder_of_apt in (lists / "partial", archives / "archives/partial"):
            folder_of_apt.mkdir(parents=True)
        apt = ["apt-get", "-qq", "-o", f"Dir::State::lists={lists}"]
        apt += ["-o", f"Dir::Cache={archives}", "-o", "Acquire::Languages=none"]
        apt += ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=5"]
        # When run as root, apt downloads as user _apt, who may not enter the temporary folder.
        apt += ["-o", "APT::Sandbox::User=root"]
        _call([*apt, "update"], scratch)
        _call([*apt, "download", package], scratch)
        [archive] = Path(scratch).glob("*.deb")
        _call(["dpkg-deb", "-x", str(archive), "unpacked"], scratch)
        yield Path(scratch, "unpacked", folder.relative_to("/"))


def _call(command: list[str], folder: str) -> None:
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed")
    env = {**os.environ, "LC_ALL": "C"}
    try:
        subprocess.run(
            command, cwd=folder, env=env, check=True, capture_output=True, timeout=PACKAGE_S
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took longer than {PACKAGE_S:g} s") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise Unavailable(f"{command[0]} failed: {said[-1]}") from error


def _bar() -> progress.Progress:
    terminal = console.Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
    )
    return progress.Progress(
        *columns, console=terminal, disable=not on_terminal(terminal), transient=True
    )


def decompressed(path: Path, opened: BinaryIO | None = None) -> bytes:
    """Reads a whole IDX file, gzipped or not, header included; `opened` if it lies in an archive.

    The header is checked before the body is read, and no more bytes are read than it declares, so
    neither a false header nor a gzip bomb can exhaust the memory. A header that declares far more
    bytes than a compressed file of this size can hold is refused at once.

    Raises:
        DamagedFile: not gzip or IDX, truncated, or longer than its header says.
        OSError: the file cannot be read.
    """
    try:
        with nullcontext(opened) if opened else path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            size = file.seek(0, os.SEEK_END) if packed else 0
            file.seek(0)
            if not packed:
                return _whole(file)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file))
            return _whole(stream, most=max(_ALWAYS, _RATIO * size))
    except EOFError as error:
        raise DamagedFile(path, "its gzip data is truncated") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DamagedFile(path, f"its gzip data is damaged ({error})") from error
    except ValueError as error:
        raise DamagedFile(path, str(error)) from error


def decoded(content: bytes) -> Array:
    """The values of an IDX file, a read-only view: images u8[N,H,W], labels u8[N], or as declared.

    Raises:
        ValueError: the header is wrong or does not match the number of bytes.
    """
    header = _header(content)
    _check_length(content, header)
    values = np.frombuffer(content, header.dtype, offset=header.length)
    return values.reshape(header.shape)


def _whole(stream: BinaryIO, *, most: int = _LARGEST) -> bytes:
    content = bytearray(stream.read(_CHUNK))
    header = _header(content)
    if header.declared > most:
        raise ValueError(
            f"its IDX header declares {header.declared:,} bytes, more than {_RATIO} times the file"
        )
    # Reading to the end, even after the last expected byte, makes gzip check its CRC.
    while len(content) <= header.length + header.declared and (part := stream.read(_CHUNK)):
        content += part
    _check_length(content, header)
    return bytes(content)


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What an IDX file declares: the `dtype` of its values and their `shape`."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """Bytes of the header."""
        return 4 + 4 * len(self.shape)

    @property
    def declared(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


def _header(content: bytes | bytearray) -> _Header:
    start = bytes(content[:4])
    if (
        len(start) < 4
        or start[:2] != b"\0\0"
        or start[2] not in _DTYPES
        or start[3] not in _DIMENSIONS
    ):
        raise ValueError(f"not an IDX file (it starts with 0x{start.hex()})")
    dimensions = start[3]
    if len(content) < 4 + 4 * dimensions:
        raise ValueError(f"its IDX header is truncated after {len(content)} bytes")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    header = _Header(dtype=np.dtype(_DTYPES[start[2]]), shape=shape)
    if not 0 < header.declared <= _LARGEST:
        raise ValueError(f"its IDX header gives impossible dimensions {list(shape)}")
    return header


def _check_length(content: bytes | bytearray, header: _Header) -> None:
    expected = header.length + header.declared
    if len(content) < expected:
        raise ValueError(f"truncated: {len(content)} bytes, but its header declares {expected}")
    if len(content) > expected:
        raise ValueError(f"too long: more than the {expected} bytes that its header declares")
