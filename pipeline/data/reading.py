"""Reads picture files lazily, a bounded number at a time, as blocks of images for a model."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import UnidentifiedImageError

from pipeline.data.archives import is_in_archive
from pipeline.data.cache import let_go
from pipeline.data.files import FoundFiles, Unreadable, find_files, is_array, open_array
from pipeline.data.label_lists import ENDINGS as LISTS
from pipeline.data.label_lists import PARQUET
from pipeline.data.listing import unlabelled
from pipeline.data.pictures import PAD, as_stack, fitted_pixels, load_picture, require_room
from pipeline.data.values import Array, Shape, images_per_block
from pipeline.system.errors import RequestError, one_line
from pipeline.system.processes import cores
from pipeline.system.terminal import printable

CHUNK = 16  # files decoded per task: enough to keep the overhead of a task small
THREADS = cores()  # Pillow releases Python's lock to decode and resize


@dataclass(frozen=True, kw_only=True)
class Block:
    """Images u8[N,H,W,C] in the order of their files.

    `indices` are positions in an array, None for a picture file. `files_done` counts the files that
    were read for it, parts of an array as fractions.
    """

    images: Array
    files: tuple[Path, ...]
    indices: tuple[int | None, ...]
    unreadable: tuple[Unreadable, ...] = ()
    files_done: float = 1

    def __len__(self) -> int:
        return len(self.files)


Task = Callable[[], Block]
Opener = Callable[[Path], AbstractContextManager[Path | BinaryIO]]
log = logging.getLogger(__name__)
_reading = threading.local()  # `file`: the one that this thread is decoding


def find_images(images: str, *, path_column: str | None = None) -> tuple[FoundFiles, Opener]:
    """Finds the pictures of a folder, a pattern, an archive or a Parquet file; and what opens one.

    `path_column` is that of the data set that the model was trained on, if it is known.

    Raises:
        RequestError: there are none, they are a list, or the archive is refused.
    """
    if images.lower().endswith(LISTS) and not images.lower().endswith(PARQUET):
        raise RequestError(f"images={images}: lists are not read; name the folder of the pictures")
    if not (images.lower().endswith(PARQUET) or is_in_archive(images)):
        return find_files(images), nullcontext
    listing = unlabelled(images, key="images", path_column=path_column)
    if listing is None:
        if images.lower().endswith(".npz"):
            one = "numpy.save('images.npy', numpy.load(…)['x_test'])"
            raise RequestError(f"images={images} holds several arrays; save one of them: {one}")
        raise RequestError(f"images={images}: no pictures there; name the folder or archive of all")
    indices = {listing.root / name: index for index, name in enumerate(listing.files)}

    def opened(file: Path) -> AbstractContextManager[BinaryIO]:
        return BytesIO(listing.read(indices[file]))

    return FoundFiles(files=tuple(indices), left_out=listing.left_out), opened


def read_blocks(
    files: Iterable[Path],
    shape: Shape,
    *,
    at_once: int,
    listener: Callable[[Block], None],
    fit: str = PAD,
    opened: Opener = nullcontext,
) -> Iterator[Block]:
    """Yields blocks of up to `at_once` images of `shape` [H,W,C]; threads read ahead.

    A block is smaller where `at_once` images would take more than BLOCK_BYTES. `listener` receives
    every part as it is read, with its unreadable files, which raise nothing. `opened` opens the
    pictures of an archive.
    """
    at_once = min(at_once, images_per_block(shape))
    tasks = _tasks(files, shape, at_once, fit, opened)
    pool = ThreadPoolExecutor(THREADS)

    def in_order() -> Iterator[Block]:
        ahead: deque[Future[Block]] = deque()
        for task in tasks:
            ahead.append(pool.submit(task))
            if len(ahead) > 2 * THREADS:
                yield ahead.popleft().result()
        yield from (future.result() for future in ahead)

    try:
        with remarks_logged():
            yield from _merged(_reported_to(in_order(), listener), at_once)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def remarks_logged() -> Iterator[None]:
    """Sends Pillow's warnings to the log, with the name of the file being read (`reading_of`)."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, *more: Any, **named: Any) -> None:
            file: Path | str | None = getattr(_reading, "file", None)
            if file is None:
                show(message, *more, **named)
            else:
                log.info("%s: %s", printable(file), message)

        warnings.showwarning = note
        warnings.filterwarnings("always", module=r"PIL\.")
        yield


@contextmanager
def remarks_dropped() -> Iterator[None]:
    """Drops Pillow's warnings of files that are decoded again: they were logged the first time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def reading_of(file: Path | str) -> Iterator[None]:
    """Marks a file as the one that this thread is reading."""
    _reading.file = file
    try:
        yield
    finally:
        _reading.file = None


def _reported_to(blocks: Iterable[Block], listener: Callable[[Block], None]) -> Iterator[Block]:
    for block in blocks:
        listener(block)
        yield block


def _merged(blocks: Iterable[Block], at_once: int) -> Iterator[Block]:
    """Joins small blocks into larger ones of at most `at_once` images."""
    waiting: list[Block] = []
    for block in blocks:
        if sum(map(len, waiting)) + len(block) > at_once:
            yield _joined(waiting)
            waiting = []
        if len(block):
            waiting.append(block)
    if waiting:
        yield _joined(waiting)


def _joined(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]  # part of an array: not copied
    return Block(
        images=np.concatenate([block.images for block in blocks]),
        files=tuple(chain.from_iterable(block.files for block in blocks)),
        indices=tuple(chain.from_iterable(block.indices for block in blocks)),
        files_done=sum(block.files_done for block in blocks),
    )


def _tasks(
    files: Iterable[Path], shape: Shape, at_once: int, fit: str, opened: Opener
) -> Iterator[Task]:
    for are_arrays, group in groupby(files, is_array):
        if are_arrays:
            yield from chain.from_iterable(
                _array_tasks(file, shape, at_once, fit) for file in group
            )
        else:
            while chunk := tuple(islice(group, min(CHUNK, at_once))):
                yield partial(_decode, chunk, shape, fit, opened)


def _decode(files: tuple[Path, ...], shape: Shape, fit: str, opened: Opener) -> Block:
    images, good, unreadable = [], [], []
    for file in files:
        try:
            with reading_of(file), opened(file) as source:
                images.append(load_picture(source, shape, fit=fit))
            good.append(file)
        except Exception as error:  # a decoder may raise anything for a damaged file
            unreadable.append(Unreadable(file=file, reason=reason_of(error)))
    return Block(
        images=np.stack(images) if images else np.empty((0, *shape), np.uint8),
        files=tuple(good),
        indices=(None,) * len(good),
        unreadable=tuple(unreadable),
        files_done=len(files),
    )


def _array_tasks(file: Path, shape: Shape, at_once: int, fit: str) -> Iterator[Task]:
    try:
        stack = as_stack(open_array(file), shape)
        require_room(stack.shape[1:])
    except Exception as error:  # a reader may raise anything for a damaged file
        refused = Block(
            images=np.empty((0, *shape), np.uint8),
            files=(),
            indices=(),
            unreadable=(Unreadable(file=file, reason=reason_of(error)),),
        )
        yield lambda: refused
        return
    at_once = min(at_once, images_per_block(stack.shape[1:]))
    for start in range(0, len(stack), at_once):
        rows = range(len(stack))[start : start + at_once]
        yield partial(_slice, file, stack, rows, shape, fit)


def _slice(file: Path, stack: Array, rows: range, shape: Shape, fit: str) -> Block:
    let_go(stack)  # the parts read before: an array may be larger than memory
    part = stack[rows.start : rows.stop]
    if part.shape[1:] != shape:
        part = np.stack([fitted_pixels(pixels, shape, fit=fit) for pixels in part])
    return Block(
        images=part,
        files=(file,) * len(part),
        indices=tuple(rows),
        files_done=len(part) / len(stack),
    )


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a readable format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error).removeprefix("ValueError: ").removeprefix("OSError: ")
