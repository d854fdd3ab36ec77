"""Measures a model served over HTTP, one image and many: `python -m benchmarks.serving`.

A run trains and saves the model. Ours is `python -m pipeline serve`; it is compared with a bare
FastAPI application that calls the same Keras model (`bare_server.py`, in four ways) and with
`mlflow models serve`. Each runs in its own process on the loopback with its default settings; one
client asks them in turns, each turn over one connection. Medians are reported. The turn of a slow
server ends early, so that a sitting takes about two minutes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.report import OTHERS, OURS, keep, show
from benchmarks.whole_run import DATA, ROOT, finished, store

WARM_UP = 10  # requests to each, not counted
TURN_S = 0.6  # after which a turn sends no further request
MOST_AT_START_S = 120
HEADERS = {"Content-Type": "application/json"}

Seconds = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A server's address and where its answers have the probabilities."""

    connection: http.client.HTTPConnection
    path: str

    def ask(self, body: bytes) -> Any:
        """The answer to a request, read whole."""
        self.connection.request("POST", self.path, body, HEADERS)
        response = self.connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"{self.path}: {response.status} {answer[:300]!r}")
        return answer


def main() -> None:
    """Reads the command line, measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=30, help="of one image, in a round")
    parser.add_argument("--batches", type=int, default=3, help="requests of a batch, in a round")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    parser.add_argument(
        "--store", help="folder whose mlflow.db has --model-uri; else one is trained"
    )
    parser.add_argument("--model-uri")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, ExitStack() as servers:
        folder, uri = arguments.store or made, arguments.model_uri
        if arguments.store is None:
            _say("training the model")
            uri = _trained(arguments.dataset, arguments.model, folder)
        _say("starting the servers")
        contenders, shape = _contenders(uri, folder, servers)
        images = np.random.default_rng(0).integers(0, 256, (arguments.batch, *shape), np.uint8)
        one, many = (
            json.dumps({"inputs": part.tolist()}).encode() for part in (images[:1], images)
        )
        _say("warming up")
        _check_agreement(contenders, many)
        _in_turns(contenders, one, WARM_UP)
        seconds: dict[str, Seconds] = {"one": {}, "many": {}}
        for number in range(arguments.rounds):
            _say(f"round {number + 1} of {arguments.rounds}")
            for kind, body, count in (
                ("one", one, arguments.requests),
                ("many", many, arguments.batches),
            ):
                for name, values in _in_turns(contenders, body, count).items():
                    seconds[kind].setdefault(name, []).extend(values)
    _publish(f"Serving the {arguments.model} over HTTP", seconds, arguments.batch)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _trained(dataset: str, model: str, folder: str) -> str:
    """The address of a model trained for one epoch; its quality does not affect speed."""
    words = [f"data_dir={DATA}", f"dataset={dataset}", f"model={model}", "train.epochs=1"]
    return finished(["-m", "pipeline", "run", *words], folder).result["model_uri"]


def _contenders(
    uri: str, folder: str, servers: ExitStack
) -> tuple[dict[str, Contender], tuple[int, ...]]:
    """The servers, started, by name; and the shape [H,W,C] of their images."""
    import mlflow

    mlflow.set_tracking_uri(store(folder))
    model = mlflow.artifacts.download_artifacts(uri)
    python = [sys.executable, "-m"]
    mlflow_command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve"]
    started = [
        servers.enter_context(_server(command, folder))
        for command in (
            [*python, "pipeline", "serve", f"model_uri={uri}", "port={port}"],
            [*python, "benchmarks.bare_server", f"{model}/data", "{port}"],
            [*mlflow_command, "-m", uri, "--port", "{port}", "--env-manager", "local"],
        )
    ]
    ours, bare, mlflows = (answering() for answering in started)
    places = {
        "ours": (ours, "/invocations"),
        "FastAPI, graph in the loop": (bare, "/graph_in_loop"),
        "FastAPI, graph": (bare, "/graph"),
        "FastAPI, model(x)": (bare, "/call"),
        "FastAPI, model.predict": (bare, "/predict"),
        "mlflow models serve": (mlflows, "/invocations"),
    }
    contenders = {
        name: Contender(connection=http.client.HTTPConnection("127.0.0.1", port), path=path)
        for name, (port, path) in places.items()
    }
    info = mlflow.models.get_model_info(uri)
    return contenders, tuple(info.signature.inputs.inputs[0].shape[1:])


@contextmanager
def _server(command: list[str], folder: str) -> Iterator[Callable[[], int]]:
    """Starts a server and stops it at the end; yields a function that waits for its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow calls uvicorn
        "MLFLOW_TRACKING_URI": store(folder),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [word.format(port=port) for word in command],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield lambda: _await(port, process, log.name)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def _await(port: int, process: subprocess.Popen[bytes], log: str) -> int:
    deadline = time.monotonic() + MOST_AT_START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port
        time.sleep(0.2)
    raise SystemExit(f"{process.args!r} does not answer:\n{Path(log).read_text()[-2000:]}")


def _check_agreement(contenders: dict[str, Contender], body: bytes) -> None:
    answers = {name: json.loads(c.ask(body))["predictions"] for name, c in contenders.items()}
    ours = [[*prediction["probabilities"].values()] for prediction in answers.pop("ours")]
    for other in answers.values():
        np.testing.assert_allclose(other, ours, atol=1e-5)


def _in_turns(contenders: dict[str, Contender], body: bytes, count: int) -> Seconds:
    seconds: Seconds = {name: [] for name in contenders}
    for name, contender in contenders.items():
        contender.connection.close()  # servers end one that was idle for some seconds
        contender.ask(body)
        begun = time.perf_counter()
        while len(seconds[name]) < count and time.perf_counter() - begun < TURN_S:
            started = time.perf_counter()
            contender.ask(body)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _publish(title: str, seconds: dict[str, Seconds], batch: int) -> None:
    quantiles = {
        kind: {name: np.percentile(values, [50, 95]) * 1000 for name, values in of_kind.items()}
        for kind, of_kind in seconds.items()
    }
    kinds = ("1 image, ms", f"{batch} images, ms")
    columns = ("server", *(name for kind in kinds for name in (kind, "95 % in, ms", "ours / it")))
    rows = []
    for name in seconds["one"]:
        cells = [name]
        for of_kind in quantiles.values():
            median, most = of_kind[name]
            ratio = of_kind["ours"][0] / median
            cells += [f"{median:.2f}", f"{most:.2f}", f"{ratio:.2f}"]
        rows.append(cells)
    show(title, columns, rows)
    medians = {
        kind: {name: values[0] / 1000 for name, values in of_kind.items()}
        for kind, of_kind in quantiles.items()
    }
    keep(
        "serving",
        title,
        _plot(title, medians, batch),
        batch=batch,
        seconds=seconds,
        medians=medians,
    )


def _plot(title: str, medians: dict[str, dict[str, float]], batch: int) -> Figure:
    names = [*medians["one"]]
    figure = Figure(figsize=(11, 1.4 + 0.45 * len(names)), layout="constrained")
    labels = ("one image: ms", f"{batch} images: ms")
    for axes, label, of_kind in zip(
        figure.subplots(1, 2, sharey=True), labels, medians.values(), strict=True
    ):
        colours = [OURS if name == "ours" else OTHERS for name in names]
        bars = axes.barh(names, [1000 * of_kind[name] for name in names], color=colours)
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.set(xlabel=f"{label} (median)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    axes.invert_yaxis()
    figure.suptitle(title)
    return figure


if __name__ == "__main__":
    main()
