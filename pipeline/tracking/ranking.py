"""Finds the best runs by what the weights they kept have of a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mlflow.entities import Run

from pipeline.data.values import KEPT
from pipeline.tracking.records import of_kept_weights

Search = Callable[[Sequence[str], int], Sequence[Run]]
SPARE = 50  # runs looked at besides those that are wanted


def best_by_kept(
    search: Search, metric: str, *, most: int, lower_is_better: bool = False
) -> list[Run]:
    """The `most` best runs of those that `search(order, number)` finds, of equals the oldest first.

    A run recorded before there was `kept/…` counts by its last epoch, for the best one of its
    history would take a request a run. MLflow sorts by one metric and then by another, never by
    whichever there is: where there are more runs than wanted, those best by the last epoch are
    searched for as well.
    """
    way = "ASC" if lower_is_better else "DESC"
    has_kept = metric.startswith("val/")
    first = [f"{KEPT}{metric}"] * has_kept + [metric]
    found = list(search(_order(first, way), most + 1))
    if has_kept and len(found) > most:
        known = {run.info.run_id for run in found}
        others = search(_order([metric], way), most + SPARE)
        found += [run for run in others if run.info.run_id not in known]
    return sorted(found, key=lambda run: _rank(run, metric, lower_is_better))[:most]


def _order(metrics: Sequence[str], way: str) -> list[str]:
    return [*(f"metrics.`{name}` {way}" for name in metrics), "attributes.start_time ASC"]


def _rank(run: Run, metric: str, lower_is_better: bool) -> tuple[bool, float, int]:
    value = of_kept_weights(run.data.metrics).get(metric, math.nan)
    return math.isnan(value), value if lower_is_better else -value, run.info.start_time
