from __future__ import annotations

import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.system.errors import RequestError
from pipeline.training.checkpoint import (
    Progress,
    newest_progress,
    progress_of,
    restore_seeds,
    save_checkpoint,
)
from tests.stress.matrix import matrix

PROGRESS = Progress(epochs=[{"loss": 0.1 + 0.2, "val_loss": 1 / 3}], seconds=1.5, seeds=[[7, 360]])


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.weights.h5", b"weights")
    return path


def test_what_was_added_comes_back_to_the_last_bit_and_the_rest_stays(tmp_path: Path) -> None:
    path = archive(tmp_path / "last.keras")
    PROGRESS.add_to(path)
    assert progress_of(path) == PROGRESS
    assert zipfile.ZipFile(path).read("model.weights.h5") == b"weights"


def test_a_missing_checkpoint_says_that_no_epoch_was_finished(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"last.keras: there is no checkpoint; .*first epoch"):
        progress_of(tmp_path / "last.keras")


def test_a_model_of_another_making_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a usable checkpoint"):
        progress_of(archive(tmp_path / "last.keras"))


@pytest.mark.parametrize("damage", ["cut", "changed", "no archive"])
@matrix(11)
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "last.keras")
    PROGRESS.add_to(path)
    whole = path.read_bytes()
    content = {
        "cut": whole[: len(whole) // 2],
        "changed": whole.replace(b"weights", b"wraiths", 2),
        "no archive": b"",
    }
    path.write_bytes(content[damage])
    with pytest.raises(RequestError, match="start a new run"):
        progress_of(path)


@pytest.mark.parametrize("damage", ["cut", "missing"])
@matrix(11)
def test_the_checkpoint_before_takes_the_place_of_one_that_is_damaged(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = archive(tmp_path / "last.keras"), archive(tmp_path / "previous.keras")
    PROGRESS.add_to(previous)
    whole = previous.read_bytes()
    if damage == "missing":  # the process was killed as it replaced the file
        last.unlink()
    assert newest_progress(tmp_path) == PROGRESS
    assert last.read_bytes() == whole
    assert not previous.exists()
    why = {
        "cut": "not a usable checkpoint",
        "missing": "as after a kill while it was being replaced",
    }
    assert f"{last}: " in caplog.text
    assert why[damage] in caplog.text
    assert "first epoch" not in caplog.text
    assert "the epoch before takes its place" in caplog.text


@matrix(11)
def test_an_intact_checkpoint_is_preferred_and_two_damaged_ones_are_refused(tmp_path: Path) -> None:
    last, previous = archive(tmp_path / "last.keras"), archive(tmp_path / "previous.keras")
    PROGRESS.add_to(last)
    assert newest_progress(tmp_path) == PROGRESS
    last.write_bytes(b"")
    with pytest.raises(RequestError, match="previous.keras: not a usable checkpoint"):
        newest_progress(tmp_path)
    previous.unlink()
    with pytest.raises(RequestError, match="last.keras: not a usable checkpoint"):
        newest_progress(tmp_path)


def test_layers_without_a_generator_draw_the_same_numbers_after_an_interruption(
    tmp_path: Path,
) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5, seed=1)])
    model.compile()
    keras.utils.set_random_seed(0)
    for drawn in (False, True):  # Keras makes its own generator when it is first used
        if drawn:
            keras.random.uniform((3,))
        save_checkpoint(model, tmp_path, epochs=[{"loss": 1.0}], seconds=1.0, best=False)
        expected = keras.random.uniform((3,))
        keras.utils.set_random_seed(7)
        progress = progress_of(tmp_path / "last.keras")
        assert len(progress.seeds) == 1 + drawn
        restore_seeds(model, progress)
        if drawn:
            np.testing.assert_array_equal(keras.random.uniform((3,)), expected)
