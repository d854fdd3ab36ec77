"""Resumes a run that did not finish, from its last checkpoint and in the same MLflow run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipeline.config.flat import flatten, shown_params
from pipeline.config.schema import Config, validate
from pipeline.data.load import ingest
from pipeline.libraries import import_slow
from pipeline.system.errors import RequestError
from pipeline.system.folders import at_work_in, owner
from pipeline.system.secrets import hide_param, hide_value
from pipeline.system.terminal import native_messages_to
from pipeline.tracking import lineage, origin
from pipeline.tracking.client import connect
from pipeline.tracking.delivery import send_journal
from pipeline.tracking.journal import has_journal
from pipeline.tracking.recording import reopen
from pipeline.tracking.runs import as_trained, find_run, require_named_runs, with_weights
from pipeline.tracking.values import (
    LONGEST_PARAM,
    RESUMED_AFTER,
    RESUMED_CHANGES,
    Query,
    RecordedRun,
    Status,
)
from pipeline.training.checkpoint import Progress, Start, newest_progress
from pipeline.training.pretrained import weights_sha256
from pipeline.verbs.resume import RESUME, Resume

if TYPE_CHECKING:
    from pipeline.run import Result

UNFINISHED = Query(
    status=(Status.RUNNING, Status.FAILED, Status.KILLED), has_folder=True, is_pruned=False
)
WEIGHTY = {"Python", lineage.PACKAGE, *lineage.NAMED}  # packages that a result depends on


def resume(config: Config, request: Resume, folder: Path) -> Result:
    """Trains the remaining epochs of an unfinished run, then evaluates and saves it as `run` does.

    It ends with exactly the weights and metrics of an uninterrupted run.

    Raises:
        RequestError: there is nothing to resume, or it would no longer be the same run.
    """
    run = _unfinished(config, RESUME.run_id(config))
    own = _folder_of(run)
    with at_work_in(own):
        if has_journal(own):
            # It closes the run, which stays closed if it cannot be resumed.
            send_journal(connect(config.tracking.uri), own)
        run = _unfinished(config, run.id)  # read under the lock: nobody else can finish it now
        progress = newest_progress(own / "checkpoints")
        then = _config(own, run, config)
        require_named_runs(then)
        changed = _require_same(own, run, then, force=request.force)
        reopen(run.id, config.tracking, own).log_tags(_interruption_tags(run, progress, changed))
        # Imported only now: a refusal need not wait for TensorFlow.
        _say(run, progress, then)
        with native_messages_to(own / "tensorflow.log"):
            story = import_slow("pipeline.run")
        start = Start(run_id=run.id, progress=progress)
        result: Result = story.run(then, own, start=start, identity=run.identity)
    return result


def _say(run: RecordedRun, progress: Progress, then: Config) -> None:
    """Tells the user what is resumed, before the wait for TensorFlow."""
    name = run.name or "a run"
    done = f"{len(progress.epochs)} of {then.train.epochs} epochs"
    print(f"resuming {name} ({run.id}) after {done}", file=sys.stderr, flush=True)


def _interruption_tags(run: RecordedRun, progress: Progress, changed: str) -> dict[str, str]:
    """The tags that record the interruptions of a run."""
    earlier = [run.tags[RESUMED_AFTER]] if RESUMED_AFTER in run.tags else []
    after = ", ".join([*earlier, str(len(progress.epochs))])
    return {RESUMED_AFTER: after} | ({RESUMED_CHANGES: changed} if changed else {})


def _unfinished(config: Config, run_id: str) -> RecordedRun:
    run = find_run(run_id, config, latest=UNFINISHED, called="run that can be resumed")
    called = f"run_id={run.id}"
    if run.is_sweep:
        raise RequestError(f"{called} is a sweep; resume it with sweep.resume={run.id}")
    if run.status == Status.FINISHED:
        raise RequestError(f"{called} is finished: there is nothing left to do")
    if run.pruned is not None:
        raise RequestError(f"{called} was ended by its sweep: {run.pruned}")
    return run


def _folder_of(run: RecordedRun) -> Path:
    """The folder with the run's checkpoints."""
    if run.folder is None:
        raise RequestError(f"run_id={run.id} does not say where its checkpoints are")
    found = owner(run.folder)
    if found is None and run.folder.is_dir():
        raise RequestError(
            f"run_id={run.id} was stopped as it began: {run.folder} holds nothing of it; start "
            "a new run"
        )
    if found is None:
        host = run.host or "another machine"
        raise RequestError(
            f"run_id={run.id} ran on {host} in {run.folder}, and there is no such folder here"
        )
    if found != run.id:
        raise RequestError(f"run_id={run.id}: its folder {run.folder} is now that of {found}")
    return run.folder


def _config(folder: Path, run: RecordedRun, today: Config) -> Config:
    """The run's own configuration `as_trained`, with the current store and cache."""
    recorded = validate(yaml.safe_load(_kept(folder, "config.yaml")))
    hidden = shown_params(recorded)
    for name, value in flatten(recorded).items():
        # `mlflow run` may already have logged another value under the plain name.
        known = [run.params[key] for key in (f"config.{name}", name) if key in run.params]
        # The file may keep what the parameter hides; earlier versions hid more of it.
        shown = (value, hide_param(name, hidden[name]), hide_value(name, value))
        if known and known[0] not in shown and len(value) <= LONGEST_PARAM:
            raise RequestError(
                f"{folder}/artifacts/config.yaml was changed: {name} is {value}, but the run had "
                f"{known[0]}"
            )
    tracking = replace(recorded.tracking, uri=today.tracking.uri, offline=False)
    return replace(as_trained(recorded, run), tracking=tracking, data_dir=today.data_dir)


def _require_same(folder: Path, run: RecordedRun, then: Config, *, force: bool) -> str:
    """Describes what has changed since the run began; refuses changes unless `force` is set."""
    raw = ingest(then, identity=run.identity)
    at_start = origin.recorded_origin(
        run.tags, patch=_kept(folder, "code.patch"), environment=_kept(folder, "environment.txt")
    )
    origin.with_threads_of(at_start)
    weights = weights_sha256(with_weights(then).model)
    changed = [
        str(difference)
        for difference in origin.differences(at_start, origin.here(raw.identity, weights))
        if difference.kind in ("code", "data") or difference.what in WEIGHTY
    ]
    if changed and not force:
        raise RequestError(
            f"run_id={run.id} would no longer be the same run: {'; '.join(changed)}\n"
            "Restore that, or resume anyway with force=true"
        )
    return "; ".join(changed)


def _kept(folder: Path, name: str) -> str:
    path = folder / "artifacts" / name
    if not path.exists() and name == "code.patch":
        return ""  # the working tree was clean
    try:
        return path.read_bytes().decode("utf-8", errors="surrogateescape")
    except FileNotFoundError as error:
        raise RequestError(f"{path} is missing; start the run again") from error
