"""Works out what determines the content of a data set; the cache keeps one entry per content."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.rules import Builder
from pipeline.system.files import file_state, user_path

_ATTRIBUTE = "content"


def determined_by(content: Callable[[Mapping[str, Any]], Any]) -> Callable[[Builder], Builder]:
    """Decorates a data set's function with a function that says what determines its content.

    `content` takes the parameters by name and returns JSON-able values. Equal values stand for the
    same images and labels, which are then taken from the cache. Without this decorator, `stamped`
    is applied to each parameter.
    """

    def mark(builder: Builder) -> Builder:
        setattr(builder, _ATTRIBUTE, content)
        return builder

    return mark


def parameters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters alone: for data that is generated or comes with a library."""
    return given


def content_of(builder: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """The JSON-able values that determine what `builder` makes of the parameters `given`.

    For a builder without `determined_by`: its parameters, the state of each file or folder that one
    of them names, and the source of its module.

    Raises:
        OSError: a folder that a parameter names cannot be searched.
    """
    content = getattr(builder, _ATTRIBUTE, None)
    name = f"{builder.__module__}.{builder.__qualname__}"
    if content is not None:
        return [name, content(given)]
    return [name, stamped(dict(given)), _source(builder)]


def stamped(value: Any) -> Any:
    """A parameter, with a digest of the file or folder that it names, or the archive it leads into.

    The digest covers the name, size, times and inode of each file; links are followed. It changes
    when a picture is added, removed, replaced or changed.
    """
    if isinstance(value, Mapping):
        return {str(key): stamped(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [stamped(part) for part in value]
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        return value
    place = _place(os.fspath(value))
    if place is None:
        return os.fspath(value)
    digest = hashlib.sha256()
    for file in _files(place):
        digest.update(os.fsencode(json.dumps([str(file), *_state(file)]) + "\n"))
    return [os.fspath(value), str(place.resolve()), digest.hexdigest()]


def _place(text: str) -> Path | None:
    """The file or folder of that name, or the file that the path leads into, as into an archive."""
    try:
        path = user_path(text)
        if path.exists():
            return path
        return next((parent for parent in path.parents if parent.is_file()), None)
    except (OSError, ValueError):  # text that is too long for a path, or has a zero byte
        return None


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or all files below a folder in order; each folder is visited once."""
    if not path.is_dir():
        yield path
        return
    visited = set()

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(path, followlinks=True, onerror=refuse):
        at = Path(place).stat()
        if (at.st_dev, at.st_ino) in visited:  # through a link
            folders.clear()
            continue
        visited.add((at.st_dev, at.st_ino))
        folders.sort()
        yield from (Path(place, name) for name in sorted(names))


def _state(file: Path) -> tuple[int, ...]:
    try:
        return file_state(file)
    except OSError:  # a broken link
        return ()


def _source(builder: Callable[..., Any]) -> str | None:
    """SHA-256 of the module that defines a builder, since its data may change with its code."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(builder))
        return hashlib.sha256(Path(file or "").read_bytes()).hexdigest()
    except (OSError, TypeError):  # typed into a notebook
        return None
