"""Naming runs by the beginnings of their ids, against a client that notes what it is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from pipeline.system.errors import RequestError
from pipeline.tracking.ids import find_by_id

IDS = ["abcd" + "0" * 28, "abce" + "0" * 28, "12e4" + "0" * 28]
IDS += [f"ffff{number}" + "0" * 27 for number in range(5)]


class Client:
    """A store of these runs in two experiments."""

    tracking_uri = "sqlite:///mlflow.db"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_run(self, run_id: str) -> Any:
        self.asked.append("get_run")
        if run_id not in IDS:
            raise MlflowException("not found")
        return _run(run_id)

    def search_experiments(self, max_results: int) -> Any:
        self.asked.append("search_experiments")
        return [SimpleNamespace(experiment_id=name) for name in "01"]

    def search_runs(self, experiments: list[str], where: str, max_results: int) -> Any:
        self.asked.append("search_runs")
        assert experiments == ["0", "1"]
        beginning = where.removeprefix("attributes.run_id LIKE '").removesuffix("%'")
        return [_run(run_id) for run_id in IDS if run_id.startswith(beginning)][:max_results]


def _run(run_id: str) -> Any:
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id))


def found(given: str) -> str:
    return str(find_by_id(Client(), given).info.run_id)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["abcd", "ABCD0", "abcd000000", IDS[0]])
def test_a_run_is_found_by_the_whole_of_its_id_or_a_beginning(given: str) -> None:
    assert found(given) == IDS[0]


def test_a_whole_id_costs_no_search() -> None:
    client = Client()
    find_by_id(client, IDS[1])  # type: ignore[arg-type]
    assert client.asked == ["get_run"]


@pytest.mark.parametrize("given", ["abc", "dead", "abcd' OR '1", "abcx", "0" * 32, "a" * 33])
def test_what_fits_no_run_is_refused_with_what_an_id_may_be(given: str) -> None:
    with pytest.raises(RequestError) as refused:
        found(given)
    assert str(refused.value) == (
        f"run_id={given}: there is no such run in sqlite:///mlflow.db; give its id, or of that the "
        "first 4 or more characters; tracking.uri=… names another store"
    )


def test_what_fits_several_runs_is_refused_with_the_first_of_them() -> None:
    with pytest.raises(RequestError) as refused:
        found("ffff")
    assert str(refused.value) == (
        f"run_id=ffff: fits several runs ({', '.join(IDS[3:6])}, …); give more characters"
    )


def test_the_message_names_the_word_it_was_given_by_and_what_was_wanted() -> None:
    with pytest.raises(RequestError, match=r"^sweep\.resume=dead: there is no such sweep"):
        find_by_id(Client(), "dead", key="sweep.resume", kind="sweep")  # type: ignore[arg-type]
