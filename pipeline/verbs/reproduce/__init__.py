"""`reproduce`: repeats a recorded run and compares the results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.verbs import NAMING, Verb


@dataclass
class Reproduce:
    """How close the metrics of a rerun must be."""

    tolerance: Annotated[float, Field(ge=0)] = MISSING
    """Largest difference of a metric that still counts as reproduced."""


REPRODUCE = Verb(
    name="reproduce",
    help="repeat run_id=<id> or latest and compare the results",
    entry="pipeline.verbs.reproduce.command:reproduce",
    show="pipeline.verbs.reproduce.command:show",
    request=Reproduce,
    ignores=NAMING,
    of_record=True,
    needs="run_id=latest",
    records=True,
)
