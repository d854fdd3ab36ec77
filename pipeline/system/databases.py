"""Databases: addresses without passwords, reasons for errors, and Ctrl-C during a statement."""

from __future__ import annotations

import sqlalchemy as sa

from pipeline.system.errors import first_line
from pipeline.system.secrets import hide_in_place

_KEPT: set[str | None] = set()  # SQLite files whose connections outlive Ctrl-C
# Packages of drivers whose name for pip differs from the one they are imported by.
_PACKAGES = {"psycopg": "'psycopg[binary]'", "MySQLdb": "mysqlclient"}


def without_password(uri: str) -> str:
    """The address without its password, safe to show."""
    return hide_in_place(uri)


def keep_through_interrupts(uri: str) -> None:
    """Rolls back and keeps connections to this SQLite database when Ctrl-C interrupts them.

    SQLAlchemy would drop a connection that is interrupted during a statement. The database would
    then stay locked, for this process too, as long as the traceback refers to the statement.
    Other databases and other engines of the process are not affected.
    """
    try:
        url = sa.make_url(uri)
    except sa.exc.ArgumentError:
        return
    if url.get_backend_name() != "sqlite":
        return
    _KEPT.add(url.database)
    if not sa.event.contains(sa.Engine, "handle_error", _keep):
        sa.event.listen(sa.Engine, "handle_error", _keep)


def _keep(context: sa.ExceptionContext) -> None:
    is_stop = not isinstance(context.original_exception, Exception)
    if is_stop and context.engine is not None and context.engine.url.database in _KEPT:
        context.is_disconnect = False


def reason(error: BaseException) -> str:
    """An error of SQLAlchemy or a driver in one line; names the package of a missing driver."""
    missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    if isinstance(missing, ModuleNotFoundError) and missing.name:
        package = _PACKAGES.get(missing.name, missing.name)
        return f"its driver is not installed: pip install {package}"
    told = getattr(error, "orig", None) or error
    return first_line(str(told), otherwise=type(told).__name__)
