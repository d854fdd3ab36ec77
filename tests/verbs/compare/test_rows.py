from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.tracking.values import RecordedRun, Status
from pipeline.verbs.compare.rows import Row, differing, fold, labels, trait_names

RUN = RecordedRun(
    id="0" * 32,
    name="calm-fox",
    experiment="fashion_mnist",
    status=Status.FINISHED,
    started=1,
    params={"optimizer.learning_rate": "0.1", "seed": "0", "evaluate.plots": "[]", "epochs": "5"},
    tags={
        "model": "mlp",
        "mlflow.source.git.commit": "1234567890",
        "hardware.cpu": "EPYC",
        "hardware.host": "a",
        "version.keras": "3",
        "data.fingerprint": "f" * 64,
    },
    logged={},
    sizes={},
    artifacts="",
)


def run(
    seed: int = 0, rate: str = "0.1", tags: dict[str, str] | None = None, **more: Any
) -> RecordedRun:
    params = dict(RUN.params) | {"optimizer.learning_rate": rate, "seed": str(seed)}
    return replace(RUN, params=params, tags=dict(RUN.tags) | (tags or {}), **more)


def test_runs_that_differ_in_seed_alone_are_one_row_in_order_of_their_seeds() -> None:
    folded = fold([run(10), run(2), run(2, rate="0.2")])
    assert [[r.params["seed"] for r in row.runs] for row in folded.rows] == [["2", "10"], ["2"]]
    assert folded.rows[0].traits["seed"] == "2, 10"
    assert folded.superseded == 0


def test_a_repeated_seed_counts_once_by_its_newest_run() -> None:
    folded = fold([run(0, started=5), run(0, started=7, id="new"), run(1)])
    [row] = folded.rows
    assert (row.runs[0].id, len(row.runs), folded.superseded) == ("new", 2, 1)


@pytest.mark.parametrize(
    "tags",
    [
        {"mlflow.source.git.commit": "other"},
        {"code.dirty": "true", "code.patch_sha256": "abc"},
        {"trusted.my_models": "ab" * 32},
        {"version.keras": "4"},
        {"data.fingerprint": "e" * 64},
        {"hardware.cpu": "Xeon"},
        {"model": "cnn"},
        {"trusted.my_models": "a" * 64},
        {"weights.sha256": "b" * 64},
        {"precision.chosen": "bfloat16"},
    ],
)
def test_runs_that_differ_in_more_than_the_seed_stay_apart(tags: dict[str, str]) -> None:
    assert len(fold([run(0), run(1, tags=tags)]).rows) == 2


def test_seeds_run_on_two_hosts_of_a_kind_are_one_row_that_names_both() -> None:
    [row] = fold([run(0), run(1, tags={"hardware.host": "b"})]).rows
    assert row.traits["hardware.host"] == "a, b"


def test_only_what_differs_is_named_and_what_one_run_lacks_differs() -> None:
    rows = [Row(runs=(run(),)), Row(runs=(run(rate="0.2", tags={"version.numpy": "2"}),))]
    assert differing(rows) == ["optimizer.learning_rate", "version.numpy"]


def test_many_seeds_are_named_by_their_ends() -> None:
    [row] = fold([run(seed) for seed in range(12)]).rows
    assert row.traits["seed"] == "0 … 11"


def test_names_are_short_where_their_last_part_is_enough() -> None:
    assert trait_names(["model.dropout", "a.rate", "b.rate"]) == {
        "model.dropout": "dropout",
        "a.rate": "a.rate",
        "b.rate": "b.rate",
    }


def test_another_seed_than_that_of_the_runs_is_named_in_full() -> None:
    assert trait_names(["dataset.seed", "model.dropout"]) == {
        "dataset.seed": "dataset.seed",
        "model.dropout": "dropout",
    }
    assert trait_names(["seed", "dataset.seed"])["seed"] == "seed"


def test_where_a_row_has_several_runs_all_are_called_by_what_tells_them_apart() -> None:
    rows = [Row(runs=(run(0), run(1))), Row(runs=(run(0, rate="0.2"),))]
    told = ["learning_rate=0.1", "learning_rate=0.2"]
    assert labels(rows, ["optimizer.learning_rate", "seed"]) == told
    assert labels([replace(rows[0], runs=(run(),)), rows[1]], ["seed"])[0] == "calm-fox 00000000"


def test_code_and_place_name_a_row_only_where_no_setting_differs() -> None:
    rows = [Row(runs=(run(0), run(1))), Row(runs=(run(0, rate="0.2"),))]
    names = ["optimizer.learning_rate", "code", "hardware.cpu"]
    assert labels(rows, names) == ["learning_rate=0.1", "learning_rate=0.2"]
    assert labels(rows, ["code"])[0] == "code=1234567 00000000"


def test_the_settings_of_a_data_set_name_a_row() -> None:
    sizes = [replace(run(), params={**run().params, "dataset.size": size}) for size in ("64", "96")]
    rows = [Row(runs=(one, replace(one, id="1" * 32))) for one in sizes]
    told = ["learning_rate=0.1, size=64", "learning_rate=0.1, size=96"]
    assert labels(rows, ["optimizer.learning_rate", "dataset.size", "data"]) == told


def test_two_runs_of_one_name_are_told_apart_by_their_ids() -> None:
    rows = [Row(runs=(run(),)), Row(runs=(run(id="1" * 32),))]
    assert labels(rows, []) == ["calm-fox 00000000", "calm-fox 11111111"]
