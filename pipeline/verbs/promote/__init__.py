"""`promote`, `rollback` and `history`: which model is the champion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.rules import Count, Positive, Share, one_of
from pipeline.system.errors import RequestError
from pipeline.verbs import Verb

Reason = Annotated[str, Field(min_length=1, max_length=1000)]  # what fits a line of the ledger


@dataclass
class Promote:
    """What a run must reach to become the champion; null leaves a gate out."""

    max_prediction_gap: Share | None = MISSING
    """Largest difference between a probability that the run logged for a test image and the one
    that the saved model gives now."""
    min_test_accuracy: Share | None = MISSING
    """Least accuracy on the test split."""
    min_class_recall: Share | None = MISSING
    """Least recall of the worst class on the test split."""
    max_ece: Share | None = MISSING
    """Highest expected calibration error on the test split."""
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = MISSING
    """1 - alpha is the coverage of the paired interval of the difference in accuracy to a
    champion, on the same test images."""
    margin: Share = MISSING
    """Loss of accuracy that counts as none: the lower end of that interval must lie above -margin,
    for the present champion and for the best of its line."""
    max_model_mb: Positive | None = MISSING
    """Highest size of the saved model, MB (10⁶ bytes)."""
    max_latency_ms: Positive | None = MISSING
    """Highest median time to predict one image, ms."""
    challenger: bool = MISSING
    """Register a refused model and give it the alias `challenger`."""
    force: bool = MISSING
    """Promote whatever the gates say, if only the model loads; needs a reason."""
    reason: Reason | None = MISSING
    """Why, for the ledger."""

    def __post_init__(self) -> None:
        """Checks what the keys are to each other.

        Raises:
            RequestError: it is to be forced without a reason.
        """
        if self.force is True and not (self.reason or "").strip():
            raise RequestError('promote.force=true needs a reason, for the ledger: reason="…"')


@dataclass
class Rollback:
    """Which version to go back to."""

    to: Count | None = MISSING
    """Version of the registered model; null takes the one with the alias `previous`."""
    reason: Reason | None = MISSING
    """Why, for the ledger."""


@dataclass
class History:
    """How to show the ledger."""

    format: Annotated[str, one_of("table", "json")] = MISSING
    """How to print: a table for people or JSON for scripts."""


PROMOTE = Verb(
    name="promote",
    help="make the model of run_id=<id> or best the champion",
    entry="pipeline.verbs.promote.promote:promote",
    show="pipeline.verbs.promote.promote:show",
    request=Promote,
)
ROLLBACK = Verb(
    name="rollback",
    help="go back to the champion before, or to=<version>",
    entry="pipeline.verbs.promote.rollback:rollback",
    show="pipeline.verbs.promote.promote:show",
    request=Rollback,
)
HISTORY = Verb(
    name="history",
    help="show every promotion, rollback and refusal",
    entry="pipeline.verbs.promote.rollback:history",
    show="pipeline.verbs.promote.rollback:show_history",
    request=History,
)
