"""Runs by the beginnings of their ids, and the best of them, against clients that take notes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.entities import Run, RunData, RunInfo, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from pipeline.system.errors import RequestError
from pipeline.tracking import runs
from pipeline.tracking.client import connect
from pipeline.tracking.client import experiment as experiment_of
from pipeline.tracking.runs import best_by_kept, best_trained, by_id, require_sound_leakage
from pipeline.tracking.values import RecordedRun, Status
from tests.commands import configured

IDS = ["abcd" + "0" * 28, "abce" + "0" * 28, "12e4" + "0" * 28]
IDS += [f"ffff{number}" + "0" * 27 for number in range(5)]
DELETED = "9e9e" + "0" * 28
# The ids that runs had before a store knew them, by those of the store
LOCAL = {IDS[0]: "5a5a" + "1" * 28, IDS[1]: "12e4" + "1" * 28, IDS[2]: "12e4" + "2" * 28}


class Client:
    """A store of these runs in two experiments."""

    tracking_uri = "sqlite:///mlflow.db"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_run(self, run_id: str) -> Any:
        self.asked.append("get_run")
        if run_id not in IDS:
            raise MlflowException("not found", error_code=RESOURCE_DOES_NOT_EXIST)
        return _run(run_id)

    def get_experiment(self, experiment_id: str) -> Any:
        self.asked.append("get_experiment")
        return SimpleNamespace(name=f"experiment {experiment_id}")

    def search_experiments(self, max_results: int, page_token: str | None) -> Any:
        self.asked.append("search_experiments")
        return Page(SimpleNamespace(experiment_id=name, name=name) for name in "01")

    def search_runs(
        self, experiments: list[str], where: str, view: int, max_results: int, **_: Any
    ) -> Any:
        self.asked.append("search_runs")
        assert experiments == ["0", "1"]
        what, _, beginning = where.removesuffix("%'").partition(" LIKE '")
        known = {"attributes.run_id": {one: one for one in IDS}, "tags.`local_id`": LOCAL}
        if view == ViewType.DELETED_ONLY:
            known = {"attributes.run_id": {DELETED: DELETED}}
        fitting = [_run(of) for of, one in known.get(what, {}).items() if one.startswith(beginning)]
        return Page(fitting[:max_results])


class Page(list[Any]):
    """A page of answers, the last."""

    token = None


def _run(run_id: str) -> Any:
    tags = [RunTag("local_id", LOCAL[run_id])] if run_id in LOCAL else []
    info = RunInfo(run_id, "1", "me", "FINISHED", 0, 0, "active", run_name="calm-fox")
    return Run(info, RunData(tags=tags))


def found(given: str) -> str:
    return str(by_id(Client(), given).id)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["abcd", "ABCD0", "abcd000000", IDS[0]])
def test_a_run_is_found_by_the_whole_of_its_id_or_a_beginning(given: str) -> None:
    assert found(given) == IDS[0]


def test_a_whole_id_costs_no_search() -> None:
    client = Client()
    by_id(client, IDS[1])  # type: ignore[arg-type]
    assert client.asked == ["get_run", "get_experiment"]  # the second for its name


@pytest.mark.parametrize("given", ["abc", "dead", "abcd' OR '1", "abcx", "0" * 32, "a" * 33])
def test_what_fits_no_run_is_refused_with_what_an_id_may_be(given: str) -> None:
    with pytest.raises(RequestError) as refused:
        found(given)
    assert str(refused.value) == (
        f"run_id={given}: there is no such run in sqlite:///mlflow.db; give its id or at least "
        "the first 4 characters of it; tracking.uri=… names another store"
    )


def test_a_deleted_run_is_told_as_such_by_the_beginning_of_its_id() -> None:
    with pytest.raises(RequestError) as refused:
        found("9E9e")
    assert str(refused.value) == (
        f"run_id=9E9e was deleted; `mlflow runs restore --run-id {DELETED}` brings it back"
    )


def test_what_fits_several_runs_is_refused_with_the_first_of_them() -> None:
    with pytest.raises(RequestError) as refused:
        found("ffff")
    assert str(refused.value) == (
        f"run_id=ffff: matches several runs ({', '.join(IDS[3:6])}, …); give more characters"
    )


@pytest.mark.parametrize("given", ["5a5a", "5A5A1", LOCAL[IDS[0]][:31]])
def test_a_run_is_found_by_the_beginning_of_its_local_id(given: str) -> None:
    assert found(given) == IDS[0]


def test_a_beginning_of_one_run_s_id_and_of_another_s_local_id_is_refused() -> None:
    with pytest.raises(RequestError) as refused:
        found("12e4")
    assert str(refused.value) == (
        f"run_id=12e4: matches several runs ({IDS[2]}, {LOCAL[IDS[1]]}); give more characters"
    )


def test_the_message_names_the_word_it_was_given_by_and_what_was_wanted() -> None:
    with pytest.raises(RequestError, match=r"^sweep\.resume=dead: there is no such sweep"):
        by_id(Client(), "dead", key="sweep.resume", kind="sweep")  # type: ignore[arg-type]


# --- the best ---

ACCURACY, KEPT = "val/accuracy", "kept/val/accuracy"


class Store:
    """Runs by their metrics, named by their places; sorts as MLflow does, what is missing last."""

    def __init__(self, *metrics: dict[str, float]) -> None:
        self.searches = 0
        self.runs = [
            RecordedRun(
                id=str(place),
                name="",
                experiment="",
                status=Status.FINISHED,
                started=place,
                logged=one,
            )
            for place, one in enumerate(metrics)
        ]

    def search(self, order: Sequence[str], most: int) -> Any:
        self.searches += 1
        runs = list(self.runs)
        for clause in reversed(order[:-1]):
            name, sign = clause.removeprefix("-"), -1 if clause.startswith("-") else 1
            runs.sort(key=lambda run: sign * run.logged.get(name, sign * float("inf")))
        return runs[:most]

    def best(self, most: int, metric: str = ACCURACY, *, lower: bool = False) -> list[str]:
        found = best_by_kept(self.search, metric, most=most, lower_is_better=lower)
        return [run.id for run in found]


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


LITE = ("model=efficientnet_lite0", "model.weights=abcd1234")


def test_leakage_is_not_measured_with_weights_of_a_run_on_the_same_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured("dataset=digits", *LITE)
    run = SimpleNamespace(fingerprint="f" * 64, source="photos", config=config)
    monkeypatch.setattr(runs, "find_run", lambda source, config: run)
    same = SimpleNamespace(fingerprint="f" * 64, source="moved")
    other = SimpleNamespace(fingerprint="e" * 64, source="others")
    require_sound_leakage(config, same)  # type: ignore[arg-type]
    config.evaluate.leakage = True
    require_sound_leakage(config, other)  # type: ignore[arg-type]
    with pytest.raises(
        RequestError, match=r"^model.weights=abcd1234: that run \(photos\) was trained"
    ):
        require_sound_leakage(config, same)  # type: ignore[arg-type]


# --- the best of an experiment in a store ---


def trained_on(dataset: str, accuracy: float, *, experiment: str) -> str:
    client = connect(None)
    run_id = str(client.create_run(experiment_of(client, experiment)).info.run_id)
    client.set_tag(run_id, "dataset", dataset)
    client.set_tag(run_id, "model_uri", f"models:/m-{run_id}")
    client.log_metric(run_id, KEPT, accuracy)
    client.set_terminated(run_id)
    return run_id


@pytest.mark.slow
def test_the_best_of_an_experiment_is_a_run_on_the_data_set_of_the_command(folder: Path) -> None:
    trained_on("mnist", 0.99, experiment="both")
    ours = trained_on("digits", 0.8, experiment="both")
    trained_on("digits", 0.7, experiment="both")
    config = configured("dataset=digits", "tracking.experiment=both")
    assert best_trained(config, ACCURACY).id == ours


@pytest.mark.slow
def test_the_best_on_another_data_set_is_taken_where_there_is_only_that(folder: Path) -> None:
    ours = trained_on("mnist", 0.9, experiment="one")
    config = configured("dataset=digits", "tracking.experiment=one")
    assert best_trained(config, ACCURACY).id == ours
    trained_on("synthetic", 0.8, experiment="one")
    with pytest.raises(RequestError, match="experiment one has runs on mnist, synthetic; say on"):
        best_trained(config, ACCURACY)
