"""Imports everything that any command needs; see warm.py."""

import importlib
import pkgutil
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.utils import requirements_utils

import pipeline
from pipeline.libraries import configure_libraries
from pipeline.system.imports import exempt
from pipeline.tracking.lineage import environment
from tests.commands import choose_once, compose_once, configured, parse_once, trace_plainly
from tests.stores import copy_tables

LIBRARIES = (
    *("keras", "mlflow.pyfunc", "mlflow.tensorflow", "optuna", "scipy.stats", "sklearn.metrics"),
    *("tensorflow.keras.models", "tensorflow.keras.saving", "matplotlib.backends.backend_agg"),
    # What a run imports as it goes along.
    *("git", "mlflow.tracing.processor.otel", "opentelemetry.sdk.metrics", "rich.progress"),
    "hydra._internal.logging_config",
)

configure_libraries()
for name in LIBRARIES:
    importlib.import_module(name)
for found in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
copy_tables()
with TemporaryDirectory() as folder:  # SQLAlchemy's mappers and MLflow's revisions are made once
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments(max_results=1)
parse_once()
choose_once()
configured("dataset=synthetic", "model=linear")  # so are Hydra's plugins and pydantic's validators
environment()  # reads the descriptions of all installed packages, as MLflow does for a model
requirements_utils._init_packages_to_modules_map()
exempt()
compose_once()
trace_plainly()
