from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.verbs import verbs
from pipeline.verbs.train import train_without_test
from tests.commands import configured


def test_train_is_a_run_that_leaves_the_test_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[Any, Path]] = []

    def run(config: Any, folder: Path, *, pictures: Any) -> str:
        assert pictures is None
        called.append((config, folder))
        return "its result"

    monkeypatch.setitem(sys.modules, "pipeline.run", SimpleNamespace(run=run))
    config = configured("model=linear", "seed=3")
    assert train_without_test(config, tmp_path) == "its result"  # type: ignore[comparison-overlap]
    [(given, folder)] = called
    assert (given.evaluate.test, given.seed, folder) == (False, 3, tmp_path)
    assert config.evaluate.test is True
    assert "evaluate.test" in verbs()["train"].ignores
