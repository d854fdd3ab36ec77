"""Imports slow libraries, with the settings that they read from the environment."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
import warnings
from types import ModuleType

from pipeline.system.errors import RequestError
from pipeline.system.imports import exempt, exempting
from pipeline.system.processes import left_unset, user_name
from pipeline.tracking.addresses import MLFLOW_ALWAYS, MLFLOW_DEFAULTS

UNSUPPORTED = "Windows itself is not supported: run this in WSL, Windows' subsystem for Linux"
BACKEND = "KERAS_BACKEND"
# Libraries read these when they are imported. Values that the user has set stay.
DEFAULTS = {
    # TensorFlow turns oneDNN off on some processors; convolutions there then take twice as long.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    BACKEND: "tensorflow",  # a user's keras.json may name another
    # Each thread keeps smaller blocks of decoded pictures: eight threads kept 1.5 GB.
    "PILLOW_BLOCK_SIZE": "64m",
    # MLflow records no origin of a run without it, as of a container's user that has no name.
    "LOGNAME": user_name(),
    **MLFLOW_DEFAULTS,
}
# These override the environment: another library, such as JAX, may have set them.
ALWAYS = {"TF_CPP_MIN_LOG_LEVEL": "3", **MLFLOW_ALWAYS}


def import_slow(module: str) -> ModuleType:
    """Imports a module that imports slow libraries; every entry point of the program uses this.

    Raises:
        RequestError: KERAS_BACKEND names a backend other than TensorFlow, or this is Windows.
    """
    configure_libraries()
    if module in sys.modules:
        return importlib.import_module(module)  # waits if another thread is importing it
    atexit.unregister(exempt)
    atexit.register(exempt)  # otherwise the collection at exit would take two seconds
    with exempting():
        return importlib.import_module(module)


def configure_libraries() -> None:
    """Sets the environment variables that slow libraries read when imported, and silences one.

    A plot shows boxes in place of characters that no font has; Matplotlib warns of each, and of
    each font of the system that lacks an ordinary weight.

    Raises:
        RequestError: KERAS_BACKEND names a backend other than TensorFlow, or this is Windows.
    """
    if sys.platform == "win32":
        raise RequestError(UNSUPPORTED)
    backend = os.environ.get(BACKEND) or DEFAULTS[BACKEND]
    if backend != DEFAULTS[BACKEND]:
        raise RequestError(
            f"{BACKEND}={backend}: models are trained with TensorFlow here; unset {BACKEND}"
        )
    os.environ.update(left_unset(DEFAULTS))
    os.environ.update(ALWAYS)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
