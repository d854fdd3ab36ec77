"""`make ui`: serves the store in the current folder and prints links that open on the runs.

An installed package has no Makefile: there, `python -m pipeline.tracking.ui` is the command.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import FrameType
from typing import Any

import requests

from pipeline.system.processes import left_unset
from pipeline.system.terminal import prepare_streams
from pipeline.tracking.addresses import MLFLOW_DEFAULTS
from pipeline.tracking.values import VIEW, Query

DATABASE = Path("mlflow.db")
_PATIENCE_S = 600
_MOST, _SHOWN = 100, 10  # experiments that are looked at; those with a link
# What the table of runs shows: a view that MLflow keeps in a tag of the experiment.
TRAINING = "workflowType=machine_learning"
VIEW_ID, VIEW_NAME = "runs", "Runs with their accuracies"
_COLUMNS = tuple(f"metrics.`{name}`" for name in ("val/accuracy", "test/accuracy", "sweep/best"))


def server_command(database: Path, *, host: str, port: int) -> list[str]:
    """The command of an MLflow server for the store in a SQLite file, to be run in its folder.

    The address names the file alone: one with the folder would end at a question mark in its name.
    One worker takes a fifth of the memory and half of the time. Artefacts are not passed through
    the server, so that runs without it can write to experiments that were made with it.
    """
    file = database.resolve()
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)),
        *("--uvicorn-opts", "--log-level warning", "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{file.name}"),
        *("--no-serve-artifacts", "--default-artifact-root", str(file.parent / "mlartifacts")),
    ]


def server_environment() -> dict[str, str]:
    """The environment of such a server: without the runner of jobs, which needs memory and time.

    Like a run, it tells MLflow's makers nothing (telemetry) unless the user lets it.
    """
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    return os.environ | left_unset(MLFLOW_DEFAULTS) | own | {"PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True, kw_only=True)
class Links:
    """Links to the runs of an experiment: MLflow's own page, and the table with their accuracies.

    Both show training runs rather than MLflow's pages for language models.
    """

    experiment: str
    runs: str
    accuracies: str


def links(address: str) -> Iterator[Links]:
    """The links of the experiments that have runs, that of the newest run first."""
    # MLflow is imported here, while its server starts.
    from pipeline.tracking.client import experiment_names, quiet_client, tag_experiment
    from pipeline.tracking.runs import search

    client = quiet_client(address)
    names = islice(experiment_names(client).values(), _MOST)
    newest = chain.from_iterable(search(client, Query(experiment=name, limit=1)) for name in names)
    for run in sorted(newest, key=lambda run: -run.started)[:_SHOWN]:
        tag_experiment(client, run.experiment_id, f"{VIEW}{VIEW_ID}", _view())
        page = f"{address}/#/experiments/{run.experiment_id}"
        yield Links(
            experiment=run.experiment,
            runs=f"{page}?{TRAINING}",
            accuracies=f"{page}/runs?{TRAINING}&viewStateShareKey={VIEW_ID}",
        )


def _view() -> str:
    now = int(time.time() * 1000)
    state = json.dumps({"selectedColumns": _COLUMNS})
    return json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": state})


def wait_for(address: str, process: subprocess.Popen[Any]) -> bool:
    """Waits until the server answers; False if it ends or does not answer in time."""
    until = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        with suppress(requests.RequestException):
            if requests.get(f"{address}/health", timeout=5).ok:
                return True
        time.sleep(0.1)
    return False


def occupied(host: str, port: int) -> str | None:
    """Why a server cannot listen at an address, in lower case; None if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        return (getattr(error, "strerror", None) or str(error)).lower()
    return None


def _past_proxies(host: str) -> None:
    """Lets this process reach the server directly where the environment names a proxy."""
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [excepted, host]))


def main() -> int:
    """Serves until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking.ui")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    asked = parser.parse_args()
    if not 0 < asked.port < 2**16:
        parser.error(f"argument --port: must be from 1 to 65535 (got {asked.port})")
    prepare_streams()
    if not DATABASE.exists():
        first = "make run, or python -m pipeline"
        print(f"No run is recorded here yet (no {DATABASE}): {first}", file=sys.stderr)
        return 2
    if why := occupied(asked.host, asked.port):
        at = f"{asked.host}, port {asked.port}"
        how = "make ui PORT=… or HOST=…, or with --port and --host of this command"
        print(f"{at}: {why}; choose another with {how}", file=sys.stderr)
        return 2
    _warn_of_others(asked.host, asked.port)
    host = asked.host if asked.host not in ("0.0.0.0", "::") else "127.0.0.1"
    address = f"http://[{host}]:{asked.port}" if ":" in host else f"http://{host}:{asked.port}"
    command = server_command(DATABASE, host=asked.host, port=asked.port)
    os.environ.update(left_unset(MLFLOW_DEFAULTS))  # for MLflow's client in this process
    print(f"starting MLflow on port {asked.port} …", file=sys.stderr)
    server = subprocess.Popen(
        command,
        cwd=DATABASE.resolve().parent,
        env=server_environment(),
        stdout=subprocess.DEVNULL,
    )
    _past_proxies(host)  # after the server has taken its environment
    signal.signal(signal.SIGTERM, _stop)
    try:
        if not wait_for(address, server):
            print(f"the MLflow server does not answer on {address}", file=sys.stderr)
            return 1
        found = list(links(address))
        for one in found:
            print(f"{one.experiment}: {one.runs}")
        if found:
            print(f"accuracies of {found[0].experiment}: {found[0].accuracies}")
        print("stop with Ctrl-C", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()
    return 0


def _warn_of_others(host: str, port: int) -> None:
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"warning: everybody who reaches {host}:{port} can read and change the runs and models "
            "of this store; there is no password. MLflow only answers those that call it by a name "
            "in MLFLOW_SERVER_ALLOWED_HOSTS",
            file=sys.stderr,
        )


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
