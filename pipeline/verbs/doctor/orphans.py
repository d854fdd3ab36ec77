"""Finds runs that are RUNNING in the store although their process is gone; lists runs by folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from pipeline.system.errors import one_line
from pipeline.tracking.client import Client, StoreError
from pipeline.tracking.heartbeat import BEAT, GONE, LISTEN_S, Pulse, pulse
from pipeline.tracking.lifecycle import close
from pipeline.tracking.runs import by_id, search
from pipeline.tracking.values import DIRTY, Query, RecordedRun, Status
from pipeline.verbs.doctor.findings import Finding, ok, problem, warning
from pipeline.verbs.doctor.leftovers import Owner

LONG_AGO = timedelta(days=1)
OURS = (
    DIRTY  # a tag that all runs of this pipeline have, even those from before there were heartbeats
)
SHOWN = 5
FIX = "python -m pipeline doctor fix=true"
RESUME = "python -m pipeline resume run_id="


def running(
    client: Client,
    *,
    fix: bool,
    own: str | None,
    bring_home: Callable[[str], None] = lambda run_id: None,
    listen: Callable[[float], None] = time.sleep,
) -> Iterator[Finding]:
    """Tells which RUNNING runs are alive and which are orphans; `fix` marks orphans as KILLED.

    An orphan is a run whose heartbeat shows that its process is gone, or a run of this pipeline
    that has no heartbeat and began over `LONG_AGO`. A silent run on another machine is listened
    for before it is closed, because clocks may differ. Other runs without a heartbeat are shown
    but left alone, and `own`, the run that called us (MLFLOW_RUN_ID), is skipped. `bring_home`
    receives the id of each closed run, to save what it left on this machine.
    """
    found = search(client, Query(status=(Status.RUNNING,)))
    runs = [run for run in found if run.id != own]
    orphans = [run for run in runs if _is_orphan(run)]
    silent = [run for run in runs if _pulse(run) is Pulse.SILENT]
    if silent and fix:
        listen(LISTEN_S)
        orphans += [run for run in silent if _beat(by_id(client, run.id)) == _beat(run)]
        silent = []
    unknown = [run for run in runs if run not in orphans and _pulse(run) is Pulse.UNKNOWN]
    at_work = len(runs) - len(orphans) - len(unknown) - len(silent)
    if orphans and fix:
        yield from _fixed(client, orphans, bring_home)
    elif orphans:
        says = f"{len(orphans)} RUNNING although {GONE}: {_listed(orphans)}"
        yield warning("runs", says, f"{FIX} (marks them KILLED)")
    if silent:
        says = f"{len(silent)} RUNNING on other machines, silent lately: {_listed(silent)}"
        yield warning(
            "runs", says, f"{FIX} (listens for {LISTEN_S:g} s, then marks the silent ones KILLED)"
        )
    if unknown:
        one = unknown[0].id
        says = f"{len(unknown)} RUNNING without a heartbeat: {_listed(unknown)}"
        call = f"mlflow.MlflowClient({client.tracking_uri!r}).set_terminated({one!r}, 'KILLED')"
        mend = f'if its process is gone: python -c "import mlflow; {call}"'
        old = any(_began_long_ago(run) for run in unknown)
        yield warning("runs", says, mend) if old else ok("runs", says)
    yield ok("runs", f"{at_work} at work")


def folders(client: Client) -> dict[str, Owner]:
    """How each run and sweep ended and whether it has a model, by absolute path of its folder."""
    found: dict[str, Owner] = {}
    for asked in (Query(has_folder=True), Query(is_sweep=True)):
        for run in search(client, asked):
            made = Owner(status=run.status, has_model=run.model_uri is not None)
            found.setdefault(str(run.folder or run.sweep_folder), made)  # runs come newest first
    return found


def _fixed(
    client: Client, orphans: list[RecordedRun], bring_home: Callable[[str], None]
) -> Iterator[Finding]:
    closed = []
    for run in orphans:
        # Read again: it may have ended normally just before its process did.
        now = by_id(client, run.id)
        if now.status == Status.RUNNING and _beat(now) == _beat(run):
            try:
                close(client, now, Status.KILLED, GONE)
            except StoreError as error:
                says = f"{run.id} cannot be closed: {error.message}"
                yield problem("runs", says, "check that you may write to the store")
            else:
                closed.append(now)
                yield from _brought_home(now, bring_home)
    if closed:
        says = f"{len(closed)} marked KILLED, {GONE}: {_listed(closed)}"
        yield ok("runs", says, f"{RESUME}{closed[0].id} resumes it")


def _brought_home(run: RecordedRun, bring_home: Callable[[str], None]) -> Iterator[Finding]:
    try:
        bring_home(run.id)
    except Exception as error:  # the run is closed all the same, and there are others
        says = f"{run.id}: what it left in its folder cannot be saved: {one_line(error)}"
        yield warning("runs", says, f"see {run.folder or 'its folder'}")


def _is_orphan(run: RecordedRun) -> bool:
    found = _pulse(run)
    abandoned = found is Pulse.UNKNOWN and OURS in run.tags and _began_long_ago(run)
    return found is Pulse.GONE or abandoned


def _beat(run: RecordedRun) -> str | None:
    return run.tags.get(BEAT)


def _pulse(run: RecordedRun) -> Pulse:
    return pulse(run.tags)


def _began_long_ago(run: RecordedRun) -> bool:
    return datetime.now(UTC) - _began(run) > LONG_AGO


def _began(run: RecordedRun) -> datetime:
    return datetime.fromtimestamp(run.started / 1000, UTC)


def _listed(runs: list[RecordedRun]) -> str:
    texts = [f"{run.id} ({run.name}, since {_began(run):%Y-%m-%d %H:%M} UTC)" for run in runs]
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")
