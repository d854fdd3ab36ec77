"""Findings about RUNNING runs, and the run that each folder belongs to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from pipeline.system.errors import first_of, one_line
from pipeline.tracking.client import Client
from pipeline.tracking.heartbeat import GONE, LISTEN_S
from pipeline.tracking.lifecycle import closing_by_hand
from pipeline.tracking.orphans import began, began_long_ago, close_orphan, running_runs, unheard
from pipeline.tracking.runs import search
from pipeline.tracking.values import Query, RecordedRun, Status
from pipeline.verbs.doctor.findings import Finding, ok, problem, warning
from pipeline.verbs.doctor.leftovers import Owner

_SHOWN = 5
FIX = "python -m pipeline doctor fix=true"
_RESUME = "python -m pipeline resume run_id="


def running(
    client: Client,
    *,
    fix: bool,
    own: str | None,
    bring_home: Callable[[str], None] = lambda run_id: None,
    listen: Callable[[float], None] = time.sleep,
) -> Iterator[Finding]:
    """Tells which RUNNING runs are alive and which are orphans; `fix` marks orphans as KILLED.

    A silent run on another machine is closed only if no heartbeat arrives while this listens,
    because clocks may differ. Other runs without a heartbeat are shown but left alone,
    and `own`, the run that `mlflow run` opened, is skipped. `bring_home` receives the id of
    each closed run, to save what it left on this machine.
    """
    found = running_runs(client, own=own)
    orphans, silent, at_work = found.orphans, found.silent, len(found.alive)
    if silent and fix:
        listen(LISTEN_S)
        gone = unheard(client, silent)
        at_work += len(silent) - len(gone)
        orphans, silent = orphans + gone, []
    if orphans and fix:
        yield from _fixed(client, orphans, bring_home)
        orphans = []
    by_hand = closing_by_hand(client, found.unknown[0]) if found.unknown else ""
    yield from _left_alone(orphans, silent, found.unknown, by_hand)
    yield ok("runs", f"{at_work} at work")


def _left_alone(
    orphans: Sequence[RecordedRun],
    silent: Sequence[RecordedRun],
    unknown: Sequence[RecordedRun],
    by_hand: str,
) -> Iterator[Finding]:
    """Findings about runs that stay as they are; `by_hand` closes the first of the unknown."""
    if orphans:
        says = f"{len(orphans)} RUNNING although {GONE}: {_listed(orphans)}"
        yield warning("runs", says, f"{FIX} (marks them KILLED)")
    if silent:
        says = f"{len(silent)} RUNNING on other machines, silent lately: {_listed(silent)}"
        yield warning(
            "runs", says, f"{FIX} (listens for {LISTEN_S:g} s, then marks the silent ones KILLED)"
        )
    if unknown:
        says = f"{len(unknown)} RUNNING without a heartbeat: {_listed(unknown)}"
        old = any(map(began_long_ago, unknown))
        mend = f"if its process is gone: {by_hand}"
        yield warning("runs", says, mend) if old else ok("runs", says)


def folders(client: Client) -> dict[str, Owner]:
    """Status of each run and sweep, and whether it has a model, by its folder's absolute path."""
    found: dict[str, Owner] = {}
    for asked in (Query(has_folder=True), Query(is_sweep=True)):
        for run in search(client, asked):
            made = Owner(status=run.status, has_model=run.model_uri is not None)
            found.setdefault(str(run.folder or run.sweep_folder), made)  # runs come newest first
    return found


def _fixed(
    client: Client, orphans: Sequence[RecordedRun], bring_home: Callable[[str], None]
) -> Iterator[Finding]:
    closed = []
    for run in orphans:
        try:
            done = close_orphan(client, run)
        except Exception as error:  # continues with the others
            says = f"{run.id} cannot be closed: {one_line(error)}"
            yield problem("runs", says, "check that you may write to the store and to its folder")
        else:
            if done is not None and done.status != Status.KILLED:
                yield ok("runs", f"{done.id} had ended as {done.status}; its records were sent")
            elif done is not None:
                closed.append(done)
                yield from _brought_home(done, bring_home)
    if closed:
        says = f"{len(closed)} marked KILLED, {GONE}: {_listed(closed)}"
        yield ok("runs", says, f"{_RESUME}{closed[0].id} resumes it")


def _brought_home(run: RecordedRun, bring_home: Callable[[str], None]) -> Iterator[Finding]:
    try:
        bring_home(run.id)
    except Exception as error:  # the run is closed all the same; continues with the others
        says = f"{run.id}: what it left in its folder cannot be saved: {one_line(error)}"
        yield warning("runs", says, f"see {run.folder or 'its folder'}")


def _listed(runs: Sequence[RecordedRun]) -> str:
    return first_of(
        runs, _SHOWN, lambda run: f"{run.id} ({run.name}, since {began(run):%Y-%m-%d %H:%M} UTC)"
    )
