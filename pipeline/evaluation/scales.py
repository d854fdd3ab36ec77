"""What the number of a metric can be, and which way it is better, by the metric's name. Pure."""

from __future__ import annotations

from dataclasses import replace

from pipeline.evaluation.intervals import Estimate

LOWER = ("loss", "ece", "parameters", "activations", "training_memory_mb")
SHARES = ("accuracy", "precision", "recall", "f1", "macro_f1", "ece")  # from 0 to 1


def lower_is_better(metric: str) -> bool:
    """Whether a metric is the better the lower it is: losses, errors, sizes and times."""
    last = metric.rpartition("/")[2]
    return last in LOWER or (
        metric.startswith("time/") and last.endswith("_s") and last != "images_per_s"
    )


def possible(estimate: Estimate, metric: str) -> Estimate:
    """The interval without what such a metric cannot be: few seeds make a wide one."""
    is_share = metric.rpartition("/")[2].startswith(SHARES)
    low = max(estimate.low, 0.0) if is_share or lower_is_better(metric) else estimate.low
    return replace(estimate, low=low, high=min(estimate.high, 1.0) if is_share else estimate.high)
