"""Connects to the tracking server or store, and finds or creates the experiment.

This module knows MLflow's environment variables, tables and addresses of artefacts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp

import mlflow
import requests
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _all_tables_exist  # MLflow's own check before it creates tables

from pipeline.config.schema import Config
from pipeline.system.databases import keep_through_interrupts, reason, without_password
from pipeline.system.errors import RequestError
from pipeline.system.files import replacing
from pipeline.tracking.addresses import DEFAULT_URI, artifact_location, store_address

Client = mlflow.MlflowClient
StoreError = MlflowException
VERSION = mlflow.__version__

FIRST_ANSWER_S = 10
PAGE = 5_000  # experiments per request


def connect(uri: str | None) -> Client:
    """Connects to the tracking server or store at `uri`, and makes it the process' default.

    None takes MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the current folder.

    Raises:
        RequestError: nothing answers there, or it is not writable.
    """
    address = store_address(uri)
    _require_answer(address)
    keep_through_interrupts(address)
    mlflow.set_tracking_uri(address)
    try:
        # The client creates a new store's tables; several processes at once would corrupt them.
        with _alone(address):
            _make_whole(address)
            client = _opened(address)
    except (MlflowException, sa.exc.SQLAlchemyError) as error:
        raise RequestError(
            f"tracking store {without_password(address)}: {reason(error)}"
        ) from error
    return client


def _opened(address: str) -> Client:
    client = Client(address)
    client.search_experiments(max_results=1)
    return client


def _make_whole(address: str) -> None:
    """Creates a new database under a temporary name, so that a kill leaves no half of one."""
    if not address.startswith("sqlite:"):
        return
    url = sa.make_url(address)
    path = Path(url.database or ":memory:")
    if str(path) != ":memory:" and not (path.exists() and path.stat().st_size):
        with replacing(path) as partial:
            _opened(url.set(database=str(partial)).render_as_string())


def experiment(client: Client, name: str) -> str:
    """The id of the experiment with that name, which is created if missing.

    Raises:
        RequestError: the experiment was deleted, or the store refuses the name.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(
                name,
                artifact_location=artifact_location(str(client.tracking_uri), name),
                # Makes the UI open its view for training runs rather than for language models.
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise RequestError(f"tracking.experiment={name}: {reason(error)}") from error
    if found.lifecycle_stage != "active":
        raise RequestError(
            f"tracking.experiment={name} was deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another name"
        )
    return str(found.experiment_id)


def experiment_name(config: Config) -> str:
    """The experiment's name: `tracking.experiment`, MLflow's variable, or the data set's name.

    Raises:
        RequestError: MLFLOW_EXPERIMENT_ID does not exist, or contradicts MLFLOW_EXPERIMENT_NAME.
    """
    named, number = (os.environ.get(f"MLFLOW_EXPERIMENT_{part}") for part in ("NAME", "ID"))
    if config.tracking.experiment or not (named or number):
        return config.tracking.experiment or config.choices.dataset
    if not number:
        return str(named)
    try:
        found = str(connect(config.tracking.uri).get_experiment(number).name)
    except MlflowException as error:
        raise RequestError(
            f"MLFLOW_EXPERIMENT_ID={number}: there is no such experiment; unset it, or choose one "
            "with tracking.experiment=…"
        ) from error
    if named and named != found:
        raise RequestError(
            f"MLFLOW_EXPERIMENT_ID={number} is {found}, but MLFLOW_EXPERIMENT_NAME={named}; unset "
            "one of them"
        )
    return found


def experiment_names(client: Client, only: str | None = None) -> dict[str, str]:
    """The names of all experiments that are not deleted, or of one of them, by id."""
    if only is not None:
        found = client.get_experiment_by_name(only)
        if found is None or found.lifecycle_stage != "active":
            return {}
        return {str(found.experiment_id): only}
    return {found.experiment_id: found.name for found in experiments(client)}


def experiments(client: Client) -> Iterator[mlflow.entities.Experiment]:
    """All experiments that are not deleted."""
    token = None
    while True:
        page = client.search_experiments(max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def fetch(address: str) -> Path:
    """The local path of an artefact, a file or a folder; downloads it if necessary.

    Raises:
        OSError: it is missing or incomplete.
    """
    is_local = address.startswith(("file:", "/"))
    folder = None if is_local else mkdtemp(dir=_downloads().name)
    try:
        return Path(mlflow.artifacts.download_artifacts(address, dst_path=folder))
    except MlflowException as error:
        raise OSError(f"{address}: {error.message}") from error


@cache
def _downloads() -> TemporaryDirectory[str]:
    """The folder of downloads, which is removed when the process ends."""
    return TemporaryDirectory(prefix="pipeline-")


def artifact_names(address: str) -> set[str]:
    """The names of the files and folders at an address of artefacts."""
    listed = mlflow.artifacts.list_artifacts(artifact_uri=address)
    return {PurePosixPath(found.path).name for found in listed}  # MLflow prefixes the folder's name


def _require_answer(uri: str) -> None:
    """Asks once, because MLflow itself would retry for minutes before it reports an error."""
    try:
        if uri.startswith(("http://", "https://")):
            requests.get(uri, timeout=FIRST_ANSWER_S)
        elif "://" in uri and not uri.startswith(("file:", "databricks")):
            engine = sa.create_engine(uri)
            with engine.connect() as connection:
                if engine.dialect.name == "sqlite":
                    try_to_write(connection)
            engine.dispose()
    except (requests.RequestException, sa.exc.SQLAlchemyError, ImportError) as error:
        raise RequestError(
            f"tracking store {without_password(uri)} cannot be used: {_reason(error)}; "
            f"start it, or choose another with tracking.uri=… (default {DEFAULT_URI})"
        ) from error


def try_to_write(connection: sa.Connection) -> None:
    """Writes an unchanged value to an SQLite file and rolls it back.

    Only this detects a read-only file or folder: `BEGIN IMMEDIATE` succeeds on them.

    Raises:
        OperationalError: it is not writable, or another process is writing.
    """
    connection.execute(sa.text("BEGIN IMMEDIATE"))
    version = connection.execute(sa.text("PRAGMA user_version")).scalar_one()
    connection.execute(sa.text(f"PRAGMA user_version = {int(version)}"))
    connection.rollback()


@dataclass(frozen=True, kw_only=True)
class Tables:
    """A database's table names, their revision, and the revision that MLflow needs."""

    names: Sequence[str]
    revision: str | None
    wanted: str | None
    is_older: bool
    are_complete: bool


def tables_in(connection: sa.Connection) -> Tables:
    """Reads the tables of a database; creates none."""
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    revision = MigrationContext.configure(connection).get_current_revision()
    return Tables(
        names=sa.inspect(connection).get_table_names(),
        revision=revision,
        wanted=scripts.get_current_head(),
        is_older=revision in {script.revision for script in scripts.walk_revisions()},
        are_complete=bool(_all_tables_exist(connection.engine)),  # type: ignore[no-untyped-call]
    )


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    if not uri.startswith("sqlite:"):
        yield
        return
    with FileLock(f"{sa.make_url(uri).database}.lock"):
        yield


def _reason(error: BaseException) -> str:
    if isinstance(error, requests.Timeout):
        return f"no answer within {FIRST_ANSWER_S} s"
    if isinstance(error, requests.ConnectionError):
        return "nothing answers there"
    return reason(error)
