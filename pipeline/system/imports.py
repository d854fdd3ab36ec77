"""Work without Python's looks for cycles of garbage, where they take long and find nothing."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def uncollected() -> Iterator[None]:
    """While open, Python does not look for cycles, however many objects are made."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load(module: str) -> ModuleType:
    """Imports a module `uncollected`; what it made is never looked through afterwards.

    With TensorFlow these are 850,000 objects that stay, and each look takes 0.4 s.
    """
    with uncollected():
        loaded = importlib.import_module(module)
        gc.freeze()
    return loaded
