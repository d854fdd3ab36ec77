"""The verb `compare`: recorded runs side by side, and whether their differences are noise."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.compare_page import document, page
from pipeline.compare_plots import class_changes, forest
from pipeline.compare_table import print_comparison
from pipeline.comparison import Comparison, compare_runs, lower_is_better
from pipeline.config import Config
from pipeline.console import standard_output
from pipeline.errors import RequestError
from pipeline.intervals import Resampling
from pipeline.pairing import Stored
from pipeline.storage import replacing

if TYPE_CHECKING:
    from pipeline.tracking.table import Found

MOST_READ = 20  # runs whose stored predictions are read
DPI = 120


def compare(config: Config, folder: Path) -> None:
    """Prints the comparison that `config.compare` asks for; writes page and pictures to `folder`.

    Those of a sweep are logged to the sweep's own run as well, under `compare/`.

    Raises:
        RequestError: the runs cannot be found, or none of them has the metric.
    """
    request = config.compare
    with _uncollected():
        found = _find(config)
        comparison = compare_runs(
            found.runs,
            found.source,
            request.metric,
            _stored(found),
            Resampling(confidence=request.confidence, resamples=request.resamples),
        )
        files = _write(comparison, folder)
        if request.format == "json":
            written = {"files": [str(path) for path in files]}
            print(json.dumps(document(comparison) | written, indent=2, ensure_ascii=False))
        else:
            console = standard_output()
            print_comparison(comparison, console)
            console.print(f"page: {files[0]}", soft_wrap=True)
        _log(found, files, config)


def _find(config: Config) -> Found:
    request = config.compare
    if request.runs and len(set(request.runs)) < 2:
        raise RequestError("runs: name two runs or more, runs=<id>,<id>")
    # Only now: MLflow takes seconds to import.
    from pipeline.tracking import table

    if request.runs:
        found = table.named_runs(config)
    elif request.sweep:
        found = table.sweep_runs(config)
    else:
        return table.best_runs(config, lower_is_better=lower_is_better(request.metric))
    if not any(request.metric in run.metrics for run in found.runs):
        known = ", ".join(sorted({key for run in found.runs for key in run.metrics}))
        raise RequestError(
            f"metric={request.metric}: none of the runs has it; choose one of {known}"
        )
    return found


def _stored(found: Found) -> dict[str, Stored]:
    """The stored predictions by run id; of more than a few runs none is read."""
    if len(found.runs) > MOST_READ:
        return {}
    from pipeline.tracking.table import load_predictions

    read = {run.id: load_predictions(run) for run in found.runs}
    return {run_id: arrays for run_id, arrays in read.items() if arrays is not None}


def _write(comparison: Comparison, folder: Path) -> list[Path]:
    figures = {"compare": forest(comparison)}
    if comparison.pair:
        one, other = (compared.label for compared in comparison.rows)
        figures["classes"] = class_changes(comparison.pair, (one, other))
    pictures = {}
    for name, figure in figures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=DPI)
        pictures[name] = image.getvalue()
    contents = {"compare.html": page(comparison, pictures).encode()}
    contents |= {f"{name}.png": png for name, png in pictures.items()}
    for name, content in contents.items():
        with replacing(folder / name) as path:
            path.write_bytes(content)
    return [folder / name for name in contents]


def _log(found: Found, files: list[Path], config: Config) -> None:
    if found.sweep:
        from pipeline.tracking.table import log_comparison

        log_comparison(found.sweep, files, config)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looks for cycles, which take a second among the records of a thousand runs."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
