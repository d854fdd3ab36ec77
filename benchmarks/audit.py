"""Measures how many deliberately wrong labels `audit` finds: `python -m benchmarks.audit`.

It replaces labels of Fashion-MNIST, and of your own pictures with `--pictures FOLDER`, by another
class at random ("spoils" them), and audits them. Precision is the share of spoilt labels among
those called wrong; the labels' own errors count against it. Recall is the share of the spoilt
labels that are found.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import pipeline
from benchmarks.report import show
from pipeline.config.schema import Config
from pipeline.data.values import Array, Prepared, Split
from pipeline.evaluation.labels import audited_labels
from pipeline.training.folds import out_of_fold

SHARES = (0.05, 0.2)
FIRST = 25  # most doubtful labels, among which the share of spoilt ones is shown as well
FASHION = ("dataset=fashion_mnist", "model=cnn", "train.epochs=4")
PICTURES = ("dataset=folder", "model=efficientnet_lite0", "train.epochs=20")
Row = tuple[str, ...]


def spoilt(labels: Array, classes: int, share: float, seed: int = 0) -> tuple[Array, Array]:
    """Labels i32[n] with a share replaced by another class, and which were replaced, bool[n]."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    chosen[rng.choice(len(labels), round(share * len(labels)), replace=False)] = True
    others = (labels + rng.integers(1, classes, len(labels))) % classes
    return np.where(chosen, others, labels).astype(np.int32), chosen


def with_labels(split: Split, labels: Array) -> Split:
    """The same images with other labels."""
    return Split(images=split.images, rows=split.rows, labels=labels)


def measured(name: str, config: Config, prepared: Prepared, folds: int) -> Iterator[Row]:
    """A row of the table for each share of spoilt labels."""
    counts = len(prepared.train), len(prepared.val)
    truth = np.concatenate([prepared.train.labels, prepared.val.labels])
    for share in SHARES:
        labels, wrong = spoilt(truth, len(prepared.class_names), share)
        train, val = np.split(labels, [counts[0]])
        spoiled = replace(
            prepared,
            train=with_labels(prepared.train, train),
            val=with_labels(prepared.val, val),
        )
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = out_of_fold(config, spoiled, Path(folder), folds=folds)
        verdict = audited_labels(found.split.labels, found.probabilities, found.known)
        seconds = time.perf_counter() - started
        hits = int((verdict.wrong & wrong).sum())
        yield (
            f"{name}, {config.choices.model}",
            f"{len(truth):,}",
            f"{share:.0%}",
            f"{int(verdict.wrong.sum()):,}",
            f"{hits / max(1, int(verdict.wrong.sum())):.3f}",
            f"{hits / int(wrong.sum()):.3f}",
            f"{wrong[verdict.order[:FIRST]].mean():.2f}",
            f"{verdict.accuracy:.3f}",
            f"{seconds:.0f}",
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000, help="of Fashion-MNIST; 0: none")
    parser.add_argument("--pictures", help="folder, archive or list of pictures")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("words", nargs="*", help="settings, such as dataset.group=…")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    if given.images:
        val = given.images // 10
        sizes = (f"preprocess.validation_size={val}", f"preprocess.limit={given.images - val}")
        config = pipeline.compose(*FASHION, *sizes)
        rows += measured("Fashion-MNIST", config, pipeline.load_data(config), given.folds)
    if given.pictures:
        config = pipeline.compose(*PICTURES, f"dataset.path={given.pictures}", *given.words)
        rows += measured("pictures", config, pipeline.load_data(config), given.folds)
    columns = ("data, model", "labels", "spoilt", "called wrong", "precision", "recall")
    show("Labels spoilt on purpose", (*columns, f"of first {FIRST}", "agreement", "s"), rows)


if __name__ == "__main__":
    main()
