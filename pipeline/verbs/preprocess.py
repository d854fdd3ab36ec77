"""`preprocess`: splits a data set and caches the splits; it needs neither TensorFlow nor MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Config
from pipeline.verbs import OF_TRAINING, Verb

if TYPE_CHECKING:
    from pipeline.data.values import Prepared

PREPROCESS = Verb(
    name="preprocess",
    ignores=OF_TRAINING | {"run_id", "ingest", "evaluate", "tracking"},
    help="split the data and cache the splits",
    entry="pipeline.verbs.preprocess:preprocessed",
    show="pipeline.verbs.preprocess:show_preprocessed",
)


@dataclass(frozen=True, kw_only=True)
class Preprocessed:
    """The splits of a data set, and the folder of its cache."""

    prepared: Prepared
    cache: Path


def preprocessed(config: Config, folder: Path) -> Preprocessed:
    """Splits the ingested data and caches the splits."""
    from pipeline.data.load import data_folder, load_data

    return Preprocessed(prepared=load_data(config), cache=data_folder(config))


def show_preprocessed(result: Preprocessed, request: None) -> None:
    """Prints the sizes of the splits and the pixel statistics of the training images."""
    from rich.table import Table

    from pipeline.system.terminal import standard_output

    prepared = result.prepared
    table = Table("split", "images")
    for name, split in prepared.splits.items():
        table.add_row(name, f"{len(split):,}")
    console = standard_output()
    console.print(table)
    console.print("pixel mean", prepared.mean.round(2), "sd", prepared.std.round(2))
    where = "taken from" if prepared.cached else "cached in"
    console.print(where, result.cache, soft_wrap=True)
