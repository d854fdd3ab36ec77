"""Imports of slow libraries: with the settings they read then, and without looks for garbage."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from pipeline.system.errors import RequestError

BACKEND = "KERAS_BACKEND"
# Libraries read these when they are imported. What a user has set stays.
DEFAULTS = {
    # TensorFlow leaves oneDNN off on some processors, where convolutions then take twice as long.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    BACKEND: "tensorflow",  # a user's keras.json may name another
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # notes on migrations and the like are not for users
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # there would be one per file
}
# These hold whatever the environment says: another library, such as JAX, may have set them.
ALWAYS = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # no model of ours needs it
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would hold the store's password
}


class Lazy:
    """A module that is imported once something of it is used.

    Unlike `lazy_loader`'s it does not stand for the module in `sys.modules`: TensorFlow, which
    looks at a Keras that is there, would load that half way through its own import.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def load(module: str) -> ModuleType:
    """Imports a module that brings slow libraries along; every way into the program uses this.

    What the import made is exempt from Python's search for cycles: with TensorFlow these are
    850,000 objects that stay, and each search takes 0.4 s.

    Raises:
        RequestError: Keras is told to use another backend than TensorFlow.
    """
    configure_libraries()
    atexit.unregister(exempt)
    atexit.register(exempt)  # or the search when the process ends would take two seconds
    with uncollected():
        loaded = importlib.import_module(module)
        exempt()
    return loaded


def configure_libraries() -> None:
    """Sets the environment variables that TensorFlow, Keras and MLflow read when imported.

    Raises:
        RequestError: KERAS_BACKEND names another backend than TensorFlow.
    """
    backend = os.environ.get(BACKEND) or DEFAULTS[BACKEND]
    if backend != DEFAULTS[BACKEND]:
        raise RequestError(
            f"{BACKEND}={backend}: models are trained with TensorFlow here; unset {BACKEND}"
        )
    os.environ.update({key: value for key, value in DEFAULTS.items() if not os.environ.get(key)})
    os.environ.update(ALWAYS)


@contextmanager
def uncollected() -> Iterator[None]:
    """While open, Python does not search for cycles, however many objects are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def exempt() -> None:
    """Exempts every object there is from Python's search for cycles."""
    gc.freeze()
