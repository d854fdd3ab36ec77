from __future__ import annotations

import errno
import io
import logging
import os
import pty
import sys
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from pipeline.system.terminal import (
    FILE_COLUMNS,
    LinesFormatter,
    as_line,
    as_text,
    leave_terminal,
    native_messages_to,
    on_terminal,
    plain_console,
    prepare_streams,
    printable,
    standard_output,
    tell_unwritable_logs,
)
from tests.commands import Terminal
from tests.stress.matrix import matrix


class Full(StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    monkeypatch.setattr(logging.Handler, "handleError", logging.Handler.handleError)
    tell_unwritable_logs()
    made = logging.Logger("of this test")
    made.addHandler(logging.StreamHandler(Full()))
    return made


@matrix(22)
def test_a_log_on_a_full_disk_costs_a_line_and_not_a_traceback_per_record(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        log.warning("record %s", number)
    told = capsys.readouterr().err
    assert told == "the terminal: this log is incomplete: No space left on device\n"


def test_a_record_that_is_wrong_itself_still_shows_where(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.warning("%d", "no number")
    assert "Traceback" in capsys.readouterr().err


def test_a_file_is_no_terminal_whatever_colours_ci_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    assert on_terminal(plain_console(Terminal()))
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
        assert not on_terminal(plain_console(StringIO()))
    monkeypatch.setattr(sys, "stdout", StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert standard_output().width == FILE_COLUMNS


def ledger() -> Table:
    table = Table("when", "decision", "version", "run", "why", title="ledger", caption="version 2")
    table.add_row("2026-11-28 22:36:51", Text("promoted"), "1 → 2", "613b18f8", "it is better")
    table.add_row("2026-11-28 22:44:21", Text("refused"), "", "c32845a1", "[accuracy] below 0.85")
    return table


def test_a_table_that_is_wider_than_the_terminal_is_shown_row_by_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    standard_output().print(ledger())
    assert capsys.readouterr().out.split("\n") == [
        "ledger",
        *("when: 2026-11-28 22:36:51", "decision: promoted", "version: 1 → 2", "run: 613b18f8"),
        *("why: it is better", ""),
        *("when: 2026-11-28 22:44:21", "decision: refused", "run: c32845a1"),
        *("why: [accuracy] below 0.85", ""),
        *("version 2", ""),
    ]


def test_a_table_loses_no_text_where_it_fits_by_breaking_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("area", "found")
    table.add_row("python", "/home/somebody/projects/pictures/.venv/bin/python")
    standard_output().print(table)
    told = capsys.readouterr().out
    assert "│" in told
    assert "…" not in told
    assert max(map(len, told.splitlines())) <= 40


@pytest.mark.parametrize("first", [0, 1])
def test_stderr_comes_back_when_the_last_of_several_redirections_ends(
    first: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blocks, files = [ExitStack(), ExitStack()], [tmp_path / "0.log", tmp_path / "1.log"]
    for block, file in zip(blocks, files, strict=True):
        block.enter_context(native_messages_to(file))
    os.write(2, b"both ")
    blocks[first].close()  # as two threads would end them
    os.write(2, b"one ")
    blocks[1 - first].close()
    os.write(2, b"none")
    assert capfd.readouterr().err == "none"
    assert [file.read_text() for file in files] == [["", "both one "], ["one ", "both "]][first]


def test_what_is_written_to_a_terminal_that_is_gone_is_dropped_also_after_a_redirection(
    tmp_path: Path,
) -> None:
    before = os.dup(2)
    ours, theirs = pty.openpty()
    try:
        os.dup2(theirs, 2)
        os.close(theirs)
        with native_messages_to(tmp_path / "native.log"):
            os.close(ours)
            leave_terminal()
            os.write(2, b"native")
        os.write(2, b"lost")
    finally:
        os.dup2(before, 2)
        os.close(before)
    assert (tmp_path / "native.log").read_text() == "native"


def test_a_stream_that_the_shell_has_closed_takes_what_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    prepare_streams()
    print("lost", flush=True)
    print("lost", file=sys.stderr, flush=True)
    assert sys.stdin.read() == ""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("iso-8859-1", "Δ in Köln", b"\\u0394 in K\xf6ln"),
        ("utf-8", "caf\udcff.png", b"caf\\udcff.png"),
    ],
)
def test_what_the_terminals_encoding_lacks_is_an_escape(
    encoding: str, text: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    prepare_streams()
    print(text, end="", flush=True)
    assert printed.getvalue() == shown


def test_a_name_that_is_no_utf8_can_be_shown() -> None:
    assert printable(Path(os.fsdecode(b"a\xff.png"))) == "a\\xff.png"


def test_a_name_is_stored_as_it_is_and_shown_without_controls() -> None:
    name = os.fsdecode(b"\xff\x1b[31m\n\xc2\x9b.png")
    assert as_text(Path(name)) == "\\xff\x1b[31m\n\x9b.png"
    assert printable(Path(name)) == "\\xff\\x1b[31m\\n\\x9b.png"


def test_a_line_of_the_log_holds_no_control_of_a_terminal() -> None:
    record = logging.makeLogRecord({"msg": "a\x1b[31m.png\nand %s", "args": ("\x07",)})
    assert LinesFormatter("%(message)s").format(record) == "a\\x1b[31m.png\nand \\x07"
    jobs = logging.makeLogRecord({"msg": "\t#0 : model=cnn\r\n\t#1"})  # as launchers list them
    assert LinesFormatter("%(message)s").format(jobs) == "\t#0 : model=cnn\n\t#1"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("می\N{ZERO WIDTH NON-JOINER}خواهم", "می\N{ZERO WIDTH NON-JOINER}خواهم"),
        ("👨\N{ZERO WIDTH JOINER}👩", "👨\N{ZERO WIDTH JOINER}👩"),
        ("9.41\N{NARROW NO-BREAK SPACE}AM.png", "9.41\N{NARROW NO-BREAK SPACE}AM.png"),
        ("a\nb\N{RIGHT-TO-LEFT OVERRIDE}", "a\\nb\\u202e"),
    ],
)
def test_a_name_becomes_one_line_that_keeps_its_joiners_and_spaces(name: str, line: str) -> None:
    assert as_line(name) == line
