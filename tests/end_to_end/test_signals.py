from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import mlflow
import numpy as np
import pytest

from tests.commands import QUICK, environment, pipeline, results

pytestmark = pytest.mark.slow

ENDLESS = ("dataset=synthetic", "model=linear", "train.epochs=100000")


@pytest.fixture(autouse=True)
def _heed_ctrl_c() -> Iterator[None]:
    """A process started in the background ignores Ctrl-C, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it had still to say."""
    try:
        return process.communicate(timeout=60)
    finally:
        process.kill()


def started(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_until(text: str, stream: IO[str] | None) -> list[str]:
    """What comes on the stream, up to the line that starts so."""
    assert stream is not None
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if line.startswith(text):
            return lines
    raise AssertionError(f"it ended without {text!r}:\n{''.join(lines)}")


def the_run(folder: Path) -> tuple[mlflow.MlflowClient, mlflow.entities.Run]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    [run] = client.search_runs([experiment.experiment_id])
    return client, run


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_run_stopped_in_training_is_killed_with_all_it_had_logged(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = started(*ENDLESS, cwd=tmp_path)
    lines_until("epoch      2/", process.stderr)
    process.send_signal(number)
    out, err = ended(process)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == f"stopped by {number.name}; what was recorded so far is kept"
    assert "Traceback" not in err

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
def test_stopped_while_tensorflow_is_imported_nothing_is_recorded(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = started(*ENDLESS, cwd=tmp_path)
    awaited = tmp_path / "outputs"
    while not list(awaited.glob("*/*/tensorflow.log")):  # made just before the import
        assert process.poll() is None
    process.send_signal(number)
    out, err = ended(process)
    assert (process.returncode, out) == (code, "")
    assert err == f"stopped by {number.name}; what was recorded so far is kept\n"
    assert not (tmp_path / "mlflow.db").exists()
