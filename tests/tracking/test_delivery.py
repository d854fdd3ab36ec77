from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras  # noqa: F401  (before mlflow.tensorflow asks for it half way through its own import)
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from pipeline.config.schema import Config
from pipeline.system.errors import RequestError
from pipeline.tracking import delivery, journal, lifecycle
from pipeline.tracking.client import connect
from pipeline.tracking.delivery import (
    Delivery,
    Journaled,
    may_pass,
    open_run,
    opened_as,
    send_journal,
)
from pipeline.tracking.journal import Journal, as_run, has_journal, opened_at, read_journal
from pipeline.tracking.lifecycle import record
from pipeline.tracking.runs import find_run
from pipeline.tracking.values import Status
from pipeline.verbs.sync import Sync, sync
from tests.stores import Switch
from tests.stress.matrix import matrix


def run_in_store(run_id: str) -> Run:
    return connect(None).get_run(run_id)


def points(run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    history = connect(None).get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in history)


@pytest.mark.slow
@matrix(16)
def test_a_store_that_stays_away_lets_the_run_end_and_gets_all_of_it_from_sync(
    config: Config,
    switch: Switch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lifecycle, "PATIENCE_S", 2.0)
    with record(config, tmp_path) as recording:
        recording.log_epoch(1, {"train/loss": 0.5})
        assert recording.outbox.arrive(10)  # type: ignore[union-attr]
        switch.is_away = True
        recording.log_epoch(2, {"train/loss": float("nan")})
        recording.log_tags({"späť": "line\nline"})
        recording.save_text("note.txt", "so it was")
        assert recording.known().tags["späť"] == "line\nline"
        last = time.time() * 1000
    told = capsys.readouterr().err
    assert f"python -m pipeline sync folder={tmp_path}" in told
    assert "connection refused" in told
    here = as_run(read_journal(tmp_path), tmp_path)
    assert (here.id, here.status, here.seconds >= 0) == (recording.id, Status.FINISHED, True)

    switch.is_away = False
    time.sleep(0.1)
    assert run_in_store(recording.id).info.status == "RUNNING"
    [sent] = sync(config, Sync(folder=str(tmp_path)), tmp_path)
    assert (sent.run_id, sent.status) == (recording.id, Status.FINISHED)  # type: ignore[union-attr]
    run = run_in_store(recording.id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", here.ended)
    assert run.info.end_time <= last + 1_000  # not after the wait for the store
    assert [step for step, _ in points(recording.id)] == [1, 2]
    assert run.data.tags["späť"] == "line\nline"
    note = Path(run.info.artifact_uri.removeprefix("file://"), "note.txt")
    assert note.read_text() == "so it was"
    with pytest.raises(RequestError, match="nothing to send"):
        sync(config, Sync(folder=str(tmp_path)), tmp_path)


@matrix(16)
def test_a_run_that_failed_while_the_store_was_away_is_failed_with_its_reason(
    config: Config, switch: Switch, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError), record(config, tmp_path) as recording:
        switch.is_away = True
        1 / 0  # noqa: B018
    switch.is_away = False
    send_journal(connect(None), tmp_path)
    run = run_in_store(recording.id)
    assert (run.info.status, run.data.tags["error"]) == (
        "FAILED",
        "ZeroDivisionError: division by zero",
    )


def test_a_run_without_a_store_is_found_by_both_its_ids_once_it_is_sent(
    config: Config, switch: Switch, tmp_path: Path
) -> None:
    switch.is_away = True
    alone = replace(config, tracking=replace(config.tracking, offline=True, run_name="alone"))
    with record(alone, tmp_path) as recording:
        recording.log_epoch(1, {"train/loss": 0.5})
    assert switch.asked == []
    switch.is_away = False
    sent = send_journal(connect(None), tmp_path)
    assert sent.run_id != recording.id
    by_local, by_own = (find_run(given, config) for given in (recording.id, sent.run_id))
    assert by_local == by_own == find_run(recording.id[:12], config)
    known = as_run(recording.records, tmp_path)
    assert (by_own.name, by_own.started, by_own.ended) == ("alone", known.started, known.ended)
    assert by_own.folder is not None
    assert (tmp_path / "run_id").read_text() == by_own.id


@matrix(9)
def test_what_a_sync_that_was_cut_off_has_sent_is_not_created_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(config, tracking=replace(config.tracking, offline=True))
    with record(alone, tmp_path) as recording:
        recording.log_epoch(1, {"train/loss": 0.5})
        recording.save_text("note.txt", "so it was")
    lines = (tmp_path / journal.JOURNAL_FILE).read_bytes()
    tried = 0
    while has_journal(tmp_path):  # once more after each request, until nothing is left
        tried += 1
        left = [tried]

        def counted(original: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def call(*given: Any, **more: Any) -> Any:
                found = original(*given, **more)
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                return found

            return call

        with monkeypatch.context() as patched:
            for name in ("create_run", "log_batch", "log_artifacts", "set_terminated"):
                patched.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
            try:
                send_journal(connect(None), tmp_path)
            except KeyboardInterrupt:
                (tmp_path / journal.SENT).write_bytes(b"")  # as if it had not been noted either
                known = (tmp_path / journal.JOURNAL_FILE).read_bytes()
                assert known.startswith(lines)
    assert tried > 3
    client = connect(None)
    found = client.search_runs(
        [client.get_experiment_by_name("digits").experiment_id],
        f"tags.local_id = '{recording.id}'",
    )
    assert [run.info.status for run in found] == ["FINISHED"]
    assert points(found[0].info.run_id) == [(1, 0.5)]


@matrix(14)
def test_a_killed_run_is_sent_up_to_its_last_whole_line_and_closed_at_its_time(
    config: Config, tmp_path: Path
) -> None:
    alone = replace(config, tracking=replace(config.tracking, offline=True))
    with record(alone, tmp_path) as recording:
        recording.log_epoch(1, {"train/loss": 0.5})
        recording.log_epoch(2, {"train/loss": 0.25})
    path = tmp_path / journal.JOURNAL_FILE
    whole = path.read_bytes().splitlines(keepends=True)
    ends = [json.loads(line)["kind"] for line in whole].index("artifacts") - 1
    kept = whole[:ends]  # up to the second epoch, of which the last line is torn
    path.write_bytes(b"".join(kept[:-1]) + kept[-1][:20])
    sent = send_journal(connect(None), tmp_path)
    run = run_in_store(str(sent.run_id))
    first = next(json.loads(line) for line in kept if b"train/loss" in line)
    assert (run.info.status, run.info.end_time) == ("KILLED", first["metrics"][0][2])
    assert run.data.tags["error"] == "its process is gone"
    assert points(run.info.run_id) == [(1, 0.5)]
    assert (tmp_path / "run_id").read_text() == run.info.run_id
    assert recording.id != run.info.run_id


@pytest.mark.parametrize("content", [b"", b'{"kind": "open', b"\x00\xff\n", b"[]\n"])
@matrix(9)
def test_a_journal_that_did_not_get_to_its_first_record_is_dropped(
    content: bytes, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / journal.JOURNAL_FILE).write_bytes(content)
    assert send_journal(connect(None), tmp_path).run_id is None
    assert not has_journal(tmp_path)


def test_a_record_that_the_store_refuses_fails_the_run_as_it_always_did(
    config: Config, tmp_path: Path
) -> None:
    with pytest.raises(MlflowException, match="[Ii]nvalid"), record(config, tmp_path) as recording:
        recording.log_metrics({"not/a//name\n": 1.0})
        recording.log_epoch(1, {"train/loss": 0.5})
    run = run_in_store(recording.id)
    assert run.info.status == "FAILED"
    assert "error" in run.data.tags
    assert not has_journal(tmp_path)


def test_of_records_that_are_sent_together_only_the_wrong_one_is_left_out(
    config: Config, switch: Switch, tmp_path: Path
) -> None:
    def recorded(folder: Path, *, offline: bool) -> str:
        place = replace(config.tracking, offline=offline)
        with record(replace(config, tracking=place), folder) as recording:
            switch.is_away = not offline
            for epoch in (1, 2, 3):
                recording.log_epoch(epoch, {"train/loss": 1 / epoch})
                if epoch == 2:
                    recording.log_metrics({"not/a//name\n": 1.0})
            switch.is_away = False
        return recording.id

    sent = recorded(tmp_path / "later", offline=True)
    result = send_journal(connect(None), tmp_path / "later")
    assert (result.status, len(result.refused)) == (Status.FINISHED, 1)
    assert "1 refused: " in str(result)
    with pytest.raises(MlflowException, match="[Ii]nvalid"):
        recorded(tmp_path / "at once", offline=False)
    known = find_run(sent, config).id
    owner = (tmp_path / "at once" / "run_id").read_text()
    for run_id in (known, owner):
        assert [step for step, _ in points(run_id)] == [1, 2, 3]


def test_a_refused_record_hides_neither_the_error_of_the_run_nor_what_follows(
    config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError), record(config, tmp_path) as recording:
        recording.save_text("note.txt", "so far")
        recording.log_metrics({"not/a//name\n": 1.0})
        time.sleep(0.5)  # it is refused by now, most likely
        1 / 0  # noqa: B018
    run = run_in_store(recording.id)
    assert run.data.tags["error"] == "ZeroDivisionError: division by zero"
    assert Path(run.info.artifact_uri.removeprefix("file://"), "note.txt").exists()


def test_the_records_of_a_run_that_was_deleted_are_kept_until_it_is_restored(
    config: Config, switch: Switch, tmp_path: Path
) -> None:
    with record(config, tmp_path) as recording:
        switch.is_away = True
        recording.log_epoch(1, {"train/loss": 0.5})
    switch.is_away = False
    client = connect(None)
    client.delete_run(recording.id)
    restore = f"was deleted; `mlflow runs restore --run-id {recording.id}` brings it back"
    with pytest.raises(RequestError, match=restore):
        send_journal(client, tmp_path)
    client.restore_run(recording.id)
    assert send_journal(client, tmp_path).refused == []
    assert points(recording.id) == [(1, 0.5)]


def test_a_run_without_a_store_that_was_sent_in_part_belongs_to_the_store_that_has_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(config, tracking=replace(config.tracking, offline=True))
    with record(alone, tmp_path):
        pass
    client, other = connect(None), "http://me:secret-of-mine@server"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MlflowClient, "tracking_uri", other)
        patched.setattr("pipeline.tracking.client.artifact_location", lambda *_: None)
        patched.setattr(delivery, "hand_over", interrupt)
        send_journal(client, tmp_path)
    assert opened_at(tmp_path) == "http://me:***@server"
    path = tmp_path / journal.JOURNAL_FILE
    path.write_text(path.read_text().replace(as_run(read_journal(tmp_path), tmp_path).id, "f" * 32))
    with pytest.raises(RequestError, match=r"was recorded at http://me:\*\*\*@server and is not"):
        send_journal(client, tmp_path)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_model_of_a_run_is_in_the_store_that_came_back_as_the_run_was_closed(
    config: Config, switch: Switch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(model: None, prepared: None, path: Path) -> None:
        path.mkdir()
        (path / "MLmodel").write_text("flavors: {}\n")

    monkeypatch.setattr("pipeline.tracking.recording.save_model", save)
    monkeypatch.setattr(delivery, "MODEL_PATIENCE_S", 0.05)
    monkeypatch.setattr(lifecycle, "PATIENCE_S", 10.0)
    with record(config, tmp_path) as recording:
        switch.is_away = True
        told = recording.log_model(None, None)  # type: ignore[arg-type]
        assert told == recording.model_uri == str(tmp_path / "model")
        switch.is_away = False
    assert recording.model_uri == run_in_store(recording.id).data.tags["model_uri"]
    assert not (tmp_path / "model").exists()


def test_a_run_of_another_store_is_not_sent_to_this_one(
    config: Config, switch: Switch, tmp_path: Path
) -> None:
    with record(config, tmp_path) as recording:
        switch.is_away = True
    switch.is_away = False
    path = tmp_path / journal.JOURNAL_FILE
    path.write_text(path.read_text().replace(recording.id, "f" * 32))
    with pytest.raises(RequestError, match="was recorded at sqlite.* and is not in this store"):
        send_journal(connect(None), tmp_path)
    assert has_journal(tmp_path)


@pytest.mark.parametrize("ended", [None, "FINISHED", "FAILED"])
def test_a_journal_that_a_power_cut_has_shortened_still_closes_its_run(
    ended: str | None, config: Config, tmp_path: Path
) -> None:
    alone = replace(config, tracking=replace(config.tracking, offline=True))
    with record(alone, tmp_path) as recording:
        recording.log_epoch(1, {"train/loss": 0.5})
    path = tmp_path / journal.JOURNAL_FILE
    whole = path.read_bytes().splitlines(keepends=True)
    begun = open_run(connect(None), json.loads(whole[0]))
    if ended:
        connect(None).set_terminated(begun.info.run_id, ended)
    path.write_bytes(
        whole[0] + json.dumps(opened_as(connect(None), begun)).encode() + b"\n" + bytes(50)
    )
    (tmp_path / journal.SENT).write_text(f"{10_000:020d}")  # what has arrived, of the whole file
    sent = send_journal(connect(None), tmp_path)
    status = run_in_store(begun.info.run_id).info.status
    assert (sent.run_id, sent.status, status) == ((begun.info.run_id, *[ended or "KILLED"] * 2))


def test_artefacts_are_sent_though_a_first_sync_could_not_hand_the_folder_over(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, run_id: str) -> None:
        raise OSError("No space left on device")

    alone = replace(config, tracking=replace(config.tracking, offline=True))
    with record(alone, tmp_path) as recording:
        recording.save_text("note.txt", "so it was")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(delivery, "hand_over", full)
        send_journal(connect(None), tmp_path)
    sent = send_journal(connect(None), tmp_path)
    run = run_in_store(str(sent.run_id))
    assert (run.info.status, (tmp_path / "run_id").read_text()) == ("FINISHED", sent.run_id)
    assert Path(run.info.artifact_uri.removeprefix("file://"), "note.txt").exists()


def test_artefacts_of_another_run_are_refused_and_the_journal_is_kept(
    config: Config, tmp_path: Path
) -> None:
    alone = replace(config, tracking=replace(config.tracking, offline=True))
    with record(alone, tmp_path) as recording:
        recording.save_text("note.txt", "so it was")
    (tmp_path / "run_id").write_text("another")
    with pytest.raises(RequestError, match="artifacts belongs to the run another, not to "):
        send_journal(connect(None), tmp_path)
    assert has_journal(tmp_path)


class NoCredentialsError(Exception):
    """An error of a driver, which neither MLflow nor requests know."""


@pytest.mark.parametrize("error", [NoCredentialsError("expired"), ModuleNotFoundError("no boto3")])
def test_a_place_of_artefacts_that_takes_none_is_away_and_a_full_disk_is_not(
    error: Exception, tmp_path: Path
) -> None:
    told: list[Exception] = [error, OSError("disk full")]

    def refuse(*_: object) -> None:
        raise told[0]

    client: Any = SimpleNamespace(log_artifact=refuse)
    way = Delivery(client=client, run_id="run", folder=tmp_path)
    files = {"kind": "files", "paths": ["a.txt"], "below": "x"}
    with pytest.raises(ConnectionError, match=f"place of the artefacts: .*{error}") as away:
        way.send(files)
    assert may_pass(away.value)
    del told[0]
    with pytest.raises(OSError, match="disk full") as full:
        way.send(files)
    assert not may_pass(full.value)


def test_a_saved_model_that_the_store_refuses_stays_in_the_folder(tmp_path: Path) -> None:
    run = SimpleNamespace(data=SimpleNamespace(tags={}), info=SimpleNamespace(experiment_id="1"))

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no such experiment", error_code=RESOURCE_DOES_NOT_EXIST)

    client: Any = SimpleNamespace(
        get_run=lambda _: run, create_logged_model=refuse, set_terminated=lambda *_: None
    )
    (tmp_path / "model").mkdir()
    saved = {"kind": "model", "local_id": "a", "name": "m", "params": {}, "again": False}
    way = Delivery(client=client, run_id="run", folder=tmp_path)
    with Journaled(Journal(tmp_path), way) as out:
        out.put(saved | {"metrics": []})
        with pytest.raises(MlflowException, match="no such experiment"):
            out.arrive(10)
        out.put({"kind": "end", "status": "FAILED", "time": 1})
        assert out.arrive(10)
    assert not has_journal(tmp_path)
    assert (tmp_path / "model").exists()
