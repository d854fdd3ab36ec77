"""Postpones slow imports, and keeps garbage collection from slowing them down."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Lazy:
    """A module that is imported when one of its attributes is first used.

    Unlike `lazy_loader`'s, it is not put into `sys.modules`: TensorFlow inspects a Keras that it
    finds there, and would thereby load it halfway through its own import.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


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


@contextmanager
def exempting() -> Iterator[None]:
    """Exempts from garbage collection all that exists after an import of slow libraries.

    TensorFlow creates 850,000 objects that stay, and each collection would take 0.4 s. Where it is
    imported already, nothing is exempt, as that would keep models that were built since.
    """
    is_first = "tensorflow" not in sys.modules
    with uncollected():
        yield
        if is_first:
            exempt()


def exempt() -> None:
    """Exempts all existing objects from garbage collection."""
    gc.freeze()
