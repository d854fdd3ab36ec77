"""Where commands print their tables."""

from __future__ import annotations

import os

from rich.console import Console

FILE_COLUMNS = 200  # of a file or pipe: wide enough that no cell is broken into lines


class _Output(Console):
    """Leaves it to the command to say how it ends when nobody reads what is printed any more."""

    def on_broken_pipe(self) -> None:
        """Passes the BrokenPipeError on, where rich would exit with 1."""
        raise  # noqa: PLE0704, called where rich has caught it


def standard_output() -> Console:
    """The terminal, or a file or pipe, for which COLUMNS may say how wide lines may be."""
    console = _Output(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_COLUMNS
    return console
