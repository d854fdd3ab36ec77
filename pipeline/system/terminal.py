"""The terminal: where commands print, and where native libraries do not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console

FILE_COLUMNS = 200  # of a file or pipe: wide enough that no cell is broken into lines


class _Output(Console):
    """Leaves it to the command to say how it ends when nobody reads what is printed any more."""

    def on_broken_pipe(self) -> None:
        """Passes the BrokenPipeError on, where rich would exit with 1."""
        raise  # noqa: PLE0704, called where rich has caught it


def standard_output() -> Console:
    """The terminal, or a file or pipe, for which COLUMNS may say how wide lines may be.

    Texts are printed as they are: the name of a run may be `[/]`.
    """
    console = _Output(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_COLUMNS
    return console


@contextmanager
def native_messages_to(path: Path) -> Iterator[TextIO]:
    """While open, appends all of stderr to a file; yields what still prints on the terminal.

    TensorFlow's native library prints when it is imported, whatever it is told, and so do the
    decoders of pictures when a file is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
            yield os.fdopen(terminal, "w", closefd=False) if _is_native(sys.stderr) else sys.stderr
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _is_native(stream: TextIO) -> bool:
    """Whether a stream writes to the process's own stderr and was not put in its place."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False
