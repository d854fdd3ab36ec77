"""Where commands print their tables."""

from __future__ import annotations

import os

from rich.console import Console

FILE_COLUMNS = 200  # of a file or pipe: wide enough that no cell is broken into lines


def standard_output() -> Console:
    """The terminal, or a file or pipe, for which COLUMNS may say how wide lines may be."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_COLUMNS
    return console
