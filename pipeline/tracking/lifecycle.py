"""A run's life: opened before the work, closed with the status it truly ended in."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import mlflow
import yaml
from mlflow.exceptions import MlflowException

from pipeline import lineage
from pipeline.config import Config
from pipeline.errors import RequestError
from pipeline.tracking.recording import Recording
from pipeline.tracking.store import connect, experiment, without_password

NOT_PARAMS = ("tracking", "choices", "data_dir", "run_id")  # no result depends on these

log = logging.getLogger(__name__)


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
        try:
            run = mlflow.start_run(run_id=adopted)
        except MlflowException as error:
            raise RequestError(f"MLFLOW_RUN_ID={adopted}: {error.message}; unset it") from error
    else:
        name = config.tracking.experiment or config.choices.dataset
        run = mlflow.start_run(
            experiment_id=experiment(client, name), run_name=config.tracking.run_name
        )
    return str(run.info.run_id)


def _log_origin(recording: Recording, config: Config) -> None:
    """Logs what the run is made of: parameters, choices, code, environment, hardware."""
    code = lineage.code()
    recording.log_params(flatten(config))
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
    """The configuration as MLflow parameters, `optimizer.learning_rate` → `0.001`.

    Values are written as an override on the command line would be.
    """
    params: dict[str, str] = {}
    for group, values in asdict(config).items():
        if group not in NOT_PARAMS:
            named = values if isinstance(values, dict) else {"": values}
            for key, value in named.items():
                if key != "_target_":
                    name = f"{group}.{key}".rstrip(".")
                    params[name] = value if isinstance(value, str) else json.dumps(value)
    return params


def _as_yaml(config: Config) -> str:
    plain = asdict(config)
    if plain["tracking"]["uri"]:
        plain["tracking"]["uri"] = without_password(plain["tracking"]["uri"])
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _command() -> str:
    # An address may carry a password.
    words = [word for word in sys.orig_argv[1:] if "tracking.uri=" not in word]
    return shlex.join(["python", *words])


@contextmanager
def _at_least_tried() -> Iterator[None]:
    """While closing a failed run the first failure is the one to show; a further one is noted."""
    try:
        yield
    except Exception as error:
        log.warning("The failed run could not be closed in full: %s", error)
