from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from pipeline.tracking.client import experiment
from pipeline.tracking.registry import Registry, open_registry
from pipeline.tracking.values import DONE, FINGERPRINT, PENDING, SIGNED, STATE, Present, Version
from tests.commands import configured

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(folder: Path, request: pytest.FixtureRequest) -> Registry:
    """A registered model of this test's own, which is not made yet."""
    return open_registry(configured("dataset=digits").tracking, request.node.name)


@pytest.fixture
def run_id(registry: Registry) -> str:
    made = registry.client.create_run(experiment(registry.client, "digits"))
    return str(made.info.run_id)


def added(registry: Registry, run_id: str, **tags: str) -> Version:
    return registry.add("file:///model", run_id, tags)


def test_what_does_not_exist_is_empty_and_made_once(registry: Registry) -> None:
    assert registry.present() == Present()
    assert registry.find(1) is None
    registry.drop(1)  # no error
    for _ in range(2):
        registry.ensure()
    assert registry.client.get_registered_model(registry.name).name == registry.name
    assert registry.present() == Present()


def test_a_version_has_its_run_its_source_and_the_fingerprint_of_its_data(
    registry: Registry, run_id: str
) -> None:
    registry.ensure()
    made = added(registry, run_id, **{FINGERPRINT: "f" * 64})
    found = registry.find(made.number)
    assert found is not None
    assert (found.number, found.run_id, found.source) == (1, run_id, "file:///model")
    assert (found.uri, found.fingerprint) == (f"models:/{registry.name}/1", "f" * 64)
    assert 0 <= found.age_s < 60
    registry.drop(1)
    assert registry.find(1) is None
    assert added(registry, run_id).number == 2  # numbers are not used again


def test_tickets_are_found_lowest_first_until_they_are_marked(
    registry: Registry, run_id: str
) -> None:
    registry.ensure()
    first, second, _ = (
        added(registry, run_id, **{STATE: state, "key": key})
        for state, key in ((PENDING, "a"), (PENDING, "b"), (DONE, "c"))
    )
    assert [one.number for one in registry.pending()] == [first.number, second.number]
    registry.mark(first.number, DONE, without=["key"])
    assert [one.number for one in registry.pending()] == [second.number]
    marked = registry.find(first.number)
    assert marked is not None
    assert dict(marked.tags) == {STATE: DONE}
    assert [one.number for one in registry.of_run(run_id)] == [3, 2, 1]


def test_aliases_point_to_versions_and_are_removed(registry: Registry, run_id: str) -> None:
    registry.ensure()
    for _ in range(2):
        added(registry, run_id)
    registry.point("champion", 1)
    registry.point("champion", 2)
    registry.point("previous", 1)
    assert registry.present().aliases == {"champion": 2, "previous": 1}
    registry.point("previous", None)
    assert registry.present().aliases == {"champion": 2}
    with pytest.raises(MlflowException):
        registry.point("champion", 9)


def test_a_description_of_the_users_own_is_kept(registry: Registry) -> None:
    registry.ensure()
    registry.describe("first")
    registry.describe("second")
    assert registry.present().description == f"second{SIGNED}"
    registry.client.update_registered_model(registry.name, "by hand")
    registry.describe("third")
    assert registry.present().description == "by hand"


def test_descriptions_are_as_long_as_every_database_takes(registry: Registry, run_id: str) -> None:
    registry.ensure()
    registry.describe("long " * 2_000)
    assert len(registry.present().description) == 5_000
    assert registry.present().description.endswith(f"…{SIGNED}")
    made = registry.add("file:///model", run_id, {}, "long " * 2_000)
    found = registry.client.get_model_version(registry.name, str(made.number))
    assert len(found.description) == 5_000
    assert found.description.endswith(f"…{SIGNED}")


def test_tags_and_attached_texts_come_back_without_secrets(registry: Registry, run_id: str) -> None:
    registry.ensure()
    registry.keep("ledger", "https://me:canary@host")
    assert registry.present().tags == {"ledger": "https://me:***@host"}
    registry.attach(run_id, "gates/a.json", "https://me:canary@host")
    assert registry.attached(run_id, "gates/a.json") == "https://me:***@host"
    assert registry.attached(run_id, "gates/b.json") is None
    assert registry.attached("0" * 32, "gates/a.json") is None
