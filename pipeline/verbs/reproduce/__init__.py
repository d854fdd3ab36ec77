"""`reproduce`: a recorded run again, to see whether it comes out the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.verbs import Verb


@dataclass
class Reproduce:
    """How alike the metrics of a rerun must be."""

    tolerance: Annotated[float, Field(ge=0)] = MISSING
    """Largest difference of a metric that still counts as reproduced."""


REPRODUCE = Verb(
    name="reproduce",
    help="run run_id=<id> or latest again and say whether it came out the same",
    entry="pipeline.verbs.reproduce.command:reproduce",
    show="pipeline.verbs.reproduce.command:show",
    request=Reproduce,
    records=True,
)
