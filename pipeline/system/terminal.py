"""The terminal: prints the output of commands and keeps native libraries' messages away."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleRenderable
    from rich.progress import Progress
    from rich.table import Table

JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
FILE_COLUMNS = 200  # of a file or pipe: wide enough that no cell wraps
_WORD = 12  # columns of a terminal for a table's column of words; longer ones are broken

_led = threading.Lock()  # held while stderr is led elsewhere, or back
_places: list[int] = []  # the terminal, and where stderr is led in its place, the latest last


def prepare_streams() -> None:
    """Makes the standard streams take every text, whatever the shell has made of them.

    A closed one (`2>&-`) loses what is written to it. The others get as an escape what their
    encoding lacks: a character, or a byte of a file's name that is not in UTF-8.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115, as a stream
            os.set_inheritable(nothing.fileno(), True)  # it has the number of the closed one
            setattr(sys, name, nothing)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def as_text(file: Path | str) -> str:
    r"""The path as text that every format can store: bytes that are not UTF-8 become `\xff`."""
    try:
        return os.fsencode(file).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a list may name what no file can be called
        return as_line(str(file))


def printable(file: Path | str) -> str:
    """The path as one line for people: `as_text`, and no control of a terminal gets through."""
    return as_line(as_text(file))


def as_line(text: str) -> str:
    r"""A name as one line of text: what cannot be printed becomes `\n`, `\xff`, ….

    Spaces of all kinds stay, as in the names of macOS' screenshots, and the joiners that letters
    and emoji may need between them.
    """
    if text.isprintable():
        return text
    return "".join(
        one if _stays(one) else one.encode("unicode_escape").decode("ascii") for one in text
    )


def _stays(character: str) -> bool:
    is_space = unicodedata.category(character) == "Zs"
    return character.isprintable() or is_space or character in JOINERS


def as_lines(text: str) -> str:
    """A text of several lines, each as `as_line` makes it; tabs stay."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(as_line, line.split("\t"))) for line in lines)


class LinesFormatter(logging.Formatter):
    """Formats records of the log as text without controls of a terminal, as names may hold them."""

    def format(self, record: logging.LogRecord) -> str:
        """The formatted record, through `as_lines`."""
        return as_lines(super().format(record))


def leave_terminal() -> None:
    """Drops what would be written to a terminal that is gone, which would be an error."""
    for stream in (1, 2, *_places[:1]):
        if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)


def on_terminal(console: Console) -> bool:
    """Whether a console writes to a terminal.

    FORCE_COLOR and TTY_COMPATIBLE, which CI sets, make rich take a file for one.
    """
    return console.is_terminal and console.file.isatty()


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
        disable=not on_terminal(console),
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
        def print(self, *objects: Any, **options: Any) -> None:
            """Prints as rich does, and tables so that narrow terminals lose nothing of them."""
            super().print(*(_fitted(one, self) for one in objects), **options)

        def on_broken_pipe(self) -> None:
            """Passes the BrokenPipeError on to the command, where rich would exit with 1."""
            raise  # noqa: PLE0704, called where rich has caught it

    console = Output(highlight=False, markup=False, emoji=False)
    if not on_terminal(console) and "COLUMNS" not in os.environ:
        console.width = FILE_COLUMNS
    return console


def _fitted(shown: Any, console: Console) -> Any:
    """A table with all its text: row by row, a line per cell, if the terminal is too narrow."""
    from rich.table import Table

    if not isinstance(shown, Table):
        return shown
    for column in shown.columns:
        column.overflow = "fold"
    words = (
        max(console.measure(cell).minimum for cell in (column.header, *column.cells))
        for column in shown.columns
    )
    narrowest = 1 + sum(3 + min(_WORD, word) for word in words)
    return shown if narrowest <= console.width else _row_by_row(shown)


def _row_by_row(table: Table) -> ConsoleRenderable:
    """A line per cell, with its heading; cells without text are left out."""
    from rich.console import Group
    from rich.text import Text

    headings = [f"{column.header}: " if column.header else "" for column in table.columns]
    rows = []
    for row in zip(*(column.cells for column in table.columns), strict=True):
        cells = [
            Text.assemble(heading, cell)
            for heading, cell in zip(headings, row, strict=True)
            if str(cell)
        ]
        rows.append(Text("\n").join([*cells, Text()]))
    return Group(*(part for part in (table.title, *rows, table.caption) if part))


@contextmanager
def native_messages_to(path: Path) -> Iterator[TextIO]:
    """Redirects stderr to the end of a file; yields a stream that still writes to the terminal.

    TensorFlow's native library prints when it is imported, whatever its settings, and so do
    picture decoders when a file is damaged. Blocks may be nested, and overlap in several threads:
    stderr goes where the latest one leads it, and back to the terminal after the last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    with path.open("ab") as file:
        terminal = _lead_to(file.fileno())
        try:
            yield os.fdopen(terminal, "w", closefd=False) if _is_native(sys.stderr) else sys.stderr
        finally:
            _lead_back(file.fileno())


def _lead_to(place: int) -> int:
    """Makes `place` what descriptor 2 writes to; returns a descriptor of the terminal."""
    with _led:
        if not _places:
            _places.append(os.dup(2))
        _places.append(place)
        os.dup2(place, 2)
        return _places[0]


def _lead_back(place: int) -> None:
    with _led:
        _places.remove(place)
        os.dup2(_places[-1], 2)
        if len(_places) == 1:
            os.close(_places.pop())


def _is_native(stream: TextIO) -> bool:
    """Whether a stream writes to the process's own stderr rather than to a replacement."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False
