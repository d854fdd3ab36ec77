from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.data.values import Identity
from pipeline.system.errors import RequestError
from pipeline.verbs.evaluate import evaluate_recorded
from tests.commands import configured


def test_a_run_is_completed_with_its_own_settings_and_the_current_ones_of_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = configured(
        *("run_id=abcd", "model=linear", "seed=1", f"data_dir={tmp_path}"),
        "evaluate.metrics=[accuracy]",
    )
    now.evaluate.leakage = True  # as from a file of the user's; it needs another training
    then = configured("model=mlp", "seed=7")
    recorded = SimpleNamespace(
        id="abcd0000",
        config=then,
        identity=Identity(fingerprint="f" * 64),
        model_uri="models:/m-1",
        load_model=lambda: "the model",
    )
    called: list[Any] = []
    monkeypatch.setattr("pipeline.tracking.runs.find_trained", lambda run_id, config: recorded)
    monkeypatch.setattr(
        "pipeline.tracking.recording.reopen", lambda run_id, tracking, folder: (run_id, folder)
    )
    complete = SimpleNamespace(complete=lambda *given, **more: called.append((given, more)))
    monkeypatch.setitem(sys.modules, "pipeline.run", complete)
    evaluate_recorded(now, tmp_path)
    [((config, began, model, recording), more)] = called
    assert (config.choices.model, config.seed) == ("mlp", 7)
    assert config.evaluate == replace(now.evaluate, leakage=False)
    assert config.data_dir == str(tmp_path)
    assert began is then
    assert (model, recording) == ("the model", ("abcd0000", tmp_path))
    assert more == {"uri": "models:/m-1", "identity": recorded.identity}


def test_without_a_run_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^run_id: say which run to evaluate"):
        evaluate_recorded(configured("model=linear"), tmp_path)


@pytest.mark.parametrize(
    ("words", "was", "refused"),
    [
        (
            "evaluate.test=false",
            "seed=7",
            r"^evaluate\.test=false: run abcd0000 has predictions on",
        ),
        ("evaluate.temperature=true", "preprocess.validation_size=0", "no validation images"),
    ],
)
def test_what_the_run_would_lose_or_has_no_images_for_is_refused(
    words: str, was: str, refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = SimpleNamespace(
        id="abcd0000",
        config=configured("model=mlp", was),
        has=lambda name: True,
        predictions=lambda: {"test": None},
    )
    monkeypatch.setattr("pipeline.tracking.runs.find_trained", lambda run_id, config: recorded)
    with pytest.raises(RequestError, match=refused):
        evaluate_recorded(configured("run_id=abcd", "model=mlp", words), tmp_path)
