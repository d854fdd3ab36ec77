"""Runs that are RUNNING in the store though their process is gone; and who made which folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import mlflow
from mlflow.entities import Run

from pipeline.system.errors import one_line
from pipeline.tracking.heartbeat import GONE, Pulse, pulse
from pipeline.tracking.lifecycle import FOLDER, RUN_FOLDER, close
from pipeline.verbs.doctor.findings import Finding, ok, problem, warning
from pipeline.verbs.doctor.leftovers import Made
from pipeline.verbs.doctor.store import experiments

LONG_AGO = timedelta(days=1)
OURS = "code.dirty"  # a tag of all runs of this pipeline, those too that had no heartbeat yet
SHOWN = 5
FIX = "python -m pipeline doctor fix=true"
RESUME = "python -m pipeline resume run_id="


def running(
    client: mlflow.MlflowClient,
    *,
    fix: bool,
    own: str | None,
    bring_home: Callable[[str], None] = lambda run_id: None,
) -> Iterator[Finding]:
    """Says of RUNNING runs which are at work and which are orphans; `fix` marks these as KILLED.

    An orphan is a run whose heartbeat says that its process is gone, or one of ours that has none
    and began over `LONG_AGO`. Others without a heartbeat are shown and left alone, and `own`, the
    run that called us (MLFLOW_RUN_ID), is passed over. `bring_home` gets the id of each that was
    closed, to save what the run has left on this machine.
    """
    found = _search(client, "attributes.status = 'RUNNING'")
    runs = [run for run in found if run.info.run_id != own]
    orphans = [run for run in runs if _is_orphan(run)]
    unknown = [run for run in runs if run not in orphans and _pulse(run) is Pulse.UNKNOWN]
    at_work = len(runs) - len(orphans) - len(unknown)
    if orphans and fix:
        yield from _fixed(client, orphans, bring_home)
    elif orphans:
        says = f"{len(orphans)} RUNNING though {GONE}: {_listed(orphans)}"
        yield warning("runs", says, f"{FIX} (marks them KILLED)")
    if unknown:
        one = unknown[0].info.run_id
        says = f"{len(unknown)} RUNNING without a heartbeat to go by: {_listed(unknown)}"
        call = f"mlflow.MlflowClient({client.tracking_uri!r}).set_terminated({one!r}, 'KILLED')"
        mend = f'if its process is gone: python -c "import mlflow; {call}"'
        old = any(_began_long_ago(run) for run in unknown)
        yield warning("runs", says, mend) if old else ok("runs", says)
    yield ok("runs", f"{at_work} at work")


def folders(client: mlflow.MlflowClient) -> dict[str, Made]:
    """By the whole path of its folder, how each run and sweep ended and whether it has a model."""
    found: dict[str, Made] = {}
    for tag in (RUN_FOLDER, FOLDER):
        for run in _search(client, f"tags.`{tag}` != ''"):
            made = Made(status=run.info.status, has_model="model_uri" in run.data.tags)
            found.setdefault(run.data.tags[tag], made)  # the newest first
    return found


def _fixed(
    client: mlflow.MlflowClient, orphans: list[Run], bring_home: Callable[[str], None]
) -> Iterator[Finding]:
    closed = []
    for run in orphans:
        # Asked once more: it may have ended well just before its process did.
        now = client.get_run(run.info.run_id)
        if now.info.status == "RUNNING" and _is_orphan(now):
            try:
                close(client, now, "KILLED", GONE)
            except mlflow.MlflowException as error:
                says = f"{run.info.run_id} cannot be closed: {error.message}"
                yield problem("runs", says, "see that you may write to the store")
            else:
                closed.append(now)
                yield from _brought_home(now, bring_home)
    if closed:
        says = f"{len(closed)} marked KILLED, {GONE}: {_listed(closed)}"
        yield ok("runs", says, f"{RESUME}{closed[0].info.run_id} goes on with it")


def _brought_home(run: Run, bring_home: Callable[[str], None]) -> Iterator[Finding]:
    try:
        bring_home(run.info.run_id)
    except Exception as error:  # whatever it is, the run is closed and there are others
        says = f"{run.info.run_id}: what it left in its folder cannot be saved: {one_line(error)}"
        yield warning("runs", says, f"see {run.data.tags.get(RUN_FOLDER, 'its folder')}")


def _is_orphan(run: Run) -> bool:
    found = _pulse(run)
    abandoned = found is Pulse.UNKNOWN and OURS in run.data.tags and _began_long_ago(run)
    return found is Pulse.GONE or abandoned


def _pulse(run: Run) -> Pulse:
    return pulse(run.data.tags)


def _began_long_ago(run: Run) -> bool:
    return datetime.now(UTC) - _began(run) > LONG_AGO


def _began(run: Run) -> datetime:
    return datetime.fromtimestamp(run.info.start_time / 1000, UTC)


def _listed(runs: list[Run]) -> str:
    texts = [
        f"{run.info.run_id} ({run.info.run_name}, since {_began(run):%Y-%m-%d %H:%M} UTC)"
        for run in runs
    ]
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _search(client: mlflow.MlflowClient, condition: str) -> Iterator[Run]:
    ids = [experiment.experiment_id for experiment in experiments(client)]
    token = None
    while ids:
        page = client.search_runs(
            ids, condition, order_by=["start_time DESC"], page_token=token, max_results=1000
        )
        yield from page
        token = page.token
        if not token:
            return
