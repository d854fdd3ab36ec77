from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.tracking import heartbeat
from pipeline.tracking.heartbeat import (
    Pulse,
    beating,
    pulse,
    signs,
)
from pipeline.tracking.values import (
    BEAT,
    BEAT_HOST,
    BEAT_PID,
    BEAT_STARTED,
)

ELSEWHERE = "another machine"


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


@contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """One that lives until it is ended, and the tags that it would give a run."""
    said = (
        "import json, sys\n"
        "from pipeline.tracking.heartbeat import signs\n"
        "print(json.dumps(signs()), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", said], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


class Store:
    """Notes beats, and may refuse them."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.beats: list[str] = []
        self.came = threading.Semaphore(0)
        self.refuses = refuses

    def note(self, beat: str) -> None:
        self.beats.append(beat)
        self.came.release()
        if self.refuses:
            raise ConnectionError("the server is away")

    def asked(self, ends: bool) -> None:
        raise AssertionError("no beat went astray: the run need not be asked for")


def test_this_process_lives() -> None:
    assert pulse(signs()) is Pulse.ALIVE


def test_a_process_of_this_machine_lives_however_old_its_beat() -> None:
    assert pulse(signs() | {BEAT: ago(3600)}) is Pulse.ALIVE


@pytest.mark.slow
def test_a_stopped_process_lives_and_a_killed_one_is_gone_at_once_even_unburied() -> None:
    with another_process() as (process, tags):
        assert pulse(tags) is Pulse.ALIVE
        process.send_signal(signal.SIGSTOP)
        assert pulse(tags | {BEAT: ago(3600)}) is Pulse.ALIVE
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet waited for
        assert pulse(tags) is Pulse.GONE
    assert pulse(tags) is Pulse.GONE


def test_a_process_that_took_over_the_number_is_another_one() -> None:
    assert pulse(signs() | {BEAT_STARTED: "1"}) is Pulse.GONE


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *((30, Pulse.ALIVE), (-30, Pulse.ALIVE), (-600, Pulse.ALIVE)),
        *((90, Pulse.SILENT), (7200, Pulse.SILENT), (100_000, Pulse.GONE)),
    ],
)
def test_of_another_machine_only_a_beat_older_than_clocks_differ_tells_that_it_is_gone(
    seconds: float, expected: Pulse
) -> None:
    assert pulse(signs() | {BEAT_HOST: ELSEWHERE, BEAT: ago(seconds)}) is expected


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {BEAT: "yesterday", BEAT_HOST: ELSEWHERE},
        {BEAT: "2026-01-01T00:00:00+00:00"},
        signs() | {BEAT_PID: "mine"},
    ],
)
def test_without_a_readable_heartbeat_nothing_is_known(tags: dict[str, str]) -> None:
    assert pulse(tags) is Pulse.UNKNOWN


def test_only_a_beat_that_is_old_tells_when_a_run_fell_silent() -> None:
    assert heartbeat.fell_silent(signs()) is None
    assert heartbeat.fell_silent({}) is None
    assert heartbeat.fell_silent({BEAT: "yesterday"}) is None
    old = "2026-01-01T00:00:00+00:00"
    assert heartbeat.fell_silent({BEAT: old}) == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("refuses", [False, True])
def test_beats_come_until_the_block_ends_whether_they_arrive_or_not(
    refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.01)
    store: Any = Store(refuses=refuses)
    with beating("a run", store.note, store.asked):
        assert all(store.came.acquire(timeout=30) for _ in range(3))
    count = len(store.beats)
    assert [thread.name for thread in threading.enumerate() if "heartbeat" in thread.name] == []
    assert datetime.fromisoformat(store.beats[-1]).tzinfo == UTC
    assert len(store.beats) == count


def test_an_error_of_the_block_comes_through_and_ends_the_beats() -> None:
    store: Any = Store()
    with pytest.raises(ZeroDivisionError), beating("a run", store.note, store.asked):
        1 / 0  # noqa: B018
    assert [thread.name for thread in threading.enumerate() if "heartbeat" in thread.name] == []
