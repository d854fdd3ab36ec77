"""Checks that the tracking store is reachable, current and writable; never changes it.

Only of an SQLite file it can tell whether it is writable without changing it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa

from pipeline.system.databases import without_password
from pipeline.system.errors import RequestError, first_line, one_line
from pipeline.tracking.addresses import (
    DEFAULT_URI,
    artifact_root,
    is_database,
    is_server,
    require_address,
    sqlite_file,
    store_address,
)
from pipeline.tracking.client import (
    VERSION,
    Client,
    answered,
    artifact_folders,
    ask,
    no_answer,
    of_another_version,
    quiet_client,
    refusal,
    server_version,
    tables_in,
    try_to_write,
)
from pipeline.tracking.runs import search
from pipeline.tracking.values import Query, Status
from pipeline.verbs.doctor.findings import Finding, ok, problem, warning

ANSWER_S = 8.0  # for a server or database to answer
SEARCH_S = 4.0  # to look for damage in an SQLite file
BUSY_S = 2.0  # for another process to finish writing to an SQLite file
_ELSEWHERE = f"or choose another store with tracking.uri=… (default {DEFAULT_URI})"
_INTERRUPTED = "interrupted"  # as SQLite says it
CONNECT_TIMEOUT = {"postgresql", "mysql", "mariadb"}  # whose drivers take `connect_timeout`


@dataclass(frozen=True, kw_only=True)
class Store:
    """The finding about a store, and a client for its runs, None if it is unusable."""

    finding: Finding
    client: Client | None = None


def check_store(uri: str | None) -> Store:
    """Checks whether the store answers, is writable and has the tables of the installed MLflow."""
    address = store_address(uri)
    look = _kind(address)
    if look is None:
        says = f"{without_password(address)} is neither a server nor a database: not checked"
        return Store(
            finding=warning("store", says, f"set tracking.uri, for example to {DEFAULT_URI}")
        )
    try:
        require_address(address)
        return answered(partial(_guarded, look, address), ANSWER_S)
    except RequestError as error:
        return Store(finding=problem("store", str(error), f"correct it, {_ELSEWHERE}"))
    except TimeoutError:
        mend = "see whether its disk answers" if look is _sqlite else "start it"
        return _broken(address, f"did not answer within {ANSWER_S:g} s", f"{mend}, {_ELSEWHERE}")


def check_place(uri: str | None) -> Iterator[Finding]:
    """Checks whether artefacts written from this folder can be found again."""
    try:
        artifact_root(store_address(uri))
    except RequestError as error:
        yield problem("store", str(error), "mv it to a name without that, and cd there")


def _kind(address: str) -> Callable[[str], Store] | None:
    if is_server(address):
        return _server
    if not is_database(address):
        return None
    return _sqlite if address.startswith(("sqlite:", "sqlite+")) else _database


def _guarded(look: Callable[[str], Store], address: str) -> Store:
    try:
        return look(address)
    except requests.RequestException as error:
        found = no_answer(error, address, within_s=ANSWER_S)
        return _broken(address, found.says, f"{found.mend}, {_ELSEWHERE}")
    except Exception as error:
        said = first_line(str(getattr(error, "orig", None) or one_line(error)))
        return _broken(address, said, f"fix it, {_ELSEWHERE}")


def _broken(address: str, says: str, mend: str) -> Store:
    return Store(finding=problem("store", f"{without_password(address)}: {says}", mend))


def _server(address: str) -> Store:
    shown = without_password(address)
    answer = ask(address, within_s=ANSWER_S)
    if refused := refusal(answer, address):
        return _broken(address, refused.says, f"{refused.mend}, {_ELSEWHERE}")
    client = quiet_client(address)
    version = server_version(address, within_s=ANSWER_S)
    if version is None:
        return Store(finding=ok("store", f"{shown} answers"), client=client)
    says = f"{shown} answers: MLflow {version}"
    if version.split(".")[:2] == VERSION.split(".")[:2]:
        return Store(finding=ok("store", says), client=client)
    mend = "use the same version for server and client: see requirements.lock"
    return Store(finding=warning("store", f"{says}, here {VERSION}", mend), client=client)


def _sqlite(address: str) -> Store:
    url = sa.make_url(address)
    path = sqlite_file(address) or Path(":memory:")
    if not (path.exists() and path.stat().st_size):
        if path.absolute().parent.is_dir():
            return Store(
                finding=ok("store", f"{path}: does not exist yet; the first run creates it")
            )
        mend = f"mkdir -p {shlex.quote(str(path.parent))}, {_ELSEWHERE}"
        return _broken(address, f"no folder {path.parent}", mend)
    word = shlex.quote(str(path))
    if path.is_dir():  # Docker makes one where a file that is mounted is missing
        return _broken(address, "is a folder, not a file", f"rmdir {word}, {_ELSEWHERE}")
    # Opened in a mode that does not create it if it has just been deleted.
    url = url.set(database=path.absolute().as_uri(), query={"mode": "rw", "uri": "true"})
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": BUSY_S})
    damage = _damage(engine)
    if damage not in ("ok", _INTERRUPTED):
        mend = f"restore a backup; or sqlite3 {word} .recover | sqlite3 recovered.db; {_ELSEWHERE}"
        return _broken(address, f"damaged: {first_line(damage)}", mend)
    found = "is writable"
    if damage == _INTERRUPTED:
        look = f"sqlite3 {word} 'PRAGMA quick_check'"
        found += f" (its size takes longer than {SEARCH_S:g} s to search for damage: {look})"
    return _unwritable(engine, path, address) or _current(engine, address, found)


def _damage(engine: sa.Engine) -> str:
    """What SQLite finds wrong: "ok" if nothing, `_INTERRUPTED` if that takes too long.

    While another process keeps the file locked, nothing is found.
    Some versions of SQLite look at all pages before they can be interrupted, and go on meanwhile.
    """
    try:
        return answered(partial(_searched, engine, time.monotonic() + SEARCH_S), SEARCH_S)
    except TimeoutError:
        return _INTERRUPTED


def _searched(engine: sa.Engine, until: float) -> str:
    try:
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.set_progress_handler(lambda: time.monotonic() > until, 100)
            return str(connection.execute(sa.text("PRAGMA quick_check(1)")).scalar_one())
    except sa.exc.DatabaseError as error:
        return "ok" if "locked" in str(error.orig) else str(error.orig)


def _unwritable(engine: sa.Engine, path: Path, address: str) -> Store | None:
    try:
        with engine.connect() as connection:
            try_to_write(connection)
    except sa.exc.OperationalError as error:
        if "locked" not in str(error.orig):
            mend = f"chmod u+w {shlex.quote(str(path))} and its folder, {_ELSEWHERE}"
            return _broken(address, str(error.orig), mend)
        says = f"{path}: another process has been writing for {BUSY_S:g} s"
        return Store(finding=warning("store", says, "run doctor again when that is done"))
    return None


def _database(address: str) -> Store:
    named = sa.make_url(address).get_backend_name() in CONNECT_TIMEOUT
    limits = {"connect_timeout": round(ANSWER_S)} if named else {}
    engine = sa.create_engine(address, poolclass=sa.NullPool, connect_args=limits)
    return _current(engine, address, "answers")


def _current(engine: sa.Engine, address: str, found: str) -> Store:
    """Compares the revision of the tables with the one that the installed MLflow needs.

    `found` is what is known of the database already.
    """
    shown = without_password(address)
    with engine.connect() as connection:
        tables = tables_in(connection)
    if not tables.names:
        return Store(finding=ok("store", f"{shown}: no tables yet; the first run creates them"))
    if tables.revision is None:
        return _broken(address, "holds tables, but not MLflow's", f"name a database, {_ELSEWHERE}")
    if other := of_another_version(tables, address):
        return _broken(address, other.says, other.mend)
    if not tables.are_complete:
        return _broken(address, "half of its tables are missing", f"restore a backup, {_ELSEWHERE}")
    says = f"{shown} {found}; its tables are those of MLflow {VERSION} ({tables.revision})"
    return Store(finding=ok("store", says), client=quiet_client(address))


def artefacts(client: Client) -> Iterator[Finding]:
    """Finds experiments whose local folder of artefacts is missing.

    Only experiments with a finished run count, since artefacts are written when a run is closed.
    """
    for experiment, folder in artifact_folders(client).items():
        finished = Query(experiment=experiment, status=(Status.FINISHED,), limit=1)
        if not folder.is_dir() and list(search(client, finished)):
            says = f"{experiment}: its folder of artefacts is missing: {folder}"
            mend = f"move or link it back to {folder}: the store keeps absolute paths"
            yield warning("artefacts", says, mend)
