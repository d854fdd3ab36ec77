"""Schedules of the learning rate that are settings of Keras' `CosineDecay`.

Positional parameters are passed at run time: the optimizer's learning rate, which is the highest,
and the number of steps of the training. Keyword-only ones are the keys of a file in conf/schedule/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.config.rules import Fraction, Share, idle
from pipeline.system.imports import Lazy

if TYPE_CHECKING:
    import keras
else:
    keras = Lazy("keras")  # configurations are checked without TensorFlow, as in models.py

Schedule = Any  # naming Keras' type would import it


_CONSTANT: dict[str, Any] = {
    "because": "with values that keep the learning rate as it is",
    "mend": "choose schedule=constant, or change them",
}
_idle_start = idle(
    "start",
    when=lambda leaf: not leaf["warmup"],
    because="with schedule.warmup=0: the rate does not rise",
    mend="leave it out, or set schedule.warmup above 0",
)


def _begins_high(leaf: dict[str, Any]) -> bool:
    return leaf["warmup"] == 0 or leaf["start"] == 1


@_idle_start
@idle(when=lambda leaf: _begins_high(leaf) and leaf["end"] == 1, **_CONSTANT)
def one_cycle(
    initial_learning_rate: float, decay_steps: int, *, warmup: Fraction, start: Share, end: Share
) -> Schedule:
    """Rises linearly for the share `warmup` of the steps, then falls along half a cosine.

    It begins at `start` and ends at `end` times the highest rate. Source: Smith & Topin 2018,
    "Super-Convergence", without their cycle of the momentum.
    """
    return _risen(initial_learning_rate, decay_steps, share=warmup, start=start, end=end)


@idle(when=lambda leaf: leaf["end"] == 1, **_CONSTANT)
def flat_cosine(
    initial_learning_rate: float, decay_steps: int, *, flat: Fraction, end: Share
) -> Schedule:
    """Keeps the rate for the share `flat` of the steps, then falls along half a cosine.

    It ends at `end` times the rate.
    """
    return _risen(initial_learning_rate, decay_steps, share=flat, start=1.0, end=end)


@_idle_start
@idle(when=_begins_high, **_CONSTANT)
def warmup(
    initial_learning_rate: float, decay_steps: int, *, warmup: Fraction, start: Share
) -> Schedule:
    """Rises linearly from `start` times the rate for the share `warmup` of steps, then keeps it."""
    return _risen(initial_learning_rate, decay_steps, share=warmup, start=start, end=1.0)


def _risen(rate: float, steps: int, *, share: float, start: float, end: float) -> Schedule:
    rising = round(share * steps)
    return keras.optimizers.schedules.CosineDecay(
        rate * start if rising else rate,
        max(steps - rising, 1),
        alpha=end,
        warmup_target=rate if rising else None,
        warmup_steps=rising,
    )
