"""Pictures inside Parquet files, as Hugging Face publishes data sets.

Such a picture is named like a file in folders, by the file, the column and the row (from 0):
`train.parquet/image/12.png`.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, BinaryIO

from pipeline.data import pictures
from pipeline.data.files import PICTURE_ENDINGS
from pipeline.system.errors import one_line
from pipeline.system.files import file_state
from pipeline.system.imports import Lazy
from pipeline.system.processes import cores
from pipeline.system.terminal import as_line, printable

parquet, pyarrow = Lazy("pyarrow.parquet"), Lazy("pyarrow")

_NAME = re.compile(r"(.+\.(?:parquet|pq))/([^/]+)/(\d+)(?:\.\w+)?", re.IGNORECASE)
_GROUPS = 3  # row groups in memory at least
_ROWS = 64 * cores()
"""Rows that are being decoded: at most four chunks of 16 per core (`packing.py`)."""
_LONG_TEXT = 2**10  # bytes; longer values are pictures, on average
_FIRST = 8  # of the short values of a column, to tell what it holds
GROUP_BYTES = 2**28
"""Most bytes of the row groups in memory, if these are more than _GROUPS."""


def named(file: Any, name: str, texts: Collection[str]) -> dict[str, Sequence[str | None]]:
    """The names of the pictures of an open `ParquetFile`, by column; None where a row has none.

    A column holds pictures if its values are bytes, or have a field `bytes` beside the `path` that
    the file had. Those that hold only paths have these as names. No pictures are the columns of
    bytes that hold `texts` (`texts_in`), and short values that begin as no picture does, such as
    checksums.
    """
    schema, rows = file.schema_arrow, file.metadata.num_rows
    found: dict[str, Sequence[str | None]] = {}
    for field in schema:
        leaf, paths = _leaf(field), [None] * rows
        if leaf is None or "/" in field.name or field.name in texts:
            continue
        if leaf == field.name and (short := _short_values(file, leaf)) and not _any_picture(short):
            continue
        if leaf != field.name and "path" in {one.name for one in field.type}:
            column = file.read(columns=[f"{field.name}.path"]).column(field.name)
            paths = [one and one["path"] for one in column.to_pylist()]
        if rows and _is_empty(file, leaf):
            found[field.name] = paths
        else:
            endings = [PurePosixPath(path or "").suffix.lower() for path in paths]
            found[field.name] = [
                f"{name}/{field.name}/{row}{ending if ending in PICTURE_ENDINGS else '.png'}"
                for row, ending in enumerate(endings)
            ]
    return found


def texts_in(file: Any) -> list[str]:
    """The columns of bytes in an open `ParquetFile` that hold texts, as their first values tell.

    Some programs do not declare the texts that they write.
    """
    kinds = {field.name: field.type for field in file.schema_arrow}
    return [name for name in kinds if _is_bytes(kinds[name]) and _reads_as_text(file, name)]


def _reads_as_text(file: Any, column: str) -> bool:
    """Whether the first value that is not empty is text of one line, as no picture is."""
    first = next(iter(_short_values(file, column)), b"")
    try:
        return bool(first) and as_line(first.decode()) == first.decode()
    except UnicodeDecodeError:
        return False


def _any_picture(values: list[bytes]) -> bool:
    """Whether one of these values begins as a picture does."""
    for value in values:
        with suppress(Exception):  # of many kinds
            pictures.recognised(io.BytesIO(value))
            return True
    return False


def _short_values(file: Any, column: str) -> list[bytes]:
    """The first values of a column of bytes that are not empty; none if its values are long."""
    if _is_empty(file, column) or _takes(file, column) > _LONG_TEXT:
        return []  # without reading any picture
    batches = file.iter_batches(batch_size=1, columns=[column])
    values = filter(None, (batch.column(0)[0].as_py() for batch in batches))
    return list(islice(values, _FIRST))


def classes_in(schema: Any) -> Mapping[str, Sequence[str]]:
    """The names that stand for the numbers of a column, as Hugging Face writes them in a file."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in kind["names"]]
            for column, kind in told.items()
            if kind.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def picture_at(root: Path, name: str) -> BinaryIO | None:
    """The picture of that name, in memory; None if it is not named as one in a Parquet file.

    Raises:
        OSError, ValueError: it cannot be read, with the reason.
    """
    if (parts := _NAME.fullmatch(name)) is None:
        return None
    path = root / parts[1]
    return io.BytesIO(_column(path, parts[2], file_state(path)).read(int(parts[3])))


def mapped(file: BinaryIO) -> bytes | mmap.mmap:
    """A file of the disk as memory, of which only what is used is read."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # it is empty
        return b""


def file_of(name: str) -> str | None:
    """The Parquet file that a picture of that name lies in; None if it is not named as such."""
    return parts[1] if (parts := _NAME.fullmatch(name)) else None


class _Column:
    """A column of pictures; safe to read from several threads."""

    def __init__(self, path: Path, name: str) -> None:
        self.file = parquet.ParquetFile(os.fspath(path), memory_map=True)
        metadata = self.file.metadata
        sizes = (metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
        self.ends, self.name = list(accumulate(sizes)), name
        self.groups: OrderedDict[int, Any] = OrderedDict()
        self.lock = Lock()

    def read(self, row: int) -> bytes:
        if not self.ends or row >= self.ends[-1]:
            raise ValueError(f"the file has no row {row}")
        group = bisect_right(self.ends, row)
        try:
            with self.lock:
                value = self._group(group)[row - (self.ends[group - 1] if group else 0)].as_py()
        except Exception as error:  # of many kinds for a damaged file
            raise ValueError(f"is damaged in its Parquet file ({one_line(error)})") from error
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            raise ValueError("is empty in its Parquet file")
        return bytes(content)

    def _group(self, number: int) -> Any:
        if number not in self.groups:
            self.groups[number] = self.file.read_row_group(number, columns=[self.name]).column(0)
            while len(self.groups) > _GROUPS and self._has_more_than_needed():
                self.groups.popitem(last=False)
        self.groups.move_to_end(number)
        return self.groups[number]

    def _has_more_than_needed(self) -> bool:
        """Whether all rows that are being decoded would be in memory without the oldest group.

        These rows may begin in the middle of a group, and end in the middle of another.
        """
        rows = [len(group) for group in self.groups.values()]
        size = sum(group.nbytes for group in self.groups.values())
        return size > GROUP_BYTES or sum(rows) - 2 * rows[0] >= _ROWS


@lru_cache(maxsize=2)
def _column(path: Path, name: str, state: tuple[int, ...]) -> _Column:
    try:
        return _Column(path, name)
    except Exception as error:  # of many kinds for a damaged file
        raise ValueError(
            f"{printable(path.name)} is damaged or not Parquet ({one_line(error)})"
        ) from error


def _leaf(field: Any) -> str | None:
    """The part of a column that holds bytes; None if none does."""
    if _is_bytes(field.type):
        return str(field.name)
    if pyarrow.types.is_struct(field.type):
        return next((f"{field.name}.bytes" for f in field.type if _holds_bytes(f)), None)
    return None


def _holds_bytes(field: Any) -> bool:
    return field.name == "bytes" and _is_bytes(field.type)


def _is_bytes(kind: Any) -> bool:
    types = pyarrow.types
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_empty(file: Any, leaf: str) -> bool:
    """Whether a column is known to hold no bytes at all."""
    return all(
        chunk.statistics is not None and chunk.statistics.null_count == rows
        for chunk, rows in _chunks(file, leaf)
    )


def _takes(file: Any, leaf: str) -> float:
    """The bytes that a row takes in a column, on average."""
    sizes = [(chunk.total_uncompressed_size, rows) for chunk, rows in _chunks(file, leaf)]
    total, rows = map(sum, zip(*sizes, strict=True))
    return total / max(1, rows)


def _chunks(file: Any, leaf: str) -> Iterator[tuple[Any, int]]:
    """What is known of a column in each row group, and the number of its rows."""
    metadata = file.metadata
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            if chunk.path_in_schema == leaf:
                yield chunk, group.num_rows
