from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.system.errors import RequestError
from pipeline.verbs.compare.choice import named_runs
from tests.commands import carried_out, configured, inside
from tests.verbs.compare.test_command import Store, ids

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with inside(tmp_path_factory.mktemp("choice")) as folder:
        made = Store(folder)
        made.add(200, rate="0.1")
        made.add(250, rate="0.2")
        yield made


def test_one_run_named_twice_is_no_comparison(store: Store) -> None:
    one, *_ = ids(store, "0.1-0")
    with pytest.raises(RequestError, match=r"runs: all of .* are the same run; name two or more"):
        named_runs(configured("dataset=synthetic"), [one, one[:12]])


def test_a_sweeps_own_run_is_not_compared_as_one(store: Store) -> None:
    one, *_ = ids(store, "0.1-0")
    for name in (store.sweep, store.sweep[:10]):
        with pytest.raises(RequestError, match="sweep's own run; to compare its jobs, use sweep="):
            named_runs(configured("dataset=synthetic"), [name, one])


def test_a_beginning_that_fits_several_runs_is_refused_with_their_ids(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.runs.SHORTEST", 1)
    for _ in range(14):  # with the other three, more than there are first characters
        store.client.create_run(store.experiment)
    many = [run.info.run_id for run in store.client.search_runs([store.experiment])]
    beginnings = [run_id[0] for run_id in many]
    shared = max(beginnings, key=beginnings.count)
    with pytest.raises(RequestError, match=rf"{shared}: matches several .*; give more characters"):
        named_runs(configured("dataset=synthetic"), [shared, many[0]])


def test_an_experiment_without_runs_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="experiment nowhere has no run yet"):
        carried_out("compare", "tracking.experiment=nowhere", folder=tmp_path)
