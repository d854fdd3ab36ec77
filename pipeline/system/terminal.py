"""The terminal: prints the output of commands and keeps native libraries' messages away."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

FILE_COLUMNS = 200  # of a file or pipe: wide enough that no cell wraps


def plain_console(stream: TextIO | None = None) -> Console:
    """A console that prints texts as they are, to `stream` or stderr."""
    from rich.console import Console  # imported here: it takes a tenth of the time to an error

    return Console(file=stream, stderr=True, highlight=False, markup=False, emoji=False)


def progress_bar(console: Console, *, before: str = "", after: str) -> Progress:
    """A bar with the time left, between two texts of its task's fields; only on a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn(before)] if before else []
    return Progress(
        *columns,
        BarColumn(bar_width=24),
        TextColumn(after),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def tell_unwritable_logs() -> None:
    """Reports an unwritable log once, in a line, instead of by a traceback per record."""
    told: set[str] = set()
    otherwise = logging.Handler.handleError

    def tell(handler: logging.Handler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            otherwise(handler, record)
            return
        place = str(getattr(handler, "baseFilename", "the terminal"))
        if place not in told:
            told.add(place)
            with suppress(OSError, ValueError):
                print(f"{place}: this log is incomplete: {error.strerror}", file=sys.stderr)

    logging.Handler.handleError = tell  # type: ignore[assignment]


def standard_output() -> Console:
    """A console on stdout; for a file or pipe, COLUMNS sets the width.

    Text is printed literally, without rich's markup: a run may be named `[/]`.
    """
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """Passes the BrokenPipeError on to the command, where rich would exit with 1."""
            raise  # noqa: PLE0704, called where rich has caught it

    console = Output(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_COLUMNS
    return console


@contextmanager
def native_messages_to(path: Path) -> Iterator[TextIO]:
    """Redirects stderr to the end of a file; yields a stream that still writes to the terminal.

    TensorFlow's native library prints when it is imported, whatever its settings, and so do
    picture decoders when a file is damaged.
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
    """Whether a stream writes to the process's own stderr rather than to a replacement."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False
