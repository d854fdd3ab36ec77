"""Makes new SQLite stores as copies of one: MLflow takes seconds to create its tables."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

# Names the file that is copied. Child processes inherit it; the first that needs it makes it.
MADE_ONCE = "PIPELINE_TESTS_EMPTY_STORE"


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
