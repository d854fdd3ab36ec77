"""`ingest` and `preprocess`: the first stages, which need neither TensorFlow nor MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Config
from pipeline.verbs import Verb

if TYPE_CHECKING:
    from pipeline.data.describe import Description
    from pipeline.data.values import Prepared

INGEST = Verb(
    name="ingest",
    help="fetch, verify and cache the data",
    entry="pipeline.verbs.stages:ingested",
    show="pipeline.verbs.stages:show_ingested",
)
PREPROCESS = Verb(
    name="preprocess",
    help="split the data and cache the splits",
    entry="pipeline.verbs.stages:preprocessed",
    show="pipeline.verbs.stages:show_preprocessed",
)


@dataclass(frozen=True, kw_only=True)
class Preprocessed:
    """The splits of a data set, and the folder of its cache."""

    prepared: Prepared
    cache: Path


def ingested(config: Config, folder: Path) -> Description:
    """Fetches, verifies and caches the data set; returns its description."""
    from pipeline.data.describe import describe
    from pipeline.data.load import ingest

    data_dir, name = Path(config.data_dir), config.choices.dataset
    return describe(ingest(config.dataset, name=name, data_dir=data_dir, verify=True))


def show_ingested(description: Description, request: None) -> None:
    """Prints the description of the data set."""
    from pipeline.data.describe import table
    from pipeline.system.terminal import standard_output

    standard_output().print(table(description))


def preprocessed(config: Config, folder: Path) -> Preprocessed:
    """Splits the ingested data and caches the splits."""
    from pipeline.data.load import ingest, prepare

    data_dir, name = Path(config.data_dir), config.choices.dataset
    raw = ingest(config.dataset, name=name, data_dir=data_dir)
    prepared = prepare(raw, vars(config.preprocess), name=name, data_dir=data_dir)
    return Preprocessed(prepared=prepared, cache=data_dir / name)


def show_preprocessed(result: Preprocessed, request: None) -> None:
    """Prints the sizes of the splits and the pixel statistics of the training images."""
    from rich.table import Table

    from pipeline.system.terminal import standard_output

    prepared = result.prepared
    table = Table("split", "images")
    for split in ("train", "val", "test"):
        table.add_row(split, f"{len(getattr(prepared, split)):,}")
    console = standard_output()
    console.print(table)
    console.print("pixel mean", prepared.mean.round(2), "sd", prepared.std.round(2))
    console.print("taken from" if prepared.cached else "cached in", result.cache)
