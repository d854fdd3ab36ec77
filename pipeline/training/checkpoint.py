"""Checkpoints of a run: `last.keras`, from which training can resume, and `best.keras`.

Each is one `.keras` file with the model, its optimizer and the `Progress` of the run, replaced in
one step, so that a kill cannot part the three. The order of images follows from seed and epoch, and
what callbacks know follows from the metrics of the epochs: neither is saved.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from pipeline.system.errors import RequestError
from pipeline.system.files import replacing
from pipeline.training.saved import PROGRESS, WEIGHTS, check_archive, inspected

if TYPE_CHECKING:
    import keras  # who only reads the progress need not wait for it

LAST, BEST = "last.keras", "best.keras"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training has come.

    `epochs`: Keras' metrics of each finished epoch. `seconds`: the time spent on them. `seeds`: the
    states of the model's random number generators, in the order of its variables.
    """

    epochs: list[dict[str, float]]
    seconds: float
    seeds: list[list[int]]

    def add_to(self, path: Path) -> None:
        """Adds the progress to a `.keras` file, which Keras reads as before."""
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(PROGRESS, json.dumps(asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Start:
    """The interrupted run to resume, and how far it has come."""

    run_id: str
    progress: Progress


def progress_of(path: Path) -> Progress:
    """Reads the progress from a checkpoint.

    Raises:
        RequestError: there is no such file, or it is damaged or not a checkpoint.
    """
    if not path.exists():
        raise RequestError(
            f"{path}: there is no checkpoint; the run ended before its first epoch was over, "
            "or the file was deleted: start the run again"
        )
    try:
        with zipfile.ZipFile(path) as file:
            check_archive(file)
            if file.testzip() is not None:
                raise zipfile.BadZipFile("its checksum is wrong")
            return TypeAdapter(Progress).validate_json(file.read(PROGRESS), strict=True)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError) as error:
        raise RequestError(
            f"{path}: no checkpoint to go on from ({error}); start the run again"
        ) from error


def save_checkpoint(
    model: keras.Model, folder: Path, *, epochs: list[dict[str, float]], seconds: float, best: bool
) -> None:
    """Replaces the last checkpoint in `folder`, and the best one too if this epoch is the `best`.

    `epochs` and `seconds` are those of `Progress`.

    Raises:
        OSError: the folder cannot be written; the earlier checkpoints stay as they were.
    """
    seeds = [np.asarray(state.value).tolist() for state in _seed_states(model)]
    with replacing(folder / LAST) as path:
        model.save(path)
        Progress(epochs=epochs, seconds=seconds, seeds=seeds).add_to(path)
    if best:
        with replacing(folder / BEST) as path:
            shutil.copyfile(folder / LAST, path)


def load_state(model: keras.Model, path: Path) -> None:
    """Gives a compiled model the weights and the optimizer's state of a checkpoint.

    Raises:
        RequestError: the file is damaged, or its weights lie in another one.
    """
    model.optimizer.build(model.trainable_variables)
    with inspected(path, called=str(path)) as folder:
        model.load_weights(folder / WEIGHTS)


def restore_seeds(model: keras.Model, progress: Progress) -> None:
    """Gives the random number generators of the model the states they had."""
    for state, value in zip(_seed_states(model), progress.seeds, strict=True):
        state.assign(value)


def _seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of the random number generators, which Keras does not save: u32[2] each."""
    saved = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in saved]
