from __future__ import annotations

import os
import re
import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras  # noqa: F401  (before mlflow.tensorflow asks for it half way through its own import)
import mlflow
import pytest
import yaml
from mlflow.entities import Run
from sqlalchemy.engine.default import DefaultDialect

from pipeline.api import compose
from pipeline.config.schema import Config
from pipeline.system.errors import PipelineError, RequestError
from pipeline.tracking import heartbeat, lineage
from pipeline.tracking.client import artifact_names, connect, experiment
from pipeline.tracking.delivery import send_journal
from pipeline.tracking.heartbeat import GONE, signs
from pipeline.tracking.journal import as_run, read_journal
from pipeline.tracking.lifecycle import alive, close, closing_by_hand, record
from pipeline.tracking.recording import Recording
from pipeline.tracking.runs import by_id, find_run
from pipeline.tracking.values import RUN_FOLDER, SWEEP_FOLDER, RecordedRun, Status
from tests.stress.matrix import matrix

pytestmark = pytest.mark.slow


def test_a_folder_with_unsent_records_takes_no_new_run(config: Config, tmp_path: Path) -> None:
    alone = replace(config, tracking=replace(config.tracking, offline=True))
    with record(alone, tmp_path):
        pass
    with pytest.raises(RequestError, match="sync.*hydra.run.dir"), record(config, tmp_path):
        pass
    assert [record["kind"] for record in read_journal(tmp_path)][-1] == "end"


def test_a_new_run_tells_of_earlier_ones_that_are_not_sent(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = replace(config, tracking=replace(config.tracking, offline=True))
    for number in range(2):
        with record(alone, tmp_path / "outputs" / "today" / str(number)):
            pass
    capsys.readouterr()
    with record(config, tmp_path / "outputs" / "today" / "next"):
        told = capsys.readouterr().err
    assert told == (
        "2 earlier runs are not in a store completely: python -m pipeline sync sends what is "
        "missing\n"
    )


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


def test_a_tag_of_the_pipeline_is_no_name_for_one_of_the_user(
    config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError), record(config, tmp_path) as recording:
        raise ZeroDivisionError
    tags = {tag for tag in recorded(recording).data.tags if not tag.startswith("mlflow.")}
    for tag in tags - {"team"}:
        refused = f"the pipeline has a tag {tag} of its own"
        with pytest.raises(RequestError, match=re.escape(refused)):
            compose(f"+tracking.tags={{{tag}: x}}")


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


def test_the_run_that_mlflow_run_opened_is_no_jobs_of_a_sweep(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(None)
    opened = client.create_run(experiment(client, "digits")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    job = replace(config.sweep.job, parent=opened, index=0, experiment="digits")
    with record(config, tmp_path, job=job) as recording:
        assert "MLFLOW_RUN_ID" not in os.environ
    run = recorded(recording)
    assert run.info.run_id != opened
    assert run.data.tags["mlflow.parentRunId"] == opened
    assert "seed" not in client.get_run(opened).data.params


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


def test_a_folder_is_recorded_as_it_is_called_though_a_secret_has_the_same_letters(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.system.secrets.known_secrets", {tmp_path.name, "secret"})
    with record(config, tmp_path) as recording:
        recording.log_tags({SWEEP_FOLDER: str(tmp_path), "note": f"the secret of {tmp_path.name}"})
    tags = recorded(recording).data.tags
    assert (tags[RUN_FOLDER], tags[SWEEP_FOLDER]) == (str(tmp_path), str(tmp_path))
    assert tags["note"] == "the *** of ***"


@pytest.fixture
def _nothing_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.system.secrets.known_secrets", set())


@matrix(44)
@pytest.mark.usefixtures("_nothing_learnt")
def test_a_password_in_the_environment_is_recorded_nowhere(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, token = secrets.token_hex(), secrets.token_hex()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
    tags = {**config.tracking.tags, "api_token": token}
    secretive = replace(config, tracking=replace(config.tracking, tags=tags))
    with pytest.raises(RuntimeError), record(secretive, tmp_path) as recording:
        recording.save_text("code.patch", f"+PASSWORD = {secret!r}, {token!r}")
        raise RuntimeError(f"login failed: {secret}, {token}")
    run = recorded(recording)
    assert run.data.tags["error"] == "RuntimeError: login failed: ***, ***"
    assert (artefacts(recording) / "code.patch").read_text() == "+PASSWORD = '***', '***'"
    for place in (tmp_path, artefacts(recording)):
        kept = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
        assert not [one for one in kept if secret.encode() in one or token.encode() in one]


def test_what_is_read_back_is_whole_though_a_secret_is_a_word_of_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = {"deterministic", "numpy", "tracking", "vision"}
    monkeypatch.setattr("pipeline.system.secrets.known_secrets", weak)
    with record(config, tmp_path) as recording:
        pass
    run = find_run(recording.id, config)
    assert run.config.train == config.train
    assert run.config.tracking.tags == {"team": "***"}
    assert run.text("environment.txt") == lineage.environment()


def test_a_checkout_that_git_cannot_read_is_told_and_not_recorded_as_clean(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    code = lineage.Code(commit=None, patch="", unreadable="fatal: no")
    monkeypatch.setattr(lineage, "code_state", lambda: code)
    with record(config, tmp_path) as recording:
        pass
    tags = recorded(recording).data.tags
    assert not {"code.dirty", "code.patch_sha256"} & tags.keys()
    assert [line.getMessage()[-9:] for line in caplog.records if "git" in line.msg] == ["fatal: no"]


@pytest.mark.parametrize(
    ("root", "shown"),
    [
        ("wasbs://pictures@account/runs", "wasbs://pictures@account/runs"),
        ("ftp://me:secret-of-mine@host/runs", "ftp://me:***@host/runs"),
    ],
)
def test_a_new_experiment_has_the_true_address_of_its_artefacts_and_the_journal_no_password(
    root: str, shown: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.client.require_driver", lambda location: None)
    name = f"in {root.partition(':')[0]}"
    place = replace(config.tracking, artifact_root=root, experiment=name)
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", lambda *_: None)
    with record(replace(config, tracking=place), tmp_path):
        opening, known, *_ = read_journal(tmp_path)
    made = connect(None).get_experiment_by_name(name)
    assert made is not None
    assert made.artifact_location == f"{root}/{name.replace(' ', '%20')}"
    assert opening["artifact_root"] == shown
    assert known["artifacts"].startswith(f"{shown}/")
    here = as_run([opening, known], tmp_path).artifacts
    assert here == (known["artifacts"] if root == shown else f"{tmp_path}/artifacts")


def test_a_run_without_a_store_whose_place_has_a_password_is_sent_once_that_is_named_again(
    config: Config, tmp_path: Path
) -> None:
    place = {"artifact_root": "ftp://me:secret-of-mine@host/runs", "experiment": "far away"}
    alone = replace(config, tracking=replace(config.tracking, offline=True, **place))  # type: ignore[arg-type]
    with record(alone, tmp_path):
        pass
    client = connect(None)
    named = r"the password in its tracking.artifact_root=ftp://me:\*\*\*@host/runs is not recorded"
    with pytest.raises(RequestError, match=named):
        send_journal(client, tmp_path)
    assert client.get_experiment_by_name("far away") is None
    send_journal(client, tmp_path, artifact_root=str(tmp_path / "near"))
    made = client.get_experiment_by_name("far away")
    assert made is not None
    assert made.artifact_location == f"{(tmp_path / 'near').as_uri()}/far%20away"


def test_a_name_of_a_run_that_no_database_takes_is_shortened(
    config: Config, tmp_path: Path
) -> None:
    named = replace(config, tracking=replace(config.tracking, run_name="a long name " * 30))
    with record(named, tmp_path) as recording:
        pass
    name = recorded(recording).info.run_name
    assert (len(name), name[-1]) == (250, "…")


def test_an_error_of_ours_is_its_message_in_the_tag(config: Config, tmp_path: Path) -> None:
    with pytest.raises(PipelineError), record(config, tmp_path) as recording:
        raise PipelineError("first\nsecond")
    assert recorded(recording).data.tags["error"] == "first\nsecond"


def names(run_id: str, config: Config) -> set[str]:
    return artifact_names(find_run(run_id, config).artifacts)


def test_a_run_in_the_folder_of_another_has_none_of_its_artefacts(
    config: Config, tmp_path: Path
) -> None:
    with record(config, tmp_path) as first:
        first.save_text("code.patch", "+ a line")
        first.save_text("class_report.txt", "of the first")
        (first.artifacts / "tensorboard").mkdir()
        (first.artifacts / "tensorboard" / "events").write_text("of the first")
    with pytest.raises(RuntimeError), record(config, tmp_path) as second:
        raise RuntimeError("the data is not there")
    assert {"class_report.txt", "tensorboard"} <= names(first.id, config)
    assert names(second.id, config) <= {"config.yaml", "environment.txt", "code.patch"}
    assert not find_run(second.id, config).has("class_report.txt")


def test_a_folder_with_artefacts_of_nobody_is_refused_before_there_is_a_run(
    config: Config, tmp_path: Path
) -> None:
    config = replace(config, tracking=replace(config.tracking, experiment="nobody"))
    (tmp_path / "artifacts").mkdir()
    with pytest.raises(RequestError, match="was not made by a run"):
        record(config, tmp_path).__enter__()
    with pytest.raises(RequestError, match="experiment nobody has no run"):
        find_run("latest", config)


@pytest.fixture
def client(config: Config) -> mlflow.MlflowClient:
    return connect(config.tracking.uri)


def killed_by_another(client: mlflow.MlflowClient, run_id: str, error: str = GONE) -> None:
    close(client, by_id(client, run_id), Status.KILLED, error)
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_run_that_is_heard_again_takes_back_that_it_was_killed(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.05)
    monkeypatch.setattr(heartbeat, "GAP_S", 0.0)  # as if no beat had arrived for long
    run_id = client.create_run("0", tags=signs()).info.run_id
    with alive(client, run_id):
        killed_by_another(client, run_id)
        for _ in range(200):
            run = client.get_run(run_id)
            if (run.info.status, "error" in run.data.tags) == ("RUNNING", False):
                break  # the status changes first
            time.sleep(0.05)
    assert (run.info.status, "error" in run.data.tags) == ("RUNNING", False)


def test_a_run_that_ends_before_it_is_heard_again_keeps_its_end_and_not_the_error(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "GAP_S", 0.0)
    run_id = client.create_run("0", tags=signs()).info.run_id
    with alive(client, run_id):
        killed_by_another(client, run_id)
        client.set_terminated(run_id, "FINISHED")
    run = client.get_run(run_id)
    assert (run.info.status, "error" in run.data.tags) == ("FINISHED", False)


def test_a_run_that_was_truly_stopped_stays_so(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "GAP_S", 0.0)
    run_id = client.create_run("0", tags=signs()).info.run_id
    with alive(client, run_id):
        killed_by_another(client, run_id, error="KeyboardInterrupt")
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "KeyboardInterrupt")


def test_the_command_that_closes_a_run_shows_no_password() -> None:
    client: Any = SimpleNamespace(tracking_uri="postgresql://me:secret-of-mine@db/mlflow")
    run = RecordedRun(id="abcd", name="", experiment="", status=Status.RUNNING, started=0)
    assert "('postgresql://me:***@db/mlflow')" in closing_by_hand(client, run)


def test_the_command_that_closes_a_run_quotes_what_it_names() -> None:
    client: Any = SimpleNamespace(tracking_uri="sqlite:///it's here.db")
    run = RecordedRun(id="abcd", name="", experiment="", status=Status.RUNNING, started=0)
    assert closing_by_hand(client, run) == (
        'python -c "import mlflow; '
        "mlflow.MlflowClient(\"sqlite:///it's here.db\").set_terminated('abcd', 'KILLED')\""
    )


def test_a_sweep_over_a_key_with_a_plus_has_it_without(config: Config, tmp_path: Path) -> None:
    with record(config, tmp_path, searched={"+model.width": "3,5"}) as recording:
        pass
    run = by_id(connect(config.tracking.uri), recording.id)
    assert (run.status, run.params["model.width"]) == (Status.FINISHED, "3,5")
