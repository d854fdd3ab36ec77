"""`predict`: the classes of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING

from pipeline.config.rules import Count, ending_in, one_of
from pipeline.verbs import Verb


@dataclass
class Predict:
    """Which images to classify by which model, and where the answers go."""

    model_uri: str | None = MISSING
    """As `models:/fashion_mnist@champion` or `models:/m-…`; null takes that of
    `run_id`, else the data set's champion."""
    images: str | None = MISSING
    """A file, a folder (searched through) or a pattern; `.npy` files hold arrays of images."""
    output: Annotated[str, ending_in(".csv", ".parquet", ".json", ".jsonl")] = MISSING
    """File for the answers, a row an image; `.json` and `.jsonl` are JSON lines."""
    invert: Annotated[str, one_of("auto", "yes", "no")] = MISSING
    """Whether to invert brightness: `auto` where an image's border is bright and the model's
    training images have a dark one."""
    batch_size: Count = MISSING
    """Images predicted at once."""
    contact_sheet: Annotated[str, ending_in(".png")] | None = MISSING
    """PNG file for a page of the first images with their classes."""


PREDICT = Verb(
    name="predict",
    help="classify images=<file, folder or pattern>",
    entry="pipeline.verbs.predict.command:predict",
    show="pipeline.verbs.predict.command:show",
    request=Predict,
)
