"""A comparison as one self-contained HTML file, and as a JSON document for scripts."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.evaluation.intervals import Estimate
from pipeline.verbs.compare.comparison import Compared, Comparison
from pipeline.verbs.compare.table import ASIDE, cells
from pipeline.verbs.compare.words import change, notes, standing, verdict

TEMPLATES = Path(__file__).parent / "templates"
TONES = {"within noise": "level", "worse": "worse", "better": "better"}


def page(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """The HTML; `pictures` are PNGs by name, as `plots.draw` makes them."""
    # Imported only now: JSON needs no template.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["change"] = change
    header, rows = cells(comparison)
    return environment.get_template("compare.html").render(
        comparison=comparison,
        verdict=verdict(comparison),
        notes=list(notes(comparison)),
        header=header,
        rows=rows,
        columns=list(zip(header, *rows, strict=True))[1:],
        aside=ASIDE,
        tones=[TONES.get(standing(row, comparison), "first") for row in comparison.rows],
        names=[row.label for row in comparison.rows],
        pictures={
            name: f"data:image/png;base64,{base64.b64encode(png).decode()}"
            for name, png in pictures.items()
        },
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
