"""Imports of libraries that take seconds."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def load(module: str) -> ModuleType:
    """Imports a module without looking for cycles meanwhile, and never again among what it made.

    TensorFlow makes a million objects that stay: to look through them takes a fifth of the time of
    importing it, and half a second whenever Python does so later.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()
