"""A store for all tests of a file: making its tables takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import keras  # noqa: F401  (before mlflow.tensorflow asks for it half way through its own import)
import pytest

from pipeline.config.schema import Config
from pipeline.tracking.client import connect
from tests.commands import configured, inside
from tests.stores import Switch, wait_briefly


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, in which there is a store."""
    with inside(tmp_path_factory.mktemp("store")) as made:
        connect(None)
        yield made


@pytest.fixture
def config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configuration for runs in that store, which wait for it only a moment."""
    wait_briefly(monkeypatch)
    return configured("dataset=digits", "model=linear", "+tracking.tags.team=vision")


@pytest.fixture
def switch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Switch:
    return Switch(monkeypatch)
