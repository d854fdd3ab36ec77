"""Reads lists of pictures: tables with the path and the label of one picture per row.

A table is CSV (separated by commas, semicolons, tabs or bars), JSON lines or Parquet. Anybody may
have made it: what it names must lie inside the folder of its pictures.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from mmap import mmap
from pathlib import PurePosixPath
from typing import Any

from pipeline.data import embedded
from pipeline.data.files import PICTURE_ENDINGS, in_natural_order
from pipeline.system.errors import RequestError, counted, joined, one_line
from pipeline.system.imports import Lazy
from pipeline.system.terminal import as_line, printable

parquet, pyarrow = Lazy("pyarrow.parquet"), Lazy("pyarrow")  # only for Parquet files

_LARGEST = 2**30
"""Most bytes of a list."""
MOST_ROWS, MOST_COLUMNS = 20_000_000, 1_000
_PATHS = (
    *("path", "file", "filename", "filepath", "image", "img", "imagepath", "imgpath"),
    *("imagefile", "imagename", "imgname", "imgfile", "picture", "photo", "imageid", "id"),
)
_LABELS = (
    *("label", "class", "category", "target", "labelname", "classname", "categoryname"),
    *("labels", "y", "species", "breed", "diagnosis", "classid", "labelid", "categoryid"),
)
_SPLITS = ("split", "subset", "set", "partition", "fold")
# Words for a split, as in the names of folders and files that are published.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

MISSING = "no such file"
UNNAMED = "\0"  # the name of a column that no list has
Find = Callable[[Sequence[str]], Sequence[str]]
_TRIED = 20  # paths at least, whose endings are looked for
JSON_LINES = "JSON lines"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:[\w.+-]*[/;,]")
_PLAIN = re.compile(r"[^/\\:.][^/\\:]*(/[^/\\:.][^/\\:]*)*")  # a path that needs no further check


@dataclass(frozen=True, kw_only=True)
class Table:
    """The columns of a list by name, as read; `lines` are the rows' numbers in the file.

    `embedded` are the columns with the names of pictures that lie in the list itself, `classes`
    those that it declares as classes; `others` are the columns that hold no plain values, with what
    they hold.
    """

    name: str
    kind: str
    columns: Mapping[str, Sequence[Any]]
    others: Mapping[str, str]
    lines: Sequence[int]
    embedded: Sequence[str] = ()
    classes: Sequence[str] = ()

    def where(self, row: int) -> str:
        """The place of a row, for messages."""
        return f"{self.name}, {'row' if self.kind == 'Parquet' else 'line'} {self.lines[row]}"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The usable rows of a list, in natural order of their paths; one entry of each per row.

    `paths` are relative to the folder of the pictures; `splits` are "train", "val" or "test", or ""
    if no column says. `used` are the columns that these came from. `unusable` are the other rows:
    path, which may be empty, and reason.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    used: tuple[str, ...]
    unusable: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def split_of(name: str) -> str | None:
    """The split that a word stands for: "train", "val" or "test"; None if it stands for none."""
    return SPLIT_WORDS.get(name.strip().casefold())


def splits_among(names: Collection[str]) -> dict[str, str]:
    """The splits that folders beside one another stand for, by name; none without train.

    A second split is needed, too. Names that only contain a word for a split, such as `seg_train`
    or `val2017`, count if all are of this kind.
    """
    words = {name: split_in(name) for name in names}
    if not all(words.values()):
        words = {name: split_of(name) for name in names}
    splits = {name: split for name, split in words.items() if split}
    return splits if "train" in splits.values() and len({*splits.values()}) > 1 else {}


def split_in(name: str) -> str | None:
    """The split whose word a name contains, as in `seg_train` or `val2017`; None without one."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    found = {split for word in words if (split := split_of(word))}
    return found.pop() if len(found) == 1 else None


def read_table(content: bytes | mmap, name: str, *, may_be_empty: bool = False) -> Table:
    """Reads a list; the ending of its name tells its format.

    A Parquet file may be mapped to memory: of its pictures, if it holds any, none is read.

    Raises:
        RequestError: it is damaged, too large, no table, or empty; names the line.
    """
    told = printable(name)
    if len(content) > _LARGEST and isinstance(content, bytes):
        raise RequestError(f"{told} has more than {_LARGEST:,} bytes; divide it")
    ending = PurePosixPath(name).suffix.lower()
    if ending not in KINDS:
        raise RequestError(
            f"{told} is neither an archive (zip, tar) nor, by its ending, a list "
            f"({', '.join(KINDS)})"
        )
    made = KINDS[ending](content, name if ending in PARQUET else told)
    if not made.lines and not may_be_empty:
        raise RequestError(f"{told} lists no pictures: it has no rows")
    return made


def _csv(content: bytes, name: str) -> Table:
    text = _decoded(content, name)
    if told := re.match(r"sep=(.)\r?\n", text):  # as Excel writes and reads it
        text = text[told.end() :]
    start = re.sub(r'"[^"]*"', "", re.match(r"\s*([^\r\n]*)", text)[1])  # type: ignore[index]
    separator = told[1] if told else _separator(start, name)
    # For this process, since csv knows no other; its own limit is that of short texts.
    csv.field_size_limit(_LARGEST)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True
    )
    rows, lines = [], []
    at = 1 + bool(told)
    try:
        for row in reader:
            if any(map(str.strip, row)):
                rows.append(row)
                lines.append(at)
            at = reader.line_num + 1 + bool(told)
    except csv.Error as error:
        raise RequestError(
            f"{name}, line {at}: {error}; quotes must be closed, and doubled within a value"
        ) from error
    header = [column.strip() for column in rows.pop(0)] if rows else []
    del lines[:1]
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise RequestError(
                f"{name}, line {line} has {len(row)} values, but the first line has {len(header)}; "
                'a value that holds the separator must stand in quotes, as in "a,b.png"'
            )
    header = [column or f"column {number}" for number, column in enumerate(header, 1)]
    _check_header(header, name)
    columns = {column: [row[place] for row in rows] for place, column in enumerate(header)}
    kind = f"separated by {SEPARATORS.get(separator, repr(separator))}"
    return Table(name=name, kind=kind, columns=columns, others={}, lines=lines)


def _separator(header: str, name: str) -> str:
    """What separates a header's columns: tabs where the list's ending says so, else the most."""
    is_of_tabs = PurePosixPath(name).suffix.lower() in (".tsv", ".tab") and "\t" in header
    return "\t" if is_of_tabs else max(SEPARATORS, key=header.count)


def _decoded(content: bytes, name: str) -> str:
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RequestError(f"{name}, line {line} is not UTF-8; save the list as UTF-8") from error
    if "\0" in text:
        raise RequestError(f"{name} is not text: it holds zero bytes; save the list as CSV")
    return text


def _check_header(header: Sequence[str], name: str) -> None:
    if double := [column for column, count in Counter(header).items() if count > 1]:
        raise RequestError(f"{name} has several columns {as_line(double[0])!r}; rename all but one")
    if len(header) > MOST_COLUMNS:
        raise RequestError(f"{name} has {len(header):,} columns; a list has {MOST_COLUMNS} at most")


def _json_lines(content: bytes, name: str) -> Table:
    columns: dict[str, list[Any]] = {}
    lines: list[int] = []
    for line, part in enumerate(_decoded(content, name).split("\n"), 1):
        if not part.strip():
            continue
        row = _json_object(part, f"{name}, line {line}")
        if new := row.keys() - columns.keys():
            columns |= {column: [None] * len(lines) for column in row if column in new}
            _check_header(tuple(columns), name)
        for column, values in columns.items():
            values.append(row.get(column))
        lines.append(line)
    nested = {
        column: "lists or objects"
        for column, values in columns.items()
        if any(isinstance(value, list | dict) for value in values)
    }
    plain = {column: values for column, values in columns.items() if column not in nested}
    return Table(name=name, kind=JSON_LINES, columns=plain, others=nested, lines=lines)


_EACH_LINE = 'each line must be an object, as {"path": "a.png", "label": "cat"}'


def _json_object(text: str, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        row = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is not JSON ({one_line(error)}); {_EACH_LINE}") from error
    if not isinstance(row, dict):
        raise RequestError(f"{where} is no JSON object; {_EACH_LINE}")
    return row


def _parquet(content: bytes | mmap, name: str) -> Table:
    told = printable(name)
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
        if file.metadata.num_rows > MOST_ROWS:
            raise RequestError(f"{told} has more than {MOST_ROWS:,} rows; divide it")
        schema = file.schema_arrow
        _check_header(schema.names, told)
        bytes_of_texts = embedded.texts_in(file)
        texts = [one.name for one in schema if _is_text(one.type) or one.name in bytes_of_texts]
        plain = [one.name for one in schema if one.name in texts or _is_number(one.type)]
        # As dictionaries, repeated texts take memory once, however often they are repeated.
        read = parquet.ParquetFile(pyarrow.BufferReader(content), read_dictionary=texts).read(
            columns=plain
        )
        found = {name: _values(read.column(name)) for name in plain}
        columns: dict[str, Sequence[Any]] = {
            name: values for name, values in found.items() if values is not None
        }
        classes = {
            column: [_named(number, names) for number in columns[column]]
            for column, names in embedded.classes_in(schema).items()
            if column in columns
        }
        pictures = embedded.named(file, PurePosixPath(name).name, bytes_of_texts)
    except RequestError:
        raise
    except Exception as error:  # of many kinds for a damaged file
        raise RequestError(
            f"{told} is damaged or not Parquet ({one_line(error)}); write it again"
        ) from error
    columns |= classes | pictures
    if any(len(values) != file.metadata.num_rows for values in columns.values()):
        raise RequestError(f"{told} is damaged: its columns differ in length; write it again")
    return Table(
        name=told,
        kind="Parquet",
        columns=columns,
        others={field.name: str(field.type) for field in schema if field.name not in columns},
        lines=range(1, file.metadata.num_rows + 1),
        embedded=tuple(pictures),
        classes=tuple(classes),
    )


def _named(number: Any, names: Sequence[str]) -> str | None:
    """The class that a number stands for; None if it stands for none, as -1 does."""
    if isinstance(number, int) and 0 <= number < len(names):
        return names[number]
    return None


def _is_text(kind: Any) -> bool:
    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in tests)


def _is_number(kind: Any) -> bool:
    types = pyarrow.types
    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    return any(test(kind) for test in (*tests, types.is_temporal))


def _values(column: Any) -> list[Any] | None:
    """The values of a column; None for times that Python does not have, as in the year 10000."""
    made: list[Any] = []
    for chunk in column.chunks:
        if pyarrow.types.is_dictionary(chunk.type):
            known = [
                os.fsdecode(one) if isinstance(one, bytes) else one
                for one in chunk.dictionary.to_pylist()
            ]
            made += (None if one is None else known[one] for one in chunk.indices.to_pylist())
        else:
            try:
                made += chunk.to_pylist()
            except (OverflowError, ValueError):
                if pyarrow.types.is_temporal(chunk.type):
                    return None
                raise
    return made


PARQUET = (".parquet", ".pq")
KINDS: Mapping[str, Callable[[Any, str], Table]] = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), _csv),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _json_lines),
    **dict.fromkeys(PARQUET, _parquet),
}
ENDINGS = tuple(ending for ending in KINDS if ending not in (".txt", ".json"))
"""The endings of files that are surely lists."""


def usable(
    given: Table,
    *,
    columns: Mapping[str, str | None],
    roots: Sequence[str],
    folders: Sequence[str],
    find: Find,
    same: Callable[[str, str], bool],
) -> Rows:
    """The rows of a list whose picture exists and that have one label.

    `columns` are the names of the columns `path`, `label` and `split`; one that is not named is
    recognised by the usual names. An absolute path must lie in one of
    `roots`, the names of the folder of the pictures, and so must one with `..`, which is relative
    to one of `folders`, the names of the list's own. `find` gives the real name of each of several
    paths relative to the folder of the pictures, "" if there is no such file; `same` tells whether
    two of these names are one file.

    Raises:
        RequestError: a column is missing or ambiguous, or a path leaves the folder or is a URL.
    """
    path_column = _column(given, "path", columns["path"], _PATHS)
    label_column = _column(given, "label", columns["label"], _LABELS)
    split_column, splits = _splits(given, columns["split"])
    notes: list[str] = []
    labels = [as_class(plain(value)) for value in given.columns[label_column]]
    paths = [
        _relative(plain(value), roots, folders, given, row)
        for row, value in enumerate(given.columns[path_column])
    ]
    paths = _completed(paths, find, same, notes)
    named = [*dict.fromkeys(filter(None, paths))]
    real = dict(zip(named, find(named), strict=True))
    paths = [real.get(path) or path for path in paths]
    there, unusable = _reconciled(given, paths, labels, splits, notes)
    for path in there.keys() - set(real.values()):
        unusable[there.pop(path)] = (path, MISSING)
    used = tuple(filter(None, (path_column, label_column, split_column)))
    kept = {name: values for name, values in given.columns.items() if name not in used}
    order = in_natural_order(there)
    rows = [there[path] for path in order]
    return Rows(
        paths=tuple(order),
        labels=tuple(labels[row] for row in rows),
        splits=tuple(splits[row] for row in rows),
        columns={
            as_line(name): tuple(as_line(plain(values[row])) for row in rows)
            for name, values in kept.items()
        },
        used=used,
        unusable=tuple(unusable[row] for row in sorted(unusable)),
        notes=(*notes, *_remarks(given, label_column)),
    )


def _column(given: Table, what: str, name: str | None, usual: Sequence[str]) -> str:
    """The column of that name, or the one that has a usual name."""
    columns = given.columns
    there = f"its columns are {', '.join(map(as_line, (*columns, *given.others)))}"
    if name is not None:
        if name in columns:
            return name
        kind = given.others.get(name)
        why = f"holds {kind}" if kind else "does not exist"
        raise RequestError(
            f"dataset.{what}_column={name}: {given.name} has none; it {why}; {there}"
        )
    usually = [column for column in columns if _bare(column) in usual]
    # A Parquet file may itself say what a column is; then its name need not be usual.
    if declared := {"path": given.embedded, "label": given.classes}[what]:
        usually = [one for one in usually if one in declared] or list(declared)
    if what == "path" and len(usually) > 1:
        usually = [one for one in usually if _looks_like_paths(columns[one])] or usually
    if what == "label" and len(usually) > 1 and _correspond([columns[one] for one in usually]):
        usually = [one for one in usually if not _is_numeric(columns[one])] or usually
        usually = usually[:1]
    if len(usually) == 1:
        return usually[0]
    if usually:
        found = f"several columns of {given.name} may hold the {what}s: {', '.join(usually)}"
        raise RequestError(f"{found}; name one: dataset.{what}_column={usually[0]}")
    if any(PurePosixPath(column).suffix.lower() in PICTURE_ENDINGS for column in columns):
        raise RequestError(
            f"{given.name} has pictures as keys; {_EACH_LINE}"
            if given.kind == JSON_LINES
            else f"{given.name} has no header; add a first line that names its columns, such as "
            "path,label"
        )
    others = [column for column in given.others if _bare(column) in usual]
    if others:
        there = f"{others[0]} holds {given.others[others[0]]}; {there}"
    raise RequestError(
        f"{given.name} has no column that is usual for {what}s ({', '.join(usual[:4])}, …); "
        f"{there}; name one: dataset.{what}_column=…"
    )


def without_labels(given: Table, path_column: str | None) -> Table:
    """The column of paths alone, beside a column `UNNAMED` with the same label in each row.

    The column is recognised by the usual names unless it is named.

    Raises:
        RequestError: it is missing or ambiguous.
    """
    paths = _column(given, "path", path_column, _PATHS)
    return replace(
        given,
        columns={paths: given.columns[paths], UNNAMED: ["picture"] * len(given.lines)},
        others={},
        embedded=[name for name in given.embedded if name == paths],
        classes=(),
    )


def has_labels(given: Table, label_column: str | None) -> bool:
    """Whether a list has labels in the column of that name or, without one, in a usual one."""
    usual = given.classes or [name for name in given.columns if _bare(name) in _LABELS]
    return any(
        any(map(plain, given.columns[name]))
        for name in (usual if label_column is None else [label_column])
        if name in given.columns
    )


def _bare(column: str) -> str:
    return re.sub(r"[\W_]+", "", column.casefold())


def _looks_like_paths(values: Sequence[Any]) -> bool:
    texts = (value for value in values if isinstance(value, str) and value.strip())
    return PurePosixPath(next(texts, "").strip()).suffix.lower() in PICTURE_ENDINGS


def _correspond(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether each value of a column always occurs with the same values of the others."""
    together = len(set(zip(*(map(repr, column) for column in columns), strict=True)))
    return all(len(set(map(repr, column))) == together for column in columns)


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(re.fullmatch(r"[-+]?\d+(\.\d*)?", plain(value)) for value in values)


def plain(value: Any) -> str:
    """A value of a table as text: whole numbers without a point, missing values as no text."""
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, Decimal):
        return str(int(value)) if value == value.to_integral_value() else f"{value:f}"
    return str(value)


def as_class(name: str) -> str:
    """The name of a class as it is compared and stored."""
    return as_line(unicodedata.normalize("NFC", name))


def with_slashes(path: str) -> str:
    """A path that may be written as on Windows, with slashes in place of backslashes."""
    return posixpath.normpath(path.replace("\\", "/"))


def _relative(
    path: str, roots: Sequence[str], folders: Sequence[str], given: Table, row: int
) -> str:
    """A path of a list relative to the folder of the pictures, also `with_slashes`."""
    if not path or _PLAIN.fullmatch(path):
        return path

    def refuse(problem: str, mend: str) -> RequestError:
        return RequestError(f"{given.where(row)}: {as_line(path)} {problem}; {mend}")

    if _ADDRESS.match(path):
        raise refuse("is an address", "download the pictures, and list their files")
    slashed = with_slashes(path)
    if re.match(r"[A-Za-z]:/", slashed):
        raise refuse("is a path of Windows", "write it relative to the folder of the list")
    inside = _inside(slashed, roots, folders)
    if inside is None:
        folder = roots[0] if roots else "the archive"
        mend = "name the folder that all pictures lie in: dataset.root=…"
        raise refuse(f"lies outside {folder}", mend)
    plainly = _inside(posixpath.normpath(path), roots, folders) or ""
    return plainly if with_slashes(plainly) == inside else inside  # names may hold backslashes


def _inside(path: str, roots: Sequence[str], folders: Sequence[str]) -> str | None:
    """A normal path relative to the one of `roots` that it lies in; None if it lies in none.

    One with `..` is relative to one of `folders`.
    """
    climbs = path == ".." or path.startswith("../")
    if not (climbs or path.startswith("/")):
        return path
    absolute = [posixpath.normpath(f"{one}/{path}") for one in folders] if climbs else [path]
    for root in (f"{one.rstrip('/')}/" for one in roots):
        for one in absolute:
            if (plainly := f"/{one.lstrip('/')}").startswith(root):
                return plainly.removeprefix(root)
    return None


def _splits(given: Table, name: str | None) -> tuple[str | None, list[str]]:
    """The column of splits, None if there is none, and the split of each row."""
    rows = len(given.lines)
    if name is None:
        usual = [column for column in given.columns if _bare(column) in _SPLITS]
        usual = [one for one in usual if any(map(split_of, map(plain, set(given.columns[one]))))]
        if not usual:
            return None, [""] * rows
        if len(usual) > 1:
            raise RequestError(
                f"several columns of {given.name} may hold the splits: {', '.join(usual)}; name "
                f"one: dataset.split_column={usual[0]}"
            )
        [name] = usual
    elif name not in given.columns:
        raise RequestError(
            f"dataset.split_column={name}: {given.name} has no such column; its columns are "
            f"{', '.join(map(as_line, given.columns))}"
        )
    splits = [split_of(plain(value)) or "" for value in given.columns[name]]
    if "" in splits:
        row = splits.index("")
        value = as_line(plain(given.columns[name][row]))
        raise RequestError(
            f"{given.where(row)}: the {as_line(name)} is {value!r}, "
            "which is none of train, val and test; fix it, or rename the column to divide at "
            "random"
        )
    return name, splits


def _completed(
    paths: list[str], find: Find, same: Callable[[str, str], bool], notes: list[str]
) -> list[str]:
    """The paths with the endings of their files, if none in the list has one.

    On a file system that ignores case, `1.jpg` and `1.JPG` are one file; it keeps the first name.
    """
    named = [*dict.fromkeys(path for path in paths if path)]
    if not named or any(PurePosixPath(one).suffix.lower() in PICTURE_ENDINGS for one in named):
        return paths
    if all(find(named[:1])):
        return paths
    completed: dict[str, str] = {}
    used: list[str] = []
    while without := [path for path in named if path not in completed]:
        endings = [one for one in _endings(without, find) if one not in used]
        if not endings:
            break
        used += endings
        for ending in endings:
            for path, real in zip(named, find([one + ending for one in named]), strict=True):
                known = completed.setdefault(path, real) if real else real
                if known != real and not same(known, real):
                    raise RequestError(
                        f"{as_line(path)} stands for {as_line(completed[path])} and "
                        f"{as_line(real)}; write the endings into the list"
                    )
    if completed:
        added = {PurePosixPath(name).suffix for name in completed.values()}
        notes.append(f"its paths have no endings; completed by {joined(sorted(added))}")
    return [completed.get(path, path) for path in paths]


def _endings(paths: Sequence[str], find: Find) -> list[str]:
    """The endings that make files of some paths without one."""
    some = paths[:: max(1, len(paths) // _TRIED)]  # lists are often sorted by class
    known = [form for one in sorted(PICTURE_ENDINGS) for form in (one, one.upper())]
    tried = [(path + ending, ending) for path in some for ending in known]
    real = find([path for path, _ in tried])
    found = {ending for (_, ending), name in zip(tried, real, strict=True) if name}
    return sorted(found, key=str.swapcase)  # lower case first


def _reconciled(
    given: Table,
    paths: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str],
    notes: list[str],
) -> tuple[dict[str, int], dict[int, tuple[str, str]]]:
    """The row of each path, and the rows that cannot be used with path and reason.

    A path without a label, with several labels or in several splits cannot be used.
    """
    known: dict[str, int] = {}
    unusable: dict[int, tuple[str, str]] = {}
    repeated = 0
    for row, (path, label, split) in enumerate(zip(paths, labels, splits, strict=True)):
        if not path:
            unusable[row] = ("", f"line {given.lines[row]}: no path")
        elif not label:
            unusable[row] = (path, f"no label (line {given.lines[row]})")
        elif (first := known.setdefault(path, row)) != row:
            ours, theirs = (labels[first], splits[first]), (label, split)
            repeated += ours == theirs
            if ours != theirs:
                two = zip(ours, theirs, strict=True)
                told = " and as ".join({f"{a} and {b}" for a, b in two if a != b})
                lines = f"lines {given.lines[first]} and {given.lines[row]}"
                unusable[row] = unusable[first] = (path, f"listed as {told} ({lines})")
    if repeated:
        one, many = "row repeats another, and counts once", "rows repeat others, and count once"
        notes.append(counted(repeated, one, many))
    return {path: row for path, row in known.items() if row not in unusable}, unusable


def _remarks(given: Table, label_column: str) -> Iterator[str]:
    values = given.columns[label_column]
    spaced = sum(isinstance(value, str) and value != value.strip() for value in values)
    if spaced:
        yield f"spaces around labels are ignored (in {counted(spaced, 'row', 'rows')})"
    if given.others:
        told = ", ".join(f"{as_line(name)} ({kind})" for name, kind in given.others.items())
        yield f"columns that hold no plain values are not kept: {told}"
