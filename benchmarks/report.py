"""Shows a sitting's measurements as a table, and keeps them as JSON and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from pipeline.system.terminal import standard_output
from pipeline.tracking import lineage

RESULTS = Path(__file__).parent / "results"
REFERENCE = "ours"
OURS, OTHERS = "#d95f02", "#7f9fbf"  # colours, the same in every plot


def publish(
    name: str,
    title: str,
    seconds: Mapping[str, list[float]],
    *,
    reference: str = REFERENCE,
    **facts: Any,
) -> None:
    """Prints medians, and the reference's divided by each; writes `results/<name>.json`, `.png`.

    `facts` are further results of the sitting, for the JSON.
    """
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    rows = [
        (key, *(f"{number:.2f}" for number in (median, *_span(seconds[key]), ratio)))
        for key, median in sorted(medians.items(), key=lambda item: item[1])
        for ratio in [medians[reference] / median]
    ]
    show(title, ("contender", "median s", "lowest", "highest", f"{reference} / it"), rows)
    figure = _plot(title, seconds, medians, reference)
    keep(name, title, figure, seconds=dict(seconds), medians=medians, **facts)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: a text in the first column, numbers in the others."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    standard_output().print(table)


def keep(name: str, title: str, figure: Figure | None, **measured: Any) -> None:
    """Writes `results/<name>.json`, with the date and machine of the measurement, and `.png`."""
    RESULTS.mkdir(exist_ok=True)
    kept = {
        "title": title,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": lineage.hardware(),
        "versions": lineage.versions(),
        "commit": lineage.code_state().commit,
        **measured,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n")
    if figure is not None:
        figure.savefig(RESULTS / f"{name}.png", dpi=120)


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _plot(
    title: str,
    seconds: Mapping[str, list[float]],
    medians: Mapping[str, float],
    reference: str,
) -> Figure:
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(medians)), layout="constrained")
    axes = figure.subplots()
    names = sorted(medians, key=medians.__getitem__, reverse=True)
    colours = [OURS if name == reference else OTHERS for name in names]
    axes.barh(names, [medians[name] for name in names], color=colours)
    for row, name in enumerate(names):
        values = seconds[name]
        axes.plot(values, [row] * len(values), "k|", alpha=0.5)
        beside = (max(values), row)
        axes.annotate(
            f"{medians[name]:.2f}", beside, (5, 0), textcoords="offset points", va="center"
        )
    axes.set(xlabel="seconds (median; each measurement a mark)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    return figure
