"""`make ui`: serves the store in the current folder and prints links that open on the runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import requests

DATABASE = Path("mlflow.db")
PATIENCE_S = 600
MOST, SHOWN = 100, 10  # experiments that are looked at; those with a link
# What the table of runs shows: a view that MLflow keeps in a tag of the experiment.
VIEW, VIEW_NAME = "runs", "Runs with their accuracies"
COLUMNS = ("metrics.`val/accuracy`", "metrics.`test/accuracy`", "params.`train.epochs`")


def server_command(database: Path, *, host: str, port: int) -> list[str]:
    """The command of an MLflow server for the store in a SQLite file.

    One worker takes a fifth of the memory and half of the time. Artefacts are not passed through
    the server, so that runs without it can write to experiments that were made with it.
    """
    folder = database.resolve().parent
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)),
        *("--uvicorn-opts", "--log-level warning", "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{database.resolve()}"),
        *("--no-serve-artifacts", "--default-artifact-root", str(folder / "mlartifacts")),
    ]


def server_environment() -> dict[str, str]:
    """The environment of such a server: without the runner of jobs, which needs memory and time."""
    return os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def links(address: str) -> Iterator[tuple[str, str]]:
    """Each experiment's name and the link to the table of its runs, that of the newest run first.

    The link shows training runs, not MLflow's pages for language models, with their accuracies.
    """
    experiments = _ask(address, "experiments/search", max_results=MOST).get("experiments", [])
    named = {one["experiment_id"]: one["name"] for one in experiments}
    begun = {number: _newest(address, number) for number in named}
    for number in sorted(filter(begun.get, begun), key=lambda one: -begun[one])[:SHOWN]:
        _ask(
            address,
            "experiments/set-experiment-tag",
            experiment_id=number,
            key=f"mlflow.sharedViewState.{VIEW}",
            value=_view(),
        )
        query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
        yield named[number], f"{address}/#/experiments/{number}?{query}"


def _newest(address: str, experiment_id: str) -> int:
    """When the newest run of an experiment began, Unix time in ms; 0 if it has none."""
    order = ["attributes.start_time DESC"]
    asked = {"experiment_ids": [experiment_id], "order_by": order, "max_results": 1}
    runs = _ask(address, "runs/search", **asked).get("runs", [])
    return int(runs[0]["info"]["start_time"]) if runs else 0


def _view() -> str:
    now = int(time.time() * 1000)
    state = json.dumps({"selectedColumns": COLUMNS})
    return json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": state})


def _ask(address: str, what: str, **values: Any) -> dict[str, Any]:
    answer = requests.post(f"{address}/api/2.0/mlflow/{what}", json=values, timeout=30)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def wait_for(address: str, process: subprocess.Popen[Any]) -> bool:
    """Waits until the server answers; False if it ends or does not answer in time."""
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return True
        except requests.RequestException:
            time.sleep(0.1)
    return False


def main() -> int:
    """Serves until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make ui")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    asked = parser.parse_args()
    if not DATABASE.exists():
        print(f"No run is recorded here yet (no {DATABASE}): make run", file=sys.stderr)
        return 2
    if asked.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"warning: everybody who reaches {asked.host}:{asked.port} can read and change the "
            "runs and models of this store; there is no password. MLflow only answers those that "
            "call it by a name in MLFLOW_SERVER_ALLOWED_HOSTS",
            file=sys.stderr,
        )
    host = asked.host if asked.host not in ("0.0.0.0", "::") else "127.0.0.1"
    address = f"http://{host}:{asked.port}"
    command = server_command(DATABASE, host=asked.host, port=asked.port)
    print(f"starting MLflow on port {asked.port} …", file=sys.stderr)
    server = subprocess.Popen(command, env=server_environment(), stdout=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, _stop)
    try:
        if not wait_for(address, server):
            print(f"the MLflow server does not answer on {address}", file=sys.stderr)
            return 1
        for name, link in links(address):
            print(f"{name}: {link}")
        print("stop with Ctrl-C", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()
    return 0


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
