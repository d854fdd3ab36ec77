"""Finds out which RUNNING runs are really at work, and closes those that are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.tracking.client import Client
from pipeline.tracking.delivery import send_journal
from pipeline.tracking.heartbeat import GONE, Pulse, pulse
from pipeline.tracking.journal import run_in_journal
from pipeline.tracking.lifecycle import close
from pipeline.tracking.runs import by_id, search
from pipeline.tracking.values import BEAT, DIRTY, Query, RecordedRun, Status

LONG_AGO = timedelta(days=1)
OURS = DIRTY  # a tag of all runs of this pipeline from before heartbeats


@dataclass(frozen=True, kw_only=True)
class Running:
    """The runs that are RUNNING in the store, by what their heartbeats show.

    `orphans` have lost their process. `silent` ones are on another machine, and were not heard of
    lately. `unknown` ones have no heartbeat.
    """

    alive: list[RecordedRun]
    orphans: list[RecordedRun]
    silent: list[RecordedRun]
    unknown: list[RecordedRun]


def running_runs(client: Client, *, own: str | None) -> Running:
    """Looks at the runs of all experiments, except `own`, the run that called us.

    A run of this pipeline that has no heartbeat, and began over `LONG_AGO`, is an orphan too.
    """
    kinds = Running(alive=[], orphans=[], silent=[], unknown=[])
    by_pulse = {Pulse.ALIVE: kinds.alive, Pulse.GONE: kinds.orphans, Pulse.SILENT: kinds.silent}
    for run in search(client, Query(status=(Status.RUNNING,))):
        if run.id == own:
            continue
        found = pulse(run.tags)
        if found is Pulse.UNKNOWN:
            abandoned = OURS in run.tags and began_long_ago(run)
            (kinds.orphans if abandoned else kinds.unknown).append(run)
        else:
            by_pulse[found].append(run)
    return kinds


def unheard(client: Client, runs: Iterable[RecordedRun]) -> list[RecordedRun]:
    """The runs that have sent no heartbeat since they were read."""
    return [run for run in runs if _beat(by_id(client, run.id)) == _beat(run)]


def close_orphan(client: Client, run: RecordedRun) -> RecordedRun | None:
    """Closes an orphan with the status in its journal, if this machine has that, else as KILLED.

    Returns the closed run, or None if it has ended or sent a heartbeat meanwhile.

    Raises:
        MlflowException: the store refuses.
        RequestError: another process is sending its journal.
    """
    now = by_id(client, run.id)
    if now.status != Status.RUNNING or _beat(now) != _beat(run):
        return None
    folder = now.folder
    here = folder and run_in_journal(folder)
    if folder and here and here.id == now.id:
        send_journal(client, folder)
    else:
        close(client, now, Status.KILLED, GONE)
    return by_id(client, run.id)


def began(run: RecordedRun) -> datetime:
    """When a run began, in UTC."""
    return datetime.fromtimestamp(run.started / 1000, UTC)


def began_long_ago(run: RecordedRun) -> bool:
    """Whether a run began over `LONG_AGO`."""
    return datetime.now(UTC) - began(run) > LONG_AGO


def _beat(run: RecordedRun) -> str | None:
    return run.tags.get(BEAT)
