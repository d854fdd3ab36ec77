"""Finds the tracking server or store, makes it ready, and the experiment in it.

Knows where MLflow keeps things: its environment variables, its tables, the addresses of artefacts.
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
from mlflow.store.db.utils import _all_tables_exist  # what MLflow asks before it makes tables

from pipeline.config.schema import Config
from pipeline.system.databases import keep_through_interrupts, reason, without_password
from pipeline.system.errors import RequestError
from pipeline.system.files import replacing
from pipeline.tracking.addresses import DEFAULT_URI, artifact_location, store_address

Client = mlflow.MlflowClient
StoreError = MlflowException
VERSION = mlflow.__version__

FIRST_ANSWER_S = 10
PAGE = 5_000  # experiments asked for at once


def connect(uri: str | None) -> Client:
    """A client of the tracking server or store at `uri`, which is made the process' default.

    None takes MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the current folder.

    Raises:
        RequestError: nothing answers there, or it cannot be written.
    """
    address = store_address(uri)
    _require_answer(address)
    keep_through_interrupts(address)
    mlflow.set_tracking_uri(address)
    try:
        # The client makes a fresh store's tables; several processes at it at once spoil them.
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
    """Makes a database that is not there yet beside its place: a kill would leave half of it."""
    if not address.startswith("sqlite:"):
        return
    url = sa.make_url(address)
    path = Path(url.database or ":memory:")
    if str(path) != ":memory:" and not (path.exists() and path.stat().st_size):
        with replacing(path) as partial:
            _opened(url.set(database=str(partial)).render_as_string())


def experiment(client: Client, name: str) -> str:
    """The id of the experiment of that name, made if need be.

    Raises:
        RequestError: the experiment was deleted, or the store refuses the name.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(
                name,
                artifact_location=artifact_location(str(client.tracking_uri), name),
                # Opens the UI in its view of training runs rather than of language models.
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
    """The experiment that is meant: `tracking.experiment`, MLflow's variable, or the data set's.

    Raises:
        RequestError: MLFLOW_EXPERIMENT_ID names none, or another one than MLFLOW_EXPERIMENT_NAME.
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
    """The names of all experiments that were not deleted, by id; or of the one with that name."""
    if only is not None:
        found = client.get_experiment_by_name(only)
        if found is None or found.lifecycle_stage != "active":
            return {}
        return {str(found.experiment_id): only}
    return {found.experiment_id: found.name for found in experiments(client)}


def experiments(client: Client) -> Iterator[mlflow.entities.Experiment]:
    """All experiments that were not deleted."""
    token = None
    while True:
        page = client.search_experiments(max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def fetch(address: str) -> Path:
    """The artefact at an address of MLflow's, a file or a folder, on this machine.

    Raises:
        OSError: it is not there, or incomplete.
    """
    is_local = address.startswith(("file:", "/"))
    folder = None if is_local else mkdtemp(dir=_downloads().name)
    try:
        return Path(mlflow.artifacts.download_artifacts(address, dst_path=folder))
    except MlflowException as error:
        raise OSError(f"{address}: {error.message}") from error


@cache
def _downloads() -> TemporaryDirectory[str]:
    """What is downloaded lies here until the process ends."""
    return TemporaryDirectory(prefix="pipeline-")


def artifact_names(address: str) -> set[str]:
    """The names of the files and folders that lie at an address of artefacts."""
    listed = mlflow.artifacts.list_artifacts(artifact_uri=address)
    return {PurePosixPath(found.path).name for found in listed}  # MLflow's begin with the folder's


def _require_answer(uri: str) -> None:
    """Asks once: MLflow itself would try for minutes before it says that nobody is there."""
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
    """Writes to an SQLite file what is there already, and takes it back.

    Only this tells a read-only file or folder: `BEGIN IMMEDIATE` is content with reading one.

    Raises:
        OperationalError: it cannot be written, or another process is writing.
    """
    connection.execute(sa.text("BEGIN IMMEDIATE"))
    version = connection.execute(sa.text("PRAGMA user_version")).scalar_one()
    connection.execute(sa.text(f"PRAGMA user_version = {int(version)}"))
    connection.rollback()


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What a database holds: table names, the revision they are of, and the one MLflow wants."""

    names: Sequence[str]
    revision: str | None
    wanted: str | None
    is_older: bool
    are_complete: bool


def tables_in(connection: sa.Connection) -> Tables:
    """Looks at the tables of a database, and makes none."""
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
