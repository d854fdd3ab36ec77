"""Measures seconds per epoch of every contender, interleaved in one sitting: `make bench`.

Each measurement is a process of its own, and the contenders take turns, so that a busy spell of the
machine affects all of them; the first epoch, in which graphs are compiled, is left out. The ratios
of the medians count. A contender that cannot run here is named and left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from benchmarks.contenders import CONTENDERS, Task, contenders_of
from benchmarks.report import REFERENCE, publish

EPOCHS = {"mlp": 4, "cnn": 2, "resnet": 2}
SIZE = {"mlp": 60_000, "cnn": 60_000, "resnet": 12_000}
BATCH_SIZE = 128


def measure(
    model: str,
    contenders: Sequence[str],
    *,
    size: int,
    batch_size: int,
    repeats: int,
    precision: str = "float32",
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds per epoch by contender, of all repeats; and the reasons of those that failed."""
    seconds: dict[str, list[float]] = defaultdict(list)
    failed: dict[str, str] = {}
    for repeat in range(repeats):
        for name in contenders:
            if name in failed:
                continue
            print(f"{model}, repeat {repeat + 1} of {repeats}: {name}", file=sys.stderr)
            try:
                seconds[name] += _in_own_process(name, model, size, batch_size, precision)[1:]
            except RuntimeError as error:
                if name == REFERENCE:
                    raise SystemExit(f"{name} failed: {error}") from error
                failed[name] = str(error)
    return {name: seconds[name] for name in seconds.keys() - failed.keys()}, failed


def _in_own_process(
    name: str, model: str, size: int, batch_size: int, precision: str
) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.training", "--one", name, "--model", model]
    command += ["--size", str(size), "--batch-size", str(batch_size), "--precision", precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(lines[-1])
    return list(json.loads(done.stdout.splitlines()[-1]))


def task_of(
    model: str, *, size: int, batch_size: int, epochs: int, precision: str = "float32"
) -> Task:
    """Fitting a model on noise: speed depends on the shapes, not on what is in them."""
    rng = np.random.default_rng(0)
    return Task(
        images=rng.integers(0, 256, (size, 28, 28, 1), dtype=np.uint8),
        labels=rng.integers(0, 10, size).astype(np.int32),
        model=model,
        batch_size=batch_size,
        epochs=epochs,
        precision=precision,
    )


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=EPOCHS, default="mlp")
    parser.add_argument("--size", type=int, help=f"images; by default {SIZE}")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.size = arguments.size or SIZE[arguments.model]
    if arguments.one:
        task = task_of(
            arguments.model,
            size=arguments.size,
            batch_size=arguments.batch_size,
            epochs=EPOCHS[arguments.model],
            precision=arguments.precision,
        )
        print(json.dumps(list(CONTENDERS[arguments.one](task))))
        return
    able = contenders_of(arguments.model)
    seconds, failed = measure(
        arguments.model,
        [name for name in arguments.contenders if name in able],
        size=arguments.size,
        batch_size=arguments.batch_size,
        repeats=arguments.repeats,
        precision=arguments.precision,
    )
    title = f"{arguments.model}, {arguments.size:,} images, batch {arguments.batch_size}"
    if low := arguments.precision != "float32":
        title += f", {arguments.precision}"
    batch = "" if arguments.batch_size == BATCH_SIZE else f"-{arguments.batch_size}"
    name = f"training-{arguments.model}{batch}{f'-{arguments.precision}' if low else ''}"
    publish(name, f"Seconds per epoch: {title}", seconds, failed=failed)
    for contender, reason in failed.items():
        print(f"left out: {contender}, which this machine cannot run: {reason}")


if __name__ == "__main__":
    main()
