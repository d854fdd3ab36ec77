"""Temperature scaling: one number, found on the validation split, that calibrates probabilities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.data.values import Array, Predictions
from pipeline.evaluation.metrics import loss

COLDEST, WARMEST = 0.05, 20.0


def best_temperature(predictions: Predictions) -> float:
    """The temperature at which the cross-entropy of `predictions` is lowest.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda logarithm: loss(at_temperature(predictions, float(np.exp(logarithm)))),
        bounds=(np.log(COLDEST), np.log(WARMEST)),
        method="bounded",
    )
    return float(np.exp(found.x))


def at_temperature(predictions: Predictions, value: float) -> Predictions:
    """The same predictions with their logits divided by `value`; the classes stay the same."""
    return replace(predictions, probs=_scaled(predictions.probs, value))


def _scaled(probs: Array, value: float) -> Array:
    # The softmax of logarithms of probabilities is these: they serve as logits.
    logits = np.log(np.clip(probs.astype(np.float64), 1e-12, 1)) / value
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
