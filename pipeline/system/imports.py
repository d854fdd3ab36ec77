"""Imports slow libraries with the settings that they read on import, garbage collection paused."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from pipeline.system.errors import RequestError

BACKEND = "KERAS_BACKEND"
# Libraries read these when they are imported. Values that the user has set stay.
DEFAULTS = {
    # TensorFlow turns oneDNN off on some processors; convolutions there then take twice as long.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    BACKEND: "tensorflow",  # a user's keras.json may name another
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # notes on migrations and the like are not for users
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one bar per file
    # MLflow's 7 retries take 4 minutes, during which a command would hang without a message.
    # These take 3 seconds, half a second each; records of a run are retried anyway.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    # Each thread keeps smaller blocks of decoded pictures: eight threads kept 1.5 GB.
    "PILLOW_BLOCK_SIZE": "64m",
}
# These override the environment: another library, such as JAX, may have set them.
ALWAYS = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # our models do not need it
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would show the store's password
}


class Lazy:
    """A module that is imported when one of its attributes is first used.

    Unlike `lazy_loader`'s, it is not put into `sys.modules`: TensorFlow inspects a Keras that it
    finds there, and would thereby load it halfway through its own import.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def import_slow(module: str) -> ModuleType:
    """Imports a module that imports slow libraries; every entry point of the program uses this.

    The objects that the import creates are exempt from garbage collection: TensorFlow creates
    850,000 that stay, and each collection would take 0.4 s.

    Raises:
        RequestError: KERAS_BACKEND names a backend other than TensorFlow.
    """
    configure_libraries()
    atexit.unregister(exempt)
    atexit.register(exempt)  # otherwise the collection at exit would take two seconds
    with uncollected():
        loaded = importlib.import_module(module)
        exempt()
    return loaded


def configure_libraries() -> None:
    """Sets the environment variables that slow libraries read when imported, and silences one.

    A plot shows boxes in place of characters that its font lacks; Matplotlib warns of each.

    Raises:
        RequestError: KERAS_BACKEND names a backend other than TensorFlow.
    """
    backend = os.environ.get(BACKEND) or DEFAULTS[BACKEND]
    if backend != DEFAULTS[BACKEND]:
        raise RequestError(
            f"{BACKEND}={backend}: models are trained with TensorFlow here; unset {BACKEND}"
        )
    os.environ.update({key: value for key, value in DEFAULTS.items() if not os.environ.get(key)})
    os.environ.update(ALWAYS)
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)


@contextmanager
def uncollected() -> Iterator[None]:
    """Pauses garbage collection, however many objects are created."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def exempt() -> None:
    """Exempts all existing objects from garbage collection."""
    gc.freeze()
