from __future__ import annotations

import http.server
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras  # noqa: F401  (before mlflow.tensorflow asks for it half way through its own import)
import mlflow
import pytest
import requests
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.config.schema import Tracking
from pipeline.run import run
from pipeline.system.errors import RequestError
from pipeline.tracking import client as tracking
from pipeline.tracking.client import (
    Refusal,
    StoreAway,
    address_of,
    connect,
    experiment,
    is_passing,
    no_answer,
    quiet_client,
    require_driver,
    shown_address,
    whole_store,
    why_away,
)
from pipeline.tracking.models import find_version, require_own_model
from pipeline.tracking.registry import open_registry
from pipeline.tracking.runs import by_id, find_runs
from pipeline.tracking.values import Query, RecordedRun, Status
from pipeline.verbs.doctor import store as health
from tests.commands import QUICK, configured, free_port, inside, pipeline
from tests.stores import MADE_ONCE, empty_store
from tests.stress.matrix import matrix
from tests.warm import call_warm

pytestmark = pytest.mark.slow

HOST_REFUSED = b"Invalid Host header - possible DNS rebinding attack detected"  # MLflow's words
USER = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@contextmanager
def answering(
    status: int, body: bytes = b"", but: str = "/moved", **headers: str
) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that answers every request alike, and the credentials that came.

    Requests whose method and path have `but` in them get 200 and an empty mapping.
    """
    came: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append(self.headers.get("Authorization", ""))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_well = but in f"{self.command} {self.path}"
            self.send_response(200 if is_well else status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value.format(path=self.path))
            answer = b"{}" if is_well else body
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "says", "mend"),
    [
        (401, b"", "401: it asks for a user", "MLFLOW_TRACKING_USERNAME"),
        (403, b"no", "403: this user may not use it", "permission"),
        (
            403,
            HOST_REFUSED,
            "403: it does not know itself by the name 127.0.0.1",
            "--allowed-hosts",
        ),
        (503, b"", "503 Service Unavailable: it is starting", "when it is ready"),
        (404, b"", "404 Not Found", "MLflow server"),
        (200, b"<html>hello</html>", "200 OK", "MLflow server"),
    ],
)
@matrix(17)
def test_a_server_that_refuses_is_told_in_its_own_words_at_the_start_and_by_doctor(
    status: int, body: bytes, says: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "STORE_ANSWER_S", 0.5)
    with answering(status, body) as (address, _):
        with pytest.raises(RequestError) as refused:
            connect(address)
        found = health.check_store(address).finding
    assert says in str(refused.value)
    assert mend in str(refused.value)
    assert (found.state, says in found.says, mend in str(found.mend)) == ("problem", True, True)


@pytest.mark.parametrize("status", [301, 302])
def test_a_redirect_that_loses_what_is_sent_is_refused_with_the_new_address(status: int) -> None:
    with answering(status, Location="/moved{path}") as (address, _):
        with pytest.raises(RequestError, match=f"redirects to {address}/moved; use that address"):
            connect(address)
        assert f"redirects to {address}/moved" in health.check_store(address).finding.says


def test_a_redirect_that_keeps_what_is_sent_is_followed() -> None:
    with answering(308, Location="/moved{path}") as (address, came):
        assert tracking.refusal(tracking.ask(address, within_s=5), address) is None
        assert len(came) == 2


def test_a_server_that_asks_for_an_hour_s_patience_is_away_in_seconds() -> None:
    with answering(429, Retry_After="3600") as (address, _):
        began = time.monotonic()
        with pytest.raises(MlflowException, match="429"):
            quiet_client(address).get_experiment("0")
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"Permission denied", "it answers 403: Permission denied"),
        (b"<html>a proxy's page</html>", "it answers 403"),
        (b"several\nlines", "it answers 403"),
        (b"", "it answers 403"),
    ],
)
def test_a_server_that_refuses_a_single_request_is_told_in_few_words(
    body: bytes, says: str
) -> None:
    with answering(403, body, but="GET ") as (address, _):
        with pytest.raises(RequestError) as refused:
            connect(address)
        assert str(refused.value) == f"tracking store {address}: {says}"


def test_a_verb_whose_server_goes_away_says_so_in_a_line(tmp_path: Path) -> None:
    with answering(503, but="experiments/search") as (address, _):
        ended = pipeline("history", f"tracking.uri={address}", cwd=tmp_path)
    said, _ = ended.stderr.splitlines()
    assert (ended.returncode, said) == (
        1,
        f"tracking store {address} cannot be used: it answers 503",
    )


AWAY = {503: "it answers 503", 502: "it answers 502", 200: "it does not answer as MLflow does"}


@pytest.mark.parametrize("status", AWAY)
def test_a_server_that_goes_away_has_lost_no_run_and_no_model(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(status, b"<html>a proxy's page</html>") as (address, _):
        client = quiet_client(address)
        run = RecordedRun(**RUN, artifacts=f"{address}/api/2.0/mlflow-artifacts/artifacts/1")
        asks: tuple[Callable[[], object], ...] = (
            lambda: by_id(client, "0" * 32),
            lambda: find_version(client, "models:/digits@champion"),
            lambda: require_own_model(client, replace(run, tags={"model_uri": "models:/m-1"})),
        )
        for ask in asks:
            with pytest.raises(StoreAway, match=f"{address} cannot be used: {AWAY[status]}$"):
                ask()
        with pytest.raises(StoreAway, match=r"1/predictions\.npz cannot be read now: "):
            run.predictions()


def test_credentials_that_a_server_does_not_accept_are_sent_and_named_but_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in zip(USER, ("ann", "hunter22"), strict=True):
        monkeypatch.setenv(name, value)
    with answering(401) as (address, came), pytest.raises(RequestError) as refused:
        connect(address)
    assert came == ["Basic YW5uOmh1bnRlcjIy"]
    assert "the credentials of MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in str(
        refused.value
    )
    assert "hunter22" not in str(refused.value)


@matrix(17)
def test_a_store_that_does_not_answer_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "STORE_ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in ("http", "postgresql"):
            began = time.monotonic()
            address = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(RequestError, match="no answer within 0.5 s|driver"):
                connect(address)
            assert time.monotonic() - began < 5


def test_a_server_whose_certificate_is_not_accepted_is_there() -> None:
    error = requests.exceptions.SSLError("certificate verify failed: self-signed certificate")
    refused = no_answer(error, "https://tracking.example.org", within_s=8)
    assert refused == Refusal(str(error), "correct that")


RUN: dict[str, Any] = {
    "id": "0" * 32,
    "name": "first",
    "experiment": "digits",
    "status": Status.FINISHED,
    "started": 0,
    "ended": 1,
    "params": {},
    "tags": {},
    "logged": {},
    "sizes": {},
}
# What a run writes; most of the first make something new each time they are called.
CREATES = (
    *("create_experiment", "create_run", "create_logged_model", "log_model_artifacts"),
    "create_model_version",
)
WRITES = (
    *("log_batch", "log_inputs", "log_outputs", "log_artifacts"),
    *("finalize_logged_model", "set_terminated", "create_registered_model"),
)


def lose_answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Loses the first answer to each of `CREATES`; sends other writes twice, as MLflow does."""
    lost: list[str] = []

    def losing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            found = original(*given, **more)
            if name in lost:
                return found
            lost.append(name)
            raise MlflowException("API request to http://… failed with exception: no response")

        return call

    def twice(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            original(*given, **more)
            return original(*given, **more)

        return call

    for name in CREATES:
        monkeypatch.setattr(MlflowClient, name, losing(name, getattr(MlflowClient, name)))
    for name in WRITES:
        if name != "create_registered_model":  # is refused the second time, which counts as success
            monkeypatch.setattr(MlflowClient, name, twice(getattr(MlflowClient, name)))
    return lost


@matrix(19)
def test_a_run_whose_answers_get_lost_is_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = lose_answers(monkeypatch)
    with inside(tmp_path):
        made = run(configured(*QUICK, "train.epochs=2", "evaluate.report=false"), tmp_path / "out")
        client = connect(None)
        number = client.get_experiment_by_name("synthetic").experiment_id
        [found] = client.search_runs([number])
        assert (found.info.run_id, found.info.status) == (made.run_id, "FINISHED")
        [model] = client.search_logged_models([number])
        assert (model.model_uri, str(model.status)) == (found.data.tags["model_uri"], "READY")
        for name in found.data.metrics:
            steps = [point.step for point in client.get_metric_history(made.run_id, name)]
            assert len(set(steps)) == len(steps), name
        registry = open_registry(Tracking(uri=None), "digits")
        registry.ensure()
        version = registry.add(str(model.model_uri), made.run_id, {"promotion": "pending"})
        assert [one.number for one in registry.of_run(made.run_id)] == [version.number]
    assert lost == [*CREATES]


def test_an_error_that_would_come_again_is_not_tried_again(tmp_path: Path) -> None:
    tried = []

    def refuse() -> None:
        tried.append(1)
        raise MlflowException("no such thing", error_code=3001)  # RESOURCE_ALREADY_EXISTS

    with pytest.raises(MlflowException, match="no such thing"):
        tracking.made_once(refuse, lambda: None)
    assert tried == [1]


def test_a_constraint_that_never_goes_away_counts_as_written_and_any_other_error_does_not() -> None:
    def broken(message: str) -> Callable[[], None]:
        def write() -> None:
            raise MlflowException(message)

        return write

    tracking.repeatable(broken("(sqlite3.IntegrityError) UNIQUE constraint failed: inputs"))
    with pytest.raises(MlflowException, match="no such table"):
        tracking.repeatable(broken("no such table"))


@pytest.fixture
def impatient() -> Iterator[None]:
    """Waits 0.1 s for a locked database instead of MLflow's 20 s."""

    def shorter(_: Any, __: Any, statement: str, values: Any, *more: Any) -> tuple[str, Any]:
        return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), values

    sa.event.listen(sa.Engine, "before_cursor_execute", shorter, retval=True)
    yield
    sa.event.remove(sa.Engine, "before_cursor_execute", shorter)


@matrix(21)
@pytest.mark.usefixtures("impatient")
def test_a_store_that_another_process_holds_is_told_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    connect(f"sqlite:///{tmp_path}/mlflow.db")
    client = tracking.quiet_client(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = client.create_run("0").info.run_id
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        assert other.execute("SELECT * FROM runs").fetchone()  # and reads on
        with pytest.raises(MlflowException, match="database is locked"):
            client.set_terminated(run_id)
    assert "Traceback" not in capfd.readouterr().err


def test_a_database_that_dies_while_mlflow_undoes_a_write_is_away() -> None:
    lost = sa.exc.OperationalError("ROLLBACK", None, Exception("terminating connection"))
    assert is_passing(lost)
    assert not is_passing(sa.exc.ProgrammingError("SELECT", None, Exception("no such column")))


def test_a_deleted_experiment_is_refused_with_the_way_to_restore_it(folder: Path) -> None:
    client = connect(None)
    made = experiment(client, "gone")
    client.delete_experiment(made)
    refused = f"gone was deleted.*restore -x {made}"
    with pytest.raises(RequestError, match=refused):
        experiment(client, "gone")
    with pytest.raises(RequestError, match=refused):  # as compare and run_id=latest look for runs
        find_runs(Query(experiment="gone"), Tracking(uri=None))


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


def test_a_place_of_artefacts_whose_driver_is_not_installed_is_refused_with_its_package(
    folder: Path,
) -> None:
    for place, package in (
        ("s3://me:hunter2@bucket/x", "boto3"),
        ("gs://bucket/x", "google-cloud-storage"),
        ("wasbs://box@me.blob.core.windows.net/x", "azure-storage-blob azure-identity"),
    ):
        with pytest.raises(RequestError, match=f"not installed: pip install {package}$") as refused:
            require_driver(place)
        assert "hunter2" not in str(refused.value)
    for place in ("file:///x", "/x", "mlflow-artifacts:/x", ""):
        require_driver(place)
    with pytest.raises(RequestError, match="pip install boto3"):
        experiment(connect(None), "distant", "s3://bucket/x")
    assert connect(None).get_experiment_by_name("distant") is None


def test_a_store_that_is_named_once_is_not_the_default_of_what_follows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"sqlite:///{tmp_path}/mlflow.db"
    for default in (None, f"sqlite:///{folder}/mlflow.db"):
        if default is None:
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", default)
        connect(other)
        assert mlflow.get_tracking_uri() == other
        assert os.environ.get("MLFLOW_TRACKING_URI") == default
        connect(f"sqlite:///{folder}/mlflow.db")


def test_each_folder_has_a_store_of_its_own_also_within_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    clients = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        clients[name] = connect(None)
        experiment(clients[name], name)
        assert address_of(clients[name]) == "sqlite:///mlflow.db"
    for name, client in clients.items():
        [made, _] = client.search_experiments()
        assert made.name == name
        assert made.artifact_location == (tmp_path / name / "mlartifacts" / name).as_uri()
        assert (tmp_path / name / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("folder", "address", "file"),
    [
        ("plain", "sqlite:///file:m.db?uri=true", "m.db"),
        ("plain", "sqlite:///file:{folder}/m.db?mode=rwc&uri=true", "m.db"),
        ("plain", "sqlite:///file:m.db", "file:m.db"),
        ("plain", "sqlite:///a%20b.db", "a b.db"),
        ("größe #1", "sqlite:///m.db", "m.db"),
        ("my%20project", "sqlite:///m.db", "m.db"),
    ],
)
def test_a_new_store_and_an_existing_one_are_the_file_that_the_address_names(
    folder: str, address: str, file: str, tmp_path: Path
) -> None:
    with inside(tmp_path / folder) as here:
        address = address.format(folder=here)
        made = connect(address).create_experiment("mine", artifact_location="s3://bucket/x")
        assert connect(address).get_experiment(made).name == "mine"
        with closing(sqlite3.connect(here / file)) as content:
            assert content.execute("SELECT name FROM experiments WHERE name = 'mine'").fetchall()
        assert {path.name for path in here.iterdir()} == {file, f"{file}.lock"}
    assert [path.name for path in tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_in_the_place_of_the_one_that_is_open_is_refused_rather_than_written_past(
    is_replaced: bool, tmp_path: Path
) -> None:
    file = tmp_path / "mlflow.db"
    connect(f"sqlite:///{file}")
    content = file.read_bytes()
    file.rename(tmp_path / "before.db")
    if is_replaced:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=f"{file}: its file was deleted or replaced.*kernel"):
        connect(f"sqlite:///{file}")
    assert file.exists() == is_replaced
    (tmp_path / "before.db").replace(file)
    connect(f"sqlite:///{file}")


def test_a_file_system_that_numbers_its_files_anew_is_no_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renumbered(stat: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def call(*given: Any, **more: Any) -> os.stat_result:
            reduced: Any = stat(*given, **more).__reduce__()
            kind, (values, named) = reduced
            made: os.stat_result = kind((values[0], values[1] + 1_000_000, *values[2:]), named)
            return made

        return call

    connect(f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("stat", "fstat"):
        monkeypatch.setattr(os, name, renumbered(getattr(os, name)))
    connect(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_store_in_a_missing_folder_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unable to open database file; check.*folder, or ch"):
        connect(f"sqlite:///{tmp_path}/missing/mlflow.db")
    assert list(tmp_path.iterdir()) == []


@matrix(23)
def test_a_database_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    sqlite3.connect(path).execute("create table experiments (mine text)").connection.close()
    with pytest.raises(RequestError, match="readonly database; check that .* you may write to it"):
        connect(f"sqlite:///file:{path}?mode=ro&uri=true")  # root may write to any file


def test_of_a_database_that_another_process_holds_it_is_said_to_wait(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    other = sqlite3.connect(path, isolation_level=None)
    with closing(other), pytest.raises(RequestError, match="locked; try again when the process"):
        other.execute("BEGIN EXCLUSIVE")
        connect(f"sqlite:///file:{path}?timeout=0.01&uri=true")


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


@pytest.mark.parametrize(
    ("revision", "mend"),
    [("451aebb31d03", "mlflow db upgrade sqlite:"), ("fedcba987654", "written by a newer MLflow")],
)
def test_of_a_store_of_another_mlflow_it_is_said_whether_it_can_be_upgraded(
    revision: str, mend: str, tmp_path: Path
) -> None:
    empty_store(tmp_path)
    store = (tmp_path / "mlflow.db").rename(tmp_path / "theirs.db")
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("update alembic_version set version_num = ?", (revision,))
    with pytest.raises(RequestError, match=f"tables of revision {revision}, .*{mend}"):
        connect(f"sqlite:///{store}")


def test_a_server_that_is_not_there_is_refused_without_showing_the_password() -> None:
    address = f"http://someone:hunter2@127.0.0.1:{free_port()}"
    with pytest.raises(RequestError, match="nothing answers there; start it") as refused:
        connect(address)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("http://", "tracking store"),
        ("http://127.0.0.1:999999", "not a valid host or port; correct that, or choose"),
        ("nosuch://host/db", "nosuch; correct that, or choose"),
        ("sqlite://///nowhere/x/y.db", "tracking store"),
    ],
)
def test_an_address_that_is_none_is_refused(uri: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
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


def test_the_address_that_a_run_shows_has_no_password_and_leads_to_its_store() -> None:
    client = quiet_client("http://me:hunter22@host:5000")
    assert "hunter22" not in (shown := shown_address(client))
    assert whole_store(shown) == client.tracking_uri
    assert whole_store(shown.replace("host", "other")) is None  # as in another process
    assert whole_store("sqlite:////a/mlflow.db") == "sqlite:////a/mlflow.db"
    assert whole_store(None) is None


def test_why_a_database_fails_is_told_in_its_own_words() -> None:
    full = sa.exc.OperationalError(
        "INSERT", {}, sqlite3.OperationalError("database or disk is full")
    )
    full.add_detail("raised as a result of Query-invoked autoflush; consider another block")
    with pytest.raises(MlflowException) as caught:
        raise MlflowException(full) from full
    assert why_away(caught.value) == "database or disk is full"
