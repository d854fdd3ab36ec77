"""Builders of optimizers that Keras lacks.

Keyword-only parameters are the keys of a file in conf/optimizer/; `train.ema` sets the others.
"""

from __future__ import annotations

from typing import Any

from pipeline.config.rules import Fraction, NonNegative, Positive, WholeNumber
from pipeline.system.imports import Lazy

own = Lazy("pipeline.training.own_optimizers")  # configurations are checked without TensorFlow

Optimizer = Any  # naming Keras' type would import it


def muon(  # noqa: PLR0913 (the keys of its file)
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    *,
    learning_rate: Positive,
    weight_decay: NonNegative,
    momentum: Fraction,
    clipnorm: Positive | None,
    global_clipnorm: Positive | None,
) -> Optimizer:
    """Orthogonalizes the updates of matrices and filters; AdamW updates all other variables.

    Rates are like AdamW's. Sources: Jordan 2024, "Muon"; Liu et al. 2025, arXiv:2502.16982.
    """
    return own.Muon(
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        momentum=momentum,
        clipnorm=clipnorm,
        global_clipnorm=global_clipnorm,
        exclude_layers=["probabilities"],
        use_ema=use_ema,
        ema_momentum=ema_momentum,
    )


def schedule_free(  # noqa: PLR0913 (the keys of its file)
    *,
    learning_rate: Positive,
    weight_decay: NonNegative,
    beta_1: Fraction,
    beta_2: Fraction,
    epsilon: Positive,
    warmup_steps: WholeNumber,
    clipnorm: Positive | None,
    global_clipnorm: Positive | None,
) -> Optimizer:
    """AdamW that averages weights instead of following a schedule.

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682.
    """
    return own.ScheduleFree(
        learning_rate=learning_rate,
        decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        warmup_steps=warmup_steps,
        clipnorm=clipnorm,
        global_clipnorm=global_clipnorm,
    )
