"""`compare`: compares recorded runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.effects import Rule
from pipeline.config.rules import Count, PositiveFraction, one_of
from pipeline.verbs import OF_RUNS, Verb


@dataclass
class Compare:
    """Which runs to compare, and by which metric."""

    runs: list[str] = MISSING
    """Ids of the runs, or their first characters; if empty, those of `sweep`, else `top`."""
    sweep: str | None = MISSING
    """Id of a sweep whose jobs to compare, or `latest`."""
    top: Count = MISSING
    """Number of the experiment's best finished runs, if neither `runs` nor `sweep` is given."""
    metric: str = MISSING
    """Metric that ranks the runs."""
    direction: Annotated[str, one_of("maximize", "minimize")] | None = MISSING
    """Which values of the metric are better; null takes what the metric declares."""
    confidence: PositiveFraction = MISSING
    """Coverage of the confidence intervals; 1 - confidence is the level of McNemar's test."""
    resamples: Annotated[int, Field(ge=100)] = MISSING
    """Bootstrap resamples."""
    format: Annotated[str, one_of("table", "json")] = MISSING
    """Format: a table for people or JSON for scripts."""


COMPARE = Verb(
    name="compare",
    ignores=OF_RUNS | {"run_id", "data_dir"},
    first="runs",
    help="compare recorded runs: are their differences significant?",
    entry="pipeline.verbs.compare.command:compare",
    show="pipeline.verbs.compare.command:show",
    request=Compare,
    rules=(
        Rule(
            keys=("compare.sweep",),
            when=lambda config: bool(config.compare.runs),
            because="beside compare.runs, which are compared",
            mend="give one of the two",
            nothing=(None,),
        ),
        Rule(
            keys=("compare.top",),
            when=lambda config: bool(config.compare.runs or config.compare.sweep),
            because="beside compare.runs or compare.sweep, all of whose runs are compared",
            mend="leave it out",
        ),
    ),
)
