from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import pytest

from pipeline.tracking.client import connect, experiment
from pipeline.tracking.heartbeat import (
    LISTEN_S,
    signs,
)
from pipeline.tracking.lifecycle import close, record
from pipeline.tracking.runs import by_id, search
from pipeline.tracking.values import (
    BEAT,
    BEAT_HOST,
    BEAT_STARTED,
    Query,
    RecordedRun,
    Status,
)
from pipeline.verbs.doctor.leftovers import Owner
from pipeline.verbs.doctor.orphans import folders, running
from tests.commands import configured, inside
from tests.stores import Switch, wait_briefly
from tests.stress.matrix import matrix
from tests.tracking.test_delivery import points

OLD = "2026-01-01T00:00:00+00:00"
GONE = {BEAT_STARTED: "1"}
SILENT = {BEAT_HOST: "another machine", BEAT: OLD}
LONG_AGO = 1_700_000_000_000


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow.MlflowClient]:
    with inside(tmp_path_factory.mktemp("store")):
        yield connect(None)


@pytest.fixture
def number(client: mlflow.MlflowClient) -> Iterator[str]:
    made = experiment(client, f"of {time.monotonic_ns()}")
    yield made
    client.delete_experiment(made)  # its runs are none of the next test's


def opened(
    client: mlflow.MlflowClient, number: str, tags: dict[str, str], start: int | None = None
) -> str:
    return str(client.create_run(number, start, tags=tags).info.run_id)


def status(client: mlflow.MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).info.status)


def said(client: mlflow.MlflowClient, *, fix: bool = False, own: str | None = None) -> list[str]:
    return [f"{found.state}: {found.says}" for found in running(client, fix=fix, own=own)]


def test_nothing_running_is_ok(client: mlflow.MlflowClient, number: str) -> None:
    assert said(client) == ["ok: 0 at work"]


@matrix(14)
def test_orphans_are_shown_and_only_closed_when_asked(
    client: mlflow.MlflowClient, number: str
) -> None:
    alive = opened(client, number, signs())
    gone = opened(client, number, signs() | GONE)
    silent = opened(client, number, signs() | SILENT, LONG_AGO)
    shown, at_work = said(client)
    assert shown.startswith("warning: 2 RUNNING although its process is gone: ")
    assert gone in shown
    assert silent in shown
    assert (at_work, alive in shown) == ("ok: 1 at work", False)
    assert [status(client, run) for run in (alive, gone, silent)] == ["RUNNING"] * 3

    assert said(client, fix=True)[0].startswith("ok: 2 marked KILLED")
    assert [status(client, run) for run in (alive, gone, silent)] == ["RUNNING", "KILLED", "KILLED"]
    assert client.get_run(gone).data.tags["error"] == "its process is gone"
    assert "error" not in client.get_run(alive).data.tags
    # It ended when it was last heard of, not now.
    assert client.get_run(silent).info.end_time == 1_767_225_600_000
    assert said(client) == ["ok: 1 at work"]


@pytest.mark.parametrize("beats", [True, False])
@matrix(14)
def test_a_run_of_another_machine_is_closed_only_if_it_is_not_heard_of_whatever_the_clocks_say(
    beats: bool, client: mlflow.MlflowClient, number: str
) -> None:
    behind = (datetime.now(UTC) - timedelta(minutes=2)).isoformat()
    run = opened(client, number, signs() | {BEAT_HOST: "another machine", BEAT: behind})
    silent, at_work = said(client)
    assert silent.startswith("warning: 1 RUNNING on other machines, silent lately: " + run)
    assert at_work == "ok: 0 at work"
    listened: list[float] = []

    def listen(seconds: float) -> None:
        listened.append(seconds)
        if beats:  # by a clock that is two minutes behind ours
            client.set_tag(run, BEAT, behind.replace("T", " "))

    found = list(running(client, fix=True, own=None, listen=listen))
    assert listened == [LISTEN_S]
    assert status(client, run) == ("RUNNING" if beats else "KILLED")
    assert found[-1].says == ("1 at work" if beats else "0 at work")


def test_a_run_that_ends_well_carries_no_error_that_others_gave_it(
    client: mlflow.MlflowClient, number: str, tmp_path: Path
) -> None:
    name = client.get_experiment(number).name
    config = configured("dataset=digits", "model=linear", f"tracking.experiment='{name}'")
    with record(config, tmp_path / "run") as recording:
        close(client, by_id(client, recording.id), Status.KILLED, "its process is gone")
    run = client.get_run(recording.id)
    assert (run.info.status, "error" in run.data.tags) == ("FINISHED", False)


def test_of_each_that_is_closed_what_it_left_is_saved_and_a_failure_in_that_is_no_obstacle(
    client: mlflow.MlflowClient, number: str
) -> None:
    runs = {opened(client, number, signs() | GONE) for _ in range(2)}
    brought: list[str] = []

    def bring_home(run_id: str) -> None:
        brought.append(run_id)
        if len(brought) == 1:
            raise OSError("disk full")

    found = list(running(client, fix=True, own=None, bring_home=bring_home))
    assert set(brought) == runs
    assert found[0].says == (
        f"{brought[0]}: what it left in its folder cannot be saved: OSError: disk full"
    )
    assert [each.state for each in found] == ["warning", "ok", "ok"]
    assert found[1].mend == f"python -m pipeline resume run_id={brought[0]} resumes it"
    assert [status(client, run) for run in runs] == ["KILLED"] * 2


def test_a_run_that_cannot_be_closed_for_whatever_reason_keeps_no_other_from_it(
    client: mlflow.MlflowClient, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [opened(client, number, signs() | GONE) for _ in range(2)]
    tried: list[str] = []

    def send(client: mlflow.MlflowClient, run: RecordedRun) -> RecordedRun:
        tried.append(run.id)
        if len(tried) == 1:
            raise KeyError("kind")
        close(client, run, Status.KILLED, "its process is gone")
        return by_id(client, run.id)

    monkeypatch.setattr("pipeline.verbs.doctor.orphans.close_orphan", send)
    failed, closed, _ = said(client, fix=True)
    assert failed == f"problem: {tried[0]} cannot be closed: KeyError: 'kind'"
    assert closed.startswith("ok: 1 marked KILLED")
    assert sorted(status(client, run) for run in runs) == ["KILLED", "RUNNING"]


def test_runs_of_all_experiments_are_looked_at(client: mlflow.MlflowClient, number: str) -> None:
    other = experiment(client, "another")
    runs = [opened(client, place, signs() | GONE) for place in (number, other)]
    said(client, fix=True)
    assert [status(client, run) for run in runs] == ["KILLED"] * 2


def test_of_runs_without_a_heartbeat_only_old_ones_of_ours_are_closed(
    client: mlflow.MlflowClient, number: str
) -> None:
    old = opened(client, number, {"code.dirty": "false"}, LONG_AGO)
    young = opened(client, number, {"code.dirty": "false"}, int(time.time() * 1000))
    foreign = opened(client, number, {}, LONG_AGO)
    killed, unknown, at_work = said(client, fix=True)
    assert old in killed
    assert unknown.startswith("warning: 2 RUNNING without a heartbeat")
    assert at_work == "ok: 0 at work"
    assert [status(client, r) for r in (old, young, foreign)] == ["KILLED", "RUNNING", "RUNNING"]


def test_a_young_run_without_a_heartbeat_is_no_reason_to_warn(
    client: mlflow.MlflowClient, number: str
) -> None:
    opened(client, number, {}, int(time.time() * 1000))
    assert [line.split(":")[0] for line in said(client)] == ["ok", "ok"]


def test_the_run_that_called_us_is_passed_over(client: mlflow.MlflowClient, number: str) -> None:
    own = opened(client, number, {}, LONG_AGO)
    assert said(client, fix=True, own=own) == ["ok: 0 at work"]


@matrix(14)
def test_a_run_that_ended_meanwhile_keeps_its_status(
    client: mlflow.MlflowClient, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(client, number, signs() | GONE)
    listed = list(search(client, Query(status=(Status.RUNNING,))))
    client.set_terminated(run, "FINISHED")
    monkeypatch.setattr("pipeline.tracking.orphans.search", lambda *_: iter(listed))
    assert said(client, fix=True) == ["ok: 0 at work"]
    assert status(client, run) == "FINISHED"


def test_a_run_that_is_recorded_lives_and_its_folder_is_known_by_how_it_ended(
    client: mlflow.MlflowClient, number: str, tmp_path: Path
) -> None:
    name = client.get_experiment(number).name
    config = configured("dataset=digits", "model=linear", f"tracking.experiment='{name}'")
    with record(config, tmp_path / "run") as recording:
        assert said(client, fix=True) == ["ok: 1 at work"]
        recording.log_tags({"model_uri": "models:/m-1"})
    with record(config, tmp_path / "sweep", searched={}):
        assert said(client, fix=True) == ["ok: 1 at work"]
    assert folders(client) == {
        str(tmp_path / "run"): Owner(status="FINISHED", has_model=True),
        str(tmp_path / "sweep"): Owner(status="FINISHED"),
    }


@matrix(14)
def test_a_run_is_closed_as_its_journal_says_and_not_as_killed(
    client: mlflow.MlflowClient,
    number: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = client.get_experiment(number).name
    config = configured("dataset=digits", "model=linear", f"tracking.experiment='{name}'")
    wait_briefly(monkeypatch)
    switch = Switch(monkeypatch)
    with record(config, tmp_path) as recording:
        assert recording.outbox.arrive(10)  # type: ignore[union-attr]
        switch.is_away = True
        recording.log_epoch(1, {"train/loss": 0.5})
    switch.is_away = False
    time.sleep(0.1)
    client.set_tag(recording.id, BEAT_STARTED, "0")  # its process has ended
    assert status(client, recording.id) == "RUNNING"
    assert f"ok: {recording.id} had ended as FINISHED; its records were sent" in said(
        client, fix=True
    )
    assert status(client, recording.id) == "FINISHED"
    assert points(recording.id) == [(1, 0.5)]
