"""The best runs of a store that sorts as MLflow does: by one metric, then the next, NULL last."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from pipeline.tracking.ranking import best_by_kept

ACCURACY, KEPT = "val/accuracy", "kept/val/accuracy"


class Store:
    """Runs by their metrics, named by their places."""

    def __init__(self, *metrics: dict[str, float]) -> None:
        self.searches = 0
        self.runs = [
            SimpleNamespace(
                info=SimpleNamespace(run_id=str(place), start_time=place),
                data=SimpleNamespace(metrics=one),
            )
            for place, one in enumerate(metrics)
        ]

    def search(self, order: Sequence[str], most: int) -> Any:
        self.searches += 1
        runs = list(self.runs)
        for clause in reversed(order[:-1]):
            name, way = clause.removeprefix("metrics.`").split("` ")
            sign = 1 if way == "ASC" else -1
            runs.sort(key=lambda run: sign * run.data.metrics.get(name, sign * float("inf")))
        return runs[:most]

    def best(self, most: int, metric: str = ACCURACY, *, lower: bool = False) -> list[str]:
        found = best_by_kept(self.search, metric, most=most, lower_is_better=lower)
        return [run.info.run_id for run in found]


def test_what_was_kept_counts_and_the_last_epoch_where_that_is_not_known() -> None:
    store = Store({ACCURACY: 0.99, KEPT: 0.5}, {ACCURACY: 0.7, KEPT: 0.8}, {ACCURACY: 0.75})
    assert store.best(3) == ["1", "2", "0"]
    assert store.searches == 1


def test_old_runs_are_searched_for_where_there_are_more_runs_than_wanted() -> None:
    store = Store({ACCURACY: 0.5, KEPT: 0.6}, {ACCURACY: 0.5, KEPT: 0.55}, {ACCURACY: 0.7})
    assert store.best(1) == ["2"]
    assert store.best(2) == ["2", "0"]


def test_of_equals_the_oldest_is_first_and_without_a_value_a_run_is_last() -> None:
    store = Store({}, {ACCURACY: 0.5}, {ACCURACY: 0.5}, {ACCURACY: float("nan")})
    assert store.best(4) == ["1", "2", "0", "3"]


def test_a_loss_is_better_the_lower_it_is() -> None:
    store = Store({"val/loss": 0.5}, {"val/loss": 0.9, "kept/val/loss": 0.4}, {"val/loss": 0.3})
    assert store.best(2, "val/loss", lower=True) == ["2", "1"]


def test_another_split_is_never_of_a_kept_epoch_and_takes_one_search() -> None:
    store = Store({"test/accuracy": 0.5}, {"test/accuracy": 0.9})
    assert store.best(1, "test/accuracy") == ["1"]
    assert store.searches == 1
