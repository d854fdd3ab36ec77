"""`compare`: recorded runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.rules import Count, one_of
from pipeline.verbs import Verb


@dataclass
class Compare:
    """Which runs to set side by side, and by what."""

    runs: list[str] = MISSING
    """Ids of the runs, or the first characters of each; none takes those of `sweep`, else `top`."""
    sweep: str | None = MISSING
    """Id of a sweep whose jobs to compare, or `latest`."""
    top: Count = MISSING
    """How many of the experiment's best finished runs, where neither runs nor a sweep is named."""
    metric: str = MISSING
    """Metric that ranks the runs."""
    direction: Annotated[str, one_of("maximize", "minimize")] | None = MISSING
    """Which values of the metric are better; null takes what the metric says of itself."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = MISSING
    """Coverage of the confidence intervals; 1 - confidence is the level of McNemar's test."""
    resamples: Annotated[int, Field(ge=100)] = MISSING
    """Bootstrap resamples."""
    format: Annotated[str, one_of("table", "json")] = MISSING
    """How to print: a table for people or JSON for scripts."""


COMPARE = Verb(
    name="compare",
    help="set recorded runs side by side: is it noise?",
    entry="pipeline.verbs.compare.command:compare",
    show="pipeline.verbs.compare.command:show",
    request=Compare,
)
