from __future__ import annotations

import pytest
import sqlalchemy as sa

from pipeline.system.databases import reason, without_password


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://a:b@host:5000", "http://a:***@host:5000"),
        ("https://host", "https://host"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("a folder", "a folder"),
    ],
)
def test_an_address_is_shown_without_its_password(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


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
