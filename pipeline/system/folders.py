"""A run's folder on this machine: whose it is, and whether somebody is at work in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.system.errors import RequestError
from pipeline.system.files import replacing

_OWNER, _LOCK = "run_id", ".run.lock"


@contextmanager
def at_work_in(folder: Path) -> Iterator[None]:
    """Keeps other processes away from a run's folder; the system lets go when this one dies.

    Within a process it may be entered again.

    Raises:
        RequestError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock((folder / _LOCK).absolute(), timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise RequestError(f"{folder}: another process is at work there") from None
    try:
        yield
    finally:
        lock.release()


def move_in(folder: Path, run_id: str) -> None:
    """Makes the folder that of a new run: an earlier one's checkpoints go."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    with replacing(folder / _OWNER) as path:
        path.write_text(run_id)


def owner(folder: Path) -> str | None:
    """The run whose folder it is; None if there is no such folder here."""
    path = folder / _OWNER
    return path.read_text() if path.exists() else None
