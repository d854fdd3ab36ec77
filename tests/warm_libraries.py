"""Imports everything that any command needs; see warm.py."""

import importlib
import os
import pkgutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pipeline
from pipeline.libraries import configure_libraries
from pipeline.system.imports import exempt, uncollected
from pipeline.system.terminal import native_messages_to
from tests.commands import choose_once, compose_once, configured, parse_once, trace_plainly
from tests.stores import copy_tables, empty_store

LIBRARIES = (
    *("mlflow", "keras", "mlflow.pyfunc", "mlflow.tensorflow", "optuna", "scipy.stats"),
    *("sklearn.metrics", "tensorflow.keras.models", "tensorflow.keras.saving"),
    # What a run imports as it goes along.
    *("git", "mlflow.tracing.processor.otel", "opentelemetry.sdk.metrics", "rich.progress"),
    *("hydra._internal.logging_config", "matplotlib.backends.backend_agg"),
)


def warm_up() -> None:
    """Imports the libraries and does once what each process would do before its work."""
    configure_libraries()
    ours = [one.name for one in pkgutil.walk_packages(pipeline.__path__, "pipeline.")]
    for name in (*LIBRARIES, *(name for name in ours if not name.endswith("__main__"))):
        importlib.import_module(name)
    copy_tables()
    with TemporaryDirectory() as folder:  # SQLAlchemy's mappers and MLflow's revisions
        empty_store(Path(folder))
    parse_once()
    choose_once()
    configured("dataset=synthetic", "model=linear")  # Hydra's plugins and pydantic's validators
    # Reads the descriptions of all installed packages, as MLflow does for a model.
    importlib.import_module("pipeline.tracking.lineage").environment()
    importlib.import_module("mlflow.utils.requirements_utils")._init_packages_to_modules_map()
    importlib.import_module("pipeline.reports.template").template("report.html")  # compiles it
    compose_once()
    trace_plainly()


with native_messages_to(Path(os.devnull)), uncollected():  # collecting takes a fifth of the time
    warm_up()
    exempt()
