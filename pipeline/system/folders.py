"""A run's folder on this machine: which run owns it, and whether a process is using it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pipeline.system.errors import RequestError
from pipeline.system.files import replacing

OWNER, _LOCK = "run_id", ".run.lock"  # of them, the first names the run that owns the folder
_WORK = ".pixpipe"  # in a folder that a call from Python has made
# What lies in a folder that a program has made, and who that is.
MADE_BY = {OWNER: "runs", ".hydra": "runs", _WORK: "runs", "pyvenv.cfg": "a virtual environment"}
STORES = frozenset(("mlartifacts", "mlruns"))  # folders that MLflow fills
MODEL = "model"  # what a run saves there until its store has it
_ELSEWHERE = "choose another folder with hydra.run.dir=…"


@contextmanager
def at_work_in(folder: Path) -> Iterator[None]:
    """Locks a run's folder against other processes; the system unlocks it when this one dies.

    The same process may enter it again.

    Raises:
        RequestError: another process holds the lock.
    """
    from filelock import FileLock, Timeout

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


def vacate(folder: Path) -> None:
    """Empties the folder of an earlier run for a new one: deletes its artefacts and checkpoints.

    Raises:
        RequestError: those there belong to no run, or they cannot be deleted.
    """
    left = [folder / name for name in ("artifacts", "checkpoints", MODEL)]
    left = [path for path in left if os.path.lexists(path)]
    for path in left:
        no_model = path.name == MODEL and not (path / "MLmodel").exists()
        if path.is_symlink() or owner(folder) is None or no_model:
            raise RequestError(f"{path} was not made by a run; {_ELSEWHERE}")
    try:
        for path in left:
            shutil.rmtree(path)
    except OSError as error:
        raise RequestError(
            f"{folder}: what an earlier run left there cannot be deleted: {error}; {_ELSEWHERE}"
        ) from error


def move_in(folder: Path, run_id: str) -> None:
    """Makes a run the owner of the folder; deletes what another run left there.

    Raises:
        RequestError: what is there cannot be deleted.
    """
    if owner(folder) != run_id:
        vacate(folder)
        hand_over(folder, run_id)


def hand_over(folder: Path, run_id: str) -> None:
    """Records the new id of the run that owns the folder."""
    with replacing(folder / OWNER) as path:
        path.write_text(run_id)


def claim(folder: Path, run_id: str) -> None:
    """Makes a recorded run the owner of the folder if it has none yet.

    Raises:
        RequestError: another run owns it, or it has artefacts that belong to no run.
    """
    found = owner(folder)
    if found == run_id:
        return
    if found is not None:
        raise RequestError(f"{folder} is the folder of run {found}; {_ELSEWHERE}")
    move_in(folder, run_id)


def owner(folder: Path) -> str | None:
    """The id of the run that owns the folder; None if there is no such folder here."""
    path = folder / OWNER
    return path.read_text() if path.exists() else None


def folder_of_work(given: Path | str | None) -> Path:
    """The given folder, or a new one under `outputs/` like that of each command."""
    if given is None:
        now = datetime.now()
        folder = Path("outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _WORK).touch()
    else:
        folder = Path(given)
        folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def require_writable(folder: Path, *, holds: str) -> None:
    """Checks, before the work begins, that a folder can be written or created.

    Raises:
        RequestError: it is read-only, full, or not a folder.
    """
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(2**16))
    except OSError as error:
        raise RequestError(
            f"{nearest}: cannot be written ({error.strerror}), but {holds} are kept there; make it "
            "writable, free some space, or work in another folder"
        ) from error
