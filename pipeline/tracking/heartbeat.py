"""A running run shows that it lives; of one that is RUNNING, whether it still does.

A run that is killed outright, or whose machine goes down, stays RUNNING in the store: nobody is
left to say otherwise. Its last heartbeat and the process it ran in are what is left to go by.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

import mlflow
import psutil

# Tags: when the run last showed that it lives (UTC), and the process that showed it.
BEAT, HOST, PID, STARTED = "heartbeat", "heartbeat.host", "heartbeat.pid", "heartbeat.started"
GONE = "its process is gone"  # the error of a run that was left RUNNING, as others saw it
EVERY_S = 20.0
SILENT_S = 60.0  # of a run on another machine: then it is gone; two beats may go astray
GAP_S = 2 * EVERY_S  # between beats: others may have taken the run for gone; clocks may differ
LEAVE_S = 2.0  # what a beat on its way gets to arrive when the run is closed

log = logging.getLogger(__name__)


class Pulse(StrEnum):
    """What a run's heartbeat says; one without any is `UNKNOWN`."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


def signs() -> dict[str, str]:
    """The tags of a run that lives in this process, now."""
    return {
        BEAT: _now().isoformat(timespec="seconds"),
        HOST: _host(),
        PID: str(os.getpid()),
        STARTED: _started(os.getpid()) or "",
    }


@contextmanager
def beating(client: mlflow.MlflowClient, run_id: str) -> Iterator[None]:
    """While open, a thread renews the run's heartbeat every `EVERY_S`.

    A beat that fails costs the run nothing: the next one may arrive. A process that is stopped or
    killed beats no more. A run that could not be heard for a while may have been marked KILLED from
    another machine; when it is heard again, or ends, that is taken back.
    """
    done, heard = threading.Event(), [_now()]

    def beat() -> None:
        while not done.wait(EVERY_S):
            try:
                client.set_tag(run_id, BEAT, _now().isoformat(timespec="seconds"))
                _back_if_unheard(client, run_id, heard[0])
                heard[0] = _now()
            except Exception as error:
                log.debug("A heartbeat of run %s got lost: %s", run_id, error)

    thread = threading.Thread(target=beat, name=f"heartbeat of {run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(LEAVE_S)
        with suppress(Exception):  # of a store that is away still; the block's error is the one
            _back_if_unheard(client, run_id, heard[0])


def _back_if_unheard(client: mlflow.MlflowClient, run_id: str, heard: datetime) -> None:
    """Takes back what others, who had not heard of the run since `heard`, may have said of it."""
    if _now() - heard < timedelta(seconds=GAP_S):
        return
    run = client.get_run(run_id)
    if run.data.tags.get("error") == GONE:
        client.delete_tag(run_id, "error")
        if run.info.status == "KILLED":
            client.update_run(run_id, status="RUNNING")


def pulse(tags: Mapping[str, str]) -> Pulse:
    """Whether the process that a RUNNING run's tags tell of still lives.

    On this machine that is asked of the system: a stopped process lives, however old its last
    beat. Of another machine a beat older than `SILENT_S` means no; clocks are taken to agree.
    """
    try:
        beat = _last_beat(tags)
        if beat is None:
            return Pulse.UNKNOWN
        if tags[HOST] == _host():
            lives = _lives(int(tags[PID]), tags[STARTED])
        else:
            lives = _now() - beat <= timedelta(seconds=SILENT_S)
    except (KeyError, ValueError):  # tags that somebody has changed
        return Pulse.UNKNOWN
    return Pulse.ALIVE if lives else Pulse.GONE


def fell_silent(tags: Mapping[str, str]) -> datetime | None:
    """The last beat of a run that has shown none for longer than `SILENT_S`."""
    try:
        beat = _last_beat(tags)
    except ValueError:
        return None
    return beat if beat and _now() - beat > timedelta(seconds=SILENT_S) else None


def _last_beat(tags: Mapping[str, str]) -> datetime | None:
    if BEAT not in tags:
        return None
    beat = datetime.fromisoformat(tags[BEAT])
    return beat if beat.tzinfo else beat.replace(tzinfo=UTC)


def _now() -> datetime:
    return datetime.now(UTC)


def _host() -> str:
    """Names this machine since it was started, and which of its processes are to be seen from here.

    Containers may share a name, and then look for each other's processes in vain.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return platform.node()
    return f"{platform.node()} {boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


def _lives(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    found = _started(pid)
    return found is None or found == started  # what cannot be told is left alone


def _started(pid: int) -> str | None:
    """When a process was started; "" for one that is dead but not buried, None if it is hidden."""
    try:
        if not Path("/proc/self/stat").exists():
            return f"{psutil.Process(pid).create_time():.2f}"
        # After the name, which may hold anything: state (field 3) and ticks since the machine was
        # started (22), which setting its clock leaves alone. Source: man 5 proc.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (psutil.Error, OSError):
        return None
