"""Leaves images out of a data set: `dataset.exclude`, a list of files or of places in splits.

`audit` writes such lists; any CSV, JSON lines or Parquet file with a column `file`, or `split` and
`index`, will do. Pictures are excluded after the test split is drawn, so that this stays as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import numpy as np

from pipeline.data.label_lists import Table, plain, read_table
from pipeline.data.values import Array, Split
from pipeline.system.errors import RequestError, first_of
from pipeline.system.files import user_path
from pipeline.system.terminal import as_text, printable

Exclude = Annotated[str | None, "a list of what the data set does without"]
"""Annotation of a data set's parameter `exclude`, which `data/load.py` then applies by itself."""

FILE_COLUMN, SPLIT_COLUMN, INDEX_COLUMN = "file", "split", "index"
_PATHS = (FILE_COLUMN, "path")  # names of the column of files
_NAMED = 3  # entries that a message names


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """The files that `dataset.exclude=path` leaves out of a set, and remarks about them."""

    path: str
    files: frozenset[str]
    notes: tuple[str, ...] = ()

    @property
    def content(self) -> list[str]:
        """The texts that determine its effect."""
        names = "\0".join(sorted(self.files)).encode("utf-8", "surrogateescape")
        return [sha256(names).hexdigest(), *self.notes]


def excluded_files(path: str, files: Sequence[str], root: str) -> Exclusion:
    """The files among a data set's `files` that a list names.

    The list may name a file relative to `root`, the folder or archive of the data set, or with it.

    Raises:
        RequestError: the list cannot be read, has no column `file`, or names none of the files.
    """
    listed = _read(path)
    if not listed.lines:
        return Exclusion(path=path, files=frozenset())
    column = next((name for name in _PATHS if name in listed.columns), None)
    if column is None:
        raise _without_columns(path, listed, f"the column {FILE_COLUMN}")
    roots = (root, str(Path(root).absolute()), str(Path(root).resolve()))
    names = [name for name in map(plain, listed.columns[column]) if name]
    return _chosen(path, names, files, roots)


def _chosen(
    path: str, names: Sequence[str], files: Sequence[str], roots: Sequence[str]
) -> Exclusion:
    """The files that are meant by `names`, which may begin with one of `roots`."""
    known, chosen, missing = {*files}, set[str](), list[str]()
    spelt: Mapping[str, Sequence[str]] = {}
    for name in names:
        if name in known:
            chosen.add(name)
            continue
        spelt = spelt or _spellings(files)
        found = next((spelt[one] for one in _readings(name, roots) if one in spelt), ())
        chosen.update(found)
        missing += [] if found else [name]
    if not missing:
        return Exclusion(path=path, files=frozenset(chosen))
    told = f"{len(missing):,} of the {len(names):,} files that dataset.exclude names are not there"
    told = f"{told}: {first_of(missing, _NAMED, printable)}"
    if not chosen:
        raise RequestError(
            f"dataset.exclude={path}: {told}; files are named as in {printable(files[0])}"
        )
    return Exclusion(path=path, files=frozenset(chosen), notes=(told,))


def excluded_positions(path: str, sizes: Mapping[str, int]) -> dict[str, Array]:
    """The places in each split that a list names, i64[m] in order; `sizes` are those of the splits.

    Raises:
        RequestError: the list cannot be read, has no columns `split` and `index`, or names a place
            that does not exist.
    """
    listed = require_places(path)
    if not listed.lines:
        return {name: np.empty(0, np.int64) for name in sizes}
    found: defaultdict[str, set[int]] = defaultdict(set)
    for row, (split, index) in enumerate(
        zip(listed.columns[SPLIT_COLUMN], listed.columns[INDEX_COLUMN], strict=True)
    ):
        name, position = plain(split), plain(index)
        if name not in sizes or not (position.isdecimal() and int(position) < sizes[name]):
            there = ", ".join(f"{one} 0–{size - 1}" for one, size in sizes.items())
            raise RequestError(
                f"dataset.exclude={path}: {listed.where(row)}: there is no {name} {position}; "
                f"there are {there}"
            )
        found[name].add(int(position))
    return {name: np.array(sorted(found[name]), np.int64) for name in sizes}


def require_places(path: str) -> Table:
    """The list of places in splits.

    Raises:
        RequestError: it cannot be read, or has no columns `split` and `index`.
    """
    listed = _read(path)
    if listed.lines and not {SPLIT_COLUMN, INDEX_COLUMN} <= listed.columns.keys():
        raise _without_columns(path, listed, f"the columns {SPLIT_COLUMN} and {INDEX_COLUMN}")
    return listed


def require_classes(
    path: str, before: Iterable[int], after: Iterable[int], class_names: Sequence[str]
) -> None:
    """Checks that a list leaves something of each class to train with.

    `before` and `after` are the labels of the training split without and with it.

    Raises:
        RequestError: names the classes of which it leaves nothing.
    """
    if gone := sorted({*before} - {*after}):
        told = first_of(gone, _NAMED, lambda label: printable(class_names[label]))
        raise RequestError(f"dataset.exclude={path}: leaves nothing to train with of {told}")


def without(split: Split, positions: Array) -> Split:
    """A split without the images at `positions` i64[m]; copies no image."""
    return split.select(np.delete(np.arange(len(split)), positions))


def _read(path: str) -> Table:
    try:
        listed = read_table(user_path(path).read_bytes(), path, may_be_empty=True)
    except OSError as error:
        raise RequestError(f"dataset.exclude={path}: {error.strerror or error}") from error
    except RequestError as error:
        raise RequestError(f"dataset.exclude: {error}") from error
    known = {*_PATHS, SPLIT_COLUMN, INDEX_COLUMN}
    if not listed.lines and listed.columns and not known & listed.columns.keys():
        line = first_of(listed.columns, _NAMED, printable)
        raise RequestError(
            f"dataset.exclude={path} has only one line, {line}, which is its header; write one "
            f"above it: {FILE_COLUMN}, or {SPLIT_COLUMN},{INDEX_COLUMN}"
        )
    return listed


def _without_columns(path: str, listed: Table, needed: str) -> RequestError:
    there = ", ".join(map(printable, listed.columns)) or "none"
    return RequestError(
        f"dataset.exclude={path}: for this data set a list needs {needed}; it has {there}"
    )


def _readings(name: str, roots: Sequence[str]) -> list[str]:
    """The file names that an entry of a list may mean: without root, apostrophe, or with `./`."""
    inside = [name[len(one) :].lstrip("/") for one in roots if name.startswith(f"{one}/")]
    return [one for way in (name, *inside) for one in (way, way.removeprefix("'"), f"./{way}")]


def _spellings(files: Sequence[str]) -> dict[str, list[str]]:
    """The files by each way in which a list may spell them."""
    spelt: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        told = (file, as_text(file), printable(file))
        for one in {*told, *map(str.strip, told), f"./{file}"}:
            spelt[one].append(file)
    return dict(spelt)
