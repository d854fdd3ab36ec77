"""Sends the records of a run to MLflow, so that each arrives once, however often it is sent.

Runs and models get the tag `local_id`, by which they are looked up before they are created again. A
metric sent again with the same time and step is the same point; parameters, tags and files are
overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.types import Schema, TensorSpec

from pipeline.system.errors import RequestError, one_line
from pipeline.system.files import remove, replacing
from pipeline.system.folders import MODEL, hand_over, owner
from pipeline.system.secrets import has_hidden, hide_in_place
from pipeline.tracking.client import (
    DENIED,
    STORE_ERRORS,
    Client,
    address_of,
    experiment,
    is_passing,
    made_once,
    repeatable,
    why_away,
)
from pipeline.tracking.heartbeat import GONE
from pipeline.tracking.journal import (
    ARTIFACTS,
    BATCH,
    DATA,
    END,
    FILES,
    JOURNAL_FILE,
    MODEL_SAVED,
    NOTED,
    OPENED,
    OPENING,
    Courier,
    Journal,
    Record,
    began_elsewhere,
    next_joined,
    now,
    sync_command,
)
from pipeline.tracking.runs import search
from pipeline.tracking.values import (
    BEAT,
    DATA_CONTEXT,
    ERROR,
    LOCAL_ID,
    MODEL_URI,
    NOTE,
    Query,
    Status,
    is_written_by_hand,
)

LAST_ANSWER_S = 8.0  # for the answer to a request when a run is stopped or fails
MODEL_PATIENCE_S = 2.0  # with a store that is away when a model is saved


def may_pass(error: BaseException) -> bool:
    """Whether sending a record may succeed later: the store is away, or denies access."""
    is_denied = isinstance(error, MlflowException) and error.error_code in DENIED
    return is_denied or is_passing(error)


def open_run(client: Client, opening: Mapping[str, Any], *, again: bool = False) -> Run:
    """Creates the run that a journal begins with; with `again`, looks first whether it exists.

    Raises:
        RequestError: the experiment was deleted, or the store refuses its name.
        MlflowException: the store is away.
    """
    experiment_id = experiment(client, opening["experiment"], opening["artifact_root"])
    local_id = opening[LOCAL_ID]

    def find() -> Run | None:
        asked = Query(experiment=opening["experiment"], tags={LOCAL_ID: local_id}, limit=1)
        found = next(search(client, asked), None)
        return client.get_run(found.id) if found else None

    def make() -> Run:
        tags, name = opening["tags"], opening["name"]
        return client.create_run(
            experiment_id, start_time=opening["started"], tags=tags, run_name=name
        )

    return (find() if again else None) or made_once(make, find)


def opened_as(client: Client, run: Run) -> Record:
    """The record of a run that a store has created: that store, and what it calls the run.

    That is its id, its name, and the address of its artefacts; addresses are without passwords.
    """
    info = run.info
    known = {"id": info.run_id, "name": info.run_name}
    known |= {"artifacts": hide_in_place(info.artifact_uri)}
    return {"kind": OPENED, **known, "store": address_of(client)}


@dataclass(kw_only=True)
class Delivery:
    """Delivers records of one run.

    `model_uri` is the address of its model once it is stored, and `owes_model` whether the store
    has not taken a model that it was sent.
    """

    client: Client
    run_id: str
    folder: Path
    model_uri: str | None = None
    owes_model: bool = False
    _begun: set[str] = field(init=False, default_factory=set)  # local ids of models
    _kinds: dict[str, Callable[[Record], None]] = field(init=False)

    def __post_init__(self) -> None:
        self._kinds = {
            OPENING: lambda _: None,
            OPENED: lambda _: None,
            BATCH: self._batch,
            DATA: self._data,
            NOTED: self._note,
            MODEL_SAVED: self._model,
            ARTIFACTS: self._artifacts,
            FILES: self._files,
            END: self._end,
        }

    def send(self, record: Record) -> None:
        """Sends one record; it may have been sent before.

        Raises:
            MlflowException: the store refuses it, or is away.
            ConnectionError: the place of its artefacts, S3 or the like, does not take a file.
            RequestError: the artefacts in the folder are those of another run.
            OSError: a file cannot be read, or not be written to a local store.
        """
        self._kinds[record["kind"]](record)

    def _batch(self, record: Record) -> None:
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(*point) for point in record.get("metrics", ())],
            params=[Param(key, value) for key, value in record.get("params", {}).items()],
            tags=[RunTag(key, value) for key, value in record.get("tags", {}).items()],
        )

    def _data(self, record: Record) -> None:
        schema = TensorDatasetSchema(
            features=Schema([TensorSpec(np.dtype("uint8"), (-1, *record["image_shape"]))]),
            targets=Schema([TensorSpec(np.dtype("i4"), (-1,))]),
        )
        dataset = Dataset(
            name=record["name"],
            digest=record["digest"],
            source_type=record["source_type"],
            source=json.dumps(record["source"]),
            schema=json.dumps(schema.to_dict()),
            profile=json.dumps({f"{split}_images": n for split, n in record["sizes"].items()}),
        )
        inputs = [DatasetInput(dataset, [InputTag(DATA_CONTEXT, "training")])]
        repeatable(lambda: self.client.log_inputs(self.run_id, inputs))

    def _note(self, record: Record) -> None:
        """Sets the run's description, unless the user has written one."""
        run = self.client.get_run(self.run_id)
        if not is_written_by_hand(run.data.tags.get(NOTE, "")):
            page = f"#/experiments/{run.info.experiment_id}/runs/{self.run_id}/artifacts/"
            text = record["text"].replace("](artifacts:", f"]({page}")
            self.client.set_tag(self.run_id, NOTE, text)

    def _model(self, record: Record) -> None:
        """Logs a saved model as mlflow.tensorflow.log_model would, but for any run."""
        self.owes_model = True
        experiment_id = self.client.get_run(self.run_id).info.experiment_id
        entry = self._entry(record, experiment_id)
        outputs = [LoggedModelOutput(entry.model_id, step=0)]
        repeatable(lambda: self.client.log_outputs(self.run_id, outputs))
        points = [
            Metric(key, value, at, step, model_id=entry.model_id, run_id=self.run_id)
            for key, value, at, step in record["metrics"]
        ]
        self.client.log_batch(self.run_id, metrics=points)
        path = self.folder / MODEL
        _name(path / "MLmodel", entry, self.run_id)
        with _uploading():
            self.client.log_model_artifacts(entry.model_id, str(path))
        self.client.finalize_logged_model(entry.model_id, "READY")
        self.client.set_tag(self.run_id, MODEL_URI, entry.model_uri)
        self.model_uri, self.owes_model = str(entry.model_uri), False

    def _entry(self, record: Record, experiment_id: str) -> LoggedModel:
        """Creates the logged model; deletes those that earlier attempts left half-saved."""
        local_id = record[LOCAL_ID]

        def known() -> list[LoggedModel]:
            condition = f"source_run_id = '{self.run_id}'"
            return list(self.client.search_logged_models([experiment_id], filter_string=condition))

        def find() -> LoggedModel | None:
            return next((one for one in known() if one.tags.get(LOCAL_ID) == local_id), None)

        again, begun = record["again"], local_id in self._begun
        self._begun.add(local_id)
        if again:
            for model in known():
                if model.tags.get(LOCAL_ID) != local_id:
                    self.client.delete_logged_model(model.model_id)
        return (find() if again or begun else None) or made_once(
            lambda: self.client.create_logged_model(
                experiment_id,
                name=record["name"],
                source_run_id=self.run_id,
                params=record["params"],
                tags={LOCAL_ID: local_id},
            ),
            find,
        )

    def _artifacts(self, record: Record) -> None:
        path = self.folder / "artifacts"
        if not path.exists():
            return
        if (found := owner(self.folder)) != self.run_id:
            raise RequestError(f"{path} belongs to the run {found}, not to {self.run_id}")
        with _uploading():
            self.client.log_artifacts(self.run_id, str(path))

    def _files(self, record: Record) -> None:
        for path in record["paths"]:
            with _uploading():
                self.client.log_artifact(self.run_id, path, record["below"])

    def _end(self, record: Record) -> None:
        """Closes the run; removes the error that others set because they heard no heartbeat."""
        error = self.client.get_run(self.run_id).data.tags.get(ERROR)
        if error == GONE or (error and record["status"] == Status.FINISHED):
            _drop_tag(self.client, self.run_id, ERROR)
        self.client.set_terminated(self.run_id, record["status"], record["time"])


class Journaled:
    """Writes the records of a run to its journal; a thread sends them from there to the store.

    Without a `delivery` nothing is sent. On leaving a `with` block the journal is closed, and
    deleted if the store has everything, as is the saved model unless the store refused it.
    """

    def __init__(self, journal: Journal, delivery: Delivery | None) -> None:
        self.journal, self._delivery = journal, delivery
        self._courier = Courier(journal, delivery.send, may_pass, why_away) if delivery else None
        self._is_open = True

    def put(self, record: Record) -> None:
        """Writes a record to the journal; the store gets it later.

        Raises:
            MlflowException: the store refuses an earlier record.
            OSError: the disk is full, or a local store cannot take a file.
        """
        if self._courier:
            self._courier.put(record)
        else:
            self.journal.append(record)

    @property
    def model_uri(self) -> str | None:
        """The address of the run's model, if the store has it; waits a moment, unless closed."""
        if self._courier and self._delivery:
            if self._is_open:
                self._courier.wait(MODEL_PATIENCE_S, at_once=False)
            return self._delivery.model_uri
        return None

    def arrive(self, patience_s: float) -> bool:
        """Waits until the store has everything; returns False if it stays away (`Courier.wait`)."""
        return self._courier is not None and self._courier.wait(patience_s)

    def arrive_soon(self, patience_s: float) -> bool:
        """Like `arrive`, but makes no further attempt if the store is away or does not answer."""
        courier = self._courier
        return courier is not None and courier.wait(
            patience_s, at_once=False, stuck_s=LAST_ANSWER_S
        )

    @property
    def trouble(self) -> str:
        """Why the store does not have everything."""
        if self._courier is None:
            return "no store has this run yet (tracking.offline=true)"
        return f"the store has not received all of this run ({self._courier.trouble})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        if self._courier is None or self._delivery is None:
            self.journal.close()
        elif self._courier.stop() and not self._delivery.owes_model:
            remove(self.journal.folder / MODEL)


@contextmanager
def _uploading() -> Iterator[None]:
    """Tells errors of a place of artefacts as those of a connection, which may pass.

    Each kind of place (S3, Google's, Azure's) raises errors of its own driver, for a network that
    is down as for credentials that have expired.

    Raises:
        ConnectionError: such an error.
    """
    try:
        yield
    except (*STORE_ERRORS, OSError):
        raise
    except Exception as error:
        raise ConnectionError(f"the place of the artefacts: {one_line(error)}") from error


def _drop_tag(client: Client, run_id: str, key: str) -> None:
    try:
        client.delete_tag(run_id, key)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the request was repeated
            raise


def _name(path: Path, entry: LoggedModel, run_id: str) -> None:
    """Writes the ids of the logged model and its run into the MLmodel file of a saved model."""
    about = yaml.safe_load(path.read_text(encoding="utf-8"))
    about |= {"artifact_path": entry.artifact_location, "run_id": run_id}
    about |= {"model_id": entry.model_id, "model_uuid": entry.model_id}
    with replacing(path) as written:
        written.write_text(yaml.safe_dump(about, sort_keys=False), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Sent:
    """The result of sending a journal: the run in the store, its status, the number of records."""

    folder: Path
    run_id: str | None
    status: Status
    records: int
    refused: Sequence[str] = ()
    """Why the store did not take some of the records."""

    def __str__(self) -> str:
        what = f"run_id={self.run_id} status={self.status}" if self.run_id else "no run had begun"
        told = f", {len(self.refused)} refused: {self.refused[0]}" if self.refused else ""
        return f"{self.folder}: {what} ({self.records - len(self.refused)} records sent{told})"


def send_journal(
    client: Client, folder: Path, *, close: bool = True, artifact_root: str | None = None
) -> Sent:
    """Sends the unsent records of the journal in a folder, and deletes it.

    `artifact_root` is where a new experiment keeps its artefacts if the run did not say, or if that
    had a password, which a journal does not keep. A run whose process died is closed as KILLED at
    the time of its last record, unless `close` is false because it is about to be resumed.

    Raises:
        RequestError: another process has the journal open, the store does not have the run, or the
            run was deleted there.
        MlflowException: the store is away; what has arrived by then need not be sent again.
        ConnectionError: the place of its artefacts does not take them.
    """
    journal = Journal(folder)
    try:
        records = journal.records()
        if not records or records[0]["kind"] != OPENING:  # killed while it wrote its first line
            journal.delete()
            return Sent(folder=folder, run_id=None, status=Status.KILLED, records=0)
        recorded = records[0]["artifact_root"]
        if recorded is None or has_hidden(recorded):
            records[0]["artifact_root"] = artifact_root or recorded
        run = _run_of(client, journal, records)
        status = _status(records, run)
        if close and run.info.status == Status.RUNNING and not _ends(records):
            for record in _last_words(records):
                journal.append(record)
        waiting = journal.unsent()
        delivery = Delivery(client=client, run_id=run.info.run_id, folder=folder)
        refused = list(_resent(delivery, journal, waiting))
        journal.delete()
    finally:
        journal.close()
    return Sent(
        folder=folder,
        run_id=run.info.run_id,
        status=status,
        records=len(waiting),
        refused=refused,
    )


def _ends(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["kind"] == END]


def _status(records: Sequence[Record], run: Run) -> Status:
    """How a run ended: as its journal says, or the store if the end of the journal is lost."""
    if ends := _ends(records):
        return Status(ends[-1]["status"])
    has_ended = run.info.status in (Status.FINISHED, Status.FAILED, Status.KILLED)
    return Status(run.info.status) if has_ended else Status.KILLED


def _resent(
    delivery: Delivery, journal: Journal, waiting: Sequence[tuple[int, Record]]
) -> Iterator[str]:
    """Sends records, joined where possible; yields why the store refuses single ones."""
    rest, singly = list(waiting), 0
    while rest:
        end, record, count = next_joined(rest, singly=singly > 0)
        try:
            delivery.send(record | {"again": True} if "again" in record else record)
        except STORE_ERRORS as error:
            if may_pass(error) or record["kind"] != BATCH:
                raise
            if count > 1:  # perhaps only one of the joined records is wrong
                singly = count
                continue
            yield one_line(error)
        singly = max(0, singly - count)
        journal.mark(end)
        del rest[:count]


def _run_of(client: Client, journal: Journal, records: list[Record]) -> Run:
    """The store's run of a journal; creates it if the store does not have it."""
    opening, folder = records[0], journal.folder
    opened: Record = next((record for record in records if record["kind"] == OPENED), {})
    if run_id := opening["run_id"] or opened.get("id"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if is_passing(error):
                raise
            store = str(opened.get("store", opening["store"]))
            raise RequestError(
                f"{folder}: the run {run_id} was recorded at {store} and is not in this store; "
                f"{began_elsewhere(store, folder)}name that one with tracking.uri=…"
            ) from error
        if run.info.lifecycle_stage != "active":
            raise RequestError(
                f"{folder}: the run {run_id} was deleted; `mlflow runs restore --run-id {run_id}` "
                f"brings it back, deleting {folder / JOURNAL_FILE} gives up what it lacks"
            )
    else:
        if has_hidden(root := opening["artifact_root"] or ""):
            raise RequestError(
                f"{folder}: the password in its tracking.artifact_root={root} is not recorded; "
                f"name that place again: {sync_command(folder)} tracking.artifact_root=…"
            )
        run = open_run(client, opening, again=True)
        journal.append(opened_as(client, run))
    if owner(folder) in (opening[LOCAL_ID], None):  # still: an earlier try may have ended here
        hand_over(folder, run.info.run_id)
    return run


def _last_words(records: list[Record]) -> list[Record]:
    """The records that close a run whose process died."""
    logged = [record.get("metrics", ()) for record in records if record["kind"] == BATCH]
    heard = [at for points in logged for _, _, at, _ in points]
    beat = records[0]["tags"].get(BEAT)
    heard += [int(datetime.fromisoformat(beat).timestamp() * 1000)] if beat else []
    at = max([*heard, records[0]["started"]]) if heard else now()
    end = {"kind": END, "status": str(Status.KILLED), "time": at}
    return [{"kind": ARTIFACTS}, end, {"kind": BATCH, "tags": {ERROR: GONE}}]
