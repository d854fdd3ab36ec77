"""Pictures of a comparison: `Comparison → Figure`, made without pyplot's global state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.verbs.compare.comparison import Compared, Comparison
from pipeline.verbs.compare.pair import Pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 30
WIDTH = 6.5  # inches: on a phone its text can still be read
LONG = 28  # characters of a row's name, from which on it is written smaller
BEST, LEVEL, WORSE, UNKNOWN = "#1b6ca8", "#6baed6", "#b0b7bf", "#6b7785"
BETTER, LOST = "#2a9d62", "#c8553d"


def forest(comparison: Comparison) -> Figure:
    """The ranking metric of the first rows with its intervals, a line each."""
    from matplotlib.figure import Figure

    shown = [row for row in comparison.rows if not math.isnan(_value(row, comparison))][:MOST_ROWS]
    figure = Figure(figsize=(WIDTH, 1.3 + 0.36 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, compared in enumerate(shown):
        estimate = compared.estimates[comparison.metric]
        noise = compared.difference.is_noise if compared.difference else None
        colour = BEST if place == 0 else {True: LEVEL, False: WORSE, None: UNKNOWN}[noise]
        if not math.isnan(estimate.low):
            axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2)
        axes.plot(estimate.value, place, "o", color=colour, markersize=6)
    if shown:
        axes.axvline(_value(shown[0], comparison), color=BEST, linewidth=0.8, linestyle=":")
    names = _labels(comparison)[: len(shown)]
    size = 8 if any(len(name) > LONG for name in names) else 10
    axes.set_yticks(range(len(shown)), names, fontsize=size)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel(f"{comparison.metric} with {comparison.resampling.confidence:.0%} intervals")
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def class_changes(pair: Pair, names: tuple[str, str]) -> Figure:
    """By how many points the second run is more or less often right on each class."""
    from matplotlib.figure import Figure

    ordered = sorted(pair.classes, key=lambda one: one.change.value)
    figure = Figure(figsize=(WIDTH, 1.4 + 0.34 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(ordered):
        value, low, high = (100 * x for x in (one.change.value, one.change.low, one.change.high))
        noise = one.change.is_noise
        colour = UNKNOWN if noise else BETTER if value > 0 else LOST
        axes.barh(place, value, color=colour, alpha=0.45 if noise else 0.9, height=0.66)
        axes.plot([low, high], [place, place], color="#333333", linewidth=1.2)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(ordered)), [_plain(one.name) for one in ordered])
    axes.set_xlabel(
        f"points of accuracy, {_plain(names[1])} - {_plain(names[0])}, {pair.split} images"
    )
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _labels(comparison: Comparison) -> list[str]:
    """The rows' names, with the number of their seeds."""
    return [
        _plain(row.label) + (f"  ({len(row.row.runs)} seeds)" if len(row.row.runs) > 1 else "")
        for row in comparison.rows
    ]


def _value(compared: Compared, comparison: Comparison) -> float:
    return float(compared.estimates[comparison.metric].value)


def _plain(text: str) -> str:
    """Without what matplotlib would take for a formula."""
    return text.replace("$", r"\$")
