"""Measures the cost and effect of `train.deterministic`: `python -m benchmarks.determinism`.

Tracked runs of one seed with and without it, in turn: the seconds of the fit, and whether the
weights after the last epoch are equal bit for bit in all runs of a kind.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.report import publish, show
from benchmarks.stages import fit_seconds
from benchmarks.whole_run import Finished, finished, store, warmed

KINDS = {"default": "false", "deterministic": "true"}  # train.deterministic


def main() -> None:
    """Reads the command line, measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind; two or more")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("--repeats: one run is like no other; 2 or more")
    runs: dict[str, list[Finished]] = defaultdict(list)
    hashes: dict[str, list[str]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        command = warmed(arguments.dataset, folder)
        command += [f"model={arguments.model}", f"train.epochs={arguments.epochs}"]
        for repeat in range(arguments.repeats):
            for kind, value in KINDS.items():
                print(f"{kind}, repeat {repeat + 1} of {arguments.repeats}", file=sys.stderr)
                output = f"hydra.run.dir={folder}/{kind}-{repeat}"
                setting = f"train.deterministic={value}"
                runs[kind].append(finished([*command, setting, output], folder))
        for kind in KINDS:
            for repeat in range(arguments.repeats):
                last = Path(folder, f"{kind}-{repeat}", "checkpoints", "last.keras")
                hashes[kind].append(weights_sha256(last))
        seconds = {kind: [fit_seconds(run, store(folder)) for run in runs[kind]] for kind in KINDS}
    same = {kind: len(set(of_kind)) == 1 for kind, of_kind in hashes.items()}
    title = f"Seconds of the fit: {arguments.model}, {arguments.dataset}, {arguments.epochs} epochs"
    publish(
        "determinism", title, seconds, reference="default", weights_sha256=hashes, identical=same
    )
    rows = [
        (kind, "yes" if same[kind] else "NO", ", ".join(text[:12] for text in hashes[kind]))
        for kind in KINDS
    ]
    show("Weights after the last epoch", ("runs", "bit-identical", "SHA-256"), rows)
    if not same["deterministic"]:
        raise SystemExit("train.deterministic=true gave different weights")


def weights_sha256(path: Path) -> str:
    """SHA-256 (hex) over the weights of a saved Keras model in order: dtype, shape and bytes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    digest = hashlib.sha256()
    for weight in keras.models.load_model(path).get_weights():
        digest.update(f"{weight.dtype.str}{weight.shape}".encode())
        digest.update(weight.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
