"""Databases: addresses as they may be shown, why one cannot be used, and Ctrl-C while one is."""

from __future__ import annotations

import sqlalchemy as sa

from pipeline.system.errors import first_line
from pipeline.system.secrets import hide

# What pip knows a driver by, where that is not the name it is imported by.
_KEPT: set[str | None] = set()  # SQLite files whose connections outlive Ctrl-C
_PACKAGES = {"psycopg": "'psycopg[binary]'", "MySQLdb": "mysqlclient"}


def without_password(uri: str) -> str:
    """The address as it may be shown."""
    return hide(uri)


def keep_through_interrupts(uri: str) -> None:
    """Has connections to this SQLite database rolled back and kept when Ctrl-C interrupts them.

    SQLAlchemy would give up a connection that is interrupted in the middle of a statement. The
    database then stays locked, for this process too, as long as the traceback holds the statement.
    Other databases and other engines of the process are left alone.
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
    """What SQLAlchemy's or a driver's error says, in a line; which driver to install if none is."""
    missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    if isinstance(missing, ModuleNotFoundError) and missing.name:
        package = _PACKAGES.get(missing.name, missing.name)
        return f"its driver is not installed: pip install {package}"
    told = getattr(error, "orig", None) or error
    return first_line(str(told), otherwise=type(told).__name__)
