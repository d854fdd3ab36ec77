"""The descriptions that MLflow shows of runs, sweeps, models and versions, as Markdown. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.config.schema import Config
from pipeline.data.values import JUDGED_SPLITS, Predictions
from pipeline.evaluation.intervals import CONFIDENCE, wilson

REPORT_PAGE = "report.html"
_MOST_TEXT = 300  # characters of one text in a description
_GROUPED = 0.9  # groups per image below which it matters that images belong together


def note_of_run(
    config: Config,
    predictions: Mapping[str, Predictions],
    *,
    parameters: float | None,
    command: str,
    report: str | None,
) -> str:
    """Describes a run: what it trained, accuracies with 95 % intervals, command, report.

    `predictions` are by split; `report` is the name of the artefact, if the run has one.
    """
    measured = {
        split: (float(found.correct.mean()), len(found.labels))
        for split, found in predictions.items()
        if len(found.labels)
    }
    parts = [
        summary(config, parameters),
        accuracy_table(measured) or "Not evaluated.",
        *(_note_of_groups(JUDGED_SPLITS[split], predictions[split]) for split in measured),
        code_block(command),
        f"Report: [{report}](artifacts:{report})" if report else "",
    ]
    return "\n\n".join(filter(None, parts))


def summary(config: Config, parameters: float | None) -> str:
    """What was trained on what, for how long, in one line."""
    choices, epochs = config.choices, config.train.epochs
    size = f"{parameters:,.0f} parameters, " if parameters else ""
    return (
        f"**{escaped(choices.model)} on {escaped(choices.dataset)}**: "
        f"{size}{epochs} epoch{'s' * (epochs != 1)}, seed {config.seed}."
    )


def accuracy_table(measured: Mapping[str, tuple[float, int]]) -> str:
    """A table of accuracies with 95 % Wilson intervals; `measured`: share and images by split."""
    rows = []
    for split in filter(measured.__contains__, JUDGED_SPLITS):
        share, images = measured[split]
        found = wilson(share, images, CONFIDENCE)
        interval = f"{found.low:.4f} to {found.high:.4f}"
        rows.append((JUDGED_SPLITS[split], f"**{share:.4f}**", interval, f"{images:,}"))
    return markdown_table(("split", "accuracy", "95 % interval", "images"), rows) if rows else ""


def groups_of(predictions: Predictions) -> int | None:
    """The number of groups that the images belong to; None if almost every image is its own."""
    if predictions.index is None:
        return None
    rows = predictions.split.rows
    groups = len(np.unique(predictions.index.groups[rows]))
    return groups if groups < _GROUPED * len(rows) else None


def _note_of_groups(split: str, predictions: Predictions) -> str:
    groups = groups_of(predictions)
    if groups is None:
        return ""
    return (
        f"The {len(predictions.labels):,} {split} images are in {groups:,} groups. The interval "
        "treats the images as independent and is too narrow."
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are Markdown."""
    # MLflow draws tables without space between columns.
    lines = [f"| {' | &ensp;'.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(header), *lines[1:]])


def code_block(command: str) -> str:
    """A command as a block of code, whatever it contains."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", command) or [""]))
    return f"{fence}sh\n{command}\n{fence}"


def escaped(text: str) -> str:
    """A text escaped for Markdown, on one line, shortened if it is very long."""
    line = " ".join(text.split())
    line = line if len(line) <= _MOST_TEXT else line[: _MOST_TEXT - 1] + "…"
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", lambda found: f"&#{ord(found[1])};", line)
