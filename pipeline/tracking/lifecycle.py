"""The life of a run: opened before the work, closed with its true final status."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import yaml
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from pipeline.config.flat import shown_params
from pipeline.config.schema import Config
from pipeline.config.sweep import JobSettings
from pipeline.config.trusted import checksums, sources
from pipeline.config.words import key_of
from pipeline.system.databases import without_password
from pipeline.system.errors import PipelineError, Pruned, RequestError, counted
from pipeline.system.folders import at_work_in, move_in, vacate
from pipeline.system.secrets import (
    hide,
    hide_in_place,
    hide_value,
    hide_word,
    learn,
    learn_environment,
    may_stand_for,
)
from pipeline.tracking import lineage
from pipeline.tracking.addresses import ADOPTED_RUN, adopted_run_id, store_address
from pipeline.tracking.client import (
    Client,
    address_of,
    experiment_name,
    is_passing,
    require_driver,
    store_of,
    why_away,
)
from pipeline.tracking.delivery import (
    Delivery,
    Journaled,
    Sent,
    open_run,
    opened_as,
    send_journal,
)
from pipeline.tracking.heartbeat import GONE, beating, fell_silent, signs
from pipeline.tracking.journal import (
    OPENED,
    OPENING,
    Journal,
    Record,
    as_run,
    has_journal,
    is_open,
    now,
    opened_at,
    read_journal,
    sync_command,
    with_journals,
)
from pipeline.tracking.recording import Recording
from pipeline.tracking.runs import by_id, metric_history
from pipeline.tracking.values import (
    BEAT,
    COMMAND,
    COMMIT,
    DIRTY,
    ERROR,
    HARDWARE,
    INDEX,
    LOCAL_ID,
    LONGEST_NAME,
    PARENT,
    PATCH,
    PRUNED_TAG,
    RUN_FOLDER,
    SHORT,
    SWEEP_FOLDER,
    TRACEBACK,
    TRUSTED,
    VERSIONS,
    RecordedRun,
    Status,
    hide_tag,
    shortened,
)
from pipeline.training.checkpoint import Start

OF_THE_PLACE = ("tracking.uri=", "sweep.storage=")  # overrides that differ between machines
ENDING = {ERROR, TRACEBACK}  # tags of a run that failed or was stopped
PATIENCE_S = 10.0  # to wait for a store that is away when a run ends
SENDING_S = 10.0  # to send what earlier runs could not, before a run begins
SHORT_PATIENCE_S = 3.0  # to wait when a run is stopped or fails

log = logging.getLogger(__name__)


@contextmanager
def record(
    config: Config,
    folder: Path,
    *,
    run_id: str | None = None,
    start: Start | None = None,
    searched: Mapping[str, str] | None = None,
    job: JobSettings | None = None,
) -> Iterator[Recording]:
    """Opens a run for `config`, or continues one, and closes it with its final status.

    Continues the interrupted run of `start`, which keeps its recorded origin, and logs nothing
    twice; or `run_id`; else the run that `mlflow run` opened, if any. `searched` are the swept
    parameters, which have more than one value; `job` holds the settings of a sweep's job.

    The status is FINISHED when the block ends normally, KILLED on Ctrl-C, SIGTERM, SIGHUP or
    `Pruned`, and FAILED on any other exception. Exceptions are passed on; their last line becomes
    the tag `error`, or `sweep.pruned` for a pruned job. Everything logged so far stays. None of the
    secrets in `config` and in the environment is logged.

    Raises:
        RequestError: the tracking store cannot be used, or another process is using `folder`.
    """
    started = time.perf_counter()
    learn_environment()
    learn(asdict(config))
    client = store_of(config.tracking)
    tags = _place_in_sweep(job, folder, is_parent=searched is not None) | signs()
    run_id = start.run_id if start else run_id
    with at_work_in(folder):
        if job is None:
            _send_others(client, folder)
        if run_id is None:
            _require_sent(folder)
            vacate(folder)  # may refuse, so do it before a run exists
        elif has_journal(folder):
            send_journal(client, folder, close=False)
        adopted = _taken_from_environment(job)
        recording, outbox = _open(client, config, folder, tags, run_id=run_id, adopted=adopted)
        offline = config.tracking.offline
        with outbox, nullcontext() if offline else alive(client, recording.id):
            if start:
                recording = _continuing(recording, start.progress.seconds)
            with _closed_as_it_ends(recording, outbox):
                if not start:
                    move_in(folder, recording.id)
                    _log_origin(recording, config, searched or {}, job)
                yield recording
                recording.add_seconds("total", time.perf_counter() - started)
                recording.upload()


def _send_others(client: Client, folder: Path) -> None:
    """Sends what earlier runs could not, and says what was sent and how many runs are left."""
    sent, left = send_waiting(client, but=folder)
    for one in sent:
        print(f"sent what an earlier run had recorded: {one}", file=sys.stderr, flush=True)
    if left:
        many = counted(len(left), "earlier run is", "earlier runs are")
        told = f"{many} not in a store completely: python -m pipeline sync sends what is missing"
        print(told, file=sys.stderr, flush=True)


def send_waiting(
    client: Client, *, but: Path | None = None, within_s: float = SENDING_S
) -> tuple[list[Sent], list[Path]]:
    """Sends the journals of ended runs of this store, below `outputs/` and `multirun/`.

    Returns what was sent, and the folders of the rest: runs recorded without a store or for another
    one, and those that the store did not take within `within_s` seconds. Folders that this user
    cannot write to are their owner's to send.
    """
    until = time.monotonic() + within_s
    sent, left = list[Sent](), list[Path]()
    for folder in with_journals(Path()):
        try:
            if is_open(folder) or (but is not None and folder.samefile(but)):
                continue
            opened, here = opened_at(folder), address_of(client)
            is_of_it = opened is not None and may_stand_for(opened, here)
            if is_of_it and time.monotonic() < until:
                with at_work_in(folder), at_work_in(_sweep_of(folder)):
                    sent.append(send_journal(client, folder))
                continue
        except PermissionError as error:
            log.info("%s cannot be sent by this user: %s", folder, error)
            continue
        except Exception as error:  # whatever is wrong with an earlier run, this one can begin
            log.info("%s cannot be sent yet: %s", folder, error)
        left.append(folder)
    return sent, left


def _sweep_of(folder: Path) -> Path:
    """The folder of the sweep that the run in this folder is a job of, else the folder itself."""
    return folder.parent if INDEX in read_journal(folder)[0]["tags"] else folder


def _require_sent(folder: Path) -> None:
    """Refuses a folder with unsent records, which a new run would overwrite."""
    if has_journal(folder):
        raise RequestError(
            f"{folder} has the records of a run that its store lacks; send them with "
            f"`{sync_command(folder)}`, or choose another folder with hydra.run.dir=…"
        )


def _continuing(recording: Recording, spent_s: float) -> Recording:
    """A recording with the metrics and the seconds that the continued run recorded before."""
    spent = dict.fromkeys(("train", "total"), spent_s)
    before = metric_history(recording.client, recording.id)
    return replace(recording, seconds=spent, before=before)


def alive(client: Client, run_id: str) -> AbstractContextManager[None]:
    """Sends heartbeats of a run; makes it RUNNING again if others closed it while it was silent."""
    return beating(run_id, partial(client.set_tag, run_id, BEAT), partial(_reopen, client, run_id))


def _reopen(client: Client, run_id: str, ends: bool) -> None:
    """Takes back that others closed a run.

    Others write the error before the status. If only the error is there, it is removed only when
    the run `ends`.
    """
    run = client.get_run(run_id)
    killed = run.info.status == Status.KILLED
    if run.data.tags.get(ERROR) == GONE and (killed or ends):
        if killed:
            client.update_run(run_id, status=str(Status.RUNNING))
        client.delete_tag(run_id, ERROR)


def close(client: Client, run: RecordedRun, status: Status, error: str) -> None:
    """Closes a run whose process could not; a silent run ended with its last heartbeat."""
    if run.error is None:
        client.set_tag(run.id, ERROR, error)
    beat = fell_silent(run.tags)
    ended = max(int(beat.timestamp() * 1000), run.started) if beat else None
    client.set_terminated(run.id, str(status), ended)


def closing_by_hand(client: Client, run: RecordedRun) -> str:
    """The command that marks a run as KILLED, whoever made it; without the store's password."""
    store = address_of(client)
    call = f"mlflow.MlflowClient({store!r}).set_terminated({run.id!r}, 'KILLED')"
    return f'python -c "import mlflow; {call}"'


@contextmanager
def _closed_as_it_ends(recording: Recording, outbox: Journaled) -> Iterator[None]:
    try:
        yield
        ended = now()  # before the wait for the store
        arrived = outbox.arrive(PATIENCE_S)  # raises, and so fails the run, if a record is refused
    except BaseException as error:
        status, ended = status_of(error), now()
        with _at_least_tried():
            recording.log_tags(ending(error))
        with _at_least_tried():
            recording.upload()
        with _at_least_tried():
            recording.end(status, ended)
            _tell_unless(outbox.arrive_soon(SHORT_PATIENCE_S), outbox)
        raise
    recording.end(Status.FINISHED, ended)
    _tell_unless(arrived and outbox.arrive(PATIENCE_S), outbox)


def _tell_unless(arrived: bool, outbox: Journaled) -> None:
    """Unless the store has received everything, prints why not and how to send the rest."""
    if not arrived:
        command = sync_command(outbox.journal.folder)
        print(f"{outbox.trouble}: send it with `{command}`", file=sys.stderr, flush=True)


def _taken_from_environment(job: JobSettings | None) -> str | None:
    """The run that `mlflow run` opened, if any, which is the sweep's own and no job's.

    It is removed from the environment, so that later runs of this process and its workers ignore
    it. Workers that were started before have inherited it.
    """
    adopted = adopted_run_id()
    os.environ.pop(ADOPTED_RUN, None)
    return None if job else adopted


def _open(
    client: Client,
    config: Config,
    folder: Path,
    tags: dict[str, str],
    *,
    run_id: str | None,
    adopted: str | None,
) -> tuple[Recording, Journaled]:
    """Opens a run's journal and, unless the run is offline, the run in the store."""
    if existing := run_id or adopted:
        if config.tracking.offline:
            raise RequestError("tracking.offline=true: only a new run can do without its store")
        records = _taken_over(client, existing, tags, key="run_id" if run_id else ADOPTED_RUN)
    else:
        records = [_opening(config, tags)]
    journal = Journal(folder)
    try:
        for record in records:
            journal.append(record)
        if not existing and not config.tracking.offline:
            true_root = {"artifact_root": config.tracking.artifact_root}
            opened = opened_as(client, open_run(client, records[0] | true_root))
            records.append(opened)
            journal.append(opened)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):  # after which the store may have the run
            journal.delete()
        journal.close()
        if is_passing(error):
            store = address_of(client)
            raise RequestError(
                f"tracking store {store} cannot be used: {why_away(error)}"
            ) from error
        raise
    known = as_run(records, folder)
    delivery = Delivery(client=client, run_id=known.id, folder=folder)
    outbox = Journaled(journal, None if config.tracking.offline else delivery)
    recording = Recording(
        id=known.id, client=client, folder=folder, is_whole=True, outbox=outbox, records=records
    )
    return recording, outbox


def _opening(config: Config, tags: Mapping[str, str]) -> Record:
    local_id = uuid4().hex
    every = resolve_tags({**tags, LOCAL_ID: local_id})  # with user, command and the like
    name = config.tracking.run_name
    if name is None and config.tracking.offline:
        name = f"offline-{local_id[:SHORT]}"
    return {
        "kind": OPENING,
        LOCAL_ID: local_id,
        "run_id": None,
        "experiment": experiment_name(config),
        "artifact_root": (root := config.tracking.artifact_root) and hide_in_place(root),
        "name": name and shortened(hide(name), LONGEST_NAME),
        "started": now(),
        "store": without_password(store_address(config.tracking.uri)),
        "tags": {key: hide_tag(key, value) for key, value in every.items()},
        "params": {},
        "metrics": {},
    }


def _taken_over(client: Client, run_id: str, tags: dict[str, str], *, key: str) -> list[Record]:
    """Makes a recorded run RUNNING again; returns the records that its journal begins with."""
    found = by_id(client, run_id, key=key)
    require_driver(found.artifacts)
    try:
        client.update_run(found.id, status=str(Status.RUNNING))
    except MlflowException as error:
        raise RequestError(f"{key}={run_id}: {error.message}") from error
    for tag in ENDING & found.tags.keys():
        client.delete_tag(found.id, tag)
    client.log_batch(found.id, tags=[RunTag(key, value) for key, value in tags.items()])
    kept = {tag: value for tag, value in found.tags.items() if tag not in ENDING}
    opening = {
        "kind": OPENING,
        LOCAL_ID: found.tags.get(LOCAL_ID),
        "run_id": found.id,
        "experiment": found.experiment,
        "artifact_root": None,
        "name": found.name,
        "started": found.started,
        "store": address_of(client),
        "tags": {**kept, **tags},
        "params": dict(found.params),
        "metrics": dict(found.logged),
    }
    opened = {"kind": OPENED, "id": found.id, "name": found.name}
    return [opening, opened | {"artifacts": hide_in_place(found.artifacts)}]


def _place_in_sweep(job: JobSettings | None, folder: Path, *, is_parent: bool) -> dict[str, str]:
    """The tags that say where a run is: its folder, and a job's sweep and index; set first."""
    if is_parent:
        return {SWEEP_FOLDER: str(folder)}
    place = {PARENT: str(job.parent), INDEX: str(job.index)} if job else {}
    return {RUN_FOLDER: str(folder.absolute())} | place


def _log_origin(
    recording: Recording, config: Config, searched: Mapping[str, str], job: JobSettings | None
) -> None:
    """Logs the origin of the run: parameters, choices, code, environment, hardware."""
    code = lineage.code_state()
    if code.unreadable:
        log.warning(
            "the run is recorded without its commit and uncommitted changes, as git cannot read "
            "the checkout: %s",
            code.unreadable,
        )
    tags = (
        {HARDWARE + key: value for key, value in lineage.hardware().items()}
        | {VERSIONS + key: value for key, value in lineage.versions().items()}
        | asdict(config.choices)
        | {COMMAND: (job and job.command) or _command()}
        | ({COMMIT: code.commit, DIRTY: str(bool(code.patch)).lower()} if code.commit else {})
        | ({PATCH: code.patch_sha256} if code.patch else {})
        | {TRUSTED + name: sha256 for name, sha256 in checksums(config.trusted_modules).items()}
        | config.tracking.tags
    )
    # MLflow takes no plus in a name, as in `+model.width=3,5`.
    spaces = {key_of(key): space for key, space in searched.items()}
    recording.log_params({**shown_params(config), **spaces}, tags)
    recording.save_text("config.yaml", _as_yaml(config), as_it_is=True)
    recording.save_text("environment.txt", lineage.environment(), as_it_is=True)
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
        return {PRUNED_TAG: str(error)}
    told = traceback.format_exception_only(error)[-1].strip()
    return {
        ERROR: str(error) if isinstance(error, PipelineError) else told,
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
