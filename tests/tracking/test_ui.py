from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from pipeline.tracking import ui
from pipeline.tracking.ui import (
    TRAINING,
    VIEW,
    Links,
    links,
    main,
    server_command,
    server_environment,
    wait_for,
)


def test_the_server_keeps_runs_and_artefacts_where_runs_without_it_write_them(
    tmp_path: Path,
) -> None:
    command = server_command(tmp_path / "mlflow.db", host="127.0.0.1", port=5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(pairwise(command))
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "5001")
    assert options["--backend-store-uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert options["--default-artifact-root"] == f"{tmp_path}/mlartifacts"
    assert "--no-serve-artifacts" in command
    assert server_environment()["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


class Answer(SimpleNamespace):
    """What a server answers."""

    ok = True

    def json(self) -> Any:
        return self.content

    def raise_for_status(self) -> None:
        pass


def test_links_lead_to_the_experiments_that_have_runs_the_newest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, tagged = {"1": 100, "3": 300}, []

    def post(url: str, json: dict[str, Any], timeout: float) -> Answer:
        asked = url.removeprefix("http://host/api/2.0/mlflow/")
        if asked == "experiments/search":
            names = {"1": "digits", "2": "empty", "3": "pets"}.items()
            named = [{"experiment_id": number, "name": name} for number, name in names]
            return Answer(content={"experiments": named})
        if asked == "runs/search":
            start = begun.get(json["experiment_ids"][0])
            return Answer(content={"runs": [{"info": {"start_time": start}}] if start else []})
        assert asked == "experiments/set-experiment-tag"
        tagged.append((json["experiment_id"], json["key"]))
        return Answer(content={})

    monkeypatch.setattr(requests, "post", post)
    page = "http://host/#/experiments/3"
    first, second = links("http://host")
    assert first == Links(
        experiment="pets",
        runs=f"{page}?{TRAINING}",
        accuracies=f"{page}/runs?{TRAINING}&viewStateShareKey={VIEW}",
    )
    assert second.experiment == "digits"
    assert tagged == [(number, f"mlflow.sharedViewState.{VIEW}") for number in ("3", "1")]


def test_a_server_is_waited_for_until_it_answers_or_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [requests.ConnectionError(), SimpleNamespace(ok=True)]

    def get(url: str, timeout: float) -> Any:
        assert url == "http://host/health"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(ui.time, "sleep", lambda seconds: None)
    running, ended = (SimpleNamespace(poll=lambda code=code: code) for code in (None, 1))
    assert wait_for("http://host", ended) is False  # type: ignore[arg-type]
    assert wait_for("http://host", running) is True  # type: ignore[arg-type]
    assert answers == []


def test_without_a_store_no_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["make ui"])
    monkeypatch.setattr(ui.subprocess, "Popen", None)
    assert main() == 2
    assert capsys.readouterr().err == "No run is recorded here yet (no mlflow.db): make run\n"
