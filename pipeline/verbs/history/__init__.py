"""`history`: shows every attempt to change the champion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING

from pipeline.config.rules import one_of
from pipeline.verbs import OF_RUNS, Verb


@dataclass
class History:
    """Settings of `history`."""

    format: Annotated[str, one_of("table", "json")] = MISSING
    """Format: a table for people or JSON for scripts."""


HISTORY = Verb(
    name="history",
    ignores=OF_RUNS | {"run_id", "data_dir"},
    help="show every promotion, rollback and refusal",
    entry="pipeline.verbs.history.command:history",
    show="pipeline.verbs.history.command:show_history",
    request=History,
)
