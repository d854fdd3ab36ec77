"""Accuracy by the values of a list's further columns: where a model is better or worse.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.values import Array, Predictions
from pipeline.evaluation.intervals import CONFIDENCE, wilson
from pipeline.system.tables import csv_text

SHOWN_VALUES = 20  # values of a column that are shown one by one


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The images with one `value` in a column; None stands for all rarer values.

    `values` is the number of values, `low` and `high` the Wilson interval of the accuracy.
    """

    column: str
    value: str | None
    values: int
    images: int
    accuracy: float
    low: float
    high: float

    @property
    def label(self) -> str:
        """The value as it is shown."""
        if self.value is None:
            return f"({self.values:,} other values)"
        return self.value or "(empty)"


def slices(predictions: Predictions) -> list[Slice]:
    """The slices of each column, most images first; none if the images have no columns."""
    if predictions.index is None or not len(predictions.labels):
        return []
    found = []
    rows = predictions.split.rows.tolist()
    for name, texts in predictions.index.columns.items():
        found += _of_column(name, [texts[row] for row in rows], predictions.correct)
    return found


def _of_column(name: str, texts: Sequence[str], correct: Array) -> list[Slice]:
    order = [value for value, _ in Counter(texts).most_common()]
    # "1 other value" would say nothing
    kept = order if len(order) <= SHOWN_VALUES + 1 else order[:SHOWN_VALUES]
    numbers = {value: number for number, value in enumerate(kept)}
    positions = np.array([numbers.get(text, len(kept)) for text in texts])
    counts = np.bincount(positions, minlength=len(kept) + 1).tolist()
    right = np.bincount(positions, weights=correct, minlength=len(kept) + 1).tolist()
    made = []
    for number, value in enumerate([*kept, None]):
        if not counts[number]:
            continue
        share = wilson(right[number] / counts[number], counts[number], CONFIDENCE)
        made.append(
            Slice(
                column=name,
                value=value,
                values=1 if value is not None else len(order) - len(kept),
                images=counts[number],
                accuracy=share.value,
                low=share.low,
                high=share.high,
            )
        )
    return made


def slices_table(found: Sequence[Slice]) -> str:
    """The slices as a CSV table, with 95 % intervals."""
    rows = [
        (
            one.column,
            one.label,
            one.images,
            *(f"{x:.6g}" for x in (one.accuracy, one.low, one.high)),
        )
        for one in found
    ]
    return csv_text([("column", "value", "images", "accuracy", "low", "high"), *rows])
