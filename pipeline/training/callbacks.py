"""Keras callbacks of a run: checkpoints, the progress display, and listeners to each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from pipeline.evaluation.metrics import scale_of
from pipeline.system.terminal import plain_console, progress_bar
from pipeline.training.checkpoint import (
    LAST,
    Progress,
    best_checkpoint,
    load_state,
    restore_seeds,
    save_checkpoint,
)

Logs = dict[str, Any]
EpochListener = Callable[[int, dict[str, float]], None]


def run_metric_name(keras_name: str) -> str:
    """Translates Keras' `loss`, `val_loss` to the run's `train/loss`, `val/loss`."""
    if keras_name.startswith("val_"):
        return f"val/{keras_name.removeprefix('val_')}"
    return f"train/{keras_name}"


def stopper(
    monitor: str, *, patience: int | None, epochs: int, restore: bool
) -> keras.callbacks.EarlyStopping:
    """A callback that tracks the best epoch by `monitor` (`val/loss`), and stops training.

    It stops after `patience` epochs without improvement, or never if that is None. `restore` gives
    the model the best weights at the end.
    """
    return keras.callbacks.EarlyStopping(
        monitor.replace("val/", "val_"),
        mode="max" if scale_of(monitor).better == "higher" else "min",
        patience=patience or epochs,
        restore_best_weights=restore,
    )


class Checkpoint(keras.callbacks.Callback):
    """Saves checkpoints after each epoch: always the last and, if it is the best so far, the best.

    `progress` is that of the resumed run, if any.
    """

    def __init__(
        self,
        folder: Path,
        best: keras.callbacks.EarlyStopping | None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.best = folder, best
        self.epochs: list[dict[str, float]] = list(progress.epochs) if progress else []
        self.earlier = progress.seconds if progress else 0.0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Saves the model."""
        self.epochs.append({key: float(value) for key, value in (logs or {}).items()})
        save_checkpoint(
            self.model,
            self.folder,
            epochs=self.epochs,
            seconds=self.earlier + time.perf_counter() - self.started,
            best=self.best is not None and self.best.best_epoch == epoch,
        )


class Restore(keras.callbacks.Callback):
    """Restores the last checkpoint before training begins: model, optimizer, callbacks, generators.

    `followers` receive the earlier epochs as if they had just been run; `best` is one of them.
    """

    def __init__(
        self,
        progress: Progress,
        folder: Path,
        followers: Sequence[keras.callbacks.Callback],
        best: keras.callbacks.EarlyStopping | None,
    ) -> None:
        super().__init__()
        self.progress, self.folder = progress, folder
        self.followers, self.best = followers, best

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Loads the state; the followers have already begun."""
        last = self.folder / LAST
        load_state(self.model, last)
        self._tell_followers()
        if self.best is not None and self.best.restore_best_weights:
            load_state(self.model, best_checkpoint(self.folder, self.best.best_epoch))
            self.best.best_weights = self.model.get_weights()
        load_state(self.model, last)
        restore_seeds(self.model, self.progress)

    def _tell_followers(self) -> None:
        iterations = self.model.optimizer.iterations
        steps = int(iterations) // len(self.progress.epochs)
        for epoch, logs in enumerate(self.progress.epochs):
            iterations.assign(steps * (epoch + 1))  # the learning rate of a schedule depends on it
            for follower in self.followers:
                follower.on_epoch_begin(epoch)
                follower.on_epoch_end(epoch, dict(logs))


class EpochEnd(keras.callbacks.Callback):
    """Calls a function after each epoch with its number (from 1) and metrics (`val/loss`)."""

    def __init__(self, listener: EpochListener) -> None:
        super().__init__()
        self.listener = listener

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Calls the function."""
        self.listener(epoch + 1, {run_metric_name(k): float(v) for k, v in (logs or {}).items()})


class ProgressDisplay(keras.callbacks.Callback):
    """Shows a progress bar (on a terminal only) and prints one line per finished epoch."""

    def __init__(self, images: int, console: Console | None = None) -> None:
        super().__init__()
        self.images = images
        self.console = console or plain_console()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Opens the bar."""
        self.started, self.done = time.perf_counter(), 0
        self.bar = progress_bar(
            self.console, before="epoch {task.fields[epoch]}", after="{task.fields[numbers]}"
        )
        total = self.images * self.params["epochs"]
        self.task = self.bar.add_task("", total=total, epoch=self._name(0), numbers="")
        self.bar.start()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Starts the epoch's clock."""
        self.epoch, self.seen = epoch, 0
        self.epoch_started = time.perf_counter()
        self.bar.update(self.task, completed=epoch * self.images)  # also after resuming

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Advances the bar by the images of one part of the epoch."""
        logs = dict(logs or {})
        images = logs.pop("images")
        self.seen += images
        self.bar.update(
            self.task, advance=images, epoch=self._name(self.epoch), numbers=self._numbers(logs)
        )

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Prints the epoch's line."""
        self.done += 1
        spent = time.perf_counter() - self.started
        left = spent / self.done * (self.params["epochs"] - epoch - 1)
        self.console.print(
            f"epoch {self._name(epoch)}  {self._numbers(logs or {})}  {left:.0f} s left",
            soft_wrap=True,
        )

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Restores the terminal, even after a failure during an epoch."""
        if hasattr(self, "bar"):
            self.bar.stop()

    def _name(self, epoch: int) -> str:
        total = self.params["epochs"]
        return f"{epoch + 1:>{len(str(total))}}/{total}"

    def _numbers(self, logs: Logs) -> str:
        rate = self.seen / max(time.perf_counter() - self.epoch_started, 1e-9)
        metrics = "  ".join(f"{run_metric_name(key)} {value:.4f}" for key, value in logs.items())
        return f"{metrics}  {rate:,.0f} images/s"
