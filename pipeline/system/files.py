"""Files that survive a crash: written to a temporary name, flushed, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.system.errors import RequestError


def user_path(text: str) -> Path:
    """A path that a user wrote; `~` is a home folder if there is such a user, as in a shell."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises RuntimeError)


def file_state(path: Path) -> tuple[int, int, int, int]:
    """Size, times of modification and change in ns, and inode: they tell new content from old.

    Raises:
        OSError: there is no such file, or no access to it.
    """
    at = path.stat()
    return at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it to `path` when the block ends.

    Works for a file or a folder. If the block raises, `path` is not changed and the temporary one
    is removed. The temporary name keeps the ending, which Keras and others need to save.

    Raises:
        OSError: the place cannot be written (read-only, full, no permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    remove(temporary)
    try:
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and path.exists():
            remove(path)
        temporary.replace(path)
    finally:
        remove(temporary)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, its line ends as they are, by `replacing`.

    Raises:
        OSError: the place cannot be written.
    """
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8", newline="")


def require_others(written: Sequence[Path], read: Iterable[Path], told: str) -> None:
    """Refuses to write two results to one file, and to replace a folder or a file that is read.

    `told` says what is read: `images=photos`.

    Raises:
        RequestError: names the file.
    """
    for number, path in enumerate(written):
        if path.is_dir():
            raise RequestError(f"{path}: is a folder; name a file")
        if os.path.realpath(path) in map(os.path.realpath, written[:number]):
            raise RequestError(f"{path}: two results cannot be one file; give each its own")
    for file in read:
        for path in written:
            if _is_same(file, path):
                raise RequestError(
                    f"{path}: is one of {told}, and would be replaced; move it, or write to "
                    "another place"
                )


def _is_same(file: Path, other: Path) -> bool:
    try:
        return file.samefile(other)
    except (OSError, ValueError):  # one does not exist, or cannot be a path
        return False


def _flush(path: Path) -> None:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def remove(path: Path, *, ignore_errors: bool = False) -> None:
    """Removes a file, or a folder with its contents, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)
