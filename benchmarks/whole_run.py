"""The whole tracked run, process start to exit, beside the bare script: `make bench`.

Both train the classic network for 20 epochs on Fashion-MNIST from a warm cache. Ours also checks
the data, draws, evaluates, saves and records; the script does nothing of that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.report import publish

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3


def main() -> None:
    """Measures, the two taking turns."""
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        data = ROOT / "data"
        ours = ["-m", "pipeline", f"data_dir={data}"]
        _timed([*ours[:2], "preprocess", ours[2]], folder)  # the cache is warm from here on
        _timed([*ours, "dataset=synthetic", "train.epochs=1"], folder)  # so is the store
        raw = next(data.glob("fashion_mnist/raw-*"))
        for _ in range(REPEATS):
            seconds["ours"].append(_timed(ours, folder))
            bare = ["-m", "benchmarks.bare_script", str(raw)]
            seconds["bare Keras script"].append(_timed(bare, folder))
    publish("whole-run", "Seconds from process start to exit, 20 epochs of the MLP", seconds)


def _timed(arguments: list[str], folder: str) -> float:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{arguments} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
