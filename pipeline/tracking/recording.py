"""Writes one run: opened before the work, closed with the status it truly ended in."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import yaml

from pipeline import lineage
from pipeline.config import Config
from pipeline.data import Array, Prepared, Report
from pipeline.storage import replacing
from pipeline.tracking.store import connect, experiment, mlflow, without_password

from mlflow.data.schema import TensorDatasetSchema  # isort: skip
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag  # isort: skip
from mlflow.models import ModelSignature  # isort: skip
from mlflow.types import Schema, TensorSpec  # isort: skip

LONGEST_PARAM, LONGEST_TAG = 6_000, 8_000  # MLflow's limits
NOT_PARAMS = ("tracking", "choices", "data_dir", "run_id")  # no result depends on these

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A run being written. What lies in `artifacts` is logged when the run is closed."""

    id: str
    client: mlflow.MlflowClient
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def artifacts(self) -> Path:
        """The local folder whose content becomes the run's artefacts."""
        return self.folder / "artifacts"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage of the run: `time/<name>_s`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs metrics in one call."""
        now = int(time.time() * 1000)
        values = [Metric(key, value, now, step) for key, value in metrics.items()]
        self.client.log_batch(self.id, metrics=values)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Logs an epoch's metrics (step = epoch, from 1) in one call."""
        self.log_metrics(metrics, step=epoch)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a text that MLflow would refuse as too long is cut, and says so."""
        self.client.log_batch(
            self.id, tags=[RunTag(key, _shortened(value, LONGEST_TAG)) for key, value in tags.items()]
        )

    def log_data(self, prepared: Prepared, name: str) -> None:
        """Logs which data the run used, by its SHA-256 over the whole content."""
        self.log_tags({"data.fingerprint": prepared.fingerprint, "data.source": prepared.source})
        sizes = {"train": len(prepared.train), "val": len(prepared.val), "test": len(prepared.test)}
        features, targets = _signature(prepared).inputs, Schema([TensorSpec(np.dtype("i4"), (-1,))])
        dataset = Dataset(
            name=name,
            digest=prepared.fingerprint[:36],  # MLflow takes no more; the tag has it all
            source_type="local",
            source=json.dumps({"source": prepared.source, "sha256": prepared.fingerprint}),
            schema=json.dumps(TensorDatasetSchema(features=features, targets=targets).to_dict()),
            profile=json.dumps({f"{split}_images": size for split, size in sizes.items()}),
        )
        context = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(self.id, [DatasetInput(dataset, [context])])

    def log_report(self, report: Report) -> None:
        """Logs metrics; puts figures (`plots/<name>.png`) and texts among the artefacts."""
        self.log_metrics(report.metrics)
        for name, figure in report.figures.items():
            with replacing(self.artifacts / "plots" / f"{name}.png") as path:
                figure.savefig(path, dpi=120)
        for name, text in report.texts.items():
            self.save_text(name, text)

    def save_text(self, name: str, text: str) -> None:
        """Puts a text among the artefacts under that file name."""
        with replacing(self.artifacts / name) as path:
            path.write_text(text, encoding="utf-8", errors="surrogateescape")

    def save_arrays(self, name: str, arrays: Mapping[str, Array]) -> None:
        """Puts arrays among the artefacts as `<name>.npz`."""
        with replacing(self.artifacts / f"{name}.npz") as path:
            np.savez_compressed(path, **arrays)

    def log_model(self, model: Any, prepared: Prepared) -> str:
        """Saves a Keras model that takes images u8[N,H,W,C]; returns its MLflow URI."""
        keras.config.disable_interactive_logging()  # MLflow tries the example with a progress bar
        logged = mlflow.tensorflow.log_model(
            model,
            name="model",
            signature=_signature(prepared),
            input_example=np.asarray(prepared.test.images[:2]),
            # Working these out by itself takes MLflow many seconds.
            pip_requirements=[
                f"{name}=={version(name)}" for name in ("mlflow", "tensorflow", "keras", "numpy")
            ],
            metadata={"class_names": list(prepared.class_names)},
        )
        self.log_tags({"model_uri": logged.model_uri})
        return str(logged.model_uri)

    def upload(self) -> None:
        """Logs the stage times and all artefacts."""
        self.log_metrics({f"time/{name}_s": value for name, value in self.seconds.items()})
        if self.artifacts.exists():
            self.client.log_artifacts(self.id, str(self.artifacts))


@contextmanager
def record(config: Config, folder: Path) -> Iterator[Recording]:
    """Opens a run for `config`, or adopts the one `mlflow run` opened, and closes it truthfully.

    FINISHED when the block ends well, KILLED on Ctrl-C or SIGTERM, FAILED on any other exception;
    that is passed on, and its last line becomes the tag `error`. All that was logged stays.

    Raises:
        RequestError: the tracking store cannot be used.
    """
    started = time.perf_counter()
    client = connect(config.tracking.uri)
    recording = Recording(id=_open(client, config), client=client, folder=folder)
    try:
        _log_origin(recording, config)
        yield recording
        recording.seconds["total"] = time.perf_counter() - started
        recording.upload()
    except BaseException as error:
        with _at_least_tried():
            recording.log_tags({"error": traceback.format_exception_only(error)[-1].strip()})
            recording.upload()
        with _at_least_tried():
            mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    mlflow.end_run("FINISHED")


def _open(client: mlflow.MlflowClient, config: Config) -> str:
    # Taken out of the environment, which later runs of this process and its workers would heed.
    adopted = os.environ.pop("MLFLOW_RUN_ID", None)
    if adopted:
        run = mlflow.start_run(run_id=adopted)
    else:
        name = config.tracking.experiment or config.choices.dataset
        run = mlflow.start_run(
            experiment_id=experiment(client, name), run_name=config.tracking.run_name
        )
    return str(run.info.run_id)


def _log_origin(recording: Recording, config: Config) -> None:
    """Logs what the run is made of: parameters, choices, code, environment, hardware."""
    code = lineage.code()
    # `mlflow run` logs the parameters of its entry point, some under names of ours.
    present = recording.client.get_run(recording.id).data.params
    params = {key: value for key, value in flatten(config).items() if key not in present}
    recording.client.log_batch(recording.id, params=[Param(*item) for item in params.items()])
    recording.log_tags(
        {f"hardware.{key}": value for key, value in lineage.hardware().items()}
        | {f"version.{key}": value for key, value in lineage.versions().items()}
        | asdict(config.choices)
        | {"command": _command(), "code.dirty": str(bool(code.patch)).lower()}
        | ({"mlflow.source.git.commit": code.commit} if code.commit else {})
        | config.tracking.tags
    )
    recording.save_text("config.yaml", _as_yaml(config))
    recording.save_text("environment.txt", lineage.environment())
    if code.patch:
        recording.save_text("code.patch", code.patch)


def flatten(config: Config) -> dict[str, str]:
    """The configuration as MLflow parameters: `optimizer.learning_rate` → `0.001`.

    Values are written as an override on the command line would be; one longer than MLflow takes
    is cut and points to `config.yaml`, which has it all.
    """
    params: dict[str, str] = {}
    for group, values in asdict(config).items():
        if group not in NOT_PARAMS:
            leaves = values if isinstance(values, dict) else {None: values}
            for key, value in leaves.items():
                if key != "_target_":
                    text = value if isinstance(value, str) else json.dumps(value)
                    name = group if key is None else f"{group}.{key}"
                    params[name] = _shortened(text, LONGEST_PARAM)
    return params


def _as_yaml(config: Config) -> str:
    plain = asdict(config)
    if plain["tracking"]["uri"]:
        plain["tracking"]["uri"] = without_password(plain["tracking"]["uri"])
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _command() -> str:
    # An address may carry a password.
    words = [word for word in sys.argv[1:] if not word.startswith("tracking.uri=")]
    return shlex.join(["python", "-m", "pipeline", *words])


def _shortened(text: str, longest: int) -> str:
    note = f"… ({len(text):,} characters; see the artefacts)"
    return text if len(text) <= longest else text[: longest - len(note)] + note


def _signature(prepared: Prepared) -> ModelSignature:
    images = TensorSpec(np.dtype("uint8"), (-1, *prepared.image_shape))
    probabilities = TensorSpec(np.dtype("float32"), (-1, len(prepared.class_names)))
    return ModelSignature(inputs=Schema([images]), outputs=Schema([probabilities]))


@contextmanager
def _at_least_tried() -> Iterator[None]:
    """While closing a failed run the first failure is the one to show; a further one is noted."""
    try:
        yield
    except Exception as error:
        log.warning("The failed run could not be closed in full: %s", error)
