"""`promote`: makes the model of a run the champion, if it passes the gates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.effects import Rule
from pipeline.config.rules import Positive, PositiveFraction, Share
from pipeline.config.schema import Evaluate
from pipeline.system.errors import RequestError
from pipeline.verbs import DECIDED, Verb

Reason = Annotated[str, Field(min_length=1, max_length=1000)]  # fits into a tag


@dataclass
class Promote:
    """The gates that a run must pass to become the champion; null disables one."""

    max_prediction_gap: Share | None = MISSING
    """Largest difference between the logged probabilities of the test images and those that the
    saved model gives now."""
    min_test_accuracy: Share | None = MISSING
    """Minimum accuracy on the test split."""
    min_class_recall: Share | None = MISSING
    """Minimum recall of the worst class on the test split."""
    max_ece: Share | None = MISSING
    """Maximum expected calibration error on the test split."""
    alpha: PositiveFraction | None = MISSING
    """The paired interval of the difference in accuracy to a champion, on the same test images,
    has coverage 1 - alpha."""
    margin: Share = MISSING
    """Loss of accuracy that is acceptable: the lower end of that interval must lie above -margin,
    for the current champion and for the best of its line."""
    max_model_mb: Positive | None = MISSING
    """Maximum size of the saved model, MB (10⁶ bytes)."""
    max_latency_ms: Positive | None = MISSING
    """Maximum median time to predict one image, ms."""
    challenger: bool = MISSING
    """Register a refused model and give it the alias `challenger`."""
    force: bool = MISSING
    """Promote despite failed gates, provided that the model loads; needs a reason."""
    reason: Reason | None = MISSING
    """Reason, recorded in the ledger."""

    def __post_init__(self) -> None:
        """Checks the keys against each other.

        Raises:
            RequestError: `force` is set without a reason.
        """
        if self.force is True and not (self.reason or "").strip():
            raise RequestError('promote.force=true needs a reason, for the ledger: reason="…"')


PROMOTE = Verb(
    name="promote",
    ignores=(DECIDED | {f"evaluate.{one.name}" for one in fields(Evaluate)})
    - {"evaluate.batch_size"},
    help="make the model of run_id=<id> or best the champion",
    entry="pipeline.verbs.promote.promote:promote",
    show="pipeline.verbs.promote.promote:show",
    request=Promote,
    rules=(
        Rule(
            keys=("promote.margin",),
            when=lambda config: config.promote.alpha is None,
            because="with promote.alpha=null, which disables the comparison with a champion",
            mend="leave it out, or set promote.alpha",
        ),
        Rule(
            keys=("promote.challenger",),
            when=lambda config: config.promote.force,
            because="with promote.force=true, by which no gate refuses the run",
            mend="leave one of the two out",
            nothing=(False,),
        ),
    ),
    needs="run_id=best",
)
