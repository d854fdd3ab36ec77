"""The page of a comparison of new pictures with the data of a run: self-contained HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.values import Array
from pipeline.evaluation.drift import Shift
from pipeline.reports.images import sprite, thumbnails
from pipeline.reports.page import clean

if TYPE_CHECKING:
    from jinja2 import Template

_SIDE = 64  # pixels of a thumbnail's longer side
_BINS = 40
TAIL = 0.005  # share of the values that is not drawn, at either end
UNITS = {
    "height": "pixels",
    "width": "pixels",
    "aspect ratio": "width per height",
    "confidence": "probability",
    "features": "along the direction that differs most",
}


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Two distributions over the same bins: `new` as bars, `reference` as the points of a line."""

    name: str
    unit: str
    low: float
    high: float
    new: tuple[float, ...]
    reference: str


@dataclass(frozen=True, kw_only=True)
class Unsure:
    """A new picture that the model is least sure of: image u8[H,W,C], file and confidence."""

    image: Array
    file: str
    confidence: float


def drift_html(  # noqa: PLR0913 (what there is to show)
    template: Template,
    shifts: Sequence[Shift],
    *,
    run_id: str,
    path: str,
    pictures: int,
    verdict: str,
    notes: Sequence[str],
    reference: Mapping[str, Sequence[float]],
    values: Mapping[str, Array],
    unsure: Sequence[Unsure],
) -> str:
    """Renders `drift.html`; the keys of `reference` and `values` are names of shifts.

    `reference` has the sorted values of the training data, `values` those of the n new pictures,
    [n] of any dtype.
    """
    tiles = np.stack([one.image for one in unsure]) if unsure else None
    return template.render(
        shifts=[(clean(one.name), one, clean(one.detail)) for one in shifts],
        run_id=run_id,
        path=clean(path),
        pictures=pictures,
        verdict=verdict,
        level=max((one.level for one in shifts), default=0),
        notes=[clean(note) for note in notes],
        overlays=[
            _overlay(one.name, reference[one.name], values[one.name])
            for one in shifts
            if one.name in values
        ],
        unsure=[(clean(one.file), one.confidence) for one in unsure],
        sprite=None
        if tiles is None
        else sprite(thumbnails(tiles, _SIDE, inverted=False), inverted=False),
    )


def _overlay(name: str, reference: Sequence[float], new: Array) -> Overlay:
    both = (np.asarray(reference, np.float64), np.asarray(new, np.float64))
    low = float(min(np.quantile(part, TAIL) for part in both))
    high = float(max(np.quantile(part, 1 - TAIL) for part in both))
    if high <= low:
        high = low + 1
    shares = [
        np.histogram(part.clip(low, high), _BINS, (low, high))[0] / len(part) for part in both
    ]
    most = max(float(part.max()) for part in shares)
    heights = [(100 * part / most).round(1).tolist() for part in shares]
    return Overlay(
        name=name,
        unit=UNITS.get(name, "of 255"),
        low=low,
        high=high,
        new=tuple(heights[1]),
        reference=" ".join(
            f"{position + 0.5},{100 - y:g}" for position, y in enumerate(heights[0])
        ),
    )
