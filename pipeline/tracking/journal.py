"""The journal of a run: what it records goes to a file in its folder first, then to the store.

A record is a mapping that JSON can hold; its `kind` says what it is. Records are sent in order, and
each may be sent again, because a store takes the same record only once (`delivery.py`). The journal
is deleted when the store has everything. Does not import MLflow.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.system.errors import RequestError, one_line
from pipeline.system.folders import MODEL
from pipeline.system.secrets import has_hidden
from pipeline.tracking.addresses import sqlite_file
from pipeline.tracking.values import LOCAL_ID, MODEL_URI, RecordedRun, Status

Record = dict[str, Any]
MetricPoint = tuple[str, float, int, int]  # name of the metric, value, Unix time in ms, step

JOURNAL_FILE, SENT, LOCK = "journal.jsonl", "journal.sent", ".journal.lock"
# Kinds of records: the run as it was opened, its id in the store, what it logs, its end.
OPENING, OPENED = "opening", "opened"
BATCH, DATA, NOTED, END = "batch", "data", "note", "end"
MODEL_SAVED, ARTIFACTS, FILES = "model", "artifacts", "files"
SLOW = {MODEL_SAVED, ARTIFACTS, FILES}  # uploads, which may take minutes
MOST_POINTS = 1_000  # in one request
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0  # between attempts to reach a store that is away
STUCK_S = 30.0  # after which the store will probably not answer a request, unless that is `SLOW`
MULTIRUN = "multirun"  # the folder of sweeps
# The folders of runs, sweeps and jobs: by day and time, or as hydra.run.dir=outputs/mine says.
RUN_FOLDERS = (
    *("outputs", "outputs/*", "outputs/*/*"),
    *(f"{MULTIRUN}/*", f"{MULTIRUN}/*/*", f"{MULTIRUN}/*/*/*"),
)

log = logging.getLogger(__name__)


class Journal:
    """The journal in a run's folder. One process at a time has it open.

    Every record is one line, appended by one system call: a process that is killed leaves at most
    its last line incomplete, which counts as not recorded.

    Raises:
        RequestError: another process has it open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Waits for a second, since `is_open` holds the lock for a moment.
        self._lock = FileLock((folder / LOCK).absolute(), timeout=1, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise RequestError(f"{folder}: another process is recording or sending it") from None
        self._file = os.open(folder / JOURNAL_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._sent = os.open(folder / SENT, os.O_RDWR | os.O_CREAT, 0o666)
        self._end = _whole(folder / JOURNAL_FILE)
        os.ftruncate(self._file, self._end)
        if self._arrived() > self._end:  # after a power cut, which may shorten a file
            self.mark(self._end)

    def append(self, record: Record) -> int:
        """Writes a record; returns the position after it."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
        if os.write(self._file, line) != len(line):
            os.ftruncate(self._file, self._end)
            raise OSError(f"{self.folder / JOURNAL_FILE}: the disk is full")
        self._end += len(line)
        return self._end

    def mark(self, position: int) -> None:
        """Notes that everything before that position has arrived."""
        with suppress(OSError):  # if this fails, it is sent again, to no effect
            os.pwrite(self._sent, f"{position:020d}".encode(), 0)

    def unsent(self) -> list[tuple[int, Record]]:
        """The records that have not arrived, each with the position after it."""
        sent = self._arrived()
        return [(end, record) for end, record in _lines(self.folder / JOURNAL_FILE) if end > sent]

    def _arrived(self) -> int:
        told = os.pread(self._sent, 20, 0)
        return int(told) if told.isdigit() else 0

    def records(self) -> list[Record]:
        """All records."""
        return [record for _, record in _lines(self.folder / JOURNAL_FILE)]

    def delete(self) -> None:
        """Deletes the journal, whose records have all arrived."""
        for name in (SENT, JOURNAL_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the journal, so that other processes can open it."""
        for file in (self._file, self._sent):
            with suppress(OSError):
                os.close(file)
        self._lock.release()


def now() -> int:
    """Unix time in ms, as MLflow counts it."""
    return int(time.time() * 1000)


def sync_command(folder: Path) -> str:
    """The command that sends the journal in a folder."""
    path, here = folder.absolute(), Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return f"python -m pipeline sync {shlex.quote(f'folder={shown}')}"


def has_journal(folder: Path) -> bool:
    """Whether the folder has records that no store has."""
    return (folder / JOURNAL_FILE).exists()


def with_journals(root: Path) -> list[Path]:
    """The folders of runs below `outputs/` and `multirun/` that have a journal."""
    return sorted(
        path.parent for folder in RUN_FOLDERS for path in root.glob(f"{folder}/{JOURNAL_FILE}")
    )


def journals_of_jobs(sweep: Path) -> list[Path]:
    """The folders of a sweep's jobs that have a journal."""
    return sorted(path.parent for path in sweep.glob(f"*/{JOURNAL_FILE}"))


def is_open(folder: Path) -> bool:
    """Whether a process has the folder's journal open.

    Raises:
        OSError: this user cannot write there, and so cannot tell.
    """
    lock = FileLock((folder / LOCK).absolute(), timeout=0, thread_local=False)
    try:
        with lock:
            return False
    except Timeout:
        return True


def read_journal(folder: Path) -> list[Record]:
    """The records of a folder's journal, even while a process has it open."""
    return [record for _, record in _lines(folder / JOURNAL_FILE)]


def opened_at(folder: Path) -> str | None:
    """The address, without its password, of the store in which a journal's run was opened.

    None if no store has the run yet.
    """
    records = read_journal(folder)
    for record in records:
        if record["kind"] == OPENED:  # journals of earlier versions name the store at the beginning
            store: str | None = record.get("store", records[0].get("store"))
            return store
    return None


def require_file(store: str, run_folder: Path) -> None:
    """Checks that the SQLite file that has a run is there; connecting would make it.

    Raises:
        RequestError: says in which folder the address leads to one.
    """
    file = sqlite_file(store)
    if file is not None and not file.exists():
        raise RequestError(
            f"tracking store {store}: there is no {file.absolute()}; "
            f"{began_elsewhere(store, run_folder)}name the store with tracking.uri=…"
        )


def began_elsewhere(address: str, run_folder: Path) -> str:
    """Where to send a run from if its store's address leads to another file in each folder."""
    file = sqlite_file(address)
    if file is None or file.is_absolute():
        return ""
    others = [above for above in run_folder.absolute().parents if above != Path.cwd()]
    home = next((above for above in others if (above / file).exists()), None)
    return f"call sync in {home or 'the folder in which the run began'}, or "


def _lines(path: Path) -> Iterator[tuple[int, Record]]:
    end, content = 0, b""
    with suppress(FileNotFoundError):  # once all of it is sent
        content = path.read_bytes()
    for line in content.splitlines(keepends=True):
        end += len(line)
        with suppress(ValueError):
            record = json.loads(line.decode("utf-8", "surrogateescape"))
            if line.endswith(b"\n") and isinstance(record, dict):
                yield end, record


def _whole(path: Path) -> int:
    """The size of the file without an incomplete last line."""
    return path.read_bytes().rfind(b"\n") + 1


def join_records(waiting: Iterable[tuple[int, Record]]) -> Iterator[tuple[int, Record]]:
    """Joins consecutive records of metrics, parameters and tags, up to MOST_POINTS metrics each."""
    last: tuple[int, Record] | None = None
    for end, record in waiting:
        if last and last[1]["kind"] == record["kind"] == BATCH:
            points = [*last[1].get("metrics", ()), *record.get("metrics", ())]
            if len(points) <= MOST_POINTS:
                both = {key: {**last[1].get(key, {}), **record.get(key, {})} for key in _TEXTS}
                last = end, {"kind": BATCH, "metrics": points, **both}
                continue
        if last:
            yield last
        last = end, record
    if last:
        yield last


_TEXTS = ("params", "tags")


def next_joined(waiting: Sequence[tuple[int, Record]], *, singly: bool) -> tuple[int, Record, int]:
    """The first record, joined with those after it unless `singly`.

    Returns the position after it in the journal, the record, and how many it joins.
    """
    ready = waiting[: 1 if singly else MOST_POINTS]
    end, record = next(join_records(ready))
    return end, record, 1 + [position for position, _ in ready].index(end)


def as_run(records: Sequence[Mapping[str, Any]], folder: Path) -> RecordedRun:
    """The run as the records of its journal describe it so far.

    The address of its model is the folder in which it was saved, as long as that is there.
    """
    opening = records[0]
    params, tags = dict(opening["params"]), dict(opening["tags"])
    latest: dict[str, tuple[int, int, float]] = {}
    known = {"id": opening["run_id"] or opening[LOCAL_ID], "artifacts": str(folder / "artifacts")}
    known |= {"name": opening["name"] or "", "status": Status.RUNNING, "ended": None, "sizes": {}}
    for record in records[1:]:
        kind = record["kind"]
        if kind == OPENED:
            known |= {"id": record["id"], "name": record["name"]}
            if not has_hidden(record["artifacts"]):  # else no one could read from that address
                known["artifacts"] = record["artifacts"]
        elif kind == BATCH:
            params |= record.get("params", {})
            tags |= record.get("tags", {})
            for key, value, at, step in record.get("metrics", ()):
                latest[key] = max(latest.get(key, (-1, 0, 0.0)), (step, at, value))
        elif kind == DATA:
            known["sizes"] = record["sizes"]
        elif kind == MODEL_SAVED and (saved := folder.absolute() / MODEL).is_dir():
            tags[MODEL_URI] = str(saved)
        elif kind == END:
            known |= {"status": Status(record["status"]), "ended": record["time"]}
    logged = opening["metrics"] | {key: value for key, (_, _, value) in latest.items()}
    return RecordedRun(
        **known,
        experiment=opening["experiment"],
        started=opening["started"],
        params=params,
        tags=tags,
        logged=logged,
    )


def run_in_journal(folder: Path) -> RecordedRun | None:
    """The run as the journal in a folder describes it; None if there is none, or no beginning."""
    records = read_journal(folder)
    return as_run(records, folder) if records and records[0]["kind"] == OPENING else None


class Courier:
    """Sends records to a store in a thread, in order, retrying each until it has arrived.

    `deliver` sends one record and raises if that fails. Errors for which `may_pass` is true are
    retried, and `reason` puts them into words. Any other error drops its record and is raised once,
    in the thread that records.
    """

    def __init__(
        self,
        journal: Journal,
        deliver: Callable[[Record], None],
        may_pass: Callable[[BaseException], bool],
        reason: Callable[[BaseException], str] = one_line,
    ) -> None:
        self._journal, self._deliver = journal, deliver
        self._may_pass, self._reason = may_pass, reason
        self._waiting: deque[tuple[int, Record]] = deque()
        self._changed = threading.Condition()
        self._stopped = self._hurried = self._ended = False
        self._singly = 0  # how many of the next records are sent one by one
        self._began = self._failed_at = 0.0  # when the present attempt began, when the last failed
        self._away_since: float | None = None
        self._trouble: str | None = None
        self._error: BaseException | None = None
        name = f"courier of {journal.folder}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str:
        """Why the store has not received everything."""
        return self._trouble or "it has not answered yet"

    def put(self, record: Record) -> None:
        """Writes a record to the journal and queues it for sending; does not wait.

        Raises:
            BaseException: the store refused an earlier record; this one is sent all the same.
        """
        with self._changed:
            self._waiting.append((self._journal.append(record), record))
            self._changed.notify_all()
            self._raise_refusal()

    def wait(self, patience_s: float, *, at_once: bool = True, stuck_s: float = STUCK_S) -> bool:
        """Waits for everything to arrive; returns whether it has.

        Gives up if the store has been away for longer than `patience_s` (with `at_once`, after one
        more attempt), or has not answered a request for `stuck_s`, unless the request is `SLOW`.

        Raises:
            BaseException: the store refused a record.
        """
        began = time.monotonic()
        with self._changed:
            self._hurried = at_once
            self._changed.notify_all()
            tried_since = began if at_once else 0.0
            while self._waiting and not self._is_hopeless(tried_since, patience_s, stuck_s):
                self._changed.wait(0.2)
            self._raise_refusal()
            return not self._waiting

    def stop(self) -> bool:
        """Ends the thread, which closes the journal; returns whether it sent the run to its end.

        If so, it also deletes the journal. Does not wait for a request under way.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            if self._waiting:
                return False
        self._thread.join()
        return self._ended

    def _is_hopeless(self, tried_since: float, patience_s: float, stuck_s: float) -> bool:
        now = time.monotonic()
        if self._away_since is not None and now - self._away_since > patience_s:
            return self._failed_at >= tried_since or now - self._began > stuck_s
        is_slow = bool(self._waiting) and self._waiting[0][1]["kind"] in SLOW
        return not is_slow and 0 < self._began < now - stuck_s

    def _raise_refusal(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        try:
            while (next_one := self._next()) is not None:
                self._attempt(*next_one)
        finally:
            if self._ended and not self._waiting:
                self._journal.delete()
            self._journal.close()

    def _next(self) -> tuple[int, Record, int] | None:
        """The next record as `next_joined` returns it; None at the end."""
        with self._changed:
            while not (self._waiting or self._stopped):
                self._changed.wait()
            if self._stopped:
                return None
            self._began = time.monotonic()
            return next_joined(list(self._waiting), singly=self._singly > 0)

    def _attempt(self, end: int, record: Record, count: int) -> None:
        try:
            self._deliver(record)
        except BaseException as error:
            if self._may_pass(error):
                self._pause(error)
                return
            if not isinstance(error, Exception):  # the record is not to blame
                with self._changed:
                    self._error = error
                return
            if count > 1:  # perhaps only one of the joined records is wrong
                self._singly = count
                return
            log.debug("The store refuses %s", record["kind"], exc_info=True)
            refused: BaseException | None = error
        else:
            refused = None
        with self._changed:
            if self._away_since is not None and refused is None:
                log.warning("The store answers again; what was recorded meanwhile is being sent")
            self._error = self._error or refused
            self._away_since, self._began = None, 0.0
            self._singly = max(0, self._singly - count)
            for _ in range(count):
                self._waiting.popleft()
            self._journal.mark(end)
            self._ended = record["kind"] == END
            self._changed.notify_all()

    def _pause(self, error: BaseException) -> None:
        """Waits before the next attempt; the longer the store has been away, the longer."""
        with self._changed:
            now = time.monotonic()
            self._trouble = self._reason(error)
            if self._away_since is None:
                self._away_since = self._began
                log.warning("The store is away, the run goes on: %s", self._trouble)
            self._failed_at = now
            self._changed.notify_all()
            pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, now - self._away_since))
            until = now + pause_s
            while not (self._stopped or self._hurried) and time.monotonic() < until:
                self._changed.wait(max(0.0, until - time.monotonic()))
            self._hurried = False
