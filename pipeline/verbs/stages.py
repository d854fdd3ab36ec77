"""The first stages as commands of their own; they need neither TensorFlow nor MLflow."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from pipeline.config.schema import Config
from pipeline.data.load import describe, ingest, prepare
from pipeline.data.load import table as data_table
from pipeline.data.values import RawData
from pipeline.system.terminal import standard_output


def show_ingested(config: Config, folder: Path) -> None:
    """Fetches, verifies and caches the data set, and shows what is in it."""
    console = standard_output()
    console.print(data_table(describe(_ingest(config))))


def show_preprocessed(config: Config, folder: Path) -> None:
    """Splits the ingested data, caches the splits, and shows sizes and pixel statistics."""
    data_dir, name = Path(config.data_dir), config.choices.dataset
    prepared = prepare(_ingest(config), vars(config.preprocess), name=name, data_dir=data_dir)
    table = Table("split", "images")
    for split in ("train", "val", "test"):
        table.add_row(split, f"{len(getattr(prepared, split)):,}")
    console = standard_output()
    console.print(table)
    console.print("pixel mean", prepared.mean.round(2), "sd", prepared.std.round(2))
    console.print("taken from" if prepared.cached else "cached in", data_dir / name)


def _ingest(config: Config) -> RawData:
    return ingest(config.dataset, name=config.choices.dataset, data_dir=Path(config.data_dir))
