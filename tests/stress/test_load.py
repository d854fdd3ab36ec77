"""Many processes, jobs and points at once: rows 1, 3, 6 and 7."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.sweeps.outcomes import FINISHED, Outcome
from pipeline.tracking.lifecycle import record
from tests.commands import configured, inside
from tests.stress.matrix import matrix, only_stressed, stressed, tally
from tests.stress.stores import SIX, at_once, missing_points
from tests.sweeps.test_study import SPACE, search
from tests.warm import call_warm

pytestmark = pytest.mark.slow

PROCESSES, EPOCHS = 8, 20


def assert_all_there(client: MlflowClient, ids: list[str], epochs: int) -> None:
    """Checks that runs are finished, know their data, and have six points per epoch, each once."""
    missing = sum(missing_points(client, run_id, epochs, SIX) for run_id in ids)
    tally(len(ids) * epochs * len(SIX), failed=missing)
    assert (missing, len(set(ids))) == (0, len(ids))
    for run_id in ids:
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert len(run.inputs.dataset_inputs) == 1


@matrix(1)
def test_eight_runs_at_once_lose_no_point_in_sqlite(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    many = stressed(PROCESSES, 3)
    ids = at_once(many, tmp_path, uri, epochs=EPOCHS)
    assert_all_there(MlflowClient(uri), ids, EPOCHS)


@only_stressed
@matrix(3)
def test_eight_first_runs_at_once_make_the_tables_of_their_store_together(tmp_path: Path) -> None:
    """Unlike in other tests, MLflow makes the tables itself, in seconds."""
    rounds = stressed(50, 1)
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        uri = f"sqlite:///{folder}/mlflow.db"
        ids = at_once(PROCESSES, folder, uri, epochs=1, real_tables=True)
        client = MlflowClient(uri)
        states = [client.get_run(run_id).info.status for run_id in ids]
        lost = PROCESSES - states.count("FINISHED")
        tally(1, failed=bool(lost))
        assert (lost, len(set(ids))) == (0, PROCESSES)
        with closing(sqlite3.connect(folder / "mlflow.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            [(runs,)] = database.execute("SELECT COUNT(*) FROM runs")
            assert runs == PROCESSES


@matrix(6)
@pytest.mark.parametrize("offline", [False, True])
def test_ten_thousand_points_arrive_once_each(offline: bool, tmp_path: Path) -> None:
    from pipeline.tracking.client import connect
    from pipeline.tracking.delivery import send_journal

    epochs, names = stressed(1_000, 100), [f"train/m{n}" for n in range(5)]
    with inside(tmp_path) as here:
        words = ["tracking.offline=true"] if offline else []
        with record(configured(*words), tmp_path / "run") as recording:
            began = time.perf_counter()
            for epoch in range(1, epochs + 1):
                recording.log_epoch(epoch, dict.fromkeys(names, 1 / epoch))
            seconds = time.perf_counter() - began
        if offline:
            send_journal(connect(None), tmp_path / "run")
        with closing(sqlite3.connect(here / "mlflow.db")) as database:
            counted = "SELECT COUNT(*), COUNT(DISTINCT key || '/' || step) FROM metrics"
            [found] = database.execute(f"{counted} WHERE key LIKE 'train/m%'")
    tally(epochs * len(names), failed=abs(epochs * len(names) - found[1]))
    assert found == (epochs * len(names),) * 2
    assert seconds / epochs < 0.1


def carry_out(folder: Path, number: int, trials: int, begin: float) -> list[int]:
    """The numbers of the trials that one sweep of several that share a study has carried out."""
    time.sleep(max(0.0, begin - time.time()))
    source = search(folder, f"sweep.n_trials={trials}", space=SPACE, sweep_id=f"sweep{number}")
    done = []
    for job in source.jobs():
        done.append(job.index)
        value = (job.index % 7) / 7
        source.tell(Outcome(index=job.index, status=FINISHED, params=job.params, values=(value,)))
    return done


@matrix(7)
def test_eight_processes_that_share_a_study_carry_out_each_trial_once(tmp_path: Path) -> None:
    trials, begin = PROCESSES * stressed(20, 2), time.time() + 1.0
    with ThreadPoolExecutor(PROCESSES) as callers:
        calls = [
            callers.submit(call_warm, carry_out, tmp_path, number, trials, begin, timeout=300)
            for number in range(PROCESSES)
        ]
        done = [index for call in calls for index in call.result()]
    tally(trials, failed=abs(trials - len(set(done))))
    assert len(done) == len(set(done)) == trials
    study = search(tmp_path, f"sweep.n_trials={trials}").study
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") == trials
    assert set(states) <= {"COMPLETE", "FAIL"}  # of those that another process was faster with
