from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from pipeline.system.databases import keep_through_interrupts, reason, without_password


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://a:b@host:5000", "http://a:***@host:5000"),
        ("postgresql://me:pa/ss@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me:2024/secret@db/runs", "postgresql://me:***@db/runs"),
        ("http://[::1]:5000/team@work", "http://[::1]:5000/team@work"),
        ("hdfs://host:8020/user/me@work", "hdfs://host:8020/user/me@work"),
        ("mlflow-artifacts://host:5000/team@work", "mlflow-artifacts://host:5000/team@work"),
        ("mysql+pymysql://me:2024/secret@db/runs", "mysql+pymysql://me:***@db/runs"),
        ("http://me:pa/ss@host", "http://me:***@host"),
        ("postgresql://me:pa@ss@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:pa%2Fss%@host/db", "postgresql://me:***@host/db"),
        ("http://host:5000/team@work", "http://host:5000/team@work"),
        ("https://host", "https://host"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("a folder", "a folder"),
    ],
)
def test_an_address_is_shown_without_its_password(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


def test_an_address_keeps_its_name_though_a_secret_has_the_same_letters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.system.secrets.known_secrets", {"experiments"})
    assert without_password("sqlite:///experiments.db") == "sqlite:///experiments.db"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("postgresql+pg8000://host/x", "its driver is not installed: pip install pg8000"),
        ("firebird+fdb://host/x", "Can't load plugin: sqlalchemy.dialects:firebird.fdb"),
    ],
)
def test_it_is_said_which_driver_to_install(uri: str, said: str) -> None:
    with pytest.raises((ImportError, sa.exc.NoSuchModuleError)) as failed:
        sa.create_engine(uri)
    assert reason(failed.value) == said


def test_a_driver_is_named_as_pip_knows_it() -> None:
    said = reason(ModuleNotFoundError("No module named 'psycopg'", name="psycopg"))
    assert said == "its driver is not installed: pip install 'psycopg[binary]'"


@pytest.mark.parametrize(
    ("kept", "survives"), [("store.db", True), ("other.db", False)], ids=["kept", "a foreign one"]
)
def test_ctrl_c_in_a_statement_gives_up_the_connections_of_foreign_databases_alone(
    kept: str, survives: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_through_interrupts(f"sqlite:///{tmp_path / kept}")
    keep_through_interrupts("sqlite://")  # in memory
    keep_through_interrupts("http://127.0.0.1:5000")
    keep_through_interrupts("a folder")

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    engine = sa.create_engine(f"sqlite:///{tmp_path / 'store.db'}")
    with engine.connect() as connection:
        monkeypatch.setattr(DefaultDialect, "do_execute", stopped)
        with pytest.raises(KeyboardInterrupt):
            connection.exec_driver_sql("CREATE TABLE noted (what TEXT)")
        monkeypatch.undo()
        assert connection.invalidated is not survives
    engine.dispose()
