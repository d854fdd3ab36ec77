"""Shows a sitting's measurements as a table, and keeps them as JSON and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pipeline import lineage

RESULTS = Path(__file__).parent / "results"
REFERENCE = "ours"


def publish(name: str, title: str, seconds: Mapping[str, list[float]]) -> None:
    """Prints medians and ours as a ratio to each; writes `results/<name>.json` and `.png`."""
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    table = Table("contender", "median s", "lowest", "highest", "ours / it", title=title)
    for key in sorted(medians, key=medians.__getitem__):
        values = seconds[key]
        ratio = medians[REFERENCE] / medians[key]
        numbers = (medians[key], min(values), max(values), ratio)
        table.add_row(key, *(f"{number:.2f}" for number in numbers))
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    kept = {
        "title": title,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": lineage.hardware(),
        "versions": lineage.versions(),
        "commit": lineage.code().commit,
        "seconds": dict(seconds),
        "medians": medians,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n")
    _plot(title, seconds, medians).savefig(RESULTS / f"{name}.png", dpi=120)


def _plot(title: str, seconds: Mapping[str, list[float]], medians: Mapping[str, float]) -> Figure:
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(medians)), layout="constrained")
    axes = figure.subplots()
    names = sorted(medians, key=medians.__getitem__, reverse=True)
    colours = ["#d95f02" if name == REFERENCE else "#7f9fbf" for name in names]
    bars = axes.barh(names, [medians[name] for name in names], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    for row, name in enumerate(names):
        axes.plot(seconds[name], [row] * len(seconds[name]), "k|", alpha=0.5)
    axes.set(xlabel="seconds (median; each measurement a mark)", title=title)
    axes.margins(x=0.1)
    return figure
