"""Checkpoints of a run: `last.keras`, from which training can resume, and `best.keras`.

`previous.keras` is the checkpoint of the epoch before, in case `last.keras` is damaged.

Each is one `.keras` file with the model, its optimizer and the `Progress` of the run. It is
replaced in one step, so that the three always match; after a kill the best may be an older one, and
`best_checkpoint` makes it again. The order of images and the state of callbacks are not saved, but
derived from the seed and from the metrics of the epochs.
"""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from pipeline.system.errors import RequestError
from pipeline.system.files import replacing
from pipeline.training.saved import PROGRESS, WEIGHTS, check_archive, inspected

if TYPE_CHECKING:
    import keras  # not needed to read the progress alone

LAST, BEST, _PREVIOUS = "last.keras", "best.keras", "previous.keras"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a training.

    `epochs`: Keras' metrics of each finished epoch. `seconds`: the time spent on them. `seeds`: the
    states of the model's random number generators, in the order of its variables, and after them
    the state of Keras' own, from which layers without a generator draw, if there is one.
    """

    epochs: list[dict[str, float]]
    seconds: float
    seeds: list[list[int]]

    def add_to(self, path: Path) -> None:
        """Adds the progress to a `.keras` file, which Keras can still read."""
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(PROGRESS, json.dumps(asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Start:
    """The interrupted run to resume, and its progress."""

    run_id: str
    progress: Progress


def progress_of(path: Path) -> Progress:
    """Reads the progress from a checkpoint.

    Raises:
        RequestError: there is no such file, or it is damaged or not a checkpoint.
    """
    if not path.exists():
        raise RequestError(
            f"{path}: there is no checkpoint; the run ended during its first epoch, "
            "or the file was deleted; start a new run"
        )
    try:
        with zipfile.ZipFile(path) as file:
            check_archive(file)
            if file.testzip() is not None:
                raise zipfile.BadZipFile("its checksum is wrong")
            return TypeAdapter(Progress).validate_json(file.read(PROGRESS), strict=True)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError) as error:
        raise RequestError(f"{path}: not a usable checkpoint ({error}); start a new run") from error


def newest_progress(folder: Path) -> Progress:
    """The progress of the newest readable checkpoint in `folder`, which becomes `last.keras`.

    Raises:
        RequestError: there is none.
    """
    last, previous = folder / LAST, folder / _PREVIOUS
    try:
        return progress_of(last)
    except RequestError as error:
        if not previous.exists():
            raise
        found = progress_of(previous)
        damage = str(error).rpartition(";")[0]
        if not last.exists():
            damage = f"{last}: it is missing, as after a kill while it was being replaced"
        with suppress(RequestError):
            best = progress_of(folder / BEST)
            if len(best.epochs) > len(found.epochs):  # a copy of what is damaged now
                log.warning("%s; its copy, the best checkpoint, takes its place", damage)
                with replacing(last) as path:
                    shutil.copyfile(folder / BEST, path)
                return best
        log.warning("%s; the one of the epoch before takes its place", damage)
        previous.replace(last)
        return found


def save_checkpoint(
    model: keras.Model, folder: Path, *, epochs: list[dict[str, float]], seconds: float, best: bool
) -> None:
    """Replaces the last checkpoint in `folder`, and the best one too if this epoch is the `best`.

    `epochs` and `seconds` are those of `Progress`.

    Raises:
        OSError: the folder cannot be written; earlier checkpoints remain unchanged.
    """
    states = _seed_states(model, shared=_shared_generator() is not None)
    seeds = [np.asarray(state.value).tolist() for state in states]
    with replacing(folder / LAST) as path:
        model.save(path)
        Progress(epochs=epochs, seconds=seconds, seeds=seeds).add_to(path)
        if (folder / LAST).exists():
            (folder / LAST).replace(folder / _PREVIOUS)
    if best:
        with replacing(folder / BEST) as path:
            shutil.copyfile(folder / LAST, path)


def best_checkpoint(folder: Path, epoch: int) -> Path:
    """The checkpoint in `folder` with the weights after the best `epoch` (from 0).

    It is `best.keras`, unless the process was ended after writing the last checkpoint and before
    the best: then it is made of that one.

    Raises:
        RequestError: there is none of that epoch.
    """
    for name in (BEST, LAST, _PREVIOUS):
        with suppress(RequestError):  # another may be whole
            if len(progress_of(folder / name).epochs) == epoch + 1:
                if name != BEST:
                    with replacing(folder / BEST) as path:
                        shutil.copyfile(folder / name, path)
                return folder / BEST
    raise RequestError(
        f"{folder}: the weights of the best epoch, {epoch + 1}, are in none of the checkpoints; "
        "start the run again"
    )


def load_state(model: keras.Model, path: Path) -> None:
    """Loads weights and optimizer state of a checkpoint into a compiled model.

    Raises:
        RequestError: the file is damaged, or refers to weights in another file.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    with inspected(path, called=str(path)) as folder:
        model.load_weights(folder / WEIGHTS)


def restore_seeds(model: keras.Model, progress: Progress) -> None:
    """Restores the states of the model's random number generators, and of Keras' own."""
    shared = len(progress.seeds) > len(_seed_states(model, shared=False))
    for state, value in zip(_seed_states(model, shared=shared), progress.seeds, strict=True):
        state.assign(value)


def _seed_states(model: keras.Model, *, shared: bool) -> list[keras.Variable]:
    """The states of the random number generators, which Keras does not save: u32[2] each."""
    saved = {id(weight) for weight in model.weights}
    own = [variable for variable in model.variables if id(variable) not in saved]
    return [*own, _shared_generator(made=True).state] if shared else own


def _shared_generator(*, made: bool = False) -> Any:
    """Keras' own generator; None if nothing has drawn from it yet, unless it shall be `made`."""
    from keras.src.backend.common import global_state  # nothing public leads to it
    from keras.src.random import seed_generator

    if made:
        return seed_generator.global_seed_generator()
    return global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)
