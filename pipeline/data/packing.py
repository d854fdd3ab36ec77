"""Packs picture files into one array u8[N,H,W,C]; each is decoded once, on all cores.

A packed copy is an entry of the cache, keyed by the files (size, times, inode) and the settings
that decide its pixels. While it is made, rows are appended to an array in a working folder, and a
journal records the file of each row. So nothing is decoded again after a kill, nor any file that an
earlier copy holds unchanged. Files that could not be read are tried again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import compress, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from PIL import Image

from pipeline.data import cache
from pipeline.data.listing import Listing
from pipeline.data.pictures import fitted, is_grey, open_picture, recognised, upright_size
from pipeline.data.reading import CHUNK, THREADS, reading_of, reason_of, remarks_logged
from pipeline.data.values import Array, Shape, Texts, images_per_block
from pipeline.system.errors import PipelineError, RequestError
from pipeline.system.files import remove, replacing
from pipeline.system.terminal import native_messages_to, plain_console, printable, progress_bar

log = logging.getLogger(__name__)

DECODING = 2  # increased when the same file and settings give other pixels than before
_SAMPLE = 500  # pictures whose sizes decide that of the images if none is set
_SIDES = (96, 64, 48, 32, 24, 16, 8)  # the sizes to choose from
HASHED = 32  # side of the grey picture behind a perceptual hash
CHUNK_BYTES = 2**22  # of images that a thread decodes before they are written
_LARGE = 500_000  # bytes of a file that takes long to decode
_AT_ONCE = 2**25  # bytes; a larger file is read twice, for its checksum and to decode it
_HEADER = 128  # bytes before the rows of an array's file
# Errors of the system that are due to the file: packing goes on without it.
_LASTING = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    errno.ENXIO,
)

FileStamp = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The settings that decide the pixels of a packed copy.

    `size` is height and width; None chooses them by the pictures. `channels` is 1 or 3; None is 1
    if every picture is grey, else 3. `fit` is one of `pictures.FITS`.
    """

    size: tuple[int, int] | None
    channels: int | None
    fit: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A packed copy, one entry per row: `images` u8[N,H,W,C] and what is known of each picture.

    The rows are in the order of the listing. `hashes` u64[N] are perceptual hashes of the images.
    `unreadable` are files with their states and the reasons. `content` is the SHA-256 (hex) of all
    names and pixels, `folder` where the entry is.
    """

    images: Array
    files: Texts
    stamps: Array
    sha256: Array
    digests: Array
    hashes: Array
    sizes: Array
    modes: Sequence[str]
    greys: Array
    unreadable: Mapping[str, tuple[FileStamp, str]]
    content: str
    folder: Path


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The files to pack and the settings to pack them with.

    The state of each file is read once and kept.
    """

    listing: Listing
    packing: Packing

    @cached_property
    def stamps(self) -> Array:
        """The state of each file, i64[n,4], as `Listing.stamps` returns it."""
        return self.listing.stamps()

    @cached_property
    def content(self) -> str:
        """SHA-256 (hex) of the names and states of the files."""
        digest = hashlib.sha256()
        digest.update("\0".join(self.listing.files).encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self.stamps).data)
        return digest.hexdigest()

    @cached_property
    def root(self) -> str:
        """The absolute path of the files' folder or archive."""
        return str(self.listing.root.resolve())

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that, besides the files, decide the pixels."""
        size = self.packing.size
        return {
            "root": os.fsencode(self.root).hex(),
            "size": None if size is None else list(size),
            "channels": self.packing.channels,
            "fit": self.packing.fit,
            "decoding": DECODING,
        }

    @property
    def name(self) -> str:
        """The name of the packed copy in the cache."""
        return self.name_with()

    def name_with(self, **more: Any) -> str:
        """The name of a copy that `more` JSON-able values determine, too."""
        return f"pixels-{cache.key(files=self.content, **self.settings, **more)}"

    def workplace(self, folder: Path) -> Path:
        """The working folder, which is the same for all states of the files."""
        return folder / f".packing-{cache.key(**self.settings)}"


def pack(files: Selection, folder: Path, *, verify: bool = False) -> Packed:
    """Returns the packed copy of these files from the cache in `folder`, or makes it.

    With `verify`, every byte of it is compared with its checksum. Files that could not be read are
    tried again: a permission or a decoder may have been missing. If some can be read now, another
    copy is made with them, since recorded runs know the pictures of the first by their rows.

    Raises:
        RequestError: none of the files can be read.
        PipelineError: the disk or the network failed while reading a file.
        OSError: the cache cannot be written; names the file.
    """
    entry = _entry(files.name, files, folder, verify=verify)
    packed = _packed(entry, folder / files.name)
    if entry.cached and (mended := _readable_now(files, packed, folder)):
        name = files.name_with(mended=mended)
        packed = _packed(_entry(name, files, folder, verify=verify), folder / name)
    return packed


def _entry(name: str, files: Selection, folder: Path, *, verify: bool) -> cache.Entry:
    with ExitStack() as held:  # the working folder, until the entry has its rows
        build = partial(_build, files, folder, held)
        entry = cache.load_or_build(folder / name, build, verify=verify)
        if not entry.cached:
            remove(files.workplace(folder), ignore_errors=True)
    return entry


def _readable_now(files: Selection, packed: Packed, folder: Path) -> list[str]:
    """Those of the files without an image in a packed copy that would have one now.

    Only those are read that no other copy in `folder` has an image of.
    """
    if not packed.unreadable:
        return []
    found = _in_other_copies(files, packed, folder)
    listing, shape = files.listing, packed.images.shape[1:]

    def is_readable(number: int) -> bool:
        try:
            with reading_of(listing.files[number]), listing.opened(number) as source:
                _read(source, shape, files.packing.fit)
        except Exception:  # a decoder may raise anything for a damaged file
            return False
        return True

    failed = packed.unreadable.keys() - found
    tried = [number for number, file in enumerate(listing.files) if file in failed]
    with ThreadPoolExecutor(THREADS) as pool, remarks_logged():
        readable = list(pool.map(is_readable, tried))
    found |= {listing.files[number] for number in compress(tried, readable)}
    return [file for file in listing.files if file in found]


def _in_other_copies(files: Selection, packed: Packed, folder: Path) -> set[str]:
    """The unreadable files of a packed copy that another one has images of, in the same state."""
    states = {file: stamp for file, (stamp, _) in packed.unreadable.items()}
    found = set[str]()
    for other in _earlier(folder, files.settings):
        stamps = map(tuple, other.stamps.tolist())
        both = zip(other.files, stamps, strict=True)
        found |= {file for file, stamp in both if states.get(file) == stamp}
    return found


def read_packed(folder: Path) -> Packed:
    """Reads a packed copy from its folder in the cache.

    Raises:
        FileNotFoundError: it is not there any more, or damaged.
    """
    return _packed(cache.load_stored(folder), folder)


@lru_cache(maxsize=2)
def _packed(entry: cache.Entry, folder: Path) -> Packed:
    arrays, meta = entry.arrays, entry.meta
    kinds = meta["modes"]
    return Packed(
        images=arrays["images"],
        files=Texts(arrays["files"], arrays["file_ends"]),
        stamps=arrays["stamps"],
        sha256=arrays["sha256"],
        digests=arrays["digests"],
        hashes=arrays["hashes"],
        sizes=arrays["sizes"],
        modes=[kinds[kind] for kind in arrays["modes"].tolist()],
        greys=arrays["greys"],
        unreadable={file: (tuple(stamp), reason) for file, stamp, reason in meta["unreadable"]},
        content=meta["content"],
        folder=folder,
    )


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The record of one file: its `row` in the array, or the reason why it has none."""

    file: str
    stamp: FileStamp
    row: int = -1
    reason: str = ""
    sha256: str = ""
    digest: str = ""
    hash: int = 0
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    grey: bool = False


def _build(files: Selection, folder: Path, held: ExitStack) -> cache.Content:
    """The content of a packed copy; `held` keeps the working folder locked, whose file it may be.

    Another process that waits for the folder, with other files, goes on writing to that file.
    """
    listing, packing = files.listing, files.packing
    place = files.workplace(folder)
    held.enter_context(FileLock(place.with_name(f"{place.name}.lock")))
    size = packing.size or _size_of(listing)
    work = _Work.opened(place, (*size, packing.channels or 3))
    stamps = [tuple(stamp) for stamp in files.stamps.tolist()]
    wanted = dict(zip(listing.files, stamps, strict=True))
    work.adopt(_earlier(folder, files.settings), wanted)
    todo = [
        number
        for number in listing.order.tolist()
        if not work.has(listing.files[number], stamps[number])
    ]
    if todo:
        _scan(listing, stamps, todo, work, packing.fit)
    return work.finished(wanted, files.settings, may_be_grey=packing.channels is None)


def _earlier(folder: Path, settings: Mapping[str, Any]) -> list[Packed]:
    """Packed copies of an earlier state of the same folder, newest first."""
    found = []
    for place in folder.glob("pixels-*/entry.json"):
        try:
            if json.loads(place.read_text())["meta"]["settings"] == settings:
                found.append((place.stat().st_mtime_ns, read_packed(place.parent)))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return [packed for _, packed in sorted(found, key=lambda one: -one[0])]


def _size_of(listing: Listing) -> tuple[int, int]:
    """A sensible height and width for these pictures, by the sizes of some."""
    step = max(1, len(listing.files) // _SAMPLE)
    with ThreadPoolExecutor(THREADS) as pool, remarks_logged():
        found = pool.map(partial(_upright_size, listing), range(0, len(listing.files), step))
        return _common_size([size for size in found if size])


def _common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size that all have if no side is above _SIDES[0], else a square that half of them fill.

    Its side is the largest of _SIDES for which that is so.
    """
    if not sizes:
        return _SIDES[-1], _SIDES[-1]
    if len(set(sizes)) == 1 and max(sizes[0]) <= _SIDES[0]:
        return sizes[0]
    median = statistics.median((height * width) ** 0.5 for height, width in sizes)
    side = next((side for side in _SIDES if side <= median), _SIDES[-1])
    return side, side


def _upright_size(listing: Listing, number: int) -> tuple[int, int] | None:
    try:
        name = listing.files[number]
        with reading_of(name), listing.opened(number) as file, recognised(file) as picture:
            return upright_size(picture)
    except Exception:  # a decoder may raise anything for a damaged file
        return None


class _Work:
    """The working folder: `images.npy`, whose rows are appended, and `journal`, one line per chunk.

    A line is written after its rows, so the array has every row that the journal names.
    """

    def __init__(self, place: Path, shape: Shape) -> None:
        self.place, self.shape = place, shape
        self.images, self.journal = place / "images.npy", place / "journal"
        self.records: dict[str, _Record] = {}
        self.rows = 0

    @classmethod
    def opened(cls, place: Path, shape: Shape) -> _Work:
        """Opens the folder and restores what an earlier process has written there."""
        work = cls(place, shape)
        if work.images.exists() and work.images.stat().st_nlink > 1:
            # An entry was about to take the file over; it must not change any more.
            with replacing(work.images) as copy:
                shutil.copyfile(work.images, copy)
        if not work._restored():
            remove(place)
            place.mkdir(parents=True)
            work.images.write_bytes(bytes(_HEADER))
            work.journal.write_text(json.dumps(list(shape)) + "\n")
        return work

    def has(self, file: str, stamp: FileStamp) -> bool:
        """Whether there is an image of this state of a file."""
        known = self.records.get(file)
        return known is not None and known.row >= 0 and known.stamp == stamp

    def add(self, images: Array, records: Sequence[_Record]) -> None:
        """Appends images u8[m,H,W,C] with their records, whose rows count from 0."""
        placed = [replace(one, row=self.rows + one.row) if one.row >= 0 else one for one in records]
        with cache.naming(self.images), self.images.open("ab") as file:
            file.write(np.ascontiguousarray(images).data)
        self.rows += len(images)
        with cache.naming(self.journal), self.journal.open("a", encoding="ascii") as file:
            file.write(json.dumps([self.rows, [list(vars(one).values()) for one in placed]]) + "\n")
        self.records |= {one.file: one for one in placed}

    def adopt(self, earlier: Iterable[Packed], wanted: Mapping[str, FileStamp]) -> None:
        """Copies the images that earlier packed copies have of the wanted files."""
        for packed in earlier:
            if not self._fits(packed.images):
                continue
            stamps = map(tuple, packed.stamps.tolist())
            known = [
                _record_of(packed, row, file, stamp)
                for row, (file, stamp) in enumerate(zip(packed.files, stamps, strict=True))
                if wanted.get(file) == stamp and not self.has(file, stamp)
            ]
            at_once = images_per_block(self.shape)
            for start in range(0, len(known), at_once):
                part = known[start : start + at_once]
                images = packed.images[[one.row for one in part]]
                images = np.broadcast_to(images, (len(part), *self.shape))
                self.add(images, [replace(one, row=row) for row, one in enumerate(part)])

    def _fits(self, images: Array) -> bool:
        # Grey images become images with three equal channels, not the other way round.
        return images.shape[1:] in (self.shape, (*self.shape[:2], 1))

    def _restored(self) -> bool:
        try:
            first, *lines = self.journal.read_text("ascii").split("\n")
            if json.loads(first) != list(self.shape):
                return False
            array: Array = np.memmap(self.images, np.uint8, "r", _HEADER)
        except (OSError, ValueError, RecursionError):
            return False
        size = int(np.prod(self.shape))
        whole = len(array) // size
        array = array[: whole * size].reshape(whole, size)
        valid = len(first) + 1
        for line in lines:
            try:
                rows, entries = json.loads(line)
                records = [_parsed(entry) for entry in entries]
            except (ValueError, TypeError, RecursionError):
                break  # the line that was being written
            if rows > whole or not all(_is_intact(array, one) for one in records):
                break
            self.records |= {one.file: one for one in records}
            self.rows, valid = rows, valid + len(line) + 1
        del array
        with self.images.open("r+b") as images, self.journal.open("r+b") as journal:
            images.truncate(_HEADER + self.rows * size)
            journal.truncate(valid)
            journal.seek(valid - 1)
            journal.write(b"\n")
        return True

    def finished(
        self, wanted: Mapping[str, FileStamp], settings: Mapping[str, Any], *, may_be_grey: bool
    ) -> cache.Content:
        """The content of the entry: the rows of the wanted files, in their order.

        Raises:
            RequestError: there are none.
        """
        known = [self.records[file] for file in wanted]
        good = [one for one in known if one.row >= 0]
        failed = [one for one in known if one.row < 0]
        if not good:
            first = f", {printable(failed[0].file)}: {failed[0].reason}" if failed else ""
            raise RequestError(f"dataset.path: none of the {len(known)} files can be read{first}")
        channels = self.shape[2]
        if may_be_grey and all(one.grey for one in good):
            channels = 1
        modes = sorted({one.mode for one in good})
        columns = _columns(good, modes)
        content = columns["files"].tobytes() + columns["digests"].tobytes()
        return {"images": self._rows([one.row for one in good], channels), **columns}, {
            "settings": dict(settings),
            "modes": modes,
            "unreadable": [[one.file, list(one.stamp), one.reason] for one in failed],
            "content": hashlib.sha256(content).hexdigest(),
        }

    def _rows(self, rows: Sequence[int], channels: int) -> cache.Stream | Path:
        """These rows; the file as it is, if it has exactly them."""
        shape = (len(rows), *self.shape[:2], channels)
        dtype = np.dtype(np.uint8)
        if channels == self.shape[2] and list(rows) == list(range(self.rows)):
            cache.write_header(self.images, shape, dtype, _HEADER)
            return self.images
        array = np.memmap(self.images, np.uint8, "r", _HEADER, (self.rows, *self.shape))
        at_once = images_per_block(self.shape)
        parts = (
            array[rows[start : start + at_once], ..., :channels]
            for start in range(0, len(rows), at_once)
        )
        return cache.Stream(shape=shape, dtype=dtype, parts=parts)


def _columns(records: Sequence[_Record], modes: Sequence[str]) -> dict[str, Array]:
    """What is known of the pictures besides their images, as in `Packed`, one entry per record."""
    names = Texts.of(one.file for one in records)
    return {
        "files": names.content,
        "file_ends": names.ends,
        "stamps": np.array([one.stamp for one in records], np.int64),
        "sha256": _bytes_of(one.sha256 for one in records),
        "digests": _bytes_of(one.digest for one in records),
        "hashes": np.array([one.hash for one in records], np.uint64),
        "sizes": np.array([one.size for one in records], np.int32),
        "modes": np.array([modes.index(one.mode) for one in records], np.uint8),
        "greys": np.array([one.grey for one in records], bool),
    }


def _record_of(packed: Packed, row: int, file: str, stamp: FileStamp) -> _Record:
    height, width = packed.sizes[row].tolist()
    return _Record(
        file=file,
        stamp=stamp,
        row=row,
        sha256=packed.sha256[row].tobytes().hex(),
        digest=packed.digests[row].tobytes().hex(),
        hash=int(packed.hashes[row]),
        size=(height, width),
        mode=packed.modes[row],
        grey=bool(packed.greys[row]),
    )


def _parsed(entry: Sequence[Any]) -> _Record:
    names = _Record.__dataclass_fields__
    values = dict(zip(names, entry, strict=True))
    return _Record(**{**values, "stamp": tuple(values["stamp"]), "size": tuple(values["size"])})


def _is_intact(array: Array, record: _Record) -> bool:
    return record.row < 0 or hashlib.sha256(array[record.row]).hexdigest() == record.digest


def _bytes_of(digests: Iterable[str]) -> Array:
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)


def _scan(
    listing: Listing, stamps: Sequence[FileStamp], todo: Sequence[int], work: _Work, fit: str
) -> None:
    """Decodes files with all cores and adds them to `work` in order, some chunks ahead at most."""
    size = max(1, min(CHUNK, CHUNK_BYTES // int(np.prod(work.shape))))
    chunks = iter(range(0, len(todo), size))
    threads = _threads([stamps[number] for number in todo])
    pool = ThreadPoolExecutor(threads)
    ahead: deque[Future[tuple[Array, list[_Record]]]] = deque()

    def submit(count: int) -> None:
        for start in islice(chunks, count):
            ahead.append(
                pool.submit(_decode, listing, stamps, todo[start : start + size], work.shape, fit)
            )

    try:
        with _progress_shown(listing, len(todo), work) as tell, remarks_logged(), _memory_reused():
            submit(2 * threads)
            while ahead:
                images, records = ahead.popleft().result()
                submit(1)
                work.add(images, records)
                tell(records)
    finally:
        pool.shutdown(cancel_futures=True)


def _threads(stamps: Sequence[FileStamp]) -> int:
    """The number of threads that decode fastest: two per core for large files.

    With one, a core is idle while its thread waits for Python's lock; with small files, for which
    threads often need the lock, more of them only get in each other's way.
    """
    return THREADS * (2 if statistics.median(size for size, *_ in stamps) >= _LARGE else 1)


@contextmanager
def _memory_reused() -> Iterator[None]:
    """Lets Pillow keep the memory of a few pictures for the next ones.

    Otherwise the system would clear new memory for every step of every picture.
    """
    core: Any = Image.core  # type: ignore[attr-defined]  # documented as Pillow's block allocator
    before = core.get_blocks_max()
    core.set_blocks_max(max(before, 2 * THREADS))
    try:
        yield
    finally:
        core.set_blocks_max(before)
        core.clear_cache()


def _decode(
    listing: Listing, stamps: Sequence[FileStamp], numbers: Sequence[int], shape: Shape, fit: str
) -> tuple[Array, list[_Record]]:
    images: list[Array] = []
    records = []
    for number in numbers:
        file, stamp = listing.files[number], stamps[number]
        try:
            with reading_of(file), listing.opened(number) as source:
                image, known = _read(source, shape, fit)
            records.append(_Record(file=file, stamp=stamp, row=len(images), **known))
            images.append(np.ascontiguousarray(image))
        except MemoryError as error:
            raise PipelineError(f"{printable(file)}: too little memory to read it") from error
        except Exception as error:  # a decoder may raise anything for a damaged file
            code = error.errno if isinstance(error, OSError) else None
            if code is not None and code not in _LASTING:
                raise PipelineError(
                    f"{printable(file)}: {reason_of(error)}; what was read so far is kept"
                ) from error
            records.append(_Record(file=file, stamp=stamp, reason=reason_of(error)))
    # One after another, which is faster than each after a decoding has emptied the caches.
    hashes = [perceptual_hash(image) for image in images]
    digests = [hashlib.sha256(image.data).hexdigest() for image in images]
    described = [
        replace(one, hash=hashes[one.row], digest=digests[one.row]) if one.row >= 0 else one
        for one in records
    ]
    return np.stack(images) if images else np.empty((0, *shape), np.uint8), described


def _read(file: BinaryIO, shape: Shape, fit: str) -> tuple[Array, dict[str, Any]]:
    """The image of a file, as `pictures.load_picture` makes it, and the fields of its record."""
    is_small = file.seek(0, os.SEEK_END) <= _AT_ONCE
    file.seek(0)
    if is_small:
        content = file.read()
        sha256 = hashlib.sha256(content).hexdigest()
        file = io.BytesIO(content)  # shares the bytes, until its buffer is asked for
    else:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        file.seek(0)
    picture = open_picture(file, side=max(shape[:2]), fit=fit)
    image = fitted(picture, shape, fit=fit)
    return image, {
        "sha256": sha256,
        "size": picture.info["size"],
        "mode": picture.info["mode"],
        "grey": _may_be_grey(image) and is_grey(picture),
    }


def _may_be_grey(image: Array) -> bool:
    """Whether all channels of an image are equal, as those of a grey picture are."""
    first = image[..., 0]
    return all(np.array_equal(first, image[..., other]) for other in range(1, image.shape[2]))


def perceptual_hash(image: Array) -> int:
    """64 bits of u8[H,W,C], most of which similar images share.

    They say which of the 64 lowest frequencies of a grey 32×32 version are above their median.
    Source: C. Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010).
    """
    whole = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("L")
    small = np.asarray(whole.resize((HASHED, HASHED), Image.Resampling.BOX), np.float64)
    low = (_COSINES @ small @ _COSINES.T).ravel()
    bits = np.round(low, 3) > np.round(np.median(low[1:]), 3)
    return int(np.packbits(bits).view(">u8")[0])


# The first eight rows of the discrete cosine transform of type II.
_COSINES = np.cos(np.pi / HASHED * np.outer(np.arange(8), np.arange(HASHED) + 0.5))


@contextmanager
def _progress_shown(
    listing: Listing, count: int, work: _Work
) -> Iterator[Callable[[Sequence[_Record]], None]]:
    """Shows a bar on a terminal, elsewhere a line at the start; at the end, says what was done."""
    height, width, _ = work.shape
    what = f"{count:,} pictures of {listing.root} at {height}×{width}"
    started, failed = time.perf_counter(), 0
    if not sys.stderr.isatty():
        log.info("packing %s", what)
    with native_messages_to(work.place / "decoders.log") as stderr:
        bar = progress_bar(
            plain_console(stderr),
            before="packing",
            after="{task.completed:,}/{task.total:,} pictures",
        )
        with bar:
            task = bar.add_task("", total=count)

            def tell(records: Sequence[_Record]) -> None:
                nonlocal failed
                failed += sum(one.row < 0 for one in records)
                bar.update(task, advance=len(records))

            yield tell
    seconds = time.perf_counter() - started
    told = f", {failed:,} cannot be read" if failed else ""
    log.info("packed %s in %.1f s, %s per second%s", what, seconds, f"{count / seconds:,.0f}", told)
