"""Imports everything that any command needs; see warm.py."""

import importlib
import pkgutil
from tempfile import TemporaryDirectory

from mlflow import MlflowClient

import pipeline
from pipeline.system.imports import configure_libraries, exempt
from tests.commands import configured
from tests.stores import copy_tables

LIBRARIES = (
    *("keras", "mlflow.pyfunc", "mlflow.tensorflow", "optuna", "scipy.stats", "sklearn.metrics"),
    "matplotlib.backends.backend_agg",
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
configured()  # so are Hydra's plugins and pydantic's validators
exempt()
