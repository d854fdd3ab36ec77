from __future__ import annotations

import os
import socket
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import requests

from pipeline.tracking import ui
from pipeline.tracking.ui import (
    TRAINING,
    VIEW_ID,
    Links,
    links,
    main,
    occupied,
    server_command,
    server_environment,
    wait_for,
)
from pipeline.tracking.values import VIEW
from tests.commands import free_port


def test_the_server_keeps_runs_and_artefacts_where_runs_without_it_write_them(
    tmp_path: Path,
) -> None:
    command = server_command(tmp_path / "mlflow.db", host="127.0.0.1", port=5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(pairwise(command))
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "5001")
    assert options["--backend-store-uri"] == "sqlite:///mlflow.db"  # it runs in that folder
    assert options["--default-artifact-root"] == f"{tmp_path}/mlartifacts"
    assert "--no-serve-artifacts" in command
    assert server_environment()["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_mlflow_s_makers_are_told_nothing_unless_the_user_lets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "MLFLOW_DISABLE_TELEMETRY"
    monkeypatch.delenv(name, raising=False)
    assert server_environment()[name] == "true"
    monkeypatch.setenv(name, "false")
    assert server_environment()[name] == "false"


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_no_server_can_have_is_refused(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["make ui", "--port", port])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"must be from 1 to 65535 (got {port})" in capsys.readouterr().err


def test_links_lead_to_the_experiments_that_have_runs_the_newest_first(folder: Path) -> None:
    address = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(address)
    number = {name: client.create_experiment(name) for name in ("pets", "empty", "birds")}
    for start, name in enumerate(("pets", "birds", "pets"), start=1):
        client.create_run(number[name], start_time=start)
    first, second = links(address)
    page = f"{address}/#/experiments/{number['pets']}"
    assert first == Links(
        experiment="pets",
        runs=f"{page}?{TRAINING}",
        accuracies=f"{page}/runs?{TRAINING}&viewStateShareKey={VIEW_ID}",
    )
    assert second.experiment == "birds"
    viewed = {one.name for one in client.search_experiments() if f"{VIEW}{VIEW_ID}" in one.tags}
    assert viewed == {"pets", "birds"}


def test_a_server_is_waited_for_until_it_answers_or_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    unready, pauses = SimpleNamespace(ok=False), list[float]()
    answers: list[Any] = [requests.ConnectionError(), unready, SimpleNamespace(ok=True)]

    def get(url: str, timeout: float) -> Any:
        assert url == "http://host/health"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(ui.time, "sleep", pauses.append)
    running, ended = (SimpleNamespace(poll=lambda code=code: code) for code in (None, 1))
    assert wait_for("http://host", ended) is False  # type: ignore[arg-type]
    assert wait_for("http://host", running) is True  # type: ignore[arg-type]
    assert (answers, len(pauses)) == ([], 2)


def test_without_a_store_no_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["make ui"])
    monkeypatch.setattr(ui.subprocess, "Popen", None)
    assert main() == 2
    assert capsys.readouterr().err == (
        "No run is recorded here yet (no mlflow.db): make run, or python -m pipeline\n"
    )


def test_an_occupied_port_is_refused_before_another_server_is_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(ui.subprocess, "Popen", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["make ui", "--port", str(port)])
        assert main() == 2
    assert capsys.readouterr().err == (
        f"127.0.0.1, port {port}: address already in use; choose another with make ui PORT=… or "
        "HOST=…, or with --port and --host of this command\n"
    )
    assert occupied("127.0.0.1", port) is None


def test_the_server_of_this_machine_is_not_looked_for_behind_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setenv("no_proxy", "")  # in lower case, which counts more; restored afterwards
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("NO_PROXY", ".corp")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")  # as if not set; restored afterwards
    asked: list[str] = []

    def look(address: str, process: Any) -> bool:
        asked.append(address)
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert requests.utils.should_bypass_proxies(address, None)
        assert requests.utils.should_bypass_proxies("http://s3.corp", None)
        assert not requests.utils.should_bypass_proxies("http://example.org", None)
        return False

    ended = SimpleNamespace(terminate=lambda: None, wait=lambda: 0)

    def start(*_: Any, env: dict[str, str], **__: Any) -> Any:
        assert ("no_proxy" in env, env["NO_PROXY"]) == (False, ".corp")  # the server's own are kept
        return ended

    monkeypatch.setattr(ui.subprocess, "Popen", start)
    monkeypatch.setattr(ui.signal, "signal", lambda *_: None)
    monkeypatch.setattr(ui, "wait_for", look)
    monkeypatch.setattr(sys, "argv", ["make ui", "--port", str(free_port())])
    assert main() == 1
    assert len(asked) == 1
