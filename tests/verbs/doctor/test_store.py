from __future__ import annotations

import http.server
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

from pipeline.tracking.client import connect, experiment, experiment_names
from pipeline.verbs.doctor import store as health
from tests.commands import free_port, inside, mlflow_server

LOGIN = b"<html>who are you?</html>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with inside(tmp_path_factory.mktemp("made")) as folder:
        connect(None)
        yield folder / "mlflow.db"


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    """A store of its own for a test that changes it."""
    return Path(shutil.copy(made, tmp_path / "a store.db"))


def looked(path: Path) -> health.Store:
    return health.check_store(f"sqlite:///{path}")


def execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def assert_broken(store: health.Store, *parts: str) -> None:
    assert (store.finding.state, store.client) == ("problem", None)
    assert store.finding.mend
    for part in parts:
        assert part in store.finding.says + store.finding.mend


def test_a_current_store_is_ok_and_left_as_it_is(database: Path) -> None:
    before = database.read_bytes()
    store = looked(database)
    assert (store.finding.state, mlflow.__version__ in store.finding.says) == ("ok", True)
    assert store.client is not None
    assert [*experiment_names(store.client).values()] == ["Default"]
    assert database.read_bytes() == before
    assert [p.name for p in database.parent.iterdir()] == [database.name]


def test_a_file_too_large_to_be_searched_for_damage_in_time_is_ok(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "SEARCH_S", 0.0)
    store = looked(database)
    assert (store.finding.state, store.client is None) == ("ok", False)
    assert f"longer than 0 s to search for damage: sqlite3 '{database}' " in store.finding.says


def test_a_file_on_a_disk_that_does_not_answer_is_not_to_be_started(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ANSWER_S", 0.1)
    monkeypatch.setattr(health.sa, "create_engine", lambda *_, **__: time.sleep(1))
    assert_broken(looked(database), "did not answer within 0.1 s", "see whether its disk answers")


def test_a_database_on_a_server_answers_and_nothing_is_said_of_writing(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = health.sa.create_engine
    local = f"sqlite:///{database}"
    monkeypatch.setattr(health.sa, "create_engine", lambda url, **_: original(local))
    found = health.check_store("postgresql://me@db/mlflow").finding
    assert found.says.startswith("postgresql://me@db/mlflow answers; its tables are those of")
    assert " is writable; its tables" in looked(database).finding.says


def test_no_store_is_no_problem_and_none_is_made(tmp_path: Path) -> None:
    store = looked(tmp_path / "mlflow.db")
    assert (store.finding.state, store.client) == ("ok", None)
    (tmp_path / "mlflow.db").touch()  # as one that was killed early would leave
    assert looked(tmp_path / "mlflow.db").finding.state == "ok"
    assert (tmp_path / "mlflow.db").stat().st_size == 0


def test_a_store_in_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "no folder"
    assert_broken(looked(folder / "mlflow.db"), "no folder", f"mkdir -p '{folder}', ")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("my notes, " * 100)
    assert_broken(looked(tmp_path / "mlflow.db"), "damaged: file is not a database")


def test_a_folder_in_the_place_of_the_database_is_not_called_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    assert_broken(looked(tmp_path / "mlflow.db"), "is a folder, not a file", "rmdir ")


def test_a_damaged_database_is_a_problem(database: Path) -> None:
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(size // 4)
        file.write(b"\xff" * (size // 2))
    assert_broken(looked(database), "damaged: ", f"sqlite3 '{database}' .recover")


def test_a_database_of_something_else_is_a_problem(tmp_path: Path) -> None:
    execute(tmp_path / "mine.db", "create table experiments (mine text)")
    assert_broken(looked(tmp_path / "mine.db"), "not MLflow's")


def test_an_empty_database_gets_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    execute(path, "create table gone (a)")
    execute(path, "drop table gone")
    store = looked(path)
    assert (store.finding.state, "no tables yet" in store.finding.says) == ("ok", True)
    assert sqlite3.connect(path).execute("select * from sqlite_master").fetchall() == []


@pytest.mark.parametrize(
    ("revision", "mend"),
    [("451aebb31d03", "mlflow db upgrade 'sqlite:"), ("fedcba987654", "newer MLflow")],
)
def test_tables_of_another_mlflow_are_a_problem_and_stay_as_they_are(
    revision: str, mend: str, database: Path
) -> None:
    execute(database, f"update alembic_version set version_num = '{revision}'")
    assert_broken(looked(database), revision, mend)
    assert sqlite3.connect(database).execute("select * from alembic_version").fetchall() == [
        (revision,)
    ]


def test_tables_that_are_missing_are_a_problem_and_not_made(database: Path) -> None:
    execute(database, "drop table latest_metrics")
    assert_broken(looked(database), "half of its tables are missing")


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_store_that_another_process_is_writing_to_is_warned_of(
    lock: str, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "BUSY_S", 0.01)
    other = sqlite3.connect(database, isolation_level=None)
    other.execute(f"BEGIN {lock}")
    assert looked(database).finding.state == "warning"
    other.close()


def test_a_read_only_database_is_a_problem(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = health.sa.URL.set

    def as_if_read_only(self: object, **parts: object) -> object:
        return original(self, **parts | {"query": {"mode": "ro", "uri": "true"}})

    monkeypatch.setattr(health.sa.URL, "set", as_if_read_only)  # root may write to any file
    assert_broken(looked(database), "readonly", f"chmod u+w '{database}' and")


def test_an_address_of_a_driver_that_is_not_installed_is_a_problem() -> None:
    assert_broken(health.check_store("nosuch://me:hunter2@host/db"), "nosuch", "***")


def test_a_folder_is_not_looked_into(tmp_path: Path) -> None:
    store = health.check_store(str(tmp_path / "mlruns"))
    assert (store.finding.state, store.client) == ("warning", None)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_a_problem_without_its_password() -> None:
    store = health.check_store(f"http://me:hunter2@127.0.0.1:{free_port()}")
    assert_broken(store, "nothing answers there")
    assert "hunter2" not in str(store)
    store = health.check_store(f"http://me:hunter#2@127.0.0.1:{free_port()}")
    assert_broken(store, "set MLFLOW_TRACKING_USERNAME")
    assert "hunter" not in str(store)


def test_a_server_or_database_that_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert_broken(health.check_store(f"http://127.0.0.1:{port}"), "no")


@contextmanager
def web(status: int, body: bytes, version: bytes = b"") -> Iterator[str]:
    """A server that answers with this body; `version` is for a user who has logged in."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            asks_version = self.path == "/version"
            known = self.headers.get("Authorization") == "Bearer a-token-of-mine"
            self.wfile.write((version if known else LOGIN) if asks_version else body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_version_of_a_server_is_asked_for_as_mlflow_asks_and_a_page_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with web(200, b"{}", b"1.2.3") as address:
        assert health.check_store(address).finding.says == f"{address} answers"
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token-of-mine")
        found = health.check_store(address).finding
    assert (found.state, "answers: MLflow 1.2.3, here " in found.says) == ("warning", True)


def test_a_server_that_speaks_no_tls_is_there() -> None:
    with web(200, b"{}") as address:
        store = health.check_store(address.replace("http://", "https://"))
    assert_broken(store, "SSL", "correct that")
    assert "nothing answers" not in store.finding.says


def test_a_server_of_something_else_is_a_problem() -> None:
    with web(404, b"not here") as address:
        assert_broken(health.check_store(address), "404", "MLflow server")


@pytest.mark.slow
def test_a_server_says_its_version_and_can_be_asked(tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "mlflow.db") as address:
        store = health.check_store(address)
        assert store.finding.says == f"{address} answers: MLflow {mlflow.__version__}"
        assert store.finding.state == "ok"
        assert store.client is not None
        assert [*experiment_names(store.client).values()] == ["Default"]


def test_artefacts_that_were_moved_away_are_warned_of(made: Path) -> None:
    client = connect(None)
    number = experiment(client, "moved")
    assert list(health.artefacts(client)) == []  # it has no run
    run = client.create_run(number)
    assert list(health.artefacts(client)) == []  # its artefacts come when it is closed
    client.set_terminated(run.info.run_id, "FINISHED")
    [found] = health.artefacts(client)
    assert (found.state, found.says.startswith("moved: ")) == ("warning", True)
    Path("mlartifacts/moved").mkdir(parents=True)
    assert list(health.artefacts(client)) == []
