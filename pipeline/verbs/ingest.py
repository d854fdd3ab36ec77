"""`ingest`: fetches, checks and shows a data set.

It needs no MLflow, and TensorFlow only to show an augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.effects import Rule
from pipeline.config.schema import Config
from pipeline.libraries import import_slow
from pipeline.verbs import Verb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.data.checks import CheckFinding
    from pipeline.data.describe import Description
    from pipeline.data.values import Array, RawData

INGEST = Verb(
    name="ingest",
    ignores=frozenset(
        {"run_id", "preprocess", "optimizer", "schedule", "train", "evaluate", "tracking"}
    ),
    rules=(
        Rule(
            keys=("seed",),
            when=lambda config: config.augment["_target_"] is None,
            because="on ingest without an augmentation to show",
            mend="leave it out, or choose one, as in augment=flip_crop",
        ),
        Rule(
            keys=("model",),
            when=lambda config: "size" not in config.dataset,
            because="on ingest of a data set whose images have one size",
            mend="leave it out",
        ),
    ),
    help="fetch, verify, cache and check the data, and show it on a page",
    entry="pipeline.verbs.ingest:ingested",
    show="pipeline.verbs.ingest:show_ingested",
)


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """A data set: its description, what its checks have found, and the page that shows it."""

    description: Description
    findings: Sequence[CheckFinding]
    page: Path


def ingested(config: Config, folder: Path) -> Ingested:
    """Fetches, verifies, caches and checks the data set; writes `data.html`."""
    from pipeline.data.checks import findings_of
    from pipeline.data.describe import describe
    from pipeline.data.load import data_folder, ingest
    from pipeline.data.measures import measured
    from pipeline.reports.data_page import DATA_PAGE, data_html
    from pipeline.reports.originals import read_originals
    from pipeline.reports.template import template
    from pipeline.system.files import replace_text

    raw, cache = ingest(config, verify=True), data_folder(config)
    measures = measured(raw, cache)
    found = findings_of(raw, measures, config.ingest.checks)
    augment = _augmenter(config, raw, folder)
    name = config.choices.dataset
    originals = read_originals(raw, cache)
    form = template(DATA_PAGE)
    page = data_html(form, raw, measures, originals, found, name=name, augment=augment)
    replace_text(folder / DATA_PAGE, page)
    return Ingested(description=describe(raw, measures), findings=found, page=folder / DATA_PAGE)


def _augmenter(
    config: Config, raw: RawData, folder: Path
) -> Callable[[Array, Array], Array] | None:
    from pipeline.system.terminal import native_messages_to

    if config.augment["_target_"] is None:
        return None
    with native_messages_to(folder / "tensorflow.log"):  # TensorFlow, which nothing else here needs
        batches = import_slow("pipeline.training.batches")
    found: Callable[[Array, Array], Array] | None = batches.augmenter(config, raw)
    return found


def show_ingested(result: Ingested, request: None) -> None:
    """Prints the description of the data set and the path of its page; warns of the findings.

    Raises:
        RequestError: a check refuses the data set.
    """
    from pipeline.data.checks import apply
    from pipeline.data.describe import description_table, lines
    from pipeline.system.terminal import standard_output

    console = standard_output()
    console.print(description_table(result.description))
    for line in lines(result.description):
        console.print(line, soft_wrap=True)
    apply(result.findings)
    print(f"page={result.page}", flush=True)
