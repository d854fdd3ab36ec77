"""A running run shows that it lives; of one that is RUNNING, whether it still does.

A run that is killed outright, or whose machine goes down, stays RUNNING in the store: nobody is
left to say otherwise. Its last heartbeat and the process it ran in are what is left to go by.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from pipeline.system.processes import lives, place, started
from pipeline.tracking.values import ERROR, Status

if TYPE_CHECKING:
    from pipeline.tracking.client import Client

# Tags: when the run last showed that it lives (UTC), and the process that showed it.
BEAT, HOST, PID, STARTED = "heartbeat", "heartbeat.host", "heartbeat.pid", "heartbeat.started"
GONE = "its process is gone"  # the error of a run that was left RUNNING, as others saw it
EVERY_S = 20.0
SILENT_S = 60.0  # of a run on another machine: then it may be gone; two beats may go astray
LISTEN_S = 2 * EVERY_S + 5  # in which a run that lives is heard of
CLOCKS_S = 86_400.0  # by which no two machines' clocks differ
GAP_S = 2 * EVERY_S  # between beats: others may have taken the run for gone; clocks may differ
LEAVE_S = 2.0  # what a beat on its way gets to arrive when the run is closed

log = logging.getLogger(__name__)


class Pulse(StrEnum):
    """What a run's heartbeat says; one without any is `UNKNOWN`.

    `SILENT`: on another machine and not heard of lately, by two clocks that may differ. Whether it
    lives is heard by listening for `LISTEN_S`.
    """

    ALIVE = "alive"
    SILENT = "silent"
    GONE = "gone"
    UNKNOWN = "unknown"


def signs() -> dict[str, str]:
    """The tags of a run that lives in this process, now."""
    return {
        BEAT: _now().isoformat(timespec="seconds"),
        HOST: place(),
        PID: str(os.getpid()),
        STARTED: started(os.getpid()) or "",
    }


@contextmanager
def beating(client: Client, run_id: str) -> Iterator[None]:
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


def _back_if_unheard(client: Client, run_id: str, heard: datetime) -> None:
    """Takes back what others, who had not heard of the run since `heard`, may have said of it."""
    if _now() - heard < timedelta(seconds=GAP_S):
        return
    run = client.get_run(run_id)
    if run.data.tags.get(ERROR) == GONE:
        client.delete_tag(run_id, ERROR)
        if run.info.status == Status.KILLED:
            client.update_run(run_id, status=str(Status.RUNNING))


def take_back(client: Client, run_id: str) -> None:
    """Takes from a run that ends well what others, who took it for gone, have said of it."""
    tags = client.get_run(run_id).data.tags
    if ERROR in tags:
        client.delete_tag(run_id, ERROR)


def pulse(tags: Mapping[str, str]) -> Pulse:
    """Whether the process that a RUNNING run's tags tell of still lives.

    On this machine that is asked of the system: a stopped process lives, however old its last
    beat. Of another machine only a beat that is older than clocks can differ means no.
    """
    try:
        beat = _last_beat(tags)
        if beat is None:
            return Pulse.UNKNOWN
        if tags[HOST] == place():
            return Pulse.GONE if lives(int(tags[PID]), tags[STARTED]) is False else Pulse.ALIVE
        age_s = (_now() - beat).total_seconds()
    except (KeyError, ValueError):  # tags that somebody has changed
        return Pulse.UNKNOWN
    if age_s <= SILENT_S:
        return Pulse.ALIVE
    return Pulse.GONE if age_s > CLOCKS_S else Pulse.SILENT


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
