from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras  # noqa: F401  (before mlflow.tensorflow asks for it half way through its own import)
import pytest
from mlflow.exceptions import MlflowException

from pipeline.config.schema import Config
from pipeline.tracking import delivery, journal
from pipeline.tracking.journal import Courier, Journal, has_journal, with_journals
from pipeline.tracking.lifecycle import record
from tests.stores import AWAY, Switch
from tests.stress.matrix import matrix
from tests.tracking.test_delivery import points, run_in_store


@matrix(15)
def test_a_store_that_is_away_for_a_while_delays_no_epoch_and_gets_each_once(
    config: Config, switch: Switch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slowest = 0.0
    with record(config, tmp_path) as recording:
        for epoch in range(1, 31):
            switch.is_away = 10 < epoch <= 20
            began = time.perf_counter()
            recording.log_epoch(epoch, {"train/loss": 1 / epoch})
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.005)
    assert slowest < 1
    assert points(recording.id) == [(epoch, 1 / epoch) for epoch in range(1, 31)]
    assert run_in_store(recording.id).info.status == "FINISHED"
    assert not has_journal(tmp_path)
    assert "sync" not in capsys.readouterr().err


def test_records_arrive_in_order_and_an_error_that_lasts_is_raised_once(tmp_path: Path) -> None:
    came: list[Any] = []
    gate = threading.Event()

    def deliver(record: dict[str, Any]) -> None:
        gate.wait(10)
        if record["kind"] == "bad":
            raise ValueError("bad")
        came.append(record["kind"])

    courier = Courier(Journal(tmp_path), deliver, lambda error: isinstance(error, OSError))
    for kind in ("a", "b", "bad", "c"):
        courier.put({"kind": kind})
    gate.set()
    with pytest.raises(ValueError, match="bad"):
        courier.wait(5)
    courier.put({"kind": "end"})
    assert courier.wait(5)
    assert courier.stop()
    assert came == ["a", "b", "c", "end"]
    assert delivery.may_pass(MlflowException(AWAY))


@matrix(21)
def test_an_sqlite_store_that_is_locked_delays_no_epoch_and_prints_no_traceback(
    config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = sqlite3.connect(Path.cwd() / "mlflow.db", isolation_level=None)
    with record(config, tmp_path) as recording:
        assert recording.outbox.arrive(10)  # type: ignore[union-attr]
        store.execute("BEGIN IMMEDIATE")
        began = time.perf_counter()
        for epoch in range(1, 4):
            recording.log_epoch(epoch, {"train/loss": 1 / epoch})
        assert time.perf_counter() - began < 1
        store.execute("ROLLBACK")
        store.close()
    assert [step for step, _ in points(recording.id)] == [1, 2, 3]
    assert "Traceback" not in capfd.readouterr().err


@matrix(44)
def test_no_secret_reaches_a_journal(config: Config, tmp_path: Path) -> None:
    canary = secrets.token_hex()
    hidden = {"api_token": canary, "note": f"https://me:{canary}@example.org"}
    address = f"postgresql://me:{canary}@db.example/mlflow"
    alone = replace(config.tracking, offline=True, tags=hidden, uri=address)
    with record(replace(config, tracking=alone), tmp_path):
        pass
    assert canary.encode() not in (tmp_path / journal.JOURNAL_FILE).read_bytes()


def test_journals_are_found_in_the_folders_of_runs_and_in_those_that_users_name(
    tmp_path: Path,
) -> None:
    folders = [
        tmp_path / name
        for name in (
            *("multirun/day/now", "multirun/day/now/0", "multirun/mine", "multirun/mine/0"),
            *("outputs", "outputs/baseline", "outputs/day/now"),
        )
    ]
    for folder in [*folders, tmp_path / "elsewhere" / "day"]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "journal.jsonl").touch()
    assert with_journals(tmp_path) == sorted(folders)
