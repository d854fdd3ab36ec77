from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console

from pipeline.training.callbacks import (
    Checkpoint,
    EpochEnd,
    ProgressDisplay,
    run_metric_name,
    stopper,
)
from tests.commands import Terminal
from tests.stress.matrix import matrix


def model() -> keras.Model:
    images = keras.Input((2,))
    made = keras.Model(images, keras.layers.Dense(1, name="dense")(images))
    made.compile(optimizer="sgd", loss="mse")
    made.optimizer.build(made.trainable_variables)
    return made


def weigh(made: keras.Model, value: float) -> None:
    made.set_weights([np.full_like(weight, value) for weight in made.get_weights()])


def epochs_of(
    callbacks: list[keras.callbacks.Callback], made: keras.Model, name: str, values: list[float]
) -> int:
    """Runs epochs with these values of one metric, weights = epoch; returns how many were run."""
    made.stop_training = False
    followers = keras.callbacks.CallbackList(callbacks, model=made, epochs=len(values))
    followers.on_train_begin()
    for epoch, value in enumerate(values):
        weigh(made, epoch)
        followers.on_epoch_begin(epoch)
        followers.on_epoch_end(epoch, {name: value})
        if made.stop_training:
            break
    followers.on_train_end()
    return epoch + 1


@pytest.mark.parametrize(
    ("keras_name", "name"),
    [
        ("loss", "train/loss"),
        ("val_loss", "val/loss"),
        ("val_accuracy", "val/accuracy"),
        ("interval_loss", "train/interval_loss"),
    ],
)
def test_metrics_are_named_by_their_split(keras_name: str, name: str) -> None:
    assert run_metric_name(keras_name) == name


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("val/loss", [3.0, 1.0, 2.0, 1.0], 1),
        ("val/accuracy", [0.3, 0.1, 0.9, 0.9], 2),
        ("val/loss", [1.0, 2.0], 0),
    ],
)
def test_the_best_epoch_is_the_first_with_the_best_value(
    monitor: str, values: list[float], best: int
) -> None:
    made = model()
    follower = stopper(monitor, patience=None, epochs=len(values), restore=True)
    assert epochs_of([follower], made, monitor.replace("/", "_"), values) == len(values)
    assert follower.best_epoch == best
    np.testing.assert_array_equal(made.get_weights()[0], np.full((2, 1), best))


def test_training_stops_after_so_many_epochs_without_a_better_one() -> None:
    follower = stopper("val/loss", patience=2, epochs=9, restore=False)
    made = model()
    assert epochs_of([follower], made, "val_loss", [5, 4, 4, 3, 3, 3.5, 1]) == 6
    assert follower.best_epoch == 3
    np.testing.assert_array_equal(made.get_weights()[0], np.full((2, 1), 5))


def kernel(path: Path) -> float:
    return float(keras.models.load_model(path).get_weights()[0][0, 0])


def test_checkpoints_are_the_last_and_the_best_epoch(tmp_path: Path) -> None:
    follower = stopper("val/loss", patience=None, epochs=4, restore=False)
    epochs_of([follower, Checkpoint(tmp_path, follower)], model(), "val_loss", [3, 1, 2, 2.5])
    names = ["best.keras", "last.keras", "previous.keras"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert kernel(tmp_path / "last.keras") == 3
    assert kernel(tmp_path / "previous.keras") == 2
    assert kernel(tmp_path / "best.keras") == 1


def test_without_a_best_epoch_there_is_the_last_checkpoint_alone(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    epochs_of([Checkpoint(folder, None)], model(), "loss", [3, 1])
    assert sorted(path.name for path in folder.iterdir()) == ["last.keras", "previous.keras"]
    assert kernel(folder / "last.keras") == 1


@matrix(22)
def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model()
    epochs_of([Checkpoint(tmp_path, None)], made, "loss", [1])

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(made, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        epochs_of([Checkpoint(tmp_path, None)], made, "loss", [1])
    assert [path.name for path in tmp_path.iterdir()] == ["last.keras"]
    assert kernel(tmp_path / "last.keras") == 0


def test_a_listener_hears_epochs_from_1_and_plain_numbers_by_the_runs_names() -> None:
    heard: list[Any] = []
    callback = EpochEnd(lambda epoch, metrics: heard.append((epoch, metrics)))
    callback.on_epoch_end(0, {"loss": np.float32(0.5), "val_loss": np.float32(0.25)})
    callback.on_epoch_end(1)
    assert heard == [(1, {"train/loss": 0.5, "val/loss": 0.25}), (2, {})]
    assert type(heard[0][1]["train/loss"]) is float


def shown(epochs: int, *, terminal: bool = False) -> str:
    page = Terminal() if terminal else io.StringIO()
    display = ProgressDisplay(
        10, Console(file=page, force_terminal=terminal, width=200, highlight=False)
    )
    display.set_params({"epochs": epochs})
    display.on_train_begin()
    for epoch in range(epochs):
        display.on_epoch_begin(epoch)
        display.on_train_batch_end(0, {"loss": 0.5, "images": 10})
        display.on_epoch_end(epoch, {"loss": 0.5, "val_accuracy": 0.875})
    display.on_train_end()
    return page.getvalue()


def test_off_a_terminal_each_epoch_is_one_plain_line() -> None:
    lines = shown(10).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("epoch  1/10  train/loss 0.5000  val/accuracy 0.8750  ")
    assert lines[9].startswith("epoch 10/10  ")
    assert lines[9].endswith(" images/s  0 s left")
    assert "\x1b" not in "".join(lines)


def test_on_a_terminal_the_lines_stay_and_the_bar_goes() -> None:
    text = shown(2, terminal=True)
    assert "epoch 1/2  train/loss 0.5000" in text
    assert "images/s  0 s left" in text
    hidden, shown_again = text.rindex("\x1b[?25l"), text.rindex("\x1b[?25h")
    assert hidden < shown_again  # the cursor


def test_the_terminal_is_given_back_after_a_failure_also_before_training_began() -> None:
    page = Terminal()
    display = ProgressDisplay(10, Console(file=page, force_terminal=True))
    display.close()
    assert page.getvalue() == ""
    display.set_params({"epochs": 1})
    display.on_train_begin()
    assert not display.bar.finished
    display.close()
    assert not display.bar.live.is_started
