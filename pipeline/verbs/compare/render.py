"""A comparison in the terminal, as one self-contained HTML file, and as JSON for scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from pipeline.evaluation.intervals import Estimate
from pipeline.reports.images import data_uri
from pipeline.system.errors import counted
from pipeline.tracking.values import SEED, SHORT
from pipeline.verbs.compare.comparison import Compared, Comparison
from pipeline.verbs.compare.pair import PairedRuns
from pipeline.verbs.compare.rows import trait_names
from pipeline.verbs.compare.verdicts import (
    change,
    interval,
    metric_value,
    notes,
    seeds_of,
    standing,
    verdict,
)

if TYPE_CHECKING:
    from jinja2 import Template

_SHOWN = 30  # rows; the page has them all
_ASIDE = 4  # up to this many rows are shown as columns, which suits long values better
TONES = {"within noise": "level", "worse": "worse", "better": "better"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints what differs, the metrics, the verdict and, for two runs, changes by class."""
    runs = counted(comparison.runs, "run", "runs")
    console.print(f"{runs}: {comparison.source}", soft_wrap=True)
    console.print(_table(comparison))
    if comparison.pair:
        names = [compared.label for compared in comparison.rows]
        console.print(_classes(comparison.pair, names))
        if comparison.pair.swaps:
            console.print(_swaps(comparison.pair, names))
    console.print(verdict(comparison), soft_wrap=True, style="bold")
    for note in notes(comparison):
        console.print(f"· {note}", soft_wrap=True, style="dim")


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The comparison as a header and rows of texts: names, what differs, metrics and verdict."""
    traits = [name for name in comparison.traits if name != SEED]
    short = trait_names(traits)
    several = any(len(compared.row.runs) > 1 for compared in comparison.rows)
    seeds = ["seed"] if several or SEED in comparison.traits else []
    header = ["run", *(short[name] for name in traits), *seeds, *(["n"] if several else [])]
    first, *others = comparison.metrics
    is_judged = len(comparison.rows) > 1
    header += [first, *[f"Δ {first}", "verdict"] * is_judged, *others]
    rows = []
    for compared in comparison.rows:
        row = compared.row
        cells = [_name(compared)]
        cells += [row.traits.get(name, "") for name in traits]
        cells += [row.traits.get(SEED, "")] * len(seeds)
        cells += [seeds_of(compared, first)] * several
        cells += [interval(compared.estimates[first])]
        cells += [change(compared.difference), standing(compared, comparison)] * is_judged
        cells += [interval(compared.estimates[name]) for name in others]
        rows.append(cells)
    return header, rows


def _name(compared: Compared) -> str:
    """The row's name and, for a single run, the beginning of its id, which `runs=` takes."""
    short = compared.row.runs[0].id[:SHORT]
    known = len(compared.row.runs) > 1 or short in compared.label
    return compared.label if known else f"{compared.label} {short}"


def _table(comparison: Comparison) -> Table:
    header, rows = cells(comparison)
    if len(rows) <= _ASIDE:
        table = Table("", *(row[0] for row in rows))
        for number_, name in enumerate(header[1:], start=1):
            table.add_row(name, *(row[number_] for row in rows))
        return table
    table = Table(Column(header[0], overflow="fold"), *header[1:])
    for row in rows[:_SHOWN]:
        table.add_row(*row)
    if len(rows) > _SHOWN:
        table.caption = f"{_SHOWN} of {len(rows):,} rows; compare.html and format=json have all"
    return table


def _classes(pair: PairedRuns, names: Sequence[str]) -> Table:
    table = Table(title=f"Accuracy by class, {pair.split} images", title_justify="left")
    for column in ("class", "images", *names, "Δ accuracy"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for one in sorted(pair.classes, key=lambda one: -abs(one.change.value)):
        shares = (metric_value(one.first), metric_value(one.second), change(one.change))
        table.add_row(one.name, f"{one.images:,}", *shares)
    return table


def _swaps(pair: PairedRuns, names: Sequence[str]) -> Table:
    table = Table(title="Confusions that changed most", title_justify="left")
    for column in ("true", "predicted", *names, "change"):
        table.add_column(column, justify="left" if column in ("true", "predicted") else "right")
    for swap in pair.swaps:
        counts = (f"{swap.first:,}", f"{swap.second:,}", f"{swap.second - swap.first:+,}")
        table.add_row(swap.true, swap.predicted, *counts)
    return table


def page(template: Template, comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """The HTML; `pictures` are PNGs by name, as `draw_comparison` makes them.

    The template uses the filter `change`.
    """
    header, rows = cells(comparison)
    return template.render(
        comparison=comparison,
        verdict=verdict(comparison),
        notes=list(notes(comparison)),
        header=header,
        rows=rows,
        columns=list(zip(header, *rows, strict=True))[1:],
        aside=_ASIDE,
        tones=[TONES.get(standing(row, comparison), "first") for row in comparison.rows],
        names=[row.label for row in comparison.rows],
        pictures={name: data_uri(png, "png") for name, png in pictures.items()},
    )


def document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as a JSON document, without NaN; rows keep their order."""
    pair = comparison.pair
    return {
        "source": comparison.source,
        "metric": comparison.metric,
        "lower_is_better": comparison.ranking.lower_is_better,
        "confidence": comparison.resampling.confidence,
        "resamples": comparison.resampling.resamples,
        "runs": comparison.runs,
        "differing": list(comparison.traits),
        "rows": [_row(row, comparison) for row in comparison.rows],
        "pair": _plain(asdict(pair) | {"is_noise": pair.is_noise}) if pair else None,
        "unpaired": comparison.unpaired,
        "verdict": verdict(comparison),
        "notes": list(notes(comparison)),
    }


def _row(compared: Compared, comparison: Comparison) -> dict[str, Any]:
    traits = compared.row.traits
    return {
        "run_ids": [run.id for run in compared.row.runs],
        "name": compared.label,
        "n": len(compared.row.runs),
        "differing": {name: traits.get(name) for name in comparison.traits},
        "metrics": {name: _numbers(one) for name, one in compared.estimates.items()},
        "difference": _numbers(compared.difference) if compared.difference else None,
    }


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return _plain(asdict(estimate))


def _plain(value: Any) -> Any:
    """Replaces NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
