"""The report of a run: `Facts, Config, Predictions → str`, a self-contained HTML page.

It embeds its figures, needs no network, and can be read on a phone, on paper and without
JavaScript, which is only used to show the images behind a cell of the confusion matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.config.flat import shown_params
from pipeline.config.schema import Config
from pipeline.data.values import JUDGED_SPLITS, Predictions
from pipeline.evaluation.intervals import CONFIDENCE, wilson
from pipeline.evaluation.metrics import (
    accuracy,
    balanced_accuracy,
    class_scores,
    ece,
    macro_f1,
)
from pipeline.evaluation.slices import Slice, slices
from pipeline.reports.charts import curve_charts, reliability_chart
from pipeline.reports.explained import SIDE as TILE
from pipeline.reports.explained import Explained, captions, colours, tiles
from pipeline.reports.images import confusion, data_uri, smaller, sprite
from pipeline.reports.notes import groups_of
from pipeline.system.errors import in_percent
from pipeline.system.terminal import as_line
from pipeline.tracking.values import (
    COMMAND,
    COMMIT,
    DIRTY,
    ERROR,
    FINGERPRINT,
    HARDWARE,
    INDEX,
    PARENT,
    PRUNED_TAG,
    SOURCE,
    VERSIONS,
)

if TYPE_CHECKING:
    from jinja2 import Template

_LONGEST = 300  # characters of a name
# Tags about the origin of a run, by heading: {label: tag}.
ORIGINS = (
    ("Code", {"command": COMMAND, "commit": COMMIT}),
    ("Data", {"SHA-256": FINGERPRINT, "source": SOURCE}),
    (
        "Machine",
        {
            "processor": f"{HARDWARE}cpu",
            "cores": f"{HARDWARE}cores",
            "memory, GB": f"{HARDWARE}memory_gb",
            "host": f"{HARDWARE}host",
        },
    ),
    ("Sweep", {"its run": PARENT, "job": INDEX}),
)
_STOPS = {
    "KeyboardInterrupt": "stopped by Ctrl-C (SIGINT)",
    "Terminated": "stopped by SIGTERM",
    "HungUp": "stopped by SIGHUP, as its terminal was closed",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The recorded facts about a run.

    `started` has a time zone; `seconds` are by stage, with the `total` if it is known; `history`
    has the values per epoch by metric (`train/loss`); `weights` is a PNG of the first layer's
    weights before and after training, `augmentation` one of augmented images. `data_page` says
    whether `data.html` lies beside the report.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    started: datetime
    seconds: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    weights: bytes | None = None
    data_page: bool = False
    augmentation: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """An accuracy with its Wilson interval; `split` is a readable name.

    `groups` is the number of groups that the images belong to, None if these are independent.
    """

    split: str
    value: float
    low: float
    high: float
    images: int
    groups: int | None = None


def run_html(
    template: Template,
    facts: Facts,
    config: Config,
    predictions: Mapping[str, Predictions],
    explained: Explained | None = None,
) -> str:
    """Renders the page of a run, `report.html`; `predictions` are by split (`val`, `test`).

    Classes, mistakes and calibration are those of the test split or, if it was not evaluated, of
    the validation split, and the page says which; without either they are left out. `explained` is
    about the same split.
    """
    split = next((name for name in JUDGED_SPLITS if name in predictions), None)
    return template.render(
        facts=facts,
        choices=vars(config.choices),
        scores=[
            score(predictions[name], JUDGED_SPLITS[name])
            for name in JUDGED_SPLITS
            if name in predictions
        ],
        groups=_groups(config),
        origins=_origins(facts),
        charts=curve_charts(facts.history, facts.metrics.get("train/best_epoch")),
        weights=data_uri(smaller(facts.weights), "jpeg") if facts.weights else None,
        augmentation=data_uri(facts.augmentation, "png") if facts.augmentation else None,
        shown=_shown(predictions[split], JUDGED_SPLITS[split]) if split else None,
        explained=_explained(explained, predictions[split]) if explained and split else None,
        began_with_test=config.evaluate.test,
        reason=_reason(facts.tags),
        epochs=max((max(values, default=0) for values in facts.history.values()), default=0),
    )


def score(predictions: Predictions, split: str) -> Score:
    """Accuracy with its 95 % interval."""
    images = len(predictions.labels)
    found = wilson(accuracy(predictions), images, CONFIDENCE)
    return Score(
        split=split,
        value=found.value,
        low=found.low,
        high=found.high,
        images=images,
        groups=groups_of(predictions),
    )


def duration(seconds: float) -> str:
    """A readable duration: `0.3 s`, `42 s`, `3 min 5 s`, `2 h 3 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def percent(share: float, digits: int = 2) -> str:
    """`0.8665` → `86.65 %`, with a non-breaking space, as `in_percent`."""
    return f"{in_percent(share, digits)}\N{NO-BREAK SPACE}%"


def _reason(tags: Mapping[str, str]) -> str | None:
    """Why a run failed or was stopped, in plain words instead of Python's."""
    said = tags.get(ERROR) or tags.get(PRUNED_TAG)
    if said and said.rpartition(".")[2] in _STOPS:
        return _STOPS[said.rpartition(".")[2]]
    return said


def _shown(predictions: Predictions, split: str) -> dict[str, Any]:
    """The parts of the page that show the predictions on one split."""
    names = predictions.class_names
    rows = zip(names, *(column.tolist() for column in class_scores(predictions)), strict=True)
    return {
        "split": split,
        "names": names,
        "macro_f1": macro_f1(predictions),
        "balanced": balanced_accuracy(predictions),
        "ece": ece(predictions),
        "classes": sorted(rows, key=lambda row: (not row[4], row[3])),  # without images: last
        "matrix": confusion(predictions),
        "slices": _by_column(predictions),
        "reliability": reliability_chart(predictions),
    }


def _explained(explained: Explained, predictions: Predictions) -> dict[str, Any]:
    """The parts of the page that explain the model's answers."""
    names, chosen = predictions.class_names, explained.images
    return {
        "method": explained.method,
        "mistakes": [
            (number, names[predictions.labels[index]], names[predictions.predicted[index]])
            for number, index in zip(predictions.numbers[chosen].tolist(), chosen, strict=True)
        ],
        "confidences": predictions.confidence[chosen].tolist(),
        "sprite": sprite(tiles(explained, predictions), inverted=False, shown=TILE)
        if len(chosen)
        else None,
        "scatter": explained.scatter,
        "captions": captions(explained.scatter, names) if explained.scatter else [],
        "lacking": explained.lacking,
        "colours": colours(len(names)),
    }


def _by_column(predictions: Predictions) -> dict[str, list[Slice]]:
    """The slices of the images by column, whose names and values are shown as printable text."""
    found: dict[str, list[Slice]] = {}
    for one in slices(predictions):
        found.setdefault(clean(one.column), []).append(one)
    return found


def clean(text: str) -> str:
    """A name as printable text of bounded length; control and formatting characters are escaped."""
    safe = as_line(text[: _LONGEST + 1])
    return safe if len(text) <= _LONGEST else f"{safe[:_LONGEST]}…"


def _groups(config: Config) -> dict[str, dict[str, str]]:
    """The settings that the result depends on, by group; keys without a group come first."""
    groups: dict[str, dict[str, str]] = {group: {} for group in ("", *vars(config.choices))}
    for key, value in shown_params(config).items():
        group, _, name = key.rpartition(".")
        groups[group][name] = value
    return groups


def _origins(facts: Facts) -> dict[str, dict[str, str]]:
    """The origin of the run, by heading; what was not recorded is left out."""
    tags = facts.tags
    found = {
        heading: {label: tags[tag] for label, tag in labels.items() if tag in tags}
        for heading, labels in ORIGINS
    }
    if DIRTY in tags:
        patched = tags[DIRTY] == "true"
        found["Code"]["uncommitted changes"] = "yes, in code.patch" if patched else "none"
    versions = {
        key.removeprefix(VERSIONS): tags[key] for key in sorted(tags) if key.startswith(VERSIONS)
    }
    return {key: rows for key, rows in {**found, "Versions": versions}.items() if rows}
