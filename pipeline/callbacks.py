"""Keras callbacks of a run: checkpoints, the progress display, and the hand-over of each epoch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.storage import replacing

Logs = dict[str, Any]
EpochListener = Callable[[int, dict[str, float]], None]


def metric_name(keras_name: str) -> str:
    """Keras' `loss`, `val_loss` as the run's `train/loss`, `val/loss`."""
    if keras_name.startswith("val_"):
        return f"val/{keras_name.removeprefix('val_')}"
    return f"train/{keras_name}"


def stopper(
    monitor: str, *, patience: int | None, epochs: int, restore: bool
) -> keras.callbacks.EarlyStopping:
    """Follows the best epoch by `monitor` (`val/loss`), stops after `patience` worse ones.

    Without a patience it only follows; `restore` gives the model the best weights at the end.
    """
    return keras.callbacks.EarlyStopping(
        monitor.replace("val/", "val_"),
        mode="max" if monitor.endswith("accuracy") else "min",
        patience=patience or epochs,
        restore_best_weights=restore,
    )


class Checkpoint(keras.callbacks.Callback):
    """Keeps `last.keras` and, where there is a best epoch, `best.keras` in a folder.

    Each is a whole model with its optimizer's state, and is replaced in one step.
    """

    def __init__(self, folder: Path, best: keras.callbacks.EarlyStopping | None) -> None:
        super().__init__()
        self.folder, self.best = folder, best

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Saves the model as it is after the epoch."""
        with replacing(self.folder / "last.keras") as path:
            self.model.save(path)
        if self.best is not None and self.best.best_epoch == epoch:
            with replacing(self.folder / "best.keras") as path:
                shutil.copyfile(self.folder / "last.keras", path)


class EpochEnd(keras.callbacks.Callback):
    """Tells a plain function each finished epoch (from 1) and its metrics by the run's names."""

    def __init__(self, listener: EpochListener) -> None:
        super().__init__()
        self.listener = listener

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Hands the epoch over."""
        self.listener(epoch + 1, {metric_name(k): float(v) for k, v in (logs or {}).items()})


class ProgressDisplay(keras.callbacks.Callback):
    """A bar for the running epoch and a line for each finished one; lines alone off a terminal."""

    def __init__(self, images: int, console: Console | None = None) -> None:
        super().__init__()
        self.images = images
        self.console = console or Console(stderr=True, highlight=False)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Opens the bar."""
        self.started = time.perf_counter()
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        total = self.images * self.params["epochs"]
        self.task = self.bar.add_task("", total=total, epoch=self._name(0), numbers="")
        self.bar.start()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Starts the epoch's clock."""
        self.epoch, self.seen = epoch, 0
        self.epoch_started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Moves the bar on by the images of one part of the epoch."""
        logs = dict(logs or {})
        images = logs.pop("images")
        self.seen += images
        self.bar.update(
            self.task, advance=images, epoch=self._name(self.epoch), numbers=self._numbers(logs)
        )

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Prints the epoch's line."""
        done = epoch + 1
        spent = time.perf_counter() - self.started
        left = spent / done * (self.params["epochs"] - done)
        self.console.print(
            f"epoch {self._name(epoch)}  {self._numbers(logs or {})}  {left:.0f} s left",
            soft_wrap=True,
        )

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back, also after a failure in the middle of an epoch."""
        if hasattr(self, "bar"):
            self.bar.stop()

    def _name(self, epoch: int) -> str:
        total = self.params["epochs"]
        return f"{epoch + 1:>{len(str(total))}}/{total}"

    def _numbers(self, logs: Logs) -> str:
        rate = self.seen / max(time.perf_counter() - self.epoch_started, 1e-9)
        metrics = "  ".join(f"{metric_name(key)} {value:.4f}" for key, value in logs.items())
        return f"{metrics}  {rate:,.0f} images/s"
