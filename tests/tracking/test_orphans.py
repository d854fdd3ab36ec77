from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.tracking import orphans
from pipeline.tracking.heartbeat import (
    signs,
)
from pipeline.tracking.orphans import began, began_long_ago, close_orphan, running_runs, unheard
from pipeline.tracking.values import (
    BEAT,
    BEAT_HOST,
    BEAT_STARTED,
    DIRTY,
    RecordedRun,
    Status,
)

LONG_AGO = 1_700_000_000_000  # 14 November 2023, 22:13:20 UTC
CLIENT: Any = SimpleNamespace(tracking_uri="sqlite:///it's here.db")


def run(name: str, started: int = LONG_AGO, status: str = "RUNNING", **tags: str) -> RecordedRun:
    return RecordedRun(
        id=name, name="", experiment="e", status=Status(status), started=started, tags=tags
    )


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, RecordedRun]:
    """Runs as the store has them now, by id; it notes which are closed."""
    now: dict[str, RecordedRun] = {}

    def close(client: Any, one: RecordedRun, status: Status, error: str) -> None:
        assert error == "its process is gone"
        now[one.id] = run(one.id, status=status)

    monkeypatch.setattr(orphans, "by_id", lambda client, run_id: now[run_id])
    monkeypatch.setattr(orphans, "close", close)
    monkeypatch.setattr(orphans, "search", lambda client, query: iter(now.values()))
    return now


def test_running_runs_are_told_apart_by_their_heartbeats(store: dict[str, RecordedRun]) -> None:
    now = int(time.time() * 1000)
    minutes_ago = datetime.fromtimestamp(now / 1000 - 120, UTC).isoformat()
    store |= {
        one.id: one
        for one in (
            run("own", **signs()),
            run("alive", **signs()),
            run("gone", **{**signs(), BEAT_STARTED: "1"}),
            run("silent", **{**signs(), BEAT_HOST: "another", BEAT: minutes_ago}),
            run("abandoned", **{DIRTY: "false"}),
            run("young", now, **{DIRTY: "false"}),
            run("foreign"),
        )
    }
    found = running_runs(CLIENT, own="own")
    assert [one.id for one in found.alive] == ["alive"]
    assert [one.id for one in found.orphans] == ["gone", "abandoned"]
    assert [one.id for one in found.silent] == ["silent"]
    assert [one.id for one in found.unknown] == ["young", "foreign"]


def test_a_run_that_sent_another_heartbeat_or_ended_is_not_closed(
    store: dict[str, RecordedRun],
) -> None:
    quiet, heard, ended = (run(name, **{BEAT: "then"}) for name in ("quiet", "heard", "ended"))
    store |= {"quiet": quiet, "heard": run("heard", **{BEAT: "now"})}
    store["ended"] = run("ended", status="FINISHED", **{BEAT: "then"})
    assert unheard(CLIENT, [quiet, heard]) == [quiet]
    assert close_orphan(CLIENT, heard) is None
    assert close_orphan(CLIENT, ended) is None
    closed = close_orphan(CLIENT, quiet)
    assert closed is not None
    assert closed.status == Status.KILLED


def test_an_orphan_with_a_journal_here_is_closed_by_what_that_says(
    store: dict[str, RecordedRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    orphan, other = (run(name, folder=str(tmp_path / "mine")) for name in ("mine", "other"))
    store |= {"mine": orphan, "other": other}
    sent: list[Path] = []

    def send_journal(client: Any, folder: Path) -> None:
        sent.append(folder)
        store["mine"] = run("mine", status="FINISHED")

    monkeypatch.setattr(orphans, "run_in_journal", lambda folder: orphan)
    monkeypatch.setattr(orphans, "send_journal", send_journal)
    closed = close_orphan(CLIENT, orphan)
    assert closed is not None
    assert (closed.status, sent) == (Status.FINISHED, [tmp_path / "mine"])
    assert close_orphan(CLIENT, other) == run("other", status="KILLED")  # not its journal
    assert len(sent) == 1


@pytest.mark.parametrize("content", [None, b"", bytes(200), b'{"kind": "end"}\n'])
def test_an_orphan_whose_journal_has_lost_its_beginning_is_closed_as_killed(
    content: bytes | None, store: dict[str, RecordedRun], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "journal.jsonl").write_bytes(content)
    store["mine"] = run("mine", folder=str(tmp_path))
    assert close_orphan(CLIENT, store["mine"]) == run("mine", status="KILLED")


def test_when_a_run_began_is_known_and_a_day_is_long_ago() -> None:
    assert began(run("a")) == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert began_long_ago(run("a"))
    assert not began_long_ago(run("a", int(time.time() * 1000) - 86_000_000))
