"""Connects to the tracking server or store, and finds or creates the experiment.

This module knows MLflow's environment variables, tables and addresses of artefacts.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp
from threading import Lock, Thread
from typing import TypeVar, cast
from urllib.parse import SplitResult, urlsplit
from urllib.request import url2pathname

import mlflow
import requests
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _all_tables_exist  # MLflow's own check before it creates tables
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from pipeline.config.schema import Config, Tracking
from pipeline.system.databases import keep_through_interrupts, reason, without_password
from pipeline.system.errors import PipelineError, RequestError, one_line
from pipeline.system.files import replacing
from pipeline.system.processes import has_open
from pipeline.system.secrets import has_hidden, hide, hide_in_place
from pipeline.tracking.addresses import (
    DEFAULT_URI,
    EXPERIMENT,
    EXPERIMENT_ID,
    RETRIES,
    TRACKING_URI,
    artifact_location,
    artifact_root,
    is_database,
    is_server,
    require_address,
    sqlite_file,
    store_address,
    whole_address,
)
from pipeline.tracking.values import EXPERIMENT_KIND

Client = mlflow.MlflowClient
# A database that dies while MLflow undoes a write shows SQLAlchemy's error, not MLflow's.
DATABASE_LOST = (sa.exc.OperationalError, sa.exc.InterfaceError)
STORE_ERRORS = (MlflowException, *DATABASE_LOST)
VERSION = mlflow.__version__

STORE_ANSWER_S = 10.0  # for the store to answer when a command begins
AWAY_S = 300.0  # for a store to come back if work cannot continue without it
# Loggers of errors, with tracebacks, that MLflow raises as well.
NOISY = ("mlflow.store.db.utils", "urllib3.connectionpool")
_ONE_EXPERIMENT = "/api/2.0/mlflow/experiments/search?max_results=1"
_PAGE = 5_000  # experiments per request
TRY_AGAIN = (429, 502, 503, 504)  # a server that starts or is overloaded answers these
CHANGES_METHOD = (301, 302, 303)  # redirects after which what is sent becomes a question
# Errors of MLflow that would be the same however often a request is repeated.
_LASTING = {
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"),
    *("RESOURCE_ALREADY_EXISTS", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"),
}
DENIED = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
_CREDENTIALS = (*("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),)
# What MLflow needs to reach artefacts, by the scheme of their address: a module and its package.
_DRIVERS = {
    "s3": ("boto3", "boto3"),
    "gs": ("google.cloud.storage", "google-cloud-storage"),
    "wasbs": ("azure.storage.blob", "azure-storage-blob azure-identity"),
    "abfss": ("azure.storage.filedatalake", "azure-storage-file-datalake azure-identity"),
}
_REPEATED = ("unique constraint", "duplicate key", "duplicate entry", "integrityerror")
_REFUSED = re.compile(
    r"API request to endpoint \S+ failed with error code (?P<status>\d+) != \d+\. "
    r"Response body: '(?P<text>[^<\n]{1,100}(?='$))?"
)
_FOREIGN_HOST = ("invalid host", "dns rebinding")  # as MLflow's server says it

log = logging.getLogger(__name__)

Made = TypeVar("Made")
_once = Lock()
_given: dict[str, str] = {}  # addresses of stores as they were given, by the whole ones
_shown: dict[str, str] = {}  # whole addresses of stores by what is shown of them
_inodes: dict[str, int] = {}  # of the SQLite files that MLflow has open, by their addresses


class StoreAway(PipelineError):
    """The store answered when a command began, and does not now, or not as MLflow does."""


class NoStore:
    """Replaces the client of a run without a store (`tracking.offline`); refuses every request."""

    tracking_uri = "offline"

    def __getattr__(self, name: str) -> None:
        raise RequestError(f"tracking.offline=true: there is no store to be asked ({name})")


def does_not_exist_yet(tracking: Tracking) -> bool:
    """Whether a store is a file that the first run creates; connecting creates it, too."""
    file = sqlite_file(store_address(tracking.uri))
    return file is not None and not file.exists()


def store_of(tracking: Tracking) -> Client:
    """Connects to the store of a configuration; returns a `NoStore` if that is offline.

    Raises:
        RequestError: nothing answers there, or it is not writable.
    """
    return cast(Client, NoStore()) if tracking.offline else connect(tracking.uri)


def connect(uri: str | None) -> Client:
    """Connects to the tracking server or store at `uri`, which MLflow itself uses from then on.

    None takes MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the current folder. MLflow keeps
    one store per address as long as the process lives, so it gets the whole path of an SQLite file.

    Raises:
        RequestError: nothing answers there, it is not writable, or the file was replaced.
    """
    given = store_address(uri)
    require_address(given)
    _quieten()
    address = whole_address(given)
    _given[address] = given
    _require_same_file(address)  # first, as to ask for an answer makes an empty file
    _require_answer(given)
    keep_through_interrupts(address)
    with _environment_kept(TRACKING_URI):  # where MLflow would write it, for the next command
        mlflow.set_tracking_uri(address)
    try:
        # The client creates a new store's tables; several processes at once would corrupt them.
        with _alone(address):
            _require_same_file(address)
            _make_whole(address)
            client = _opened(address)
            _inodes[address] = _inode(address)
    except (MlflowException, sa.exc.SQLAlchemyError) as error:
        is_away = is_server(address) and is_passing(error)
        why = _other_version(address) or (why_away(error) if is_away else reason(error))
        raise RequestError(f"tracking store {without_password(given)}: {why}") from error
    return client


def address_of(client: Client) -> str:
    """The address of a client's store as it was given, without its password."""
    address = str(client.tracking_uri)
    return without_password(_given.get(address, address))


def shown_address(client: Client) -> str:
    """The whole address of a client's store without its password, by which it is found again."""
    shown = without_password(client.tracking_uri)
    _shown[shown] = client.tracking_uri
    return shown


def whole_store(shown: str | None) -> str | None:
    """The address of a store that `shown_address` has shown; None, the store used last.

    Another process knows no password: for it, too, that is the store used last.
    """
    address = _shown.get(shown or "", shown)
    return None if address is None or has_hidden(address) else address


def quiet_client(address: str | None) -> Client:
    """A client of the store at `address`, whose errors are raised but not logged as well.

    None stands for the store used last. It connects with its first request.
    """
    _quieten()
    return Client(address)


def _quieten() -> None:
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _opened(address: str) -> Client:
    client = quiet_client(address)
    client.search_experiments(max_results=1)
    return client


def _make_whole(address: str) -> None:
    """Creates a new database under a temporary name, so that a kill leaves no incomplete one."""
    file = sqlite_file(address)
    if file is None or _inode(address):
        return
    url = sa.make_url(address)
    if url.get_driver_name() != "pysqlite" or "uri" in url.query:
        return  # only such an address says how its file is opened
    with replacing(file) as partial:
        # MLflow makes the folder of a file if no driver is named, and takes its encoded name.
        named = url.set(drivername="sqlite+pysqlite", database=str(partial))
        _opened(named.render_as_string())


def _inode(address: str) -> int:
    """The inode of the file of an SQLite store; 0 if it is no such store, or missing or empty."""
    file = sqlite_file(address)
    return file.stat().st_ino if file and file.is_file() and file.stat().st_size else 0


def _require_same_file(address: str) -> None:
    """Refuses a file in the place of the one that MLflow has open and would go on to write to.

    Network file systems may give the same file another inode, but not while it is open.

    Raises:
        RequestError: with the way out.
    """
    before, present = _inodes.get(address), _inode(address)
    if (
        before
        and present != before
        and not (present and has_open(cast(Path, sqlite_file(address))))
    ):
        raise RequestError(
            f"tracking store {without_password(_given[address])}: its file was deleted or replaced "
            "while this process had it open; start the process anew (in a notebook, the kernel)"
        )


def made_once(make: Callable[[], Made], find: Callable[[], Made | None]) -> Made:
    """Creates something in the store, once even if the answer to the request gets lost.

    MLflow would repeat the request and create a second one. Here it is sent once; after an error
    `find` looks for what it may have created, before it is sent again.

    Raises:
        MlflowException: the store refuses it, or is away for longer than `STORE_ANSWER_S`.
    """
    until, wait_s = time.monotonic() + STORE_ANSWER_S, 0.2
    while True:
        try:
            with _sent_once():
                return make()
        except MlflowException as error:
            if not is_passing(error) or time.monotonic() + wait_s > until:
                raise
        time.sleep(wait_s)
        wait_s *= 2
        if (found := find()) is not None:
            return found


@contextmanager
def _sent_once() -> Iterator[None]:
    with _once, _environment_kept(RETRIES):
        os.environ[RETRIES] = "0"
        yield


@contextmanager
def _environment_kept(name: str) -> Iterator[None]:
    """Gives a variable of the environment its former value at the end."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def store_away(client: Client, error: BaseException) -> StoreAway:
    """The error of a request that a store did not answer, in words."""
    return StoreAway(f"tracking store {address_of(client)} cannot be used: {why_away(error)}")


def is_passing(error: BaseException) -> bool:
    """Whether an error is temporary: the store is away, overloaded or locked."""
    if isinstance(error, MlflowException):
        # A proxy answers like this when the server behind it is away.
        is_foreign = str(error.message).startswith("API request to endpoint")
        return is_foreign or error.error_code not in _LASTING | DENIED
    away = (requests.RequestException, ConnectionError, TimeoutError, *DATABASE_LOST, StoreAway)
    return isinstance(error, away)


def why_away(error: BaseException) -> str:
    """Why a request did not reach the store, in a few words."""
    if isinstance(error, StoreAway):
        return str(error)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, requests.exceptions.RetryError):
        status = re.search(r"too many (\d+) error", str(cause))
        return f"it answers {status[1]}" if status else one_line(cause)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"it answers {error.response.status_code} {error.response.reason}"
    if refused := _REFUSED.match(str(error)):  # with a text, or a page of many lines
        return f"it answers {refused['status']}" + (
            f": {refused['text']}" if refused["text"] else ""
        )
    if str(error).startswith("API request to endpoint was successful but"):
        return "it does not answer as MLflow does"
    if isinstance(cause, requests.Timeout):
        return "it does not answer in time"
    if isinstance(cause, requests.ConnectionError):
        return "nothing answers there"
    if "database is locked" in str(error):
        return "its database is locked"
    return reason(cause) if isinstance(cause, sa.exc.DBAPIError) else one_line(error)


def awaited(request: Callable[[], Made]) -> Made:
    """Makes a repeatable request until the store answers; returns the result.

    Raises:
        PipelineError: the store was away for `AWAY_S`.
        MlflowException: the store refuses the request.
    """
    until, wait_s = time.monotonic() + AWAY_S, 0.5
    while True:
        try:
            return request()
        except Exception as error:
            if not is_passing(error):
                raise
            if time.monotonic() > until:
                raise PipelineError(
                    f"the store has been away for {AWAY_S:g} s: {why_away(error)}"
                ) from error
            if wait_s == 0.5:
                log.warning("The store is away and is waited for: %s", why_away(error))
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 5.0)


def repeatable(write: Callable[[], object], tries: int = 3) -> None:
    """Makes a write that may have been made already, by an earlier try or another process.

    The store then refuses a duplicate; if it still does so at the last try, it has the value.

    Raises:
        MlflowException: the store refuses it for another reason, or is away.
    """
    for left in reversed(range(tries)):
        try:
            write()
            return
        except MlflowException as error:
            if not any(words in str(error).lower() for words in _REPEATED):
                raise
            if not left:
                return
            time.sleep(0.1)


def experiment(client: Client, name: str, root: str | None = None) -> str:
    """The id of the experiment with that name; creates it if it is missing.

    A new one keeps its artefacts below `root`, if given (`artifact_location`).

    Raises:
        RequestError: the experiment was deleted, the store refuses the name, the driver of its
            artefacts is not installed, or the experiment keeps them elsewhere than below `root`,
            or on another machine.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        location = artifact_location(str(client.tracking_uri), name, root)
        require_driver(location or "")
        try:
            return client.create_experiment(
                name,
                artifact_location=location,
                # Makes the UI open its view for training runs rather than for language models.
                tags={EXPERIMENT_KIND: "custom_model_development"},
            )
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise RequestError(f"tracking.experiment={name}: {reason(error)}") from error
    _require_active(found)
    _require_place(client, name, str(found.artifact_location), root)
    require_driver(str(found.artifact_location))
    return str(found.experiment_id)


def _require_active(found: Experiment) -> None:
    if found.lifecycle_stage != "active":
        raise RequestError(
            f"tracking.experiment={found.name} was deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another name"
        )


def require_driver(location: str) -> None:
    """Checks that the package by which MLflow reaches a place of artefacts is installed.

    Raises:
        RequestError: with the command that installs it.
    """
    module, package = _DRIVERS.get(urlsplit(location).scheme, ("", ""))
    try:
        is_there = not module or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that the module is in
        is_there = False
    if not is_there:
        raise RequestError(
            f"artefacts in {hide(location)}: their driver is not installed: pip install {package}"
        )


def _require_place(client: Client, name: str, location: str, root: str | None) -> None:
    """Checks that this machine can write to where an existing experiment keeps its artefacts."""
    address = str(client.tracking_uri)
    if root is not None and location == artifact_location(address, name, root):
        return  # whoever makes the experiment makes its folder later
    if root is not None:
        raise RequestError(
            f"tracking.artifact_root={hide_in_place(root)}: experiment {name} has its artefacts in "
            f"{hide_in_place(location)}; "
            "leave the key out, or choose another experiment with tracking.experiment=…"
        )
    parts = urlsplit(location)
    if not is_database(address) or not _is_path(parts):
        return
    folder = _path(parts)
    mine = artifact_root(address) if address.startswith("sqlite") else None
    if folder.parent != mine and not (folder.is_dir() or folder.parent.is_dir()):
        raise RequestError(
            f"experiment {name} keeps its artefacts in {folder}, which is not on this machine; "
            "mount that folder here, or choose another experiment with tracking.experiment=… and "
            "tracking.artifact_root=…"
        )


def experiment_name(config: Config) -> str:
    """The experiment's name: `tracking.experiment`, MLflow's variable, or the data set's name.

    Raises:
        RequestError: MLFLOW_EXPERIMENT_ID does not exist, or contradicts MLFLOW_EXPERIMENT_NAME.
    """
    named, number = os.environ.get(EXPERIMENT), os.environ.get(EXPERIMENT_ID)
    if config.tracking.experiment or not (named or number):
        return config.tracking.experiment or config.choices.dataset
    if not number:
        return str(named)
    if config.tracking.offline:
        raise RequestError(
            f"{EXPERIMENT_ID}={number}: with tracking.offline=true there is no store to tell "
            "its name; give it with tracking.experiment=…"
        )
    try:
        found = str(connect(config.tracking.uri).get_experiment(number).name)
    except MlflowException as error:
        raise RequestError(
            f"{EXPERIMENT_ID}={number}: there is no such experiment; unset it, or choose one "
            "with tracking.experiment=…"
        ) from error
    if named and named != found:
        raise RequestError(
            f"{EXPERIMENT_ID}={number} is {found}, but {EXPERIMENT}={named}; unset one of them"
        )
    return found


def experiment_names(client: Client, only: str | None = None) -> dict[str, str]:
    """The names of all experiments that are not deleted, or of the one named `only`, by id.

    Raises:
        RequestError: that one was deleted.
    """
    if only is not None:
        found = client.get_experiment_by_name(only)
        if found is None:
            return {}
        _require_active(found)
        return {str(found.experiment_id): only}
    return {found.experiment_id: found.name for found in _experiments(client)}


def tag_experiment(client: Client, experiment_id: str, key: str, value: str) -> None:
    """Gives an experiment a tag, in place of one of that key."""
    client.set_experiment_tag(experiment_id, key, value)


def artifact_folders(client: Client) -> dict[str, Path]:
    """The folders of artefacts of all experiments that keep them on a disk, by experiment."""
    found = {one.name: urlsplit(one.artifact_location) for one in _experiments(client)}
    return {name: _path(parts) for name, parts in found.items() if _is_path(parts)}


def _is_path(parts: SplitResult) -> bool:
    return parts.scheme in ("", "file")


def _path(parts: SplitResult) -> Path:
    return Path(url2pathname(parts.path))


def _experiments(client: Client) -> Iterator[mlflow.entities.Experiment]:
    """All experiments that are not deleted."""
    token = None
    while True:
        page = client.search_experiments(max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def fetch(address: str, store: str | None = None) -> Path:
    """The local path of an artefact, a file or a folder; downloads it if necessary.

    Addresses may be relative to their `store`, as `shown_address` names it; by default, it is the
    one used last.

    Raises:
        OSError: it is missing or incomplete.
        StoreAway: whether it is there cannot be told, or it cannot be read now.
    """
    is_local = address.startswith(("file:", "/"))
    folder = None if is_local else mkdtemp(dir=_downloads().name)
    try:
        get = mlflow.artifacts.download_artifacts
        return Path(get(address, dst_path=folder, tracking_uri=whole_store(store)))
    except (MlflowException, requests.RequestException) as error:
        if not is_local and _may_be_there(address, store):
            shown = hide_in_place(address)
            raise StoreAway(f"{shown} cannot be read now: {why_away(error)}") from error
        raise OSError(f"{address}: {error}") from error


def _may_be_there(address: str, store: str | None) -> bool:
    """Whether an artefact is there, as far as the place of the artefacts answers."""
    above, _, name = address.rpartition("/")
    try:
        return name in artifact_names(above, store)
    except Exception as error:  # each kind of place raises errors of its own driver
        return is_passing(error)


@cache
def _downloads() -> TemporaryDirectory[str]:
    """The folder of downloads, which is removed when the process ends."""
    return TemporaryDirectory(prefix="pipeline-")


def artifact_names(address: str, store: str | None = None) -> set[str]:
    """The names of the files and folders at an address of artefacts in a store, as in `fetch`."""
    listed = mlflow.artifacts.list_artifacts(artifact_uri=address, tracking_uri=whole_store(store))
    return {PurePosixPath(found.path).name for found in listed}  # MLflow prefixes the folder's name


def _require_answer(uri: str) -> None:
    """Asks within `STORE_ANSWER_S`; MLflow itself would retry for minutes before it gives up.

    Raises:
        RequestError: with the reason.
    """
    look: Callable[[], Refusal | None] | None = None
    if is_server(uri):
        look = partial(_ask_server, uri)
    elif is_database(uri):
        look = partial(_ask_database, uri)
    if look is None:
        return
    ways = (requests.RequestException, sa.exc.SQLAlchemyError, *STORE_ERRORS, ImportError)
    try:
        refused = answered(look, STORE_ANSWER_S)
    except (TimeoutError, *ways) as error:
        refused = no_answer(error, uri, within_s=STORE_ANSWER_S)
    if refused:
        raise RequestError(
            f"tracking store {without_password(uri)} cannot be used: {refused.says}; "
            f"{refused.mend}, or choose another with tracking.uri=… (default {DEFAULT_URI})"
        )


def _ask_server(uri: str) -> Refusal | None:
    until, lost = time.monotonic() + STORE_ANSWER_S - 1, False
    while True:
        try:
            answer = ask(uri, within_s=max(1.0, until - time.monotonic()))
        except requests.ConnectionError:
            if lost or time.monotonic() > until:
                raise
            lost = True  # a single answer may get lost
            continue
        if answer.status_code not in TRY_AGAIN or time.monotonic() > until:
            return refusal(answer, uri)
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))


def _ask_database(uri: str) -> Refusal | None:
    engine = sa.create_engine(uri)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            try_to_write(connection)
    engine.dispose()
    return None


def answered(look: Callable[[], Made], within_s: float) -> Made:
    """Returns or raises what `look` does; if that takes too long, it continues in the background.

    Raises:
        TimeoutError: it took longer than `within_s` seconds.
    """
    answers: queue.SimpleQueue[Made | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(look())
        except BaseException as error:
            answers.put(error)

    Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=within_s)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def ask(address: str, *, within_s: float, path: str = _ONE_EXPERIMENT) -> requests.Response:
    """Asks a server once, with the credentials and certificates that MLflow would use.

    Raises:
        requests.RequestException: it did not answer.
    """
    try:
        return http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(address),  # type: ignore[no-untyped-call]
            path,
            "GET",
            max_retries=0,
            timeout=within_s,
            retry_codes=(),
            raise_on_status=False,
        )
    except MlflowException as error:
        cause = error.__cause__ or error.__context__
        raise cause if isinstance(cause, requests.RequestException) else error from None


def server_version(address: str, *, within_s: float) -> str | None:
    """The version of MLflow at a server; None if it does not say, as behind some proxies."""
    try:
        answer = ask(address, within_s=within_s, path="/version")
    except (requests.RequestException, MlflowException):
        return None
    told = answer.text.strip()
    return told if answer.ok and re.fullmatch(r"\d+\.[\w.+-]+", told) else None


@dataclass(frozen=True)
class Refusal:
    """Why a store cannot be used, and what to do about it."""

    says: str
    mend: str = "start it, correct its address"


def no_answer(error: Exception, address: str, *, within_s: float) -> Refusal:
    """Why a store did not answer, or cannot be opened, in words."""
    if isinstance(error, TimeoutError | requests.Timeout):
        return Refusal(f"no answer within {within_s:g} s")
    is_met = isinstance(error, requests.exceptions.SSLError | requests.exceptions.ProxyError)
    if isinstance(error, requests.ConnectionError) and not is_met:
        return Refusal("nothing answers there")
    if not address.startswith("sqlite"):
        if isinstance(error, DATABASE_LOST):
            return Refusal(reason(error))
        return Refusal(reason(error), "correct that")
    if "locked" in str(error):
        return Refusal(reason(error), "try again when the process that writes to it has ended")
    mend = "check that it is a database, and that you may write to it and to its folder"
    return Refusal(reason(error), mend)


def refusal(answer: requests.Response, address: str) -> Refusal | None:
    """Why a server refuses requests, in words; None if it does not."""
    if any(one.status_code in CHANGES_METHOD for one in answer.history):
        to = hide(answer.url.partition("?")[0].partition("/api/")[0])
        return Refusal(f"it redirects to {to}", "use that address")
    if answer.ok and answer.text.lstrip().startswith("{"):
        return None
    code = f"it answers {answer.status_code}"
    if answer.status_code == 401:
        given = [name for name in _CREDENTIALS if os.environ.get(name)]
        if given or "@" in urlsplit(address).netloc:
            source = " and ".join(given) or "the address"
            return Refusal(
                f"{code}: it does not accept the credentials of {source}", "correct them"
            )
        says = f"{code}: it asks for a user"
        return Refusal(says, "set MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN")
    if answer.status_code == 403:
        if any(words in answer.text[:500].lower() for words in _FOREIGN_HOST):
            host = urlsplit(address).netloc.rpartition("@")[2]
            says = f"{code}: it does not know itself by the name {host}"
            return Refusal(says, f"start it with mlflow server --allowed-hosts '{host},…'")
        says = f"{code}: this user may not use it"
        return Refusal(says, "ask its owner for permission, or use another user's credentials")
    if answer.status_code in TRY_AGAIN:
        says = f"{code} {answer.reason}: it is starting, overloaded, or without its database"
        return Refusal(says, "try again when it is ready")
    return Refusal(f"{code} {answer.reason}", "check that it is an MLflow server")


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


def of_another_version(tables: Tables, address: str) -> Refusal | None:
    """Why tables that another version of MLflow has made cannot be used; None if they can."""
    if tables.revision in (None, tables.wanted):
        return None
    older = f"back it up, then: mlflow db upgrade {shlex.quote(without_password(address))}"
    newer = "it was written by a newer MLflow: use that version, or another store"
    return Refusal(
        f"tables of revision {tables.revision}, MLflow {VERSION} needs {tables.wanted}",
        older if tables.is_older else newer,
    )


def _other_version(address: str) -> str | None:
    """What is said of a database of another version; MLflow calls a newer one out of date."""
    if is_database(address):
        engine = sa.create_engine(address, poolclass=sa.NullPool)
        with suppress(sa.exc.SQLAlchemyError), engine.connect() as connection:
            if refused := of_another_version(tables_in(connection), address):
                return f"{refused.says}; {refused.mend}"
    return None


@contextmanager
def _alone(address: str) -> Iterator[None]:
    file = sqlite_file(address)
    if file is None:
        yield
        return
    with FileLock(f"{file}.lock"):
        yield
