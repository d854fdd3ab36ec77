"""Heartbeats: a run shows that it is alive, and others can tell whether it still is.

A run that is killed outright, or whose machine goes down, stays RUNNING in the store, because no
process is left to close it. Its last heartbeat and its process are the only evidence.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pipeline.system.processes import lives, process_place, started
from pipeline.tracking.values import BEAT, BEAT_HOST, BEAT_PID, BEAT_STARTED

GONE = "its process is gone"  # the error of a run that was left RUNNING and closed by others
EVERY_S = 20.0
SILENT_S = 60.0  # without a beat, after which a run on another machine may be gone; two may be lost
LISTEN_S = 2 * EVERY_S + 5  # in which a live run sends at least one beat
CLOCKS_S = 86_400.0  # more than any two machines' clocks differ
GAP_S = 2 * EVERY_S  # between beats, after which others may have closed the run; clocks may differ
_LEAVE_S = 2.0  # for a beat to finish when the run is closed

log = logging.getLogger(__name__)


class Pulse(StrEnum):
    """The state of a run according to its heartbeat; without one it is `UNKNOWN`.

    `SILENT`: on another machine without a recent beat, according to two clocks that may differ.
    Listening for `LISTEN_S` tells whether it is alive.
    """

    ALIVE = "alive"
    SILENT = "silent"
    GONE = "gone"
    UNKNOWN = "unknown"


def signs() -> dict[str, str]:
    """The heartbeat tags of a run in this process, as of now."""
    return {
        BEAT: _now().isoformat(timespec="seconds"),
        BEAT_HOST: process_place(),
        BEAT_PID: str(os.getpid()),
        BEAT_STARTED: started(os.getpid()) or "",
    }


@contextmanager
def beating(
    run_id: str, send: Callable[[str], object], take_back: Callable[[bool], object]
) -> Iterator[None]:
    """Has `send` renew the run's heartbeat (tag `BEAT`) every `EVERY_S`, in a thread.

    A beat that fails does not affect the run: the next one may arrive. A suspended or killed
    process sends no beats. While a run is silent, another machine may mark it as KILLED: at its
    first beat after `GAP_S`, and if it ends before that, `take_back(ends)` undoes it.
    """
    done, heard = threading.Event(), _now()

    def unheard() -> bool:
        return _now() - heard >= timedelta(seconds=GAP_S)

    def beat() -> None:
        nonlocal heard
        while not done.wait(EVERY_S):
            try:
                send(_now().isoformat(timespec="seconds"))
                if unheard():
                    take_back(False)
                heard = _now()
            except Exception as error:
                log.debug("A heartbeat of run %s got lost: %s", run_id, error)
        with suppress(Exception):  # the store may still be away
            if unheard():
                take_back(True)

    thread = threading.Thread(target=beat, name=f"heartbeat of {run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_LEAVE_S)


def pulse(tags: Mapping[str, str]) -> Pulse:
    """Whether the process named in a RUNNING run's tags is still alive.

    On this machine the process is looked up: a suspended one is alive, however old its last beat.
    On another machine it only counts as gone if its last beat is older than clocks can differ.
    """
    try:
        beat = _last_beat(tags)
        if beat is None:
            return Pulse.UNKNOWN
        if tags[BEAT_HOST] == process_place():
            is_gone = lives(int(tags[BEAT_PID]), tags[BEAT_STARTED]) is False
            return Pulse.GONE if is_gone else Pulse.ALIVE
        age_s = (_now() - beat).total_seconds()
    except (KeyError, ValueError):  # somebody changed the tags
        return Pulse.UNKNOWN
    if age_s <= SILENT_S:
        return Pulse.ALIVE
    return Pulse.GONE if age_s > CLOCKS_S else Pulse.SILENT


def fell_silent(tags: Mapping[str, str]) -> datetime | None:
    """The time of a run's last beat if that was more than `SILENT_S` ago, else None."""
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
