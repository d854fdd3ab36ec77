from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import mlflow
import pytest

from pipeline.tracking.client import connect
from pipeline.tracking.lifecycle import record
from pipeline.verbs.doctor import checks
from pipeline.verbs.doctor.orphans import running
from tests.commands import configured, free_port, fresh_pipeline, pipeline
from tests.stores import is_free
from tests.stress.matrix import matrix, only_stressed
from tests.warm import fork

pytestmark = pytest.mark.slow

TENSORFLOW_WORKS = """
import json
print(json.dumps({"version": "2", "import_s": 0, "gpus": []}))
"""


def without_tensorflow() -> None:
    """Does not import TensorFlow anew, which takes seconds, to see whether it works."""
    checks.probing = partial(checks.probing, ("-c", TENSORFLOW_WORKS))


def doctor(
    *arguments: str, cwd: Path, before: Callable[[], object] | None = without_tensorflow
) -> tuple[int, dict[str, set[str]], str]:
    """Exit code, the states found by area, and all that was said."""
    ended = pipeline("doctor", "doctor.format=json", *arguments, cwd=cwd, before=before)
    assert "Traceback" not in ended.stderr
    states: dict[str, set[str]] = {}
    for finding in json.loads(ended.stdout)["findings"]:
        states.setdefault(finding["area"], set()).add(finding["state"])
    return ended.returncode, states, ended.stdout + ended.stderr


def work(cwd: Path) -> None:
    """Is in the middle of a run, whose id it writes into a file."""
    os.chdir(cwd)
    uri = f"tracking.uri=sqlite:///{cwd}/mlflow.db"
    config = configured("dataset=digits", "model=linear", uri)
    with record(config, cwd / f"run-{os.getpid()}") as recording:
        (cwd / f"{os.getpid()}.id").write_text(recording.id)
        time.sleep(600)


def run_of(process: ForkServerProcess, cwd: Path) -> str:
    """The id of the run at which a process is at work."""
    path = cwd / f"{process.pid}.id"
    while not (path.exists() and len(path.read_text()) == 32):
        assert process.exitcode is None
        time.sleep(0.05)
    return path.read_text()


def test_a_sound_folder_has_no_problem_and_is_left_as_it_was(tmp_path: Path) -> None:
    said = pipeline("doctor", "dataset=synthetic", cwd=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    for area in ("python", "libraries", "hardware", "threads", "data", "store", "disk"):
        assert f"│ {area} " in said.stdout
    assert "works; imported in" in said.stdout
    assert list(tmp_path.iterdir()) == []


def test_where_everything_is_broken_all_of_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no libcudart')")
    (tmp_path / "mlflow.db").write_text("my notes, " * 100)
    code, states, said = doctor(f"data_dir={tmp_path}/mlflow.db/data", cwd=tmp_path, before=None)
    assert code == 1
    assert {area for area, found in states.items() if "problem" in found} >= {
        "store",
        "tensorflow",
    }
    assert "no libcudart" in said
    assert "file is not a database" in said
    assert said.splitlines()[-1].endswith(
        "problems must be fixed before a run can work: store, disk, tensorflow"
    )


@only_stressed  # test_where_everything_is_broken has a TensorFlow that cannot be imported
def test_an_mlflow_that_cannot_be_imported_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "mlflow.py").write_text("raise ImportError('half installed')")
    ended = fresh_pipeline("doctor", "doctor.format=json", "dataset=synthetic", cwd=tmp_path)
    states = {one["area"]: one["state"] for one in json.loads(ended.stdout)["findings"]}
    assert (ended.returncode, states["store"], states["tensorflow"]) == (1, "problem", "ok")
    assert "half installed" in ended.stdout


@matrix(23)
def test_it_works_where_nothing_can_be_written_and_no_server_answers() -> None:
    address = f"http://me:hunter2@127.0.0.1:{free_port()}"
    code, states, said = doctor(f"tracking.uri={address}", "dataset=synthetic", cwd=Path("/proc"))
    assert (code, states["disk"], states["store"]) == (1, {"problem"}, {"problem"})
    assert states["tensorflow"] == {"ok"}
    assert "nothing answers there" in said
    assert "hunter2" not in said


def hold_still(pid: int, store: Path) -> None:
    """Stops a process at a moment when it neither reads nor writes the store."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        if is_free(store):
            return
        os.kill(pid, signal.SIGCONT)


@matrix(14)
def test_killed_runs_are_closed_and_live_and_stopped_ones_are_not(tmp_path: Path) -> None:
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    processes = [fork(work, tmp_path) for _ in range(3)]
    _, stopped, killed = processes
    try:
        ids = [run_of(process, tmp_path) for process in processes]
        hold_still(stopped.pid, tmp_path / "mlflow.db")
        killed.kill()
        killed.join()
        code, states, said = doctor("fix=true", "dataset=synthetic", cwd=tmp_path)
        assert (code, states["runs"]) == (0, {"ok"})
        assert f"1 marked KILLED, its process is gone: {ids[2]}" in said
        assert statuses(client, ids) == ["RUNNING", "RUNNING", "KILLED"]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert [found.state for found in running(client, fix=False, own=None)] == ["warning", "ok"]
    assert statuses(client, ids) == ["RUNNING", "RUNNING", "KILLED"]
    assert [found.state for found in running(client, fix=True, own=None)] == ["ok", "ok"]
    assert statuses(client, ids) == ["KILLED"] * 3


def statuses(client: mlflow.MlflowClient, ids: list[str]) -> list[str]:
    return [client.get_run(run_id).info.status for run_id in ids]
