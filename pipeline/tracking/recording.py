"""Logs to a run: metrics, parameters, tags, artefacts, data and the model.

A run in progress logs to its journal, and a thread sends that to the store. A finished run that is
reopened logs to the store directly.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from pipeline.config.schema import Tracking
from pipeline.data.values import Evaluation, Predictions, Prepared
from pipeline.system.files import remove, replacing
from pipeline.system.folders import MODEL, claim, owner
from pipeline.system.fonts import use_system_fonts
from pipeline.system.secrets import hide, hide_param, hide_value
from pipeline.tracking.client import Client, awaited, connect
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import (
    ARTIFACTS,
    BATCH,
    DATA,
    END,
    FILES,
    MODEL_SAVED,
    NOTED,
    Journal,
    MetricPoint,
    Record,
    as_run,
    has_journal,
    now,
)
from pipeline.tracking.models import save_model
from pipeline.tracking.runs import by_id, metric_history
from pipeline.tracking.values import (
    CACHE,
    CHOSEN_DATASET,
    CHOSEN_MODEL,
    DATA_CODE,
    FINGERPRINT,
    GROUPING,
    LOCAL_ID,
    LONGEST_PARAM,
    LONGEST_TAG,
    MODEL_URI,
    PREDICTIONS,
    SIGNED,
    SOURCE,
    RecordedRun,
    Status,
    as_arrays,
    hide_tag,
)

MARGIN = 1_000  # characters for the links in a description
# PNG compression: a quarter of the time of level 6 for a noisy image, and 3 % more bytes
FAST = {"compress_level": 1}


log = logging.getLogger(__name__)


class Outbox(Protocol):
    """Takes the records of a run and passes them on to the store."""

    @property
    def model_uri(self) -> str | None:
        """The address of the run's model, if the store has it; waits a moment, unless closed."""

    def put(self, record: Record) -> None:
        """Takes a record."""


@dataclass(frozen=True, kw_only=True)
class Direct:
    """Sends records to the store at once."""

    delivery: Delivery

    @property
    def model_uri(self) -> str | None:
        """The address of the run's model."""
        return self.delivery.model_uri

    def put(self, record: Record) -> None:
        """Sends a record; waits for a store that is away."""
        awaited(lambda: self.delivery.send(record))


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A run that is being recorded. The files in `artifacts` are logged when the run is closed.

    `outbox` takes what is logged; the default sends it to the store at once. `records` are those of
    the run's journal, if it has one. `seconds` are the times of its stages. For a resumed run,
    `before` has its earlier metrics by name and step. `logged` are the metrics logged here, in
    order; `is_whole` says whether these are all metrics of the run. `sizes` are logged when the run
    is closed, so that they come after the metrics that people want to see first. `predictions` are
    those logged here, by split.
    """

    id: str
    client: Client
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    before: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    is_whole: bool = False
    logged: list[MetricPoint] = field(default_factory=list)
    sizes: dict[str, float] = field(default_factory=dict)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    outbox: Outbox | None = None
    records: list[Record] = field(default_factory=list)

    def known(self) -> RecordedRun:
        """The run as recorded so far, whether the store has all of it or not."""
        return as_run(self.records, self.folder) if self.records else by_id(self.client, self.id)

    @property
    def _out(self) -> Outbox:
        delivery = Delivery(client=self.client, run_id=self.id, folder=self.folder)
        return self.outbox or Direct(delivery=delivery)

    def _put(self, record: Record) -> None:
        self._out.put(record)
        self._note(record)

    def _note(self, record: Record) -> None:
        if self.records:
            self.records.append(record)

    @property
    def artifacts(self) -> Path:
        """The local folder whose content becomes the run's artefacts."""
        return self.folder / "artifacts"

    def _own(self, below: str = "") -> Path:
        """The folder for artefacts, after checking that it belongs to this run."""
        claim(self.folder, self.id)
        return self.artifacts / below

    def written(self, name: str) -> Path | None:
        """The local file of an artefact of this run, None if there is none."""
        path = self.artifacts / name
        return path if owner(self.folder) == self.id and path.exists() else None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage of the run: `time/<name>_s`."""
        started = time.perf_counter()
        yield
        self.add_seconds(name, time.perf_counter() - started)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Adds to the total seconds of a stage, before and after an interruption."""
        self.seconds[name] = seconds + (self.seconds.get(name, 0.0))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs metrics in one call.

        In a resumed run, epochs that are already logged are skipped, and metrics of the whole run
        (step 0) that have changed are logged at the next step.
        """
        at = now()
        values = [
            (name, float(value), at, free)
            for name, value in metrics.items()
            if (free := self._free_step(name, value, step)) is not None
        ]
        if values:
            self._put({"kind": BATCH, "metrics": values})
        self.logged.extend(values)

    def _free_step(self, name: str, value: float, step: int) -> int | None:
        known = self.before.get(name, {})
        if step not in known:
            return step
        latest = max(known)
        return None if step > 0 or known[latest] == value else latest + 1

    def history(self, names: Sequence[str]) -> dict[str, dict[int, float]]:
        """These metrics by name and step; reads the store only if others have logged some."""
        if not self.is_whole:
            return metric_history(self.client, self.id, names)
        found = {name: dict(self.before.get(name, {})) for name in names}
        for name, value, _, step in self.logged:
            if name in found:
                found[name][step] = value
        return found

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Logs an epoch's metrics (step = epoch, from 1) in one call, in the order shown."""
        by_interest = sorted(metrics, key=lambda name: not name.startswith("val/"))
        self.log_metrics({name: metrics[name] for name in by_interest}, step=epoch)

    def log_params(self, params: Mapping[str, str], tags: Mapping[str, str] | None = None) -> None:
        """Logs parameters and tags; a parameter that conflicts is logged as `config.<name>`.

        `mlflow run` has already logged the parameters of its entry point, some under the same
        names. A text that is too long for MLflow is shortened, with a note.
        """
        present = self.known().params
        texts = {
            key: _shortened(hide_param(key, value), LONGEST_PARAM) for key, value in params.items()
        }
        for key in texts.keys() & present.keys():
            if _contradicts(present[key], texts[key]):  # `mlflow run -P overrides="seed=3"`
                log.warning(
                    "MLflow had recorded the parameter %s=%s before the run began, and cannot "
                    "change it; the true one is config.%s=%s",
                    *(key, present[key], key, texts[key]),
                )
        free = {
            f"config.{key}" if present.get(key, value) != value else key: value
            for key, value in texts.items()
        }
        self._put({"kind": BATCH, "params": free, "tags": _as_tags(tags or {})})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a text that is too long for MLflow is shortened, with a note."""
        if tags:
            self._put({"kind": BATCH, "tags": _as_tags(tags)})

    def describe(self, text: str) -> None:
        """Sets the description that MLflow shows, in Markdown, unless the user has written one.

        Links to `artifacts:<name>` lead to that artefact of the run.
        """
        short = _shortened(hide(text), LONGEST_TAG - MARGIN)
        self._put({"kind": NOTED, "text": short + SIGNED})

    def log_data(self, prepared: Prepared, name: str) -> None:
        """Logs the data that the run uses, with the SHA-256 of its whole content."""
        groups = {} if prepared.index is None else {GROUPING: prepared.index.grouping}
        self.log_tags({FINGERPRINT: prepared.fingerprint, SOURCE: prepared.source, **groups})
        kind, source = _source(prepared)
        about = {
            "name": name,
            "digest": prepared.fingerprint[:36],  # MLflow's limit; the tag has the whole
            "source_type": kind,
            "source": hide_value("", source),
            "image_shape": list(prepared.image_shape),
            "sizes": {split: len(images) for split, images in prepared.splits.items()},
        }
        self._put({"kind": DATA, **about})

    def log_cache(self, **found: bool) -> None:
        """Logs for each stage whether its result was cached: `cache/<stage>=hit`."""
        self.log_tags({CACHE + name: "hit" if hit else "miss" for name, hit in found.items()})

    def log(self, found: Evaluation) -> None:
        """Logs metrics; adds figures (`plots/<name>.png`) and texts to the artefacts.

        Sizes and times are logged when the run is closed, after what people look for first.
        """
        later = {k: v for k, v in found.metrics.items() if k.startswith(("model/", "time/"))}
        self.sizes.update(later)
        self.log_metrics({k: v for k, v in found.metrics.items() if k not in later})
        for name, figure in found.figures.items():
            use_system_fonts(figure)
            with replacing(self._own("plots") / f"{name}.png") as path:
                figure.savefig(path, dpi=120, pil_kwargs=FAST)
        for name, text in found.texts.items():
            self.save_text(name, text)

    def save_text(self, name: str, text: str, *, as_it_is: bool = False) -> None:
        """Adds a text to the artefacts under that file name.

        Known secrets are hidden in it, except `as_it_is`: in a file that is read back, they must be
        hidden by value.
        """
        with replacing(self._own() / name) as path:
            shown = text if as_it_is else hide(text)
            path.write_text(shown, encoding="utf-8", errors="surrogateescape")

    def log_files(self, files: Sequence[Path], folder: str) -> None:
        """Logs files immediately, under a folder of the artefacts."""
        self._put({"kind": FILES, "paths": list(map(str, files)), "below": folder})

    def save_predictions(self, predictions: Mapping[str, Predictions]) -> None:
        """Adds `predictions.npz` to the artefacts, for paired comparisons."""
        self.predictions.update(predictions)
        with replacing(self._own() / PREDICTIONS) as path:
            np.savez_compressed(path, allow_pickle=False, **as_arrays(predictions))

    @property
    def model_uri(self) -> str | None:
        """The address of the model that the run has saved: its folder until the store has it.

        A store that was away may take the model as the run is closed.
        """
        return self._out.model_uri or self.known().model_uri

    def log_model(self, model: Any, prepared: Prepared) -> str:
        """Saves a Keras model that takes images u8[N,H,W,C]; returns its MLflow URI.

        That is the folder of the model while the store does not have it. A resumed run that has
        already saved its model keeps that one.
        """
        known = self.known()
        if self.before and known.model_uri:
            return known.model_uri
        remove(self.folder / MODEL)
        with replacing(self.folder / MODEL) as path:
            save_model(model, prepared, path)
        out = self._out
        out.put(
            {
                "kind": MODEL_SAVED,
                LOCAL_ID: uuid4().hex,
                "name": _model_name(known.tags),
                "params": dict(known.params),
                "metrics": [point for point in self.logged if point[3] == 0],
                "again": bool(self.before) or known.status != Status.RUNNING,
            }
        )
        uri = out.model_uri or str(self.folder.absolute() / MODEL)
        self._note({"kind": BATCH, "tags": {MODEL_URI: uri}})
        if self.outbox is None:
            remove(self.folder / MODEL)
        return uri

    def end(self, status: Status, at: int) -> None:
        """Records how the run has ended, and when (Unix time in ms)."""
        self._put({"kind": END, "status": str(status), "time": at})

    def upload(self) -> None:
        """Logs sizes, the stage times and all artefacts."""
        times = {f"time/{name}_s": value for name, value in self.seconds.items()}
        self.log_metrics({**self.sizes, **times})
        if owner(self.folder) == self.id and self.artifacts.exists():
            self._put({"kind": ARTIFACTS})


def reopen(run_id: str, tracking: Tracking, folder: Path) -> Recording:
    """Opens a recorded run to add to it; its status and content stay."""
    return Recording(id=run_id, client=connect(tracking.uri), folder=folder)


def add_tags(run_id: str, tracking: Tracking, folder: Path, tags: Mapping[str, str]) -> None:
    """Sets tags of a run that has ended, in its journal if the store does not have all of it.

    Raises:
        RequestError: the store cannot be used, or another process has the journal open.
    """
    if has_journal(folder):
        with closing(Journal(folder)) as journal:
            if journal.records():
                journal.append({"kind": BATCH, "tags": _as_tags(tags)})
                return
            journal.delete()  # another process has sent it in the meantime
    reopen(run_id, tracking, folder).log_tags(tags)


def _contradicts(before: str, text: str) -> bool:
    """Whether a parameter says something else, rather than nothing or the same number."""
    with suppress(ValueError):
        return float(before) != float(text)
    return bool(before) and before != text


def _as_tags(texts: Mapping[str, str]) -> dict[str, str]:
    return {key: _shortened(hide_tag(key, value), LONGEST_TAG) for key, value in texts.items()}


def _source(prepared: Prepared) -> tuple[str, dict[str, Any]]:
    """MLflow's type and description of the source of the data."""
    known = {"source": prepared.source, "sha256": prepared.fingerprint}
    if prepared.source.startswith(("http://", "https://")):
        return "http", {"url": prepared.source, **known}
    if Path(prepared.source).is_absolute():
        return "local", {"uri": Path(prepared.source).as_uri(), **known}
    return "code", {"tags": {DATA_CODE: prepared.source}, **known}


def _model_name(tags: Mapping[str, str]) -> str:
    """The name of a run's model, such as `fashion_mnist-mlp`."""
    words = [tags[key] for key in (CHOSEN_DATASET, CHOSEN_MODEL) if tags.get(key)]
    return re.sub(r"[^\w-]+", "_", "-".join(words)) or "model"


def _shortened(text: str, longest: int) -> str:
    note = f"… ({len(text):,} characters; see the artefacts)"
    return text if len(text) <= longest else text[: longest - len(note)] + note
