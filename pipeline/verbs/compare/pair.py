"""Compares two runs image by image, on the same images. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.values import JUDGED_SPLITS
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.paired import (
    ClassChange,
    McNemar,
    Swap,
    accuracy_change,
    class_changes,
    mcnemar,
    swaps,
)
from pipeline.tracking.values import GROUPING, RecordedRun, StoredPredictions

Stored = Mapping[str, StoredPredictions]  # a run's, by split
_PREPROCESS = "preprocess."
_GROUPS = {"dataset.group", "dataset.near_duplicates"}


@dataclass(frozen=True, kw_only=True)
class PairedRuns:
    """Two classifiers on the same images; `change` is the second's accuracy minus the first's.

    `metric` is that accuracy's name, `split` the images in words.
    """

    metric: str
    split: str
    images: int
    first: float
    second: float
    change: Estimate
    test: McNemar
    classes: list[ClassChange]
    swaps: list[Swap]
    confidence: float

    @property
    def is_noise(self) -> bool:
        """Whether McNemar's test finds no significant difference at level 1 - confidence."""
        return self.test.p_value >= 1 - self.confidence


class Unpaired(Exception):
    """Two runs cannot be compared image by image; the message says why."""


def pair_up(
    runs: tuple[RecordedRun, RecordedRun],
    stored: Mapping[str, Stored],
    confidence: float,
) -> PairedRuns:
    """Compares two runs image by image, on the test split if both have it.

    `stored`: predictions by run id.

    Raises:
        Unpaired: predictions are missing, or belong to different images.
    """
    split = _common_split(runs, stored)
    first, second = (stored[run.id][split] for run in runs)
    labels, before, after = first.labels, first.predicted, second.predicted
    return PairedRuns(
        metric=f"{split}/accuracy",
        split=JUDGED_SPLITS[split],
        images=len(labels),
        first=float((before == labels).mean()),
        second=float((after == labels).mean()),
        change=accuracy_change(labels, before, after, confidence),
        test=mcnemar(labels, before, after),
        classes=class_changes(labels, before, after, first.class_names, confidence),
        swaps=swaps(labels, before, after, first.class_names),
        confidence=confidence,
    )


def same_images(runs: Sequence[RecordedRun], stored: Mapping[str, Stored], split: str) -> bool:
    """Whether runs have the same images of a split.

    That depends on the data, the labels and, except for the test split, how the data was split:
    by `preprocess`, and by the groups of pictures. The test split is fixed by the data set, and no
    setting changes its pixels.
    """
    grouped = all(GROUPING in run.tags for run in runs)  # an earlier version recorded settings only
    return len({_images_of(run, stored[run.id], split, grouped=grouped) for run in runs}) == 1


def _images_of(run: RecordedRun, stored: Stored, split: str, *, grouped: bool) -> str:
    settings = {
        key: text
        for key, text in run.params.items()
        if key.startswith(_PREPROCESS) or (key in _GROUPS and not grouped)
    }
    groups = run.tags[GROUPING] if grouped else ""
    way = [*sorted(settings.items()), groups] if split == "val" else []
    labels = hashlib.sha256(np.ascontiguousarray(stored[split].labels).data).hexdigest()
    return f"{run.fingerprint or run.id} {way} {labels}"


def _common_split(runs: tuple[RecordedRun, RecordedRun], stored: Mapping[str, Stored]) -> str:
    for run in runs:
        if run.id not in stored:
            raise Unpaired(f"run {run.label} has no stored predictions (predictions.npz)")
    data = [run.fingerprint or "not recorded" for run in runs]
    if data[0] != data[1] or data[0] == "not recorded":
        raise Unpaired(f"the runs' data differ: SHA-256 {data[0][:12]} and {data[1][:12]}")
    for split, name in JUDGED_SPLITS.items():
        if all(split in stored[run.id] for run in runs):
            if not same_images(runs, stored, split):
                raise Unpaired(f"the runs' {name} images differ: they were split differently")
            return split
    raise Unpaired("the runs have no predictions on a common split")
