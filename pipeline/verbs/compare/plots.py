"""Plots of a comparison: `Comparison → Figure → PNG`, made without pyplot's global state."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.evaluation.intervals import coverage
from pipeline.evaluation.plots import cut, without_markup
from pipeline.system.fonts import use_system_fonts
from pipeline.verbs.compare.comparison import Compared, Comparison
from pipeline.verbs.compare.pair import PairedRuns
from pipeline.verbs.compare.verdicts import seeds_of, standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

Drawings = dict[str, bytes]  # PNGs by name

MOST_DRAWN = 30
DPI = 120
# Inches. On a phone the text of a picture of this width can still be read.
_WIDTH, ROW, ABOVE, BELOW, _ASIDE, _PAD = 6.5, 0.36, 0.05, 0.55, 0.3, 0.08
NAMES = 3.8  # inches that the rows' names may take
_LONG = 28  # characters of a row's name; longer ones are written smaller
_SMALL, NORMAL = 8.0, 10.0  # points
_BEST, LEVEL, WORSE, UNKNOWN = "#1b6ca8", "#6baed6", "#b0b7bf", "#6b7785"
BETTER, LOST = "#2a9d62", "#c8553d"


def draw_comparison(comparison: Comparison) -> Drawings:
    """The figures as PNGs."""
    return {name: _png(figure) for name, figure in figures(comparison).items()}


def figures(comparison: Comparison) -> dict[str, Figure]:
    """The figures by name: `compare` and, for two runs on the same images, `classes`."""
    drawn = {}
    if shown := [row for row in comparison.rows if not math.isnan(_value(row, comparison))]:
        drawn["compare"] = forest(comparison, shown[:MOST_DRAWN])
    if comparison.pair:
        one, other = (compared.label for compared in comparison.rows)
        drawn["classes"] = class_bars(comparison.pair, (one, other))
    return drawn


def forest(comparison: Comparison, rows: Sequence[Compared]) -> Figure:
    """The ranking metric of some rows, best first, with its intervals: a line each."""
    estimates = [row.estimates[comparison.metric] for row in rows]
    tones = {"within noise": LEVEL, "": UNKNOWN}
    colours = [_BEST, *(tones.get(standing(row, comparison), WORSE) for row in rows[1:])]
    figure, axes = _rows_of(
        [_name(row, comparison.metric) for row in rows],
        f"{comparison.metric} with {coverage(comparison.resampling.confidence)} intervals",
    )
    positions = range(len(rows))
    low, high = [one.low for one in estimates], [one.high for one in estimates]
    axes.hlines(positions, low, high, colors=colours, linewidth=2)
    axes.scatter([one.value for one in estimates], positions, s=36, c=colours, zorder=3)
    axes.axvline(estimates[0].value, color=_BEST, linewidth=0.8, linestyle=":")
    return figure


def class_bars(pair: PairedRuns, names: tuple[str, str]) -> Figure:
    """The change of each class's accuracy from the first run to the second, the worst on top.

    Of more than MOST_DRAWN classes, those are drawn that changed most.
    """
    changed = sorted(pair.classes, key=lambda one: -abs(one.change.value))[:MOST_DRAWN]
    ordered = sorted(changed, key=lambda one: one.change.value)
    changes = [one.change for one in ordered]
    points = [100 * one.value for one in changes]
    few = len(ordered) < len(pair.classes)
    more = f"; {len(ordered)} of {len(pair.classes):,} classes" if few else ""
    figure, axes = _rows_of(
        [cut(one.name) for one in ordered],
        f"points of accuracy, {names[1]} - {names[0]}, {pair.split} images{more}",
    )
    positions = range(len(ordered))
    colours = [
        (UNKNOWN, 0.45) if one.is_noise else (BETTER if one.value > 0 else LOST, 0.9)
        for one in changes
    ]
    low, high = [100 * one.low for one in changes], [100 * one.high for one in changes]
    axes.barh(positions, points, color=colours, height=0.66)
    axes.hlines(positions, low, high, colors="#333333", linewidth=1.2)
    axes.axvline(0, color="#333333", linewidth=0.8)
    return figure


def _rows_of(names: Sequence[str], below: str) -> tuple[Figure, Axes]:
    """A figure with room for all its texts, and empty axes with a row for each name, from above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = ABOVE + ROW * len(names) + BELOW
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    texts = [without_markup(name) for name in names]
    largest = _SMALL if any(len(name) > _LONG for name in names) else NORMAL
    size, widest = _fitting(texts, largest, NAMES, canvas)
    end = _PAD + widest
    for position, text in enumerate(texts):
        # Five times faster than the axis' ticks, each with two texts and three lines.
        at = (end / _WIDTH, 1 - (ABOVE + ROW * (position + 0.5)) / height)
        figure.text(*at, text, ha="right", va="center_baseline", fontsize=size)
    left = end + 2 * _PAD
    width, tall = _WIDTH - left - _ASIDE, ROW * len(names)
    axes = figure.add_axes((left / _WIDTH, BELOW / height, width / _WIDTH, tall / height))
    axes.set_ylim(len(texts) - 0.5, -0.5)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=9 if width > _WIDTH / 2 else 5)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _write_below(figure, without_markup(below), canvas, centre=left + width / 2)
    return figure, axes


def _write_below(figure: Figure, text: str, canvas: FigureCanvasAgg, *, centre: float) -> None:
    """Writes the axis' label below it, smaller or nearer to the middle if necessary."""
    size, width = _fitting([text], NORMAL, _WIDTH - 2 * _PAD, canvas)
    middle = min(max(centre, _PAD + width / 2), _WIDTH - _PAD - width / 2)
    height = float(figure.get_figheight())
    figure.text(middle / _WIDTH, 0.1 / height, text, ha="center", va="bottom", fontsize=size)


def _fitting(
    texts: Sequence[str], size: float, room: float, canvas: FigureCanvasAgg
) -> tuple[float, float]:
    """The font size, up to `size`, at which each text fits into `room` inches; the largest width.

    Letters are whole pixels wide, so a text does not become narrower in proportion to its size.
    """
    while (widest := max(_inches(text, size, canvas) for text in texts)) > room:
        size *= min(room / widest, 0.98)
    return size, widest


def _inches(text: str, size: float, canvas: FigureCanvasAgg) -> float:
    """The width of a text."""
    from matplotlib.font_manager import FontProperties

    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    width, _, _ = renderer.get_text_width_height_descent(
        text, FontProperties(size=size), ismath=False
    )
    return float(width) / DPI


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    use_system_fonts(figure)
    figure.savefig(image, format="png", dpi=DPI)
    return image.getvalue()


def _name(row: Compared, metric: str) -> str:
    """The row's name, with the number of its seeds."""
    seeds = f"  ({seeds_of(row, metric)} seeds)" if len(row.row.runs) > 1 else ""
    return row.label + seeds


def _value(compared: Compared, comparison: Comparison) -> float:
    return float(compared.estimates[comparison.metric].value)
