"""`doctor`: finds problems of the installation, data, store and runs, and says how to fix them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING

from pipeline.config.rules import one_of
from pipeline.verbs import OF_RUNS, Verb


@dataclass
class Doctor:
    """Settings of `doctor`."""

    fix: bool = MISSING
    """Close runs whose process is gone, and send records that the store lacks."""
    format: Annotated[str, one_of("table", "json")] = MISSING
    """Format: a table for people or JSON for scripts."""


DOCTOR = Verb(
    name="doctor",
    ignores=(OF_RUNS | {"run_id"}) - {"dataset."},
    help="find problems and say how to fix them",
    entry="pipeline.verbs.doctor.command:examine",
    show="pipeline.verbs.doctor.command:show",
    request=Doctor,
    keeps_log=False,
)
