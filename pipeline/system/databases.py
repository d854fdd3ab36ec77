"""Addresses of databases: as they may be shown, and why one cannot be used."""

from __future__ import annotations

import sqlalchemy as sa

from pipeline.system.errors import first_line

# What pip knows a driver by, where that is not the name it is imported by.
_PACKAGES = {"psycopg": "'psycopg[binary]'", "MySQLdb": "mysqlclient"}


def without_password(uri: str) -> str:
    """The address as it may be shown."""
    try:
        return sa.make_url(uri).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return uri


def reason(error: BaseException) -> str:
    """What SQLAlchemy's or a driver's error says, in a line; which driver to install if none is."""
    missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    if isinstance(missing, ModuleNotFoundError) and missing.name:
        package = _PACKAGES.get(missing.name, missing.name)
        return f"its driver is not installed: pip install {package}"
    told = getattr(error, "orig", None) or error
    return first_line(str(told), otherwise=type(told).__name__)
