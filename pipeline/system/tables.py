"""CSV text whose cells no spreadsheet takes for formulas. Pure."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from contextlib import suppress
from io import StringIO
from typing import Any

# A spreadsheet reads a cell that starts with one of these as a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_cell(value: Any) -> Any:
    """Makes a value safe as a cell of a CSV file: text that would be a formula gets an apostrophe.

    Numbers stay as they are, even as text (`-1`).
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    with suppress(ValueError):
        return value if math.isfinite(float(value)) and value == value.strip() else f"'{value}"
    return f"'{value}"


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV text; a missing value (None) is an empty cell."""
    text = StringIO(newline="")
    csv.writer(text).writerows(map(csv_cell, row) for row in rows)
    return text.getvalue()
