"""Charts of a report as points of an inline SVG, which adapts to dark mode and scales sharply.

A figure by matplotlib does neither, and its labels would be too small on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.values import Predictions
from pipeline.evaluation.metrics import calibration

_WIDTH, HEIGHT = 440, 270  # of the drawing, in SVG units
LEFT, RIGHT, _TOP, BOTTOM = 46, 12, 12, 40  # margins for labels
MOST_DOTS = 50  # epochs up to which each has a dot with its value
CURVES = {"accuracy": "share correct", "loss": "cross-entropy, nats"}
SERIES = {"train": "training", "val": "validation"}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values from `low` to `high` along a drawing from `start` to `end`, with its labels."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """The position of a value in the drawing."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series of points (x, y, label); `split` determines its colour."""

    split: str
    name: str
    points: tuple[tuple[float, float, str], ...]
    dotted: bool

    @property
    def path(self) -> str:
        """The points in the format of an SVG polyline."""
        return " ".join(f"{x},{y}" for x, y, _ in self.points)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Axes with series; `mark` is the position of the vertical line at the best epoch."""

    title: str
    x: Axis
    y: Axis
    x_label: str
    y_label: str
    lines: tuple[Line, ...] = ()
    mark: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bin of predictions by confidence: position, means, share of all images."""

    x: float
    y: float
    confidence: float
    right: float
    images: int
    share: float


def curve_charts(history: Mapping[str, Mapping[int, float]], best: float | None) -> list[Chart]:
    """Accuracy and loss by epoch on both splits; values that are not finite are left out."""
    charts = []
    for metric, unit in CURVES.items():
        series = {
            split: _finite(history[f"{split}/{metric}"])
            for split in SERIES
            if f"{split}/{metric}" in history
        }
        if any(series.values()):
            charts.append(_curve(metric, unit, series, best))
    return charts


def reliability_chart(predictions: Predictions) -> tuple[Chart, list[Bar]]:
    """Accuracy by confidence, in the bins of the calibration error."""
    chart = Chart(
        title="reliability",
        x=_scale([0, 1], LEFT, _WIDTH - RIGHT),
        y=_scale([0, 1], HEIGHT - BOTTOM, _TOP),
        x_label="confidence",
        y_label="share correct",
    )
    confidence, share_right, count = calibration(predictions)
    return chart, [
        Bar(
            x=chart.x.place(sure),
            y=chart.y.place(right),
            confidence=sure,
            right=right,
            images=number,
            share=number / int(count.sum()),
        )
        for sure, right, number in zip(
            confidence.tolist(), share_right.tolist(), count.tolist(), strict=True
        )
    ]


def _curve(
    metric: str, unit: str, series: Mapping[str, Mapping[int, float]], best: float | None
) -> Chart:
    epochs = [epoch for values in series.values() for epoch in values]
    x = _scale([min(epochs), max(epochs)], LEFT, _WIDTH - RIGHT, whole=True)
    values = [value for line in series.values() for value in line.values()]
    y = _scale(values, HEIGHT - BOTTOM, _TOP)
    return Chart(
        title=metric,
        x=x,
        y=y,
        x_label="epoch",
        y_label=unit,
        lines=tuple(
            Line(
                split=split,
                name=SERIES[split],
                points=tuple(
                    (x.place(epoch), y.place(value), f"{SERIES[split]}, epoch {epoch}: {value:.4f}")
                    for epoch, value in line.items()
                ),
                dotted=len(line) <= MOST_DOTS,
            )
            for split, line in series.items()
            if line
        ),
        mark=None if best is None else x.place(best),
    )


def _scale(values: Sequence[float], start: float, end: float, *, whole: bool = False) -> Axis:
    from matplotlib.ticker import MaxNLocator  # its choice of round numbers

    least, most = min(values), max(values)
    margin = (abs(least) / 20 or 0.5) if least == most and not whole else 0.0
    locator = MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10])
    ticks = locator.tick_values(least - margin, most + margin)
    low, high = (least, most) if whole else (ticks[0], ticks[-1])
    return Axis(
        low=float(low),
        high=float(high),
        start=start,
        end=end,
        ticks=tuple((float(tick), f"{tick:g}") for tick in ticks if low <= tick <= high),
    )


def _finite(values: Mapping[int, float]) -> dict[int, float]:
    return {epoch: value for epoch, value in values.items() if np.isfinite(value)}
