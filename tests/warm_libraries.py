"""Imports everything that any command needs; see warm.py."""

import importlib
import pkgutil

import pipeline
from pipeline.system.imports import configure_libraries, exempt

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
exempt()
