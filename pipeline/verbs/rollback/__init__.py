"""`rollback`: makes an earlier version the champion again."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from pipeline.config.rules import Count
from pipeline.verbs import OF_RUNS, Verb
from pipeline.verbs.promote import Reason


@dataclass
class Rollback:
    """Which version to go back to."""

    to: Count | None = MISSING
    """Version of the registered model; null takes the one that the champion replaced."""
    reason: Reason | None = MISSING
    """Why, for the ledger."""


ROLLBACK = Verb(
    name="rollback",
    ignores=OF_RUNS | {"run_id", "data_dir"},
    first="to",
    help="go back to the previous champion, or to=<version>",
    entry="pipeline.verbs.rollback.command:rollback",
    show="pipeline.verbs.promote.promote:show",
    request=Rollback,
)
