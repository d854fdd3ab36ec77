"""How far training has come: what a `.keras` file lacks for going on as if it had never stopped.

It lies in that very file, which is replaced in one step, so that no kill can part the two. Weights
and optimizer are the model's own part of it. The order of images follows from seed and epoch, and
what callbacks know follows from the epochs' metrics.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.system.errors import RequestError

_MEMBER = "progress.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`epochs`: Keras' metrics of each finished epoch. `seconds`: spent on them.

    `seeds`: the states of the model's random number generators, in the order of its variables.
    """

    epochs: list[dict[str, float]]
    seconds: float
    seeds: list[list[int]]

    def add_to(self, path: Path) -> None:
        """Puts this into a `.keras` file; Keras reads the file as before."""
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(_MEMBER, json.dumps(asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run that was interrupted goes on."""

    run_id: str
    progress: Progress


def progress_of(path: Path) -> Progress:
    """The progress kept in a checkpoint.

    Raises:
        RequestError: there is no such file, or it is damaged or of another kind.
    """
    if not path.exists():
        raise RequestError(
            f"{path}: there is no checkpoint; the run ended before its first epoch was over, "
            "or the file was deleted: start the run again"
        )
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                raise zipfile.BadZipFile("its checksum is wrong")
            return Progress(**json.loads(file.read(_MEMBER)))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError) as error:
        raise RequestError(
            f"{path}: no checkpoint to go on from ({error}); start the run again"
        ) from error
