from __future__ import annotations

import errno
import logging
import os
from io import StringIO

import pytest

from pipeline.system.terminal import tell_unwritable_logs
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
