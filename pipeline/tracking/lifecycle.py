"""The life of a run: opened before the work, closed with its true final status."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from pipeline.config.flat import flatten
from pipeline.config.schema import Config
from pipeline.config.sweep import JobSettings
from pipeline.config.trusted import checksums, sources
from pipeline.system.errors import Pruned, RequestError
from pipeline.system.folders import at_work_in, move_in, vacate
from pipeline.system.secrets import hide_value, hide_word
from pipeline.tracking import lineage
from pipeline.tracking.client import Client, connect, experiment, experiment_name, made_once
from pipeline.tracking.heartbeat import beating, fell_silent, signs, take_back
from pipeline.tracking.recording import Recording, recorded_metrics
from pipeline.tracking.values import (
    COMMIT,
    DIRTY,
    ERROR,
    FOLDER,
    INDEX,
    LOCAL_ID,
    PARENT,
    PATCH,
    PRUNED,
    RUN_FOLDER,
    TRACEBACK,
    TRUSTED,
    RecordedRun,
    Status,
)

OF_THE_PLACE = ("tracking.uri=", "sweep.storage=")  # overrides that differ between machines
ENDING = {ERROR, TRACEBACK}  # tags of a run that failed or was stopped

log = logging.getLogger(__name__)


@contextmanager
def record(
    config: Config,
    folder: Path,
    *,
    run_id: str | None = None,
    searched: Mapping[str, str] | None = None,
    spent_s: float | None = None,
    job: JobSettings | None = None,
) -> Iterator[Recording]:
    """Opens a run for `config`, or continues one, and closes it with its final status.

    Continues `run_id` if given, else the run that `mlflow run` opened, if any. `searched` are the
    swept parameters, which have more than one value; `job` holds the settings of a sweep's job.
    `spent_s` are the seconds of training before an interruption: such a run keeps its recorded
    origin, and nothing is logged twice.

    The status is FINISHED when the block ends normally, KILLED on Ctrl-C, SIGTERM or `Pruned`, and
    FAILED on any other exception. Exceptions are passed on; their last line becomes the tag
    `error`, or `sweep.pruned` for a pruned trial. Everything logged so far stays.

    Raises:
        RequestError: the tracking store cannot be used, or another process is using `folder`.
    """
    started = time.perf_counter()
    client = connect(config.tracking.uri)
    tags = _place_in_sweep(job, folder, is_parent=searched is not None) | signs()
    goes_on = run_id is not None and spent_s is not None
    earlier = _earlier(client, str(run_id), spent_s or 0.0) if goes_on else {}
    with at_work_in(folder):
        if run_id is None:
            vacate(folder)  # may refuse, so do it before a run exists
        opened = _open(client, config, run_id, tags)
        recording = Recording(id=opened, client=client, folder=folder, is_whole=True, **earlier)
        with beating(client, recording.id), _closed_as_it_ends(recording):
            if not goes_on:
                move_in(folder, recording.id)
                _log_origin(recording, config, searched or {}, job)
            yield recording
            recording.add_seconds("total", time.perf_counter() - started)
            recording.upload()


def _earlier(client: Client, run_id: str, spent_s: float) -> dict[str, Any]:
    """What a recording needs to know about the run that it continues."""
    spent = dict.fromkeys(("train", "total"), spent_s)
    return {"seconds": spent, "before": recorded_metrics(client, run_id)}


def close(client: Client, run: RecordedRun, status: Status, error: str) -> None:
    """Closes a run for a process that could not; the end of a silent run is its last heartbeat."""
    if run.error is None:
        client.set_tag(run.id, ERROR, error)
    beat = fell_silent(run.tags)
    ended = max(int(beat.timestamp() * 1000), run.started) if beat else None
    client.set_terminated(run.id, str(status), ended)


@contextmanager
def _closed_as_it_ends(recording: Recording) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        with _at_least_tried():
            recording.log_tags(ending(error))
            recording.upload()
        with _at_least_tried():
            recording.client.set_terminated(recording.id, str(status_of(error)))
        raise
    with suppress(Exception):  # the run does not depend on it
        take_back(recording.client, recording.id)
    recording.client.set_terminated(recording.id, "FINISHED")


def _open(client: Client, config: Config, run_id: str | None, tags: dict[str, str]) -> str:
    # Removed from the environment, where later runs of this process and its workers would see it.
    adopted = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id:
        _reopen(client, run_id, tags)
        return run_id
    if adopted:
        try:
            _reopen(client, adopted, tags)
        except MlflowException as error:
            raise RequestError(f"MLFLOW_RUN_ID={adopted}: {error.message}; unset it") from error
        return adopted
    return str(_create(client, config, tags).info.run_id)


def _reopen(client: Client, run_id: str, tags: dict[str, str]) -> None:
    found = client.get_run(run_id)
    client.update_run(run_id, status=str(Status.RUNNING))
    for tag in ENDING & found.data.tags.keys():
        client.delete_tag(run_id, tag)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _create(client: Client, config: Config, tags: dict[str, str]) -> Run:
    place, local_id = experiment(client, experiment_name(config)), uuid4().hex
    every = resolve_tags({**tags, LOCAL_ID: local_id})  # with user, command and the like

    def find() -> Run | None:
        found = client.search_runs([place], f"tags.{LOCAL_ID} = '{local_id}'", max_results=1)
        return found[0] if found else None

    return made_once(
        lambda: client.create_run(place, tags=every, run_name=config.tracking.run_name), find
    )


def _place_in_sweep(job: JobSettings | None, folder: Path, *, is_parent: bool) -> dict[str, str]:
    """The tags by which a run, a sweep's own or one of its jobs' is found; set before all else."""
    if is_parent:
        return {FOLDER: str(folder)}
    place = {PARENT: str(job.parent), INDEX: str(job.index)} if job else {}
    return {RUN_FOLDER: str(folder.absolute())} | place


def _log_origin(
    recording: Recording, config: Config, searched: Mapping[str, str], job: JobSettings | None
) -> None:
    """Logs the origin of the run: parameters, choices, code, environment, hardware."""
    code = lineage.code()
    tags = (
        {f"hardware.{key}": value for key, value in lineage.hardware().items()}
        | {f"version.{key}": value for key, value in lineage.versions().items()}
        | asdict(config.choices)
        | {
            "command": (job and job.command) or _command(),
            DIRTY: str(bool(code.patch)).lower(),
        }
        | ({COMMIT: code.commit} if code.commit else {})
        | ({PATCH: code.patch_sha256} if code.patch else {})
        | {TRUSTED + name: sha256 for name, sha256 in checksums(config.trusted_modules).items()}
        | config.tracking.tags
    )
    recording.log_params({**flatten(config), **searched}, tags)
    recording.save_text("config.yaml", _as_yaml(config))
    recording.save_text("environment.txt", lineage.environment())
    if code.patch:
        recording.save_text("code.patch", code.patch)
    for name, content in sources(config.trusted_modules).items():
        recording.save_text(f"code/{name}", content.decode("utf-8", errors="surrogateescape"))


def status_of(error: BaseException) -> Status:
    """The status of a run that ends with this exception: KILLED if it was stopped, else FAILED."""
    return Status.KILLED if isinstance(error, KeyboardInterrupt | Pruned) else Status.FAILED


def ending(error: BaseException) -> dict[str, str]:
    """The tags that say why a run failed or was stopped."""
    if isinstance(error, Pruned):
        return {PRUNED: str(error)}
    return {
        ERROR: traceback.format_exception_only(error)[-1].strip(),
        TRACEBACK: "".join(traceback.format_exception(error)),
    }


def _as_yaml(config: Config) -> str:
    plain = hide_value("", asdict(config))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _command() -> str:
    words = [word for word in sys.orig_argv[1:] if not word.startswith(OF_THE_PLACE)]
    return shlex.join(["python", *map(hide_word, words)])


@contextmanager
def _at_least_tried() -> Iterator[None]:
    """Logs errors while closing a failed run instead of raising them: the first failure matters."""
    try:
        yield
    except Exception as error:
        log.warning("The failed run could not be closed completely: %s", error)
