"""Seconds an epoch of every contender, interleaved in one sitting: `make bench`.

Each measurement is a process of its own, the contenders taking turns, so that a busy spell of the
machine falls on all of them; the first epoch, in which graphs are compiled, is left out. What
counts are the ratios of the medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict

import numpy as np

from benchmarks.contenders import CONTENDERS, MLP_ONLY, Task
from benchmarks.report import publish

EPOCHS = {"mlp": 4, "cnn": 2}


def measure(model: str, *, size: int, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds an epoch by contender, of all repeats."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for repeat in range(repeats):
        for name in CONTENDERS:
            if model == "mlp" or name not in MLP_ONLY:
                print(f"{model}, repeat {repeat + 1} of {repeats}: {name}", file=sys.stderr)
                seconds[name] += _in_own_process(name, model, size, batch_size)[1:]
    return seconds


def _in_own_process(name: str, model: str, size: int, batch_size: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.training", "--one", name, "--model", model]
    command += ["--size", str(size), "--batch-size", str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return list(json.loads(done.stdout.splitlines()[-1]))


def _task(arguments: argparse.Namespace) -> Task:
    rng = np.random.default_rng(0)  # speed depends on the shapes, not on what is in them
    return Task(
        images=rng.integers(0, 256, (arguments.size, 28, 28, 1), dtype=np.uint8),
        labels=rng.integers(0, 10, arguments.size).astype(np.int32),
        model=arguments.model,
        batch_size=arguments.batch_size,
        epochs=EPOCHS[arguments.model],
    )


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=EPOCHS, default="mlp")
    parser.add_argument("--size", type=int, default=60_000, help="images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(list(CONTENDERS[arguments.one](_task(arguments)))))
        return
    seconds = measure(
        arguments.model,
        size=arguments.size,
        batch_size=arguments.batch_size,
        repeats=arguments.repeats,
    )
    title = f"{arguments.model}, {arguments.size:,} images, batch {arguments.batch_size}"
    publish(f"training-{arguments.model}", f"Seconds an epoch: {title}", seconds)


if __name__ == "__main__":
    main()
