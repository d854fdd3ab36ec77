from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.config.schema import Config
from pipeline.data.values import Predictions, Split
from pipeline.system.errors import RequestError
from pipeline.verbs.report import RebuiltReport, explained, report
from tests.commands import QUICK, configured


def of_run() -> Config:
    return configured(*QUICK, "run_id=abcd")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The run that is found, and a page of it that only says whether it is explained."""
    run = SimpleNamespace(
        id="abcd0000",
        is_sweep=False,
        has=lambda name: True,
        text={"data.html": "its data"}.__getitem__,
        predictions=lambda: {"test": None},
        load_model=object,
    )
    monkeypatch.setattr("pipeline.tracking.runs.find_run", lambda *given, **more: run)
    monkeypatch.setattr("pipeline.tracking.recording.reopen", lambda *given: None)
    monkeypatch.setattr(
        "pipeline.reports.write.page_of",
        lambda entry, recording, data_dir, explain: f"{entry.id}: {explain is not None}",
    )
    return run


def imported_by(messages: bytes, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that `report` imports from now on; each prints as TensorFlow does."""
    found: list[str] = []

    def import_slow(name: str) -> None:
        found.append(name)
        os.write(2, messages)

    monkeypatch.setattr("pipeline.verbs.report.import_slow", import_slow)
    return found


def test_what_tensorflow_prints_where_a_report_explains_stays_off_the_terminal(
    recorded: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    imported = imported_by(b"cudart_stub", monkeypatch)
    report(of_run(), RebuiltReport(explain=True), tmp_path)
    assert imported == ["pipeline.training.explain"]
    assert (tmp_path / "tensorflow.log").read_text() == "cudart_stub"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("explain", [False, True])
def test_the_page_of_a_run_is_written_into_the_folder(
    explain: bool, recorded: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported_by(b"", monkeypatch)
    path = report(of_run(), RebuiltReport(explain=explain), tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text() == f"abcd0000: {explain}"
    assert (tmp_path / "data.html").read_text() == "its data"


def test_a_report_without_a_page_of_the_data_stands_alone(
    recorded: SimpleNamespace, tmp_path: Path
) -> None:
    recorded.has = lambda name: name != "data.html"
    assert [report(of_run(), RebuiltReport(explain=False), tmp_path)] == [*tmp_path.iterdir()]


def test_what_has_no_report_or_cannot_be_explained_is_refused(
    recorded: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"^run_id: say which run to report"):
        report(configured(*QUICK), RebuiltReport(explain=False), tmp_path)
    recorded.has = lambda name: name != "predictions.npz"
    with pytest.raises(RequestError, match=r"^report.explain=true: run abcd0000 has no predic"):
        report(of_run(), RebuiltReport(explain=True), tmp_path)
    recorded.has, recorded.predictions = lambda name: True, dict  # evaluated on no split
    with pytest.raises(RequestError, match=r"^report.explain=true: run abcd0000 has no predic"):
        report(of_run(), RebuiltReport(explain=True), tmp_path)
    recorded.is_sweep = True
    with pytest.raises(RequestError, match=r"is a sweep; `compare .* can be built of each"):
        report(of_run(), RebuiltReport(explain=False), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("has_features", [True, False])
def test_the_surest_mistakes_are_explained_and_the_features_drawn_if_the_model_has_any(
    has_features: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]], np.float32)
    images = np.arange(4, dtype=np.uint8).repeat(4).reshape(4, 2, 2, 1)
    predictions = Predictions(
        split=Split(images=images, labels=np.zeros(4, np.int32)),
        probabilities=probabilities,
        class_names=("cat", "dog"),
    )
    asked: list[Any] = []

    def explain(model: Any, given: Any, classes: Any) -> Any:
        asked.append((given[:, 0, 0, 0].tolist(), classes.tolist()))
        return SimpleNamespace(maps=np.full(given.shape[:3], len(asked)), method="of a test")

    def features_of(model: Any, split: Split, batch_size: int) -> Any:
        return np.arange(8, dtype=np.float32).reshape(4, 2) ** 2 if has_features else None

    monkeypatch.setattr("pipeline.training.explain.explain", explain)
    monkeypatch.setattr("pipeline.training.explain.features_of", features_of)
    found = explained(None, predictions)
    assert asked == [([2, 1], [1, 1]), ([2, 1], [0, 0])]  # the surest first
    assert found.images.tolist() == [2, 1]
    assert (found.guesses.max(), found.truths.max(), found.method) == (1, 2, "of a test")
    assert (found.scatter is not None) == has_features
    assert (found.lacking == "") == has_features
