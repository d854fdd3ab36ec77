"""Logs to a run: metrics, parameters, tags, artefacts, data and the model."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import mlflow
import numpy as np
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
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline.config.schema import Tracking
from pipeline.data.pictures import PAD
from pipeline.data.polarity import dark_border_share, sample
from pipeline.data.values import Array, Prepared, Report
from pipeline.system.files import replacing
from pipeline.system.folders import claim, owner
from pipeline.system.secrets import hide, hide_value
from pipeline.tracking.client import Client, connect, made_once, repeatable
from pipeline.tracking.runs import history
from pipeline.tracking.values import LOCAL_ID, MODEL_URI, NOTE, SIGNED, is_written_by_hand

LONGEST_PARAM, LONGEST_TAG = 6_000, 8_000  # MLflow's limits
FAST = {
    "compress_level": 1
}  # PNG compression: a quarter of the time of level 6 for a noisy image, and 3 % more bytes


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A run that is being recorded. The files in `artifacts` are logged when the run is closed.

    `seconds` are those of its stages. For a resumed run, `before` has its earlier metrics by name
    and step. `logged` are the metrics logged here, in order; `is_whole` says whether these are all
    metrics of the run. `sizes` are logged when the run is closed, so that they come after the
    metrics that people want to see first.
    """

    id: str
    client: Client
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    before: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    is_whole: bool = False
    logged: list[Metric] = field(default_factory=list)
    sizes: dict[str, float] = field(default_factory=dict)

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
        now = int(time.time() * 1000)
        values = [
            Metric(name, value, now, free)
            for name, value in metrics.items()
            if (free := self._free_step(name, value, step)) is not None
        ]
        if values:
            self.client.log_batch(self.id, metrics=values)
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
            return history(self.client, self.id, names)
        found = {name: dict(self.before.get(name, {})) for name in names}
        for point in self.logged:
            if point.key in found:
                found[point.key][point.step] = point.value
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
        present = self.client.get_run(self.id).data.params
        texts = {
            key: _shortened(hide_value(key, value), LONGEST_PARAM) for key, value in params.items()
        }
        for key in texts.keys() & present.keys():
            if _contradicts(present[key], texts[key]):  # `mlflow run -P overrides="seed=3"`
                log.warning(
                    "MLflow had recorded the parameter %s=%s before the run began, and cannot "
                    "change it; the true one is config.%s=%s",
                    *(key, present[key], key, texts[key]),
                )
        self.client.log_batch(
            self.id,
            params=[
                Param(f"config.{key}" if present.get(key, value) != value else key, value)
                for key, value in texts.items()
            ],
            tags=_as_tags(tags or {}),
        )

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a text that is too long for MLflow is shortened, with a note."""
        self.client.log_batch(self.id, tags=_as_tags(tags))

    def describe(self, text: str) -> None:
        """Sets the description that MLflow shows, in Markdown, unless the user has written one.

        Links to `artifacts:<name>` lead to that artefact of the run.
        """
        run = self.client.get_run(self.id)
        if is_written_by_hand(run.data.tags.get(NOTE, "")):
            return
        page = f"#/experiments/{run.info.experiment_id}/runs/{self.id}/artifacts/"
        self.log_tags({NOTE: text.replace("](artifacts:", f"]({page}") + SIGNED})

    def log_data(self, prepared: Prepared, name: str) -> None:
        """Logs the data that the run uses, with the SHA-256 of its whole content."""
        self.log_tags({"data.fingerprint": prepared.fingerprint, "data.source": prepared.source})
        sizes = {"train": len(prepared.train), "val": len(prepared.val), "test": len(prepared.test)}
        kind, source = _source(prepared)
        features, targets = _signature(prepared).inputs, Schema([TensorSpec(np.dtype("i4"), (-1,))])
        dataset = Dataset(
            name=name,
            digest=prepared.fingerprint[:36],  # MLflow's limit; the tag has the whole
            source_type=kind,
            source=json.dumps(source),
            schema=json.dumps(TensorDatasetSchema(features=features, targets=targets).to_dict()),
            profile=json.dumps({f"{split}_images": size for split, size in sizes.items()}),
        )
        context = InputTag("mlflow.data.context", "training")
        repeatable(lambda: self.client.log_inputs(self.id, [DatasetInput(dataset, [context])]))

    def log_cache(self, **found: bool) -> None:
        """Logs for each stage whether its result was cached: `cache/<stage>=hit`."""
        self.log_tags({f"cache/{name}": "hit" if hit else "miss" for name, hit in found.items()})

    def log_report(self, report: Report) -> None:
        """Logs metrics; adds figures (`plots/<name>.png`) and texts to the artefacts.

        Sizes and times are logged when the run is closed, after what people look for first.
        """
        later = {k: v for k, v in report.metrics.items() if k.startswith(("model/", "time/"))}
        self.sizes.update(later)
        self.log_metrics({k: v for k, v in report.metrics.items() if k not in later})
        for name, figure in report.figures.items():
            with replacing(self._own("plots") / f"{name}.png") as path:
                figure.savefig(path, dpi=120, pil_kwargs=FAST)
        for name, text in report.texts.items():
            self.save_text(name, text)

    def save_text(self, name: str, text: str) -> None:
        """Adds a text to the artefacts under that file name."""
        with replacing(self._own() / name) as path:
            path.write_text(hide(text), encoding="utf-8", errors="surrogateescape")

    def log_files(self, files: Sequence[Path], folder: str) -> None:
        """Logs files immediately, under a folder of the artefacts."""
        for path in files:
            self.client.log_artifact(self.id, str(path), folder)

    def save_arrays(self, name: str, arrays: Mapping[str, Array]) -> None:
        """Adds arrays to the artefacts as `<name>.npz`."""
        with replacing(self._own() / f"{name}.npz") as path:
            np.savez_compressed(path, allow_pickle=False, **arrays)

    def log_model(self, model: Any, prepared: Prepared) -> str:
        """Saves a Keras model that takes images u8[N,H,W,C]; returns its MLflow URI.

        A resumed run that has already saved its model keeps that one.
        """
        import keras  # imported here: the parent of a sweep records its run without TensorFlow

        keras.config.disable_interactive_logging()  # MLflow predicts the example, with a bar
        run = self.client.get_run(self.id)
        if self.before and MODEL_URI in run.data.tags:
            return str(run.data.tags[MODEL_URI])
        if self.before or run.info.status != "RUNNING":  # not the first attempt
            self._forget_half_saved(run.info.experiment_id)
        # As mlflow.tensorflow.log_model, but for any run rather than only the active one, and
        # without a request per metric for its history.
        entry = self._logged_model(run, local_id=uuid4().hex)
        outputs = [LoggedModelOutput(entry.model_id, step=0)]
        repeatable(lambda: self.client.log_outputs(self.id, outputs))
        self.client.log_batch(self.id, metrics=self._of_model(entry.model_id))
        with TemporaryDirectory() as folder:
            path = Path(folder, "model")
            self._save_model(model, prepared, entry, path)
            self.client.log_model_artifacts(entry.model_id, str(path))
        self.client.finalize_logged_model(entry.model_id, "READY")
        self.log_tags({MODEL_URI: entry.model_uri})
        return str(entry.model_uri)

    def _logged_model(self, run: Run, local_id: str) -> LoggedModel:
        experiment, client = run.info.experiment_id, self.client

        def find() -> LoggedModel | None:
            condition = f"source_run_id = '{self.id}'"
            known = client.search_logged_models([experiment], filter_string=condition)
            return next((one for one in known if one.tags.get(LOCAL_ID) == local_id), None)

        return made_once(
            lambda: client.create_logged_model(
                experiment,
                name=_model_name(run.data.tags),
                source_run_id=self.id,
                params=run.data.params,
                tags={LOCAL_ID: local_id},
            ),
            find,
        )

    def _of_model(self, model_id: str) -> list[Metric]:
        """The metrics of the whole run that were logged here, as metrics of its model."""
        return [
            Metric(one.key, one.value, one.timestamp, one.step, model_id=model_id, run_id=self.id)
            for one in self.logged
            if one.step == 0
        ]

    def _save_model(self, model: Any, prepared: Prepared, entry: LoggedModel, path: Path) -> None:
        """Writes a model folder that MLflow's clients can load."""
        about = Model(
            artifact_path=entry.artifact_location,
            model_uuid=entry.model_id,
            model_id=entry.model_id,
            run_id=self.id,
            metadata={
                "class_names": list(prepared.class_names),
                # Pictures for predicting are read as those of the training were: none is inverted.
                "dark_border": None if prepared.fit else dark_border_share(sample(prepared.train)),
                "fit": prepared.fit or PAD,
            },
        )
        with _nothing_registered():
            mlflow.tensorflow.save_model(
                model,
                path,
                mlflow_model=about,
                signature=_signature(prepared),
                input_example=np.asarray(prepared.test.batch(0, 2)),
                # MLflow would take many seconds to infer these.
                pip_requirements=[
                    f"{name}=={version(name)}"
                    for name in ("mlflow", "tensorflow", "keras", "numpy")
                ],
            )

    def _forget_half_saved(self, experiment_id: str) -> None:
        """Deletes a model that a kill left half-saved and that the run does not refer to."""
        condition = f"source_run_id = '{self.id}'"
        for model in self.client.search_logged_models([experiment_id], filter_string=condition):
            self.client.delete_logged_model(model.model_id)

    def upload(self) -> None:
        """Logs sizes, the stage times and all artefacts."""
        times = {f"time/{name}_s": value for name, value in self.seconds.items()}
        self.log_metrics({**self.sizes, **times})
        if owner(self.folder) == self.id and self.artifacts.exists():
            self.client.log_artifacts(self.id, str(self.artifacts))


@contextmanager
def _nothing_registered() -> Iterator[None]:
    """Hides the classes registered with Keras, which MLflow would pickle beside the model.

    A pickle runs code when it is loaded, so this pipeline writes none and loads none.
    """
    import keras

    registered = keras.saving.get_custom_objects()
    kept = dict(registered)
    registered.clear()
    try:
        yield
    finally:
        registered.update(kept)


def reopen(run_id: str, tracking: Tracking, folder: Path) -> Recording:
    """Opens a recorded run to add to it; its status and content stay."""
    return Recording(id=run_id, client=connect(tracking.uri), folder=folder)


def recorded_metrics(client: Client, run_id: str) -> dict[str, dict[int, float]]:
    """All metrics of a run, by name and step."""
    return history(client, run_id, list(client.get_run(run_id).data.metrics))


def _contradicts(before: str, text: str) -> bool:
    """Whether a parameter says something else, rather than nothing or the same number."""
    with suppress(ValueError):
        return float(before) != float(text)
    return bool(before) and before != text


def _as_tags(texts: Mapping[str, str]) -> list[RunTag]:
    return [
        RunTag(key, _shortened(hide_value(key, value), LONGEST_TAG)) for key, value in texts.items()
    ]


def _source(prepared: Prepared) -> tuple[str, dict[str, Any]]:
    """MLflow's type and description of the source of the data."""
    known = {"source": prepared.source, "sha256": prepared.fingerprint}
    if prepared.source.startswith(("http://", "https://")):
        return "http", {"url": prepared.source, **known}
    if Path(prepared.source).is_absolute():
        return "local", {"uri": Path(prepared.source).as_uri(), **known}
    return "code", {"tags": {"mlflow.source.name": prepared.source}, **known}


def _model_name(tags: Mapping[str, str]) -> str:
    """The name of a run's model, such as `fashion_mnist-mlp`."""
    words = [tags[key] for key in ("dataset", "model") if tags.get(key)]
    return re.sub(r"[^\w-]+", "_", "-".join(words)) or "model"


def _shortened(text: str, longest: int) -> str:
    note = f"… ({len(text):,} characters; see the artefacts)"
    return text if len(text) <= longest else text[: longest - len(note)] + note


def _signature(prepared: Prepared) -> ModelSignature:
    images = TensorSpec(np.dtype("uint8"), (-1, *prepared.image_shape))
    probabilities = TensorSpec(np.dtype("float32"), (-1, len(prepared.class_names)))
    return ModelSignature(inputs=Schema([images]), outputs=Schema([probabilities]))
