"""SQLite stores that are copies of one, as MLflow takes seconds to create tables, and that fail."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Names the file that is copied. Child processes inherit it; the first that needs it makes it.
MADE_ONCE = "PIPELINE_TESTS_EMPTY_STORE"
AWAY = "API request to http://store failed with exception: connection refused"
WRITES = (
    *("log_batch", "log_inputs", "set_tag", "delete_tag", "log_artifacts", "set_terminated"),
    *("create_run", "get_run", "search_runs", "create_experiment", "get_experiment_by_name"),
)


def copy_tables() -> None:
    """Makes MLflow fill an empty SQLite database with a copy; it fills others itself."""
    utils = sys.modules.get("mlflow.store.db.utils")
    if utils is None or hasattr(utils._initialize_tables, "itself"):
        return
    itself, is_empty = utils._initialize_tables, utils._is_empty_database

    def initialize(engine: Any) -> None:
        if engine.dialect.name != "sqlite" or MADE_ONCE not in os.environ or not is_empty(engine):
            itself(engine)
            return
        with closing(sqlite3.connect(_made_once(itself, utils))) as source:
            target = engine.raw_connection()
            try:
                source.backup(target.driver_connection)
            finally:
                target.close()

    initialize.itself = itself  # type: ignore[attr-defined]
    utils._initialize_tables = initialize
    # Reads the descriptions of all versions of the tables, for each store that is opened.
    utils._get_latest_schema_revision = cache(utils._get_latest_schema_revision)


def empty_store(folder: Path) -> None:
    """Puts a new store into a folder, for a process that would otherwise create its tables."""
    from mlflow import MlflowClient

    copy_tables()
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments(max_results=1)


def _made_once(initialize: Any, utils: Any) -> Path:
    path = Path(os.environ[MADE_ONCE])
    with FileLock(f"{path}.lock"):
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}")
            engine = utils.create_sqlalchemy_engine(f"sqlite:///{partial}")
            initialize(engine)
            engine.dispose()
            partial.rename(path)
    return path


def is_free(store: Path) -> bool:
    """Whether nobody reads or writes an SQLite store."""
    connection = sqlite3.connect(store, timeout=0, isolation_level=None)
    with closing(connection), suppress(sqlite3.OperationalError):
        connection.execute("BEGIN EXCLUSIVE")
        return True
    return False


def wait_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes runs wait only a moment for a store that is away."""
    for name, seconds in (
        *(("lifecycle.PATIENCE_S", 0.1), ("lifecycle.SHORT_PATIENCE_S", 0.1)),
        *(("journal.FIRST_PAUSE_S", 0.02), ("journal.LONGEST_PAUSE_S", 0.02)),
    ):
        monkeypatch.setattr(f"pipeline.tracking.{name}", seconds)


class Switch:
    """Makes the store unreachable, and notes what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow import MlflowClient

        self.is_away, self.asked = False, list[str]()
        for name in WRITES:
            monkeypatch.setattr(MlflowClient, name, self._switched(getattr(MlflowClient, name)))

    def _switched(self, original: Callable[..., Any]) -> Callable[..., Any]:
        from mlflow.exceptions import MlflowException

        def call(*given: Any, **more: Any) -> Any:
            self.asked.append(original.__name__)
            if self.is_away:
                raise MlflowException(AWAY)
            return original(*given, **more)

        return call
