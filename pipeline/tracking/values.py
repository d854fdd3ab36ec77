"""Recorded runs and queries for them, as values. Does not import MLflow.

The names of tags and of MLflow's run statuses are defined only here. What is recorded under them
stays readable: none of them may change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml

from pipeline.config.schema import Config, validate
from pipeline.data.values import KEPT, Array, Identity, Predictions, most_probable
from pipeline.system.errors import PipelineError, RequestError, one_line
from pipeline.system.folders import owner
from pipeline.system.secrets import hide_in_place, hide_value

# Tags of every run: its command, commit, uncommitted changes, data, model, and how it ended.
COMMAND, COMMIT = "command", "mlflow.source.git.commit"
DIRTY, PATCH = "code.dirty", "code.patch_sha256"
FINGERPRINT, SOURCE = "data.fingerprint", "data.source"
GROUPING = "data.groups"  # SHA-256 of the groups of pictures, which the fingerprint leaves out
MODEL_URI, ERROR, TRACEBACK = "model_uri", "error", "traceback"
CHOSEN_DATASET, CHOSEN_MODEL = "dataset", "model"  # names of files, one per group of `conf/`
# Prefixes: a trusted module's name, with the SHA-256 of its source; a property of the machine; a
# package, with its version; a stage, with `hit` or `miss`.
TRUSTED, HARDWARE, VERSIONS, CACHE = "trusted.", "hardware.", "version.", "cache/"
# The time of the last heartbeat (UTC), and the process that sent it.
BEAT, BEAT_HOST = "heartbeat", "heartbeat.host"
BEAT_PID, BEAT_STARTED = "heartbeat.pid", "heartbeat.started"
LOCAL_ID = "local_id"  # by which a run or model is found before the store has named it
RUN_FOLDER = "folder"  # folder of its log and checkpoints
# Tags of a job: its sweep, its index, why it was pruned.
PARENT, INDEX, PRUNED_TAG = "mlflow.parentRunId", "sweep.index", "sweep.pruned"
# Tags of a sweep's own run: its folder, its metrics; prefix of what its best job is and has.
SWEEP_FOLDER, OBJECTIVE, BEST_JOB = "sweep.folder", "sweep.objective", "best."
# Tags by which a folder or a process is found again.
PLACES = frozenset({RUN_FOLDER, SWEEP_FOLDER, BEAT_HOST})
# Tags of a resumed run: the epochs after which it was interrupted, and what had changed.
RESUMED_AFTER, RESUMED_CHANGES = "resumed.after_epoch", "resumed.changed"
# Tags of a rerun: the run that it repeats, the verdict, and what had changed.
REPRODUCES, VERDICT, REPEAT_CHANGES = "reproduces", "reproduction", "reproduction.changed"
# Tags of an experiment: its kind; prefix of the name of a view of its table of runs.
EXPERIMENT_KIND, VIEW = "mlflow.experimentKind", "mlflow.sharedViewState."
# Tags of the data that a run logs: what they are for, and where code makes them.
DATA_CONTEXT, DATA_CODE = "mlflow.data.context", "mlflow.source.name"
SAVED_MODEL = re.compile(r"models:/(?P<model_id>m-[^/@]+)")  # the address of a run's own model
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"  # aliases of versions
# A tag of a version: `pending` while it is a ticket, then its final state.
STATE = "promotion"
PENDING, DONE, CHALLENGER_STATE = "pending", "done", "challenger"
# Tags of a ticket: who holds it, the version to make champion, its attempt with the key of that.
HOLDER, TARGET = "promotion.holder", "promotion.target"
ATTEMPT, ATTEMPT_KEY = "promotion.line", "promotion.key"
# Tags of a version: the one that it replaced, its run, configuration and commit.
REPLACES, OF_RUN = "promotion.replaces", "run_id"
OF_CONFIG, OF_COMMIT = "config.sha256", "code.commit"
LEDGER = "ledger."  # prefix of the key of an attempt: a tag of the registered model
SEED = "seed"
TEACHER = "teacher"  # the runs whose models it learned from
PRECISION = "precision.chosen"  # what `train.precision=auto` chose
WEIGHTS_SHA256 = "weights.sha256"  # of the file that `model.weights` names
NOTE = "mlflow.note.content"  # tag with the description that MLflow shows, in Markdown
_CONFIG, PREDICTIONS = "config.yaml", "predictions.npz"
# Parameters that change how a model is shown, but not the model.
SHOWN_ONLY = ("evaluate.", "train.plots", "train.tensorboard")
# Groups whose builder determines the result too; for other groups the parameters suffice.
CHOICES = (CHOSEN_DATASET, "augment", CHOSEN_MODEL, "optimizer", "schedule")
SHORT = 8  # characters of a checksum or an id shown to people
# Characters that MLflow keeps of a parameter and of a tag, of a run and of a registered model.
LONGEST_PARAM, LONGEST_TAG, LONGEST_MODEL_TAG = 6_000, 8_000, 5_000
# Those of the name of a run, and of the description of a registered model or a version.
LONGEST_NAME, LONGEST_DESCRIPTION = 250, 5_000

SIGNED = "\n\n<!-- written by the pipeline -->"  # the end of our descriptions, which is not shown


def registered_name(dataset: str) -> str:
    """The name of the registered model of a data set; MLflow takes no slash, as in `mine/birds`."""
    return dataset.replace("/", "--")


def dataset_of(name: str) -> str:
    """The data set that a registered model is named after."""
    return name.replace("--", "/")


def champion_uri(dataset: str) -> str:
    """The address of the champion of a data set."""
    return f"models:/{registered_name(dataset)}@{CHAMPION}"


def identity_in(tags: Mapping[str, str]) -> Identity | None:
    """What identifies the data of a run with these tags; None if that is not recorded."""
    if FINGERPRINT not in tags:
        return None
    return Identity(fingerprint=tags[FINGERPRINT], grouping=tags.get(GROUPING))


def shortened(text: str, longest: int) -> str:
    """The text, shortened to that many characters: `a long na…`."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def is_written_by_hand(description: str) -> bool:
    """Whether the user has written a description, which the pipeline then keeps."""
    return bool(description) and not description.endswith(SIGNED)


class Status(StrEnum):
    """The status of a run in MLflow: how it ended, or RUNNING."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True, kw_only=True, repr=False)
class RecordedRun:
    """A run as recorded in the tracking store, whatever its status.

    `started` and `ended`: Unix time, ms; `logged`: the last value of each metric; `sizes`: images
    by split; `artifacts`: the address of its artefacts, which are read on demand.
    """

    id: str
    name: str
    experiment: str
    status: Status
    started: int
    ended: int | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    logged: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    artifacts: str = ""
    experiment_id: str = ""
    store: str | None = None
    """The whole address of its store, without the password; None stands for the one used last."""

    def __repr__(self) -> str:
        known = [name for name in ("val/accuracy", "test/accuracy") if name in self.metrics]
        metrics = "".join(f", {name}={self.metrics[name]:.4f}" for name in known)
        return (
            f"RecordedRun({self.id}, {self.label!r} of {self.experiment}, {self.status}{metrics})"
        )

    @property
    def label(self) -> str:
        """A readable label: its name, else the beginning of its id."""
        return self.name or self.id[:SHORT]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Its metrics; those per epoch are of the epoch whose weights it kept."""
        return of_kept_weights(self.logged)

    @property
    def kept_another_epoch(self) -> bool:
        """Whether `metrics` are of the last epoch, but the weights of an earlier one were kept.

        False for runs that recorded the metrics of the kept weights.
        """
        if any(name.startswith(KEPT) for name in self.logged):
            return False
        best, epochs = self.logged.get("train/best_epoch"), self.params.get("train.epochs", "")
        kept_best = self.params.get("train.keep") == "best" and best is not None
        return kept_best and epochs.isdecimal() and best != int(epochs)

    @property
    def seconds(self) -> float:
        """How long it ran, in seconds; 0 if it has not ended."""
        return ((self.ended or self.started) - self.started) / 1000

    @property
    def folder(self) -> Path | None:
        """The folder of its log and checkpoints, on the machine it ran on."""
        return Path(self.tags[RUN_FOLDER]) if RUN_FOLDER in self.tags else None

    @property
    def sweep_folder(self) -> Path | None:
        """The folder of the sweep, if it is a sweep's own run."""
        return Path(self.tags[SWEEP_FOLDER]) if SWEEP_FOLDER in self.tags else None

    @property
    def is_sweep(self) -> bool:
        """Whether it is a sweep's own run, which trains nothing itself."""
        return SWEEP_FOLDER in self.tags

    @property
    def parent(self) -> str | None:
        """The id of the sweep, if it is the run of a job."""
        return self.tags.get(PARENT)

    @property
    def index(self) -> int | None:
        """Its index among the jobs of its sweep, from 0."""
        return int(self.tags[INDEX]) if INDEX in self.tags else None

    @property
    def pruned(self) -> str | None:
        """Why its sweep pruned it, None if it did not."""
        return self.tags.get(PRUNED_TAG)

    @property
    def error(self) -> str | None:
        """Why it failed or was stopped, in one line."""
        return self.tags.get(ERROR)

    @property
    def commit(self) -> str | None:
        """The git commit of the code it ran with."""
        return self.tags.get(COMMIT)

    @property
    def has_uncommitted_changes(self) -> bool:
        """Whether its code differed from that commit."""
        return self.tags.get(DIRTY) == "true"

    @property
    def command(self) -> str:
        """The command line that started it; empty if it is not recorded."""
        return self.tags.get(COMMAND, "")

    @property
    def host(self) -> str | None:
        """The machine it ran on."""
        return self.tags.get(f"{HARDWARE}host")

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 (hex) of the whole content of its data."""
        return self.tags.get(FINGERPRINT)

    @property
    def identity(self) -> Identity | None:
        """What identifies its data; None if that is not recorded."""
        return identity_in(self.tags)

    @property
    def source(self) -> str | None:
        """Where its data came from: an address, a place, or what made it."""
        return self.tags.get(SOURCE)

    @property
    def model_uri(self) -> str | None:
        """MLflow's address of the model it saved, or its folder until a store has it, or None."""
        return self.tags.get(MODEL_URI) or None

    @cached_property
    def traits(self) -> dict[str, str]:
        """Everything its result depends on, by name: settings, code, data, versions, hardware."""
        return self._settings | self._origin

    @property
    def _settings(self) -> dict[str, str]:
        chosen = {key: self.tags[key] for key in CHOICES if key in self.tags}
        return chosen | {
            # `mlflow run` records its own parameters; ours are then under config.<name>.
            key.removeprefix("config."): value
            for key, value in self.params.items()
            if ("." in key or key == SEED) and not key.startswith(SHOWN_ONLY)
        }

    @property
    def _origin(self) -> dict[str, str]:
        tags = self.tags
        origin = {"code": code_label(tags), "data": tags.get(FINGERPRINT, "")[:SHORT]}
        origin |= {k: v for k, v in tags.items() if k.startswith((VERSIONS, HARDWARE, PRECISION))}
        origin |= {k: v[:SHORT] for k, v in tags.items() if k.startswith((TRUSTED, WEIGHTS_SHA256))}
        return origin | {"status": str(self.status)}

    @cached_property
    def config(self) -> Config:
        """The configuration it ran with.

        Raises:
            RequestError: its artefacts have none.
        """
        return validate(yaml.safe_load(self.text(_CONFIG)))

    def text(self, name: str) -> str:
        """The content of a text file among its artefacts, unchanged.

        Raises:
            RequestError: there is no such file.
        """
        return self.fetch(name).read_bytes().decode("utf-8", errors="surrogateescape")

    def has(self, name: str) -> bool:
        """Whether its artefacts have a file of that name."""
        from pipeline.tracking.client import artifact_names

        return name in artifact_names(self.artifacts, self.store) or self._left(name) is not None

    def predictions(self) -> dict[str, StoredPredictions]:
        """Its predictions on each split that it was evaluated on: "val", "test".

        Raises:
            RequestError: it was not evaluated, or the file is damaged.
        """
        path = self.fetch(PREDICTIONS)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return by_split(dict(arrays))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RequestError(
                f"run_id={self.id}: its {PREDICTIONS} cannot be read: {one_line(error)}"
            ) from error

    def load_model(self) -> Any:
        """Loads the Keras model that it saved: u8[N,H,W,C] → probabilities f32[N,K].

        Raises:
            RequestError: it has not saved one, or it cannot be loaded.
        """
        if self.model_uri is None:
            raise RequestError(f"run_id={self.id} ({self.status}) has saved no model")
        from pipeline.tracking.models import model_of_run  # imports TensorFlow

        return model_of_run(self)

    def fetch(self, name: str) -> Path:
        """The local path of a file among its artefacts.

        Raises:
            RequestError: there is no such file.
            PipelineError: its store is away.
        """
        from pipeline.tracking.client import fetch

        try:
            return fetch(f"{self.artifacts}/{name}", self.store)
        except (OSError, PipelineError) as error:
            if left := self._left(name):
                return left
            if isinstance(error, PipelineError):
                raise
            raise RequestError(f"run_id={self.id}: the run has no {name}") from error

    def _left(self, name: str) -> Path | None:
        """The file in the run's own folder: a run that was killed did not log its artefacts."""
        if self.folder is None or owner(self.folder) != self.id:
            return None
        path = self.folder / "artifacts" / name
        return path if path.exists() else None


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredPredictions:
    """What a run predicted on a split: `labels` i32[N] and `probabilities` f32[N,K]."""

    labels: Array
    probabilities: Array
    class_names: tuple[str, ...]

    @cached_property
    def predicted(self) -> Array:
        """The most probable class of each image, i32[N]."""
        return most_probable(self.probabilities)


def as_arrays(predictions: Mapping[str, Predictions]) -> dict[str, Array]:
    """The arrays of `predictions.npz`, by name.

    They are `class_names`, and each split's `<split>_labels` i32[N] and `<split>_probs` f32[N,K].
    """
    arrays: dict[str, Array] = {}
    for split, values in predictions.items():
        arrays["class_names"] = np.array(values.class_names)
        arrays |= {f"{split}_labels": values.labels, f"{split}_probs": values.probabilities}
    return arrays


def by_split(arrays: Mapping[str, Array]) -> dict[str, StoredPredictions]:
    """The predictions in the arrays of `predictions.npz`.

    They are `<split>_labels` i32[N] and `<split>_probs` f32[N,K], and `class_names` except in runs
    of early versions.
    """
    found = {}
    for name, probabilities in arrays.items():
        split, _, kind = name.rpartition("_")
        if kind == "probs":
            numbered = [f"class {number}" for number in range(probabilities.shape[1])]
            found[split] = StoredPredictions(
                labels=arrays[f"{split}_labels"],
                probabilities=probabilities,
                class_names=tuple(map(str, arrays.get("class_names", numbered))),
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of the registered model: `uri` is its address, `source` that of the logged model.

    `age_s` is its age in seconds when it was read.
    """

    number: int
    uri: str
    source: str
    run_id: str
    tags: Mapping[str, str]
    age_s: float

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 (hex) of the data that its model was trained on."""
        return self.tags.get(FINGERPRINT)


@dataclass(frozen=True, kw_only=True)
class Present:
    """The registered model when read: version numbers by alias, its tags, its description."""

    aliases: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Query:
    """Conditions on runs to search for; None stands for no condition.

    `experiment`: a name, or None for all. `tags`: for each name a value, True (set) or False (not
    set). `order`: `started` or names of metrics, with a leading `-` for descending order.
    """

    experiment: str | None = None
    status: Sequence[Status] | None = None
    ids: Sequence[str] | None = None
    begins: str | None = None
    """The beginning of an id, in lower case."""
    begins_locally: str | None = None
    """The beginning of a local id, which a run had before a store knew it, in lower case."""
    is_sweep: bool | None = None
    """Whether it is a sweep's own run."""
    parent: str | None = None
    """The id of the sweep that the run belongs to."""
    index: int | None = None
    has_model: bool | None = None
    has_folder: bool | None = None
    """Whether its folder is recorded, as for every run except a sweep's own."""
    is_pruned: bool | None = None
    deleted: bool = False
    """Whether to search the deleted runs instead of the others."""
    has_metric: str | None = None
    tags: Mapping[str, str | bool] = field(default_factory=dict)
    order: Sequence[str] = ("-started",)
    limit: int | None = None


def of_kept_weights(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a run, with those per epoch taken from the epoch whose weights it kept."""
    kept = {key.removeprefix(KEPT): metrics[key] for key in metrics if key.startswith(KEPT)}
    return {**metrics, **kept}


def code_label(tags: Mapping[str, str]) -> str:
    """The commit and, if there were uncommitted changes, the patch: `1ce00fe + patch 3f2a81c0`."""
    commit = tags.get(COMMIT, "")[:7] or "unknown"
    if tags.get(DIRTY) != "true":
        return commit
    patch = tags.get(PATCH, "")[:SHORT]
    return f"{commit} + patch {patch}" if patch else f"{commit} + uncommitted changes"


def hide_tag(key: str, value: str) -> str:
    """Hides the secrets in a tag."""
    hidden: str = hide_in_place(value) if key in PLACES else hide_value(key, value)
    return hidden
