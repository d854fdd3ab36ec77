"""`predict`: classifies pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING

from pipeline.config.rules import Count, TypedPath, ending_in, one_of
from pipeline.verbs import OF_RUNS, Verb, by_model_uri


@dataclass
class Predict:
    """Which images to classify with which model, and where to write the results."""

    model_uri: str | None = MISSING
    """For example `models:/fashion_mnist@champion` or `models:/m-…`; null takes that of
    `run_id`, else the data set's champion."""
    images: str | None = MISSING
    """A file, a folder or archive (with its subfolders) or a pattern; `.npy` files hold arrays of
    images."""
    output: Annotated[TypedPath, ending_in(".csv", ".parquet", ".json", ".jsonl")] = MISSING
    """File for the results, one row per image; `.json` and `.jsonl` are JSON lines."""
    invert: Annotated[str, one_of("auto", "yes", "no")] = MISSING
    """Whether to invert brightness; `auto` inverts images with a bright border if the model's
    training images have a dark one."""
    batch_size: Count = MISSING
    """Images predicted at once."""
    contact_sheet: Annotated[TypedPath, ending_in(".png")] | None = MISSING
    """PNG file for an overview of the first images with their classes."""
    explain: bool = MISSING
    """Whether to draw which parts of the first images speak for their classes, in a PNG file."""


PREDICT = Verb(
    name="predict",
    ignores=OF_RUNS | {"data_dir"},
    needs="images=photos",
    help="classify images=<file, folder, archive or pattern>",
    entry="pipeline.verbs.predict.command:predict_files",
    show="pipeline.verbs.predict.command:show",
    request=Predict,
    rules=(by_model_uri("predict"),),
)
