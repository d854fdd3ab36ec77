"""`reproduce`: repeats a recorded run and compares the results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.effects import Rule
from pipeline.verbs import NAMING, Verb


@dataclass
class Reproduce:
    """How close the metrics of a rerun must be."""

    tolerance: Annotated[float, Field(ge=0)] = MISSING
    """Largest difference of a metric that still counts as reproduced."""


OF_NAMED_RUN = Rule(
    keys=("tracking.experiment",),
    when=lambda config: config.run_id != "latest",
    because="beside run_id=<id>: the run is repeated in its own experiment",
    mend="leave it out",
    nothing=(None,),
)
REPRODUCE = Verb(
    name="reproduce",
    help="repeat run_id=<id> or latest and compare the results",
    entry="pipeline.verbs.reproduce.command:reproduce",
    show="pipeline.verbs.reproduce.command:show",
    request=Reproduce,
    ignores=NAMING,
    of_record=True,
    rules=(OF_NAMED_RUN,),
    needs="run_id=latest",
    records=True,
)
