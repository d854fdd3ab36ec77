from __future__ import annotations

import os
import secrets
import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras  # noqa: F401  (before mlflow.tensorflow asks for it half way through its own import)
import mlflow
import numpy as np
import pytest
import yaml
from mlflow.entities import Run
from sqlalchemy.engine.default import DefaultDialect

from pipeline.config.schema import Config
from pipeline.system.errors import PipelineError, RequestError
from pipeline.tracking.client import connect, experiment
from pipeline.tracking.lifecycle import record
from pipeline.tracking.recording import LONGEST_PARAM, LONGEST_TAG, Recording
from tests.commands import (
    DRAWN,
    configured,
    free_port,
    inside,
    mlflow_server,
    pipeline,
    results,
)
from tests.stores import MADE_ONCE
from tests.stress.matrix import matrix
from tests.warm import call_warm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with a store that is made but once: its schema takes seconds."""
    with inside(tmp_path_factory.mktemp("store")) as made:
        connect(None)
        yield made


@pytest.fixture
def config(folder: Path) -> Config:
    return configured("dataset=digits", "model=linear", "+tracking.tags.team=vision")


def recorded(recording: Recording) -> Run:
    return recording.client.get_run(recording.id)


def artefacts(recording: Recording) -> Path:
    return Path(recorded(recording).info.artifact_uri.removeprefix("file://"))


def test_a_block_that_ends_well_is_a_finished_run(config: Config, tmp_path: Path) -> None:
    with record(config, tmp_path) as recording:
        assert recorded(recording).info.status == "RUNNING"
        with recording.stage("train"):
            recording.log_epoch(1, {"train/loss": 0.5})
        recording.save_text("note.txt", "so it was")
    run = recorded(recording)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    assert run.data.metrics["train/loss"] == 0.5
    assert run.data.metrics["time/total_s"] >= run.data.metrics["time/train_s"] >= 0
    assert (artefacts(recording) / "note.txt").read_text() == "so it was"
    assert run.data.tags["team"] == "vision"


def test_a_run_goes_to_the_experiment_of_its_dataset(config: Config, tmp_path: Path) -> None:
    with record(config, tmp_path) as recording:
        pass
    made = recording.client.get_experiment_by_name("digits")
    assert recorded(recording).info.experiment_id == made.experiment_id


def test_an_exception_is_a_failed_run_that_keeps_all_it_had(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), record(config, tmp_path) as recording:
        recording.log_epoch(1, {"train/loss": 0.5})
        recording.save_text("note.txt", "so far")
        with recording.stage("ingest"):
            pass
        1 / 0  # noqa: B018
    run = recorded(recording)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "ZeroDivisionError: division by zero"
    assert run.data.metrics["train/loss"] == 0.5
    assert "time/ingest_s" in run.data.metrics
    assert (artefacts(recording) / "note.txt").read_text() == "so far"
    assert mlflow.active_run() is None


@matrix(13)
def test_ctrl_c_is_a_killed_run(config: Config, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), record(config, tmp_path) as recording:
        raise KeyboardInterrupt
    run = recorded(recording)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "KeyboardInterrupt")


@matrix(13)
def test_a_stop_in_the_middle_of_a_write_does_not_lock_the_store(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = DefaultDialect.do_execute

    def stopped(self: Any, cursor: Any, statement: str, parameters: Any, context: Any) -> None:
        execute(self, cursor, statement, parameters, context)
        if statement.startswith("SELECT latest_metrics"):  # after the metrics were inserted
            monkeypatch.undo()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught, record(config, tmp_path) as recording:
        recording.log_epoch(1, {"val/loss": 0.5})
        monkeypatch.setattr(DefaultDialect, "do_execute", stopped)
        recording.log_epoch(2, {"val/loss": 0.4})
    assert "do_execute" in str(caught.getrepr())
    run = recorded(recording)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "KeyboardInterrupt")


def test_after_a_failed_run_the_next_one_works(config: Config, tmp_path: Path) -> None:
    with pytest.raises(PipelineError), record(config, tmp_path / "a"):
        raise PipelineError("no")
    with record(config, tmp_path / "b") as recording:
        pass
    assert recorded(recording).info.status == "FINISHED"


@matrix(22)
def test_what_cannot_be_uploaded_does_not_hide_why_the_run_failed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Recording) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Recording, "upload", refuse)
    with pytest.raises(ZeroDivisionError), record(config, tmp_path) as recording:
        1 / 0  # noqa: B018
    run = recorded(recording)
    assert (run.info.status, run.data.tags["error"].split(":")[0]) == (
        "FAILED",
        "ZeroDivisionError",
    )


@matrix(22)
def test_a_finished_block_whose_upload_fails_is_a_failed_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Recording) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Recording, "upload", refuse)
    with pytest.raises(OSError, match="disk full"), record(config, tmp_path) as recording:
        pass
    assert recorded(recording).info.status == "FAILED"


def test_the_run_that_mlflow_run_opened_is_adopted_with_its_parameters(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = connect(None)
    opened = client.create_run(experiment(client, "digits"))
    before_it = {"seed": "00", "epochs": "1", "train.epochs": "20.0", "train.batch_size": "64"}
    for key, value in before_it.items():
        client.log_param(opened.info.run_id, key, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    before = len(client.search_runs([opened.info.experiment_id]))
    with record(config, tmp_path) as recording:
        assert "MLFLOW_RUN_ID" not in os.environ
    run = recorded(recording)
    assert run.info.run_id == opened.info.run_id
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([opened.info.experiment_id])) == before
    # What was logged beforehand stays as it was; ours goes beside it where it reads otherwise.
    params = run.data.params
    assert (params["epochs"], params["config.train.batch_size"]) == ("1", "128")
    [warning] = [record.getMessage() for record in caplog.records if "MLflow had" in record.msg]
    assert "train.batch_size=64" in warning  # the others are the same numbers
    assert "config.train.batch_size=128" in warning
    assert (params["seed"], params["config.seed"]) == ("00", "0")
    assert (params["train.epochs"], params["config.train.epochs"]) == ("20.0", "20")


def test_a_run_id_in_the_environment_that_nobody_knows_is_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")
    with pytest.raises(RequestError, match="MLFLOW_RUN_ID"), record(config, tmp_path):
        pass
    assert "MLFLOW_RUN_ID" not in os.environ


@matrix(44)
def test_a_password_in_the_address_is_recorded_nowhere(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = secrets.token_hex()  # one in this file would be found in the patch of the code
    address = f"postgresql://someone:{secret}@db.example/mlflow"
    words = ["/bin/python3", "-m", "pipeline", "train", f"tracking.uri={address}", "seed=1"]
    monkeypatch.setattr(sys, "orig_argv", words)
    secretive = replace(config, tracking=replace(config.tracking, uri=address))
    monkeypatch.setattr("pipeline.tracking.client.connect", lambda uri: connect(None))
    with record(secretive, tmp_path) as recording:
        pass
    run = recorded(recording)
    assert run.data.tags["command"] == "python -m pipeline train seed=1"
    assert secret not in str(run.to_dictionary())
    kept = (artefacts(recording) / "config.yaml").read_text()
    assert yaml.safe_load(kept)["tracking"]["uri"] == "postgresql://someone:***@db.example/mlflow"
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


def test_a_parameter_too_long_for_mlflow_is_cut_with_a_note(config: Config, tmp_path: Path) -> None:
    hidden = {"_target_": "pipeline.training.models.mlp", "hidden": [1] * LONGEST_PARAM}
    with record(replace(config, model=hidden), tmp_path) as recording:
        pass
    params = recorded(recording).data.params
    assert len(params["model.hidden"]) == LONGEST_PARAM
    assert params["model.hidden"].endswith("… (18,000 characters; see the artefacts)")
    assert "model._target_" not in params


def test_a_tag_too_long_for_mlflow_is_cut_with_a_note(config: Config, tmp_path: Path) -> None:
    with record(config, tmp_path) as recording:
        recording.log_tags({"long": "x" * (LONGEST_TAG + 1), "fits": "y" * LONGEST_TAG})
    tags = recorded(recording).data.tags
    assert len(tags["long"]) == LONGEST_TAG
    assert tags["long"].endswith("x… (8,001 characters; see the artefacts)")
    assert tags["fits"] == "y" * LONGEST_TAG


def test_an_error_of_many_lines_is_one_in_the_tag(config: Config, tmp_path: Path) -> None:
    with pytest.raises(PipelineError), record(config, tmp_path) as recording:
        raise PipelineError("first\nsecond")
    assert recorded(recording).data.tags["error"].splitlines()[-1] == "second"


def test_arrays_come_back_as_they_were(config: Config, tmp_path: Path) -> None:
    probs = np.array([[0.25, 0.75]], np.float32)
    with record(config, tmp_path) as recording:
        recording.save_arrays("predictions", {"test_probs": probs})
    with np.load(artefacts(recording) / "predictions.npz") as loaded:
        np.testing.assert_array_equal(loaded["test_probs"], probs)
        assert loaded["test_probs"].dtype == np.float32


def test_a_deleted_experiment_is_refused_with_the_way_to_restore_it(folder: Path) -> None:
    client = connect(None)
    made = experiment(client, "gone")
    client.delete_experiment(made)
    with pytest.raises(RequestError, match=f"gone was deleted.*restore -x {made}"):
        experiment(client, "gone")


def test_an_experiment_is_made_once(folder: Path) -> None:
    client = connect(None)
    assert experiment(client, "once") == experiment(client, "once")


def test_the_address_in_the_environment_is_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///missing/mlflow.db")
    with pytest.raises(RequestError, match="missing/mlflow.db"):
        connect(None)
    chosen = f"sqlite:///{folder}/mlflow.db"
    assert connect(chosen).tracking_uri == chosen


def test_a_store_in_a_missing_folder_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unable to open database file.*tracking.uri="):
        connect(f"sqlite:///{tmp_path}/missing/mlflow.db")
    assert list(tmp_path.iterdir()) == []


@matrix(23)
def test_a_database_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    sqlite3.connect(path).execute("create table experiments (mine text)").connection.close()
    with pytest.raises(RequestError, match="readonly database"):
        connect(f"sqlite:///file:{path}?mode=ro&uri=true")  # root may write to any file


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("my notes, " * 100)
    with pytest.raises(RequestError, match="file is not a database"):
        connect(f"sqlite:///{path}")
    assert path.read_text() == "my notes, " * 100


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    connection = sqlite3.connect(path)
    connection.execute("create table experiments (mine text)")
    connection.close()
    with pytest.raises(RequestError, match="mlflow.db"):
        connect(f"sqlite:///{path}")


def test_a_server_that_is_not_there_is_refused_without_showing_the_password() -> None:
    address = f"http://someone:hunter2@127.0.0.1:{free_port()}"
    with pytest.raises(RequestError, match="nothing answers there; start it") as refused:
        connect(address)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("uri", ["http://", "nosuch://host/db", "sqlite://///nowhere/x/y.db"])
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(RequestError, match="tracking store"):
        connect(uri)


def open_and_record(folder: Path) -> str:
    """Opens the store of a folder, whose tables are to be made, and begins a run there."""
    os.environ.pop(MADE_ONCE)
    client = connect(f"sqlite:///{folder}/mlflow.db")
    number = experiment(client, "shared")
    client.create_run(number)
    return number


@matrix(3)
def test_a_fresh_store_may_be_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    call_warm(os.getpid, timeout=120)  # so that all begin at the same time
    with ThreadPoolExecutor(4) as callers:
        calls = [
            callers.submit(call_warm, open_and_record, tmp_path, timeout=120) for _ in range(4)
        ]
    [number] = {call.result() for call in calls}
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert sorted(e.name for e in client.search_experiments()) == ["Default", "shared"]
    assert len(client.search_runs([number])) == 4


def test_a_run_through_a_server_is_recorded_whole(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with mlflow_server(tmp_path / "mlflow.db", "--artifacts-destination", "served") as address:
        ended = pipeline(
            *DRAWN,
            "evaluate.plots=[confusion_matrix]",
            "train.plots=[]",
            f"tracking.uri={address}",
            cwd=elsewhere,
        )
        assert ended.returncode == 0, ended.stderr
        said = results(ended.stdout)
        client = connect(address)
        run = client.get_run(said["run_id"])
        assert run.info.status == "FINISHED"
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        assert said["test_accuracy"] == f"{run.data.metrics['test/accuracy']:.4f}"
        names = {artifact.path for artifact in client.list_artifacts(said["run_id"])}
        assert {"config.yaml", "plots", "predictions.npz", "tensorboard"} <= names
        model = mlflow.tensorflow.load_model(said["model_uri"])
        assert model.input_shape == (None, 28, 28, 1)
    assert {p.name for p in elsewhere.iterdir()} == {"data", "outputs"}
