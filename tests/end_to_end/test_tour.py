"""The whole loop as a user goes through it: sweep, compare, promote, serve, refuse, roll back."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.commands import LEAN, begun, free_port, pipeline, results, undrawn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = ("dataset=synthetic", "model=linear", "train.epochs=3", *LEAN)
# What synthetic images can be asked for.
GATES = ("min_test_accuracy=0.5", "min_class_recall=0.1", "max_ece=null", "max_latency_ms=null")
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Tour:
    """What each command said, and what the server answered."""

    first: dict[str, str]
    swept: dict[str, str]
    compared: dict[str, object]
    promoted: list[dict[str, str]]
    version: dict[str, object]
    answer: dict[str, list[dict[str, object]]]
    served_code: int
    refused: subprocess.CompletedProcess[str]
    rolled_back: dict[str, str]
    history: str


def said(*words: str, cwd: Path) -> str:
    """What a command that ends well prints."""
    done = pipeline(*words, cwd=cwd, before=undrawn)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    cwd = tmp_path_factory.mktemp("tour")
    promote = ("promote", "dataset=synthetic", *GATES)
    first = results(said(*SMALL, cwd=cwd))
    poor = results(said(*SMALL, "optimizer.learning_rate=1e-9", cwd=cwd))
    promoted = [results(said(*promote, f"run_id={first['run_id']}", cwd=cwd))]
    grid = ("optimizer.learning_rate=0.01,0.03", "hydra.launcher.n_jobs=2")
    swept = results(said("-m", *SMALL, *grid, "sweep.keep_models=1", cwd=cwd))
    words = ("dataset=synthetic", f"sweep={swept['sweep_id']}", "format=json")
    compared = json.loads(said("compare", *words, cwd=cwd))
    promoted.append(results(said(*promote, "run_id=best", cwd=cwd)))
    version, answer, served_code = served(cwd)
    return Tour(
        first=first,
        swept=swept,
        compared=compared,
        promoted=promoted,
        version=version,
        answer=answer,
        served_code=served_code,
        refused=pipeline(*promote, f"run_id={poor['run_id']}", cwd=cwd),
        rolled_back=results(said("rollback", "dataset=synthetic", cwd=cwd)),
        history=said("history", "dataset=synthetic", cwd=cwd),
    )


def served(cwd: Path) -> tuple[dict[str, object], dict[str, list[dict[str, object]]], int]:
    """What the served champion says of itself and of an image; how it ends on Ctrl-C."""
    port = free_port()
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_S
    with begun("serve", "dataset=synthetic", f"port={port}", cwd=cwd) as process:
        while not _answers(address):
            assert process.poll() is None, process.err.read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        version = requests.get(f"{address}/version", timeout=10).json()
        image = requests.get(f"{address}/example", timeout=10).json()
        answer = requests.post(f"{address}/invocations", json=image, timeout=10).json()
        process.send_signal(signal.SIGINT)
        return version, answer, process.wait(PATIENCE_S)


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/ping", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_the_best_of_the_sweep_takes_the_place_of_the_first_champion(tour: Tour) -> None:
    first, best = tour.promoted
    assert (first["version"], first["run_id"]) == ("1", tour.first["run_id"])
    assert best["run_id"] == tour.swept["best_run_id"]
    assert (best["version"], best["alias"], best["previous"]) == ("2", "champion", "1")


def test_the_jobs_of_the_sweep_are_compared(tour: Tour) -> None:
    assert tour.swept["best_run_id"] in json.dumps(tour.compared)


def test_the_champion_is_served_and_answers_with_a_class(tour: Tour) -> None:
    assert tour.promoted[1]["run_id"] in json.dumps(tour.version)
    [prediction] = tour.answer["predictions"]
    probabilities = prediction["probabilities"]
    assert max(probabilities, key=probabilities.get) == prediction["class"]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
    assert tour.served_code == 130


def test_a_worse_model_is_refused_with_its_numbers(tour: Tour) -> None:
    assert tour.refused.returncode == 1
    assert "test accuracy" in tour.refused.stderr
    assert "nothing was changed" in tour.refused.stderr


def test_rolling_back_brings_the_first_champion_back(tour: Tour) -> None:
    assert (tour.rolled_back["version"], tour.rolled_back["alias"]) == ("1", "champion")
    assert tour.rolled_back["run_id"] == tour.first["run_id"]


def test_the_ledger_has_it_all(tour: Tour) -> None:
    for decision in ("promoted", "refused", "rolled back"):
        assert decision in tour.history, tour.history
