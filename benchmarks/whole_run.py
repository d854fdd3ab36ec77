"""Measures the whole tracked run, compared with the bare script: `make bench`.

Both train the classic network for 20 epochs on Fashion-MNIST from a warm cache and evaluate it, and
are measured from process start to exit; the script also on Keras' JAX backend, if JAX is installed.
Ours also checks the data, draws, saves and records.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import publish

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that ended well: when it started and ended (Unix time), its memory's peak (MB)."""

    started: float
    ended: float
    peak_mb: float
    output: str

    @property
    def seconds(self) -> float:
        """Process start to exit."""
        return self.ended - self.started

    @property
    def result(self) -> dict[str, str]:
        """The last line that a run printed, `run_id=… model_uri=…`."""
        return dict(pair.split("=", 1) for pair in self.output.splitlines()[-1].split())


def main() -> None:
    """Reads the command line and measures, the two taking turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        ours = [*warmed("fashion_mnist", folder), f"train.epochs={arguments.epochs}"]
        raw = plain_arrays("fashion_mnist", folder)
        bare = ["-m", "benchmarks.bare_script", str(raw), str(arguments.epochs)]
        for _ in range(arguments.repeats):
            seconds["ours"].append(finished(ours, folder).seconds)
            for backend in backends():
                name = f"bare Keras script, {backend}"
                seconds[name].append(finished(bare, folder, backend=backend).seconds)
    title = f"Seconds from process start to exit, {arguments.epochs} epochs of the MLP"
    publish("whole-run", title, seconds)


def warmed(dataset: str, folder: str) -> list[str]:
    """Python's arguments of a run on `dataset`; makes its cache, and the store in `folder`."""
    data = f"data_dir={DATA}"
    finished(["-m", "pipeline", "preprocess", data, f"dataset={dataset}"], folder)
    finished(["-m", "pipeline", "run", data, "dataset=synthetic", "train.epochs=1"], folder)
    return ["-m", "pipeline", "run", data, f"dataset={dataset}"]


def raw_folder(dataset: str) -> Path:
    """Where the cache has the packed images of `dataset` and the rows of its splits."""
    return max((DATA / dataset).glob("raw-*"), key=lambda path: path.stat().st_mtime)


def plain_arrays(dataset: str, folder: str) -> Path:
    """Writes `train_images.npy`, … `test_labels.npy` of `dataset`, as other scripts have them."""
    import numpy as np

    packed, plain = raw_folder(dataset), Path(folder, "arrays")
    plain.mkdir()
    images = np.load(packed / "images.npy", mmap_mode="r")
    for split in ("train", "test"):
        rows, labels = (np.load(packed / f"{split}_{kind}.npy") for kind in ("rows", "labels"))
        np.save(plain / f"{split}_images.npy", images[rows])
        np.save(plain / f"{split}_labels.npy", labels)
    return plain


def store(folder: str) -> str:
    """The tracking store of the runs that `finished` starts in `folder`."""
    return f"sqlite:///{folder}/mlflow.db"


def backends() -> list[str]:
    """The backends of Keras that are installed here and that scripts are measured with."""
    return ["tensorflow", *(["jax"] if importlib.util.find_spec("jax") else [])]


def finished(arguments: list[str], folder: str, *, backend: str = "tensorflow") -> Finished:
    """Runs Python in `folder`, with that backend of Keras, and waits for it.

    Linux includes the memory of a process before its exec, so the caller must be smaller than the
    process that it measures.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store(folder)}
    environment |= {"KERAS_BACKEND": backend}
    command = [sys.executable, *arguments]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.time()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        ended = time.time()
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{arguments} failed:\n{errors.read()[-2000:]}")
        peak_mb = usage.ru_maxrss * RSS_UNIT / 1e6
        return Finished(started=started, ended=ended, peak_mb=peak_mb, output=output.read())


if __name__ == "__main__":
    main()
