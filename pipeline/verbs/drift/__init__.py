"""`drift`: compares new pictures with the data of a recorded run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING

from pipeline.config.rules import Count, TypedPath, ending_in
from pipeline.verbs import OF_RUNS, Verb


@dataclass
class Drift:
    """Which pictures to compare, and where to write the results."""

    path: str | None = MISSING
    """A folder, an archive or a list of new pictures, with or without classes."""
    output: Annotated[TypedPath, ending_in(".csv")] = MISSING
    """File for the table, one row per quantity."""
    page: Annotated[TypedPath, ending_in(".html")] = MISSING
    """File for the page."""
    fail: bool = MISSING
    """Whether to end with an error if a shift is found, for scripts."""
    batch_size: Count = MISSING
    """Images predicted at once."""


DRIFT = Verb(
    name="drift",
    ignores=OF_RUNS,
    needs="path=photos",
    help="compare path=<new pictures> with the data of run_id=<id> or the champion",
    entry="pipeline.verbs.drift.command:drift",
    show="pipeline.verbs.drift.command:show",
    request=Drift,
)
