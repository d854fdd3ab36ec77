"""Addresses of stores and of their experiments' artefacts. Does not import MLflow.

MLflow's environment variables name stores, experiments and runs.
"""

from __future__ import annotations

import hashlib
import os
import re
from os.path import abspath
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from pipeline.system.errors import RequestError
from pipeline.system.folders import require_writable
from pipeline.system.secrets import credentials, hide

if TYPE_CHECKING:
    from pipeline.config.schema import Config, Tracking  # a pool's process needs neither

DEFAULT_URI = "sqlite:///mlflow.db"
TRACKING_URI = "MLFLOW_TRACKING_URI"
EXPERIMENT, EXPERIMENT_ID = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"
ADOPTED_RUN = "MLFLOW_RUN_ID"
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # MLflow reads it before each request
# Settings of MLflow that it reads from the environment. Values that the user has set stay.
MLFLOW_DEFAULTS = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # notes on migrations and the like are not for users
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one bar per file
    # MLflow's 7 retries take 4 minutes, during which a command would hang without a message.
    # These take 3 seconds, half a second each; records of a run are retried anyway.
    RETRIES: "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # may ask for an hour's wait
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
# These override the environment.
MLFLOW_ALWAYS = {
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # our models do not need it
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would show the store's password
}
_ARTIFACTS = "mlartifacts"
_PLAIN = re.compile(r"[\w-][\w. -]{0,59}")  # valid in any file system and any address
# `file:` begins an address of SQLite's own, as in sqlite:///file:m.db?uri=true.
_SQLITE = re.compile(
    r"sqlite(?P<driver>\+\w+)?:///"
    r"(?P<uri>file:(?=.*[?&]uri=(?i:true|t|yes|y|on|1)(?:&|$)))?"
    r"(?P<path>[^?]*)"
)
_ENCODED = re.compile(r"%[0-9a-fA-F]{2}")
_ENDS_CREDENTIALS = re.compile(r"[\s#?/\\\[\]]")


def store_address(uri: str | None) -> str:
    """The address of the tracking store: `tracking.uri`, MLFLOW_TRACKING_URI, or the default."""
    return uri or os.environ.get(TRACKING_URI) or DEFAULT_URI


def adopted_run_id() -> str | None:
    """The id of the run that `mlflow run` has opened for this command (MLFLOW_RUN_ID)."""
    return os.environ.get(ADOPTED_RUN) or None


def require_address(address: str) -> None:
    """Refuses what cannot be the address of a store.

    Raises:
        RequestError: with the address that was probably meant.
    """
    sqlite, meant, why = _SQLITE.match(address), "", ""
    if sqlite and sqlite["path"] in ("", ":memory:"):
        why, meant = "a database in memory is gone when the run ends", DEFAULT_URI
    elif address.startswith("sqlite:") and not sqlite:
        why, meant = "a file follows three slashes", re.sub(r":/*", ":///", address, count=1)
    elif re.match(r"postgres(\+\w+)?:", address):
        meant = address.replace("postgres", "postgresql", 1)
    elif re.match(r"https?:/?[^/]", address):
        meant = re.sub(r":/?", "://", address, count=1)
    elif re.match(r"[\w.-]+:\d+(/|$)", address):
        why, meant = "a server's address begins with http:// or https://", f"http://{address}"
    elif "://" not in address and Path(address).suffix in (".db", ".sqlite", ".sqlite3"):
        why, meant = "it is a file", f"sqlite:///{address}"
    if meant:
        told = f"{why}; write" if why else "write"
        raise RequestError(f"tracking store {hide(address)}: {told} tracking.uri={hide(meant)}")
    if is_server(address):
        _require_sendable(address)


def _require_sendable(address: str) -> None:
    """Refuses a user or password that would not reach a server as it is.

    From an address, others than ASCII's characters are sent in an encoding that MLflow's server
    does not read. A message of the library that meets such an address shows a part of it.
    """
    given = credentials(address)
    if _ENDS_CREDENTIALS.search(given) or not unquote(given).isascii():
        raise RequestError(
            f"tracking store {hide(address)}: its user or password has a character that an "
            "address cannot have; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "instead, which take any"
        )


def sqlite_file(address: str) -> Path | None:
    """The file of an SQLite store; None for another store."""
    sqlite = _SQLITE.match(address)
    if sqlite is None or sqlite["path"] in ("", ":memory:"):
        return None
    return Path(unquote(sqlite["path"]))


def is_server(address: str) -> bool:
    """Whether a store is a tracking server."""
    return address.startswith(("http://", "https://"))


def is_database(address: str) -> bool:
    """Whether a store is a database that this process opens itself."""
    is_other = is_server(address) or address.startswith(("file:", "databricks"))
    return "://" in address and not is_other


def whole_address(address: str) -> str:
    """The address of a store with the whole path of an SQLite file, which is the same anywhere.

    What follows a question mark is no part of a path, and `%20` is decoded: in a folder with these
    in its path, the address stays as it is.
    """
    sqlite, here = _SQLITE.match(address), str(Path().absolute())
    if sqlite is None or sqlite_file(address) is None or "?" in here or _ENCODED.search(here):
        return address
    # For sqlite:///file:/data/m.db, MLflow would make a folder `file:` if no driver is named.
    driver = sqlite["driver"] or ("+pysqlite" if sqlite["uri"] else "")
    path = abspath(sqlite["path"])  # noqa: PTH100  (leaves links, as SQLAlchemy does)
    return f"sqlite{driver}:///{sqlite['uri'] or ''}{path}{address[sqlite.end() :]}"


def folder_name(experiment: str) -> str:
    """The name of an experiment's folder: the experiment's name, or a safe variant of it.

    `../a b` → `_a b-5f70bf18`. Different names have different folders.
    """
    if _PLAIN.fullmatch(experiment):
        return experiment
    words = re.sub(r"[^\w. -]+", "_", experiment).lstrip(". ")[:50]
    return f"{words}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"


def artifact_location(address: str, experiment: str, root: str | None = None) -> str | None:
    """Where a new experiment keeps its artefacts; None if the server decides.

    That is below `root` (`tracking.artifact_root`), else beside the file of an SQLite store.

    Raises:
        RequestError: MLflow could not read them there, or a database does not say where.
    """
    if root is not None:
        return f"{_root_address(root)}/{quote(folder_name(experiment))}"
    if _SQLITE.match(address):
        return (artifact_root(address) / folder_name(experiment)).as_uri()
    if not is_database(address):
        return None
    shown = hide(address)
    raise RequestError(
        f"tracking store {shown}: a database does not say where artefacts are kept, and on this "
        "machine other hosts would not find them; give a place that all can reach, as in "
        "tracking.artifact_root=/shared/mlartifacts or s3://bucket/mlartifacts, or start `mlflow "
        f"server --backend-store-uri {shown} --artifacts-destination /shared/mlartifacts` and use "
        "its address as tracking.uri"
    )


def local_artifacts(tracking: Tracking, experiment: str) -> Path | None:
    """The folder of a new experiment's artefacts; None if it is not on this machine, or unknown.

    Raises:
        RequestError: MLflow could not read them there.
    """
    address, root = store_address(tracking.uri), tracking.artifact_root
    if tracking.offline or (root is None and not _SQLITE.match(address)):
        return None
    location = urlsplit(artifact_location(address, experiment, root) or "")
    return Path(unquote(location.path)) if location.scheme == "file" else None


def require_artifacts_writable(config: Config) -> None:
    """Checks that a new run could write its artefacts, if they are kept on this machine.

    Only the store knows the folder of an experiment given by its id, or by a run.

    Raises:
        RequestError: the folder is read-only, full, or not a folder.
    """
    named = config.tracking.experiment or os.environ.get(EXPERIMENT)
    if adopted_run_id() or (os.environ.get(EXPERIMENT_ID) and not named):
        return
    if folder := local_artifacts(config.tracking, named or config.choices.dataset):
        require_writable(folder, holds="the artefacts of runs")


def artifact_root(address: str) -> Path:
    """The folder below which a local store's experiments keep their artefacts.

    Raises:
        RequestError: its path has what looks like an encoded character (`%20`); MLflow decodes it
            once too often and would not find the artefacts again.
    """
    if _SQLITE.match(address) is None:
        return Path(_ARTIFACTS).absolute()
    file = sqlite_file(address)
    beside = file.parent if file else Path()
    return _readable((beside / _ARTIFACTS).absolute())


def _root_address(root: str) -> str:
    if re.match(r"file:(?!//[^/])", root):  # as relative as any path
        root = unquote(urlsplit(root).path)
    elif re.match(r"[\w+-]{2,}:", root):  # s3:, mlflow-artifacts:; no drive letter
        return root.rstrip("/")
    return _readable(Path(root).absolute()).as_uri()


def _readable(folder: Path) -> Path:
    if found := _ENCODED.search(str(folder)):
        raise RequestError(
            f"{folder.parent}: MLflow reads the {found[0]} in this folder's name as an encoded "
            "character and would not find its artefacts again; rename the folder, or work in "
            "another"
        )
    return folder
