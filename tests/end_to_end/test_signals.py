from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest

from tests.commands import LEAN, QUICK, begun, environment, pipeline, results
from tests.stress.matrix import matrix, only_stressed
from tests.warm import WarmProcess

pytestmark = pytest.mark.slow

ENDLESS = ("dataset=synthetic", "model=linear", "train.epochs=100000", *LEAN)


@pytest.fixture(autouse=True)
def _heed_ctrl_c() -> Iterator[None]:
    """A process started in the background ignores Ctrl-C, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_it_says(text: str, process: WarmProcess) -> None:
    """Waits for a line on stderr that starts so."""
    while not any(line.startswith(text) for line in process.err.read_text().splitlines()):
        assert process.poll() is None, process.err.read_text()
        time.sleep(0.05)


def the_run(folder: Path) -> tuple[mlflow.MlflowClient, mlflow.entities.Run]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    [run] = client.search_runs([experiment.experiment_id])
    return client, run


@pytest.mark.parametrize(
    ("number", "code"),
    [  # while TensorFlow is imported, below, both are tried
        pytest.param(signal.SIGTERM, 143, marks=only_stressed),
        pytest.param(signal.SIGINT, 130),
    ],
    ids=["SIGTERM", "Ctrl-C"],
)
@matrix(13)
def test_a_run_stopped_in_training_is_killed_with_all_it_had_logged(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    with begun(*ENDLESS, cwd=tmp_path) as process:
        until_it_says("epoch      2/", process)
        process.send_signal(number)
        ended = process.ended(60)
    assert (ended.returncode, ended.stdout) == (code, "")
    told = ended.stderr.splitlines()[-1]
    assert told == f"stopped by {number.name}; what was recorded so far is kept"
    assert "Traceback" not in ended.stderr

    client, run = the_run(tmp_path)
    assert run.info.status == "KILLED"
    assert run.info.end_time >= run.info.start_time
    assert run.data.params["train.epochs"] == "100000"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val/loss")]
    assert len(steps) >= 2
    assert steps == list(range(1, len(steps) + 1))
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "environment.txt", "model_summary.txt", "data.txt"} <= names
    assert run.data.tags["error"] in ("KeyboardInterrupt", "Terminated")
    assert {"time/ingest_s", "time/preprocess_s"} <= run.data.metrics.keys()
    assert list(tmp_path.rglob("*.partial*")) == []

    after = pipeline(*QUICK, cwd=tmp_path)
    assert (after.returncode, len(results(after.stdout))) == (0, 4)
    assert np.isfinite(float(results(after.stdout)["test_accuracy"]))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
@matrix(13)
def test_stopped_while_tensorflow_is_imported_nothing_is_recorded(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = started(*ENDLESS, cwd=tmp_path)
    awaited = tmp_path / "outputs"
    while not list(awaited.glob("*/*/tensorflow.log")):  # made just before the import
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (code, "")
    assert err == f"stopped by {number.name}; what was recorded so far is kept\n"
    assert not (tmp_path / "mlflow.db").exists()
