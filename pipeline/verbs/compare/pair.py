"""Compares two runs image by image, on the same images. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.data.values import JUDGED_SPLITS
from pipeline.evaluation.intervals import PAIRED, Estimate, Resampling, bootstrap
from pipeline.evaluation.paired import ClassChange, McNemar, Swap, class_changes, mcnemar, swaps
from pipeline.tracking.values import RecordedRun, StoredPredictions

Stored = Mapping[str, StoredPredictions]  # a run's, by split
_PREPROCESS = "preprocess."


@dataclass(frozen=True, kw_only=True)
class PairedRuns:
    """Two classifiers on the same images; `change` is the second's accuracy minus the first's."""

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
    resampling: Resampling,
) -> PairedRuns:
    """Compares two runs image by image, on the test split if both have it.

    `stored`: predictions by run id.

    Raises:
        Unpaired: predictions are missing, or belong to different images.
    """
    split = _common_split(runs, stored)
    first, second = (stored[run.id][split] for run in runs)
    labels, before, after = first.labels, first.predicted, second.predicted
    right = np.stack([before == labels, after == labels]).astype(np.float64)
    ((low, high),) = bootstrap(right[1:] - right[:1], resampling)
    share, other = (float(part.mean()) for part in right)
    return PairedRuns(
        split=JUDGED_SPLITS[split],
        images=len(labels),
        first=share,
        second=other,
        change=Estimate(value=other - share, low=float(low), high=float(high), method=PAIRED),
        test=mcnemar(labels, before, after),
        classes=class_changes(labels, before, after, first.class_names, resampling),
        swaps=swaps(labels, before, after, first.class_names),
        confidence=resampling.confidence,
    )


def images_of(run: RecordedRun, stored: Stored, split: str) -> str:
    """A text that is equal for two runs if and only if their images of a split are the same.

    It depends on the data, the labels and, except for the test split, how the data was split. The
    test split is fixed by the data set, and no setting changes its pixels.
    """
    settings = {k: v for k, v in run.params.items() if k.startswith(_PREPROCESS)}
    way = sorted(settings.items()) if split == "val" else []
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
            if images_of(runs[0], stored[runs[0].id], split) != images_of(
                runs[1], stored[runs[1].id], split
            ):
                raise Unpaired(f"the runs' {name} images differ: they were split differently")
            return split
    raise Unpaired("the runs have no predictions on a common split")
