from __future__ import annotations

import csv
import errno
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
from filelock import FileLock
from mlflow.entities import Run

from pipeline.data.load import ingest
from pipeline.sweeps.jobs import Job
from pipeline.sweeps.outcomes import FAILED, SweepObjective
from pipeline.sweeps.plan import plan_sweep
from pipeline.sweeps.runs import children
from pipeline.sweeps.study import STORAGE
from pipeline.sweeps.sweep import sweep as carry_out
from pipeline.system.errors import PipelineError, RequestError
from pipeline.tracking.heartbeat import (
    signs,
)
from pipeline.tracking.lifecycle import record
from pipeline.tracking.runs import find_sweep
from pipeline.tracking.values import (
    BEAT_PID,
)
from tests.commands import (
    LEAN,
    QUICK,
    begun,
    configured,
    environment,
    inside,
    pipeline,
    results,
    undrawn,
)
from tests.pictures import class_folders
from tests.stores import is_free
from tests.stress.matrix import matrix, only_stressed
from tests.sweeps.test_jobs import multirun
from tests.test_main import DRIVER, Answer, assert_helpful
from tests.warm import WarmProcess

pytestmark = pytest.mark.slow

PATIENCE_S = 240.0  # more than anything here should take, on a busy machine too
PARENT, INDEX = "mlflow.parentRunId", "sweep.index"

# The command line, and what its complaint must say. More of them are tested in test_jobs.py.
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "nothing to try": (["-m", "seed=3"], ["nothing to sweep over", "seed=0,1,2"]),
    "a bad value in the last job": (
        ["-m", "seed=0,1", "train.epochs=1,2,0"],
        ["job 2 (seed=0 epochs=0): train.epochs", "must be at least 1"],
    ),
    "a bad value in all jobs": (["-m", "seed=0,1", "train.batch_size=0"], ["train.batch_size"]),
    "a group of trainings": (["train", "-m", "seed=0,1"], ["train -m", "leave out train"]),
    "a pruner for a grid": (
        ["-m", "seed=0,1", "sweep.pruner=median"],
        ["sweep.pruner", "adaptive"],
    ),
    "an objective without its direction": (
        ["-m", "seed=0,1", "sweep.objective=[val/accuracy,val/loss]", "sweep.direction=[maximize]"],
        ["sweep.direction: 1 for 2 objectives"],
    ),
    "a direction that contradicts the metric": (
        ["-m", "seed=0,1", "sweep.objective=[val/loss]", "sweep.direction=[maximize]"],
        ["sweep.direction: val/loss is to minimize, not to maximize"],
    ),
    "an objective that no run has": (
        ["-m", "seed=0,1", "sweep.objective=[accuracy]"],
        ["sweep.objective", "val/accuracy"],
    ),
    "a sweep without a store": (
        ["-m", "seed=0,1", "tracking.offline=true"],
        ["tracking.offline=true", "tracking.uri="],
    ),
    "jobs without the images that judge them": (
        ["-m", "seed=0,1", "preprocess.validation_size=0"],
        ["sweep.objective=val/accuracy", "preprocess.validation_size=0", "above 0"],
    ),
    "what has no effect in any job": (
        ["-m", "train.epochs=2,3", "train.patience=5"],
        ["train.patience=5 has no effect where it is not below train.epochs", "leave it out"],
    ),
    "what has no effect in any trial": (
        [
            *("-m", "hydra/sweeper=search", "augment=combined", "augment.magnitude=3,9"),
            "augment.flip=random",
        ],
        ["augment.magnitude=3,9 has no effect with augment.rand_augment=0"],
    ),
    "metrics of the test split where no job uses it": (
        ["-m", "seed=0,1", "sweep.keep_models=0", "evaluate.metrics=[ece]"],
        ["evaluate.metrics=[ece] has no effect where the test split is not used"],
    ),
    "options of no pruner": (
        ["-m", "seed=0,1", "+sweep.pruner_options.n_startup_trials=3"],
        ["sweep.pruner_options.n_startup_trials has no effect with sweep.pruner=none"],
    ),
    "the same run twice": (
        ["-m", "model.dropout=0.1,1e-1"],
        ["jobs 0 (dropout=0.1) and 1 (dropout=0.1) are the same run", "tags.repetition=1,2"],
    ),
    "a choice twice in a search": (
        ["-m", "hydra/sweeper=search", "model=mlp,cnn,mlp"],
        ["(model=mlp) and 2 (model=mlp) are the same run"],
    ),
    "no worker at all": (["-m", "seed=0,1", "hydra.launcher.n_jobs=0"], ["hydra.launcher.n_jobs"]),
    "a sweep to resume that is not there": (
        ["-m", "seed=0,1", "sweep.resume=0123456789abcdef0123456789abcdef"],
        ["sweep.resume=0123456789abcdef0123456789abcdef: there is no such sweep"],
    ),
    "the latest sweep where there is none": (
        ["-m", "seed=0,1", "sweep.resume=latest", "tracking.experiment=mine"],
        ["sweep.resume=latest: experiment mine has no sweep"],
    ),
    "a search with bounds the wrong way round": (
        ["-m", "hydra/sweeper=optuna", "model.dropout=interval(0.5,0.1)"],
        ["model.dropout=interval(0.5,0.1)"],
    ),
    "a search beyond what a key may be": (
        ["-m", "hydra/sweeper=optuna", "model.dropout=interval(0.5,1.5)"],
        ["model.dropout", "must be below 1"],
    ),
    "an option that the sampler does not have": (
        ["-m", "hydra/sweeper=optuna", "seed=range(0,9)", "+sweep.sampler_options.startup=3"],
        ["sweep.sampler_options: TPESampler", "startup"],
    ),
    "a search for two ends that prunes": (
        [
            *("-m", "hydra/sweeper=optuna", "seed=range(0,9)", "sweep.pruner=median"),
            *("sweep.objective=[val/accuracy,val/loss]", "sweep.direction=[maximize,minimize]"),
        ],
        ["sweep.pruner=median", "two objectives"],
    ),
}
PREVIEWED: dict[str, tuple[list[str], list[str]]] = {
    "a grid": (
        ["-m", "seed=0,1,2", "model.dropout=0.1,0.3", "sweep.preview=true"],
        [
            "model.dropout",
            "│ 5   │ 2    │ 0.3",
            "6 jobs; time unknown: there is no earlier run; nothing",
        ],
    ),
    "what has an effect in one job of two": (
        ["-m", "train.epochs=2,20", "train.patience=5", "sweep.preview=true"],
        ["train.epochs", "2 jobs"],
    ),
    "what has an effect in one corner of a search": (
        [
            *("-m", "hydra/sweeper=optuna", "train.patience=30,5", "train.epochs=2,20"),
            *("augment=combined", "augment.rand_augment=0,2", "augment.magnitude=0,9"),
            "sweep.preview=true",
        ],
        ["train.patience", "nothing was run"],
    ),
    "a search": (
        ["-m", "hydra/sweeper=optuna", "model.dropout=interval(0,0.5)", "sweep.preview=true"],
        ["interval(0,0.5)", "20 jobs proposed by tpe, pruner none", "nothing was run"],
    ),
}


@dataclass(frozen=True)
class Swept:
    """The newest sweep of a folder, as a user would find it afterwards."""

    folder: Path
    done: subprocess.CompletedProcess[str]

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    @cached_property
    def runs(self) -> list[Run]:
        """All runs of the store, oldest first."""
        ids = [e.experiment_id for e in self.client.search_experiments()]
        return list(self.client.search_runs(ids, order_by=["start_time ASC"]))

    @cached_property
    def parent(self) -> Run:
        return [run for run in self.runs if PARENT not in run.data.tags][-1]

    @cached_property
    def children(self) -> list[Run]:
        """By index; several tries of one in the order they were started."""
        mine = [run for run in self.runs if run.data.tags.get(PARENT) == self.parent.info.run_id]
        return sorted(mine, key=lambda run: int(run.data.tags[INDEX]))

    @property
    def said(self) -> dict[str, str]:
        return results(self.done.stdout)

    @property
    def place(self) -> Path:
        """The sweep's own folder."""
        return Path(self.parent.data.tags["sweep.folder"])

    def states(self) -> list[tuple[int, str]]:
        return [(index_of(run), run.info.status) for run in self.children]

    def ids(self, *states: str) -> list[str]:
        return [run.info.run_id for run in self.children if run.info.status in states]

    def of(self, index: int) -> Run:
        [run] = [run for run in self.children if index_of(run) == index]
        return run


def index_of(run: Run) -> int:
    return int(run.data.tags[INDEX])


def artifact(run: Run, name: str) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"), name)


def sweep(*words: str, cwd: Path, drawn: bool = True) -> Swept:
    """`python -m pipeline -m …`, waited for."""
    cwd.mkdir(parents=True, exist_ok=True)
    return Swept(
        folder=cwd, done=pipeline("-m", *words, cwd=cwd, before=None if drawn else undrawn)
    )


def as_it_is_now(swept: Swept) -> Swept:
    """With its runs read, before the next process changes them."""
    assert swept.runs
    return swept


def until(condition: Callable[[], object], process: subprocess.Popen[bytes] | WarmProcess) -> None:
    """Waits until something is true of a process that has not ended."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def gone(process: psutil.Process) -> bool:
    """Whether it has ended, if only its init has not noticed yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# --- what is refused, and what is shown, before anything starts ---


# What the checks of sweeps import, and the tables of the store that some of them read. Workers,
# which start while jobs are checked, end at once instead of importing TensorFlow.
SLOW = """import multiprocessing
import mlflow.store.tracking.sqlalchemy_store, mlflow.tracking.client, optuna, pipeline.sweeps.sweep
from tests.stores import copy_tables
copy_tables()
multiprocessing.set_executable("/bin/true")"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    folder = tmp_path_factory.mktemp("answers")
    cases = REFUSED | PREVIEWED
    subprocess.run(
        [sys.executable, "-c", f"{SLOW}\n{DRIVER}"],
        input=json.dumps([words for words, _ in cases.values()]),
        text=True,
        cwd=folder,
        env=environment(),
        check=True,
        timeout=PATIENCE_S,
    )
    return {
        name: Answer(
            **json.loads((folder / f"{number}.json").read_text()),
            out=(folder / f"{number}.out").read_text(),
            err=(folder / f"{number}.err").read_text(),
        )
        for number, name in enumerate(cases)
    }


@pytest.mark.parametrize("searched", [False, True])
def test_leakage_beside_weights_that_have_seen_the_data_is_refused_before_a_job_trains(
    searched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = class_folders(tmp_path / "photos", count=12)
    words = ("dataset=folder", f"dataset.path={photos}", "dataset.size=8", "evaluate.leakage=true")
    config = configured(*words, "model=efficientnet_lite0", "model.weights=abcd1234")
    shared = configured(*words, "model=efficientnet_lite0") if searched else config
    shared.sweep.preview, shared.sweep.resume = False, None
    monkeypatch.setattr("pipeline.sweeps.sweep.require_named_runs", lambda config: None)
    monkeypatch.setattr("pipeline.sweeps.sweep.open_workers", lambda *_: pytest.fail("it trains"))
    plan: Any = SimpleNamespace(
        multirun=SimpleNamespace(config=shared, searched=()), adaptive=False, naming=[config]
    )
    with inside(tmp_path):
        seen = SimpleNamespace(fingerprint=ingest(config).fingerprint, source="", config=config)
        monkeypatch.setattr("pipeline.tracking.runs.find_run", lambda source, config: seen)
        with pytest.raises(RequestError, match="abcd1234: that run .* leave the weights out"):
            carry_out(plan, None)


def test_workers_start_with_the_password_of_the_study_in_their_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, address = configured("dataset=synthetic"), "postgresql://me:canary@host/studies"
    config.sweep = replace(config.sweep, pruner="median", storage=address)
    plan: Any = SimpleNamespace(
        multirun=SimpleNamespace(config=config, searched=()), adaptive=True, naming=[]
    )
    inherited: list[str] = []

    def open_workers(launcher: Any, jobs: int) -> Any:
        inherited.append(os.environ[STORAGE])
        raise InterruptedError

    monkeypatch.setenv(STORAGE, "that of another sweep")
    monkeypatch.setattr("pipeline.sweeps.sweep.open_workers", open_workers)
    with pytest.raises(InterruptedError):
        carry_out(plan, None)
    assert inherited == [address]


ELSEWHERE = SimpleNamespace(n_jobs=1)


def test_a_search_whose_study_is_gone_is_not_resumed(tmp_path: Path) -> None:
    words = ("hydra/sweeper=search", "dataset=synthetic", "model.dropout=interval(0,0.5)")
    with inside(tmp_path):
        first = plan_sweep(multirun(*words), ELSEWHERE, adaptive=True)
        first.manifest.save(tmp_path)
        searched = first.manifest.searched
        with record(first.multirun.config, tmp_path, searched=searched) as parent:
            here = parent.client.get_run(parent.id).info.experiment_id
            parent.client.create_run(here, tags={PARENT: parent.id, INDEX: "0"})
        resume = f"sweep.resume={parent.id}"
        again = plan_sweep(multirun(*words, resume), ELSEWHERE, adaptive=True)
        with pytest.raises(RequestError, match=f"^{resume}: the study .*{tmp_path}/study.journal"):
            carry_out(again, ELSEWHERE)
        assert parent.client.get_run(parent.id).info.status == "FINISHED"


def test_two_new_sweeps_are_not_in_one_folder(tmp_path: Path) -> None:
    with inside(tmp_path), FileLock(tmp_path / ".lock"):
        asked = multirun("dataset=synthetic", "seed=0,1", f"hydra.sweep.dir={tmp_path}")
        plan = plan_sweep(asked, ELSEWHERE, adaptive=False)
        with pytest.raises(RequestError, match=f"^hydra.sweep.dir={tmp_path}: another sweep is at"):
            carry_out(plan, ELSEWHERE)


def test_a_sweep_that_fails_at_its_work_was_no_wrong_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.sweeps.sweep.settle_in", lambda launcher, folder: None)
    monkeypatch.setattr("pipeline.sweeps.sweep.log_results", full)
    with inside(tmp_path):
        asked = multirun("dataset=synthetic", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep")
        plan = plan_sweep(asked, ELSEWHERE, adaptive=False)
        with pytest.raises(PipelineError, match="No space left.*\nThe sweep is") as e:
            carry_out(plan, ELSEWHERE)
    assert e.value.exit_code == 1


@pytest.mark.parametrize("case", REFUSED)
def test_a_sweep_that_cannot_be_is_refused_in_two_lines(
    case: str, answers: dict[str, Answer]
) -> None:
    answer = answers[case]
    assert (answer.code, answer.out) == (2, "")
    assert "tensorflow" not in answer.imported
    lines = answer.err.splitlines()
    assert 1 <= len(lines) <= 3, answer.err
    assert "Traceback" not in answer.err
    for part in REFUSED[case][1]:
        assert part in answer.err


@pytest.mark.parametrize("case", PREVIEWED)
def test_a_preview_shows_the_jobs_and_runs_none(case: str, answers: dict[str, Answer]) -> None:
    answer = answers[case]
    assert (answer.code, answer.err) == (0, "")
    assert "tensorflow" not in answer.imported
    for part in PREVIEWED[case][1]:
        assert part in answer.out


def test_what_is_refused_or_shown_leaves_no_run_and_no_folder(
    answers: dict[str, Answer], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = max(tmp_path_factory.getbasetemp().glob("answers*"))
    assert not (folder / "multirun").exists()
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    assert list(client.search_runs(experiments)) == []


# --- a grid ---

GRID = ("seed=0,1", "optimizer.learning_rate=0.001,0.01")
KEPT = 2


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A grid of two times two on two workers, read by many tests and changed by none."""
    words = (*QUICK, *GRID, f"sweep.keep_models={KEPT}", "hydra.launcher.n_jobs=2")
    swept = sweep(*words, cwd=tmp_path_factory.mktemp("grid"))
    assert swept.done.returncode == 0, swept.done.stderr
    return swept


def test_a_grid_is_a_finished_run_with_a_finished_child_for_each_job(grid: Swept) -> None:
    assert (grid.parent.info.status, len(grid.runs)) == ("FINISHED", 5)
    assert grid.states() == [(index, "FINISHED") for index in range(4)]
    names = [run.info.run_name for run in grid.children]
    rates = ("lr=0.001", "lr=0.01")
    assert names == [f"seed={seed} {rate}" for seed in (0, 1) for rate in rates]
    keys = ("seed", "optimizer.learning_rate")
    tried = [tuple(run.data.params[key] for key in keys) for run in grid.children]
    assert tried == [("0", "0.001"), ("0", "0.01"), ("1", "0.001"), ("1", "0.01")]
    experiments = {run.info.experiment_id for run in grid.runs}
    assert [grid.client.get_experiment(one).name for one in experiments] == ["synthetic"]


def test_the_sweeps_own_run_has_what_was_searched_and_what_was_best(grid: Swept) -> None:
    values = [run.data.metrics["val/accuracy"] for run in grid.children]
    best = grid.children[values.index(max(values))]
    tags, params = grid.parent.data.tags, grid.parent.data.params
    assert params["seed"] == "0,1"
    assert params["optimizer.learning_rate"] == "0.001,0.01"
    assert tags["best.run_id"] == best.info.run_id
    assert tags["best.seed"] == best.data.params["seed"]
    assert tags["best.optimizer.learning_rate"] == best.data.params["optimizer.learning_rate"]
    assert tags["sweep.objective"] == "val/accuracy"
    assert grid.place.parent.parent == grid.folder / "multirun"
    expected = {"finished": 4, "failed": 0, "pruned": 0, "killed": 0, "best": max(values)}
    expected |= {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}
    metrics = grid.parent.data.metrics
    found = {k.partition("/")[2]: v for k, v in metrics.items() if k.startswith("sweep/")}
    assert found == pytest.approx(expected)


def test_the_sweeps_own_run_has_table_manifest_and_plots(grid: Swept) -> None:
    manifest = json.loads(artifact(grid.parent, "manifest.json").read_text())
    assert manifest["searched"] == {"seed": "0,1", "optimizer.learning_rate": "0.001,0.01"}
    assert [job["index"] for job in manifest["jobs"]] == [0, 1, 2, 3]
    with artifact(grid.parent, "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run_id"] for row in rows] == [run.info.run_id for run in grid.children]
    for row, run in zip(rows, grid.children, strict=True):
        assert float(row["val/accuracy"]) == run.data.metrics["val/accuracy"]
        assert (row["state"], row["error"]) == ("finished", "")
    plots = {path.stem for path in artifact(grid.parent, "plots").glob("*.png")}
    assert {"objective", "parallel_coordinates", "slice", "seeds"} <= plots


def test_the_best_alone_are_kept_and_seen_on_the_test_split(grid: Swept) -> None:
    by_value = sorted(grid.children, key=lambda r: (-r.data.metrics["val/accuracy"], index_of(r)))
    kept = {index_of(run) for run in by_value[:KEPT]}
    for run in grid.children:
        is_kept = index_of(run) in kept
        assert ("model_uri" in run.data.tags) == is_kept
        assert ("test/accuracy" in run.data.metrics) == is_kept
        arrays = [
            "class_names",
            "val_labels",
            "val_probs",
            *(["test_labels", "test_probs"] if is_kept else []),
        ]
        assert np.load(artifact(run, "predictions.npz")).files == arrays
        assert (grid.place / str(index_of(run)) / "checkpoints").exists() == is_kept


def test_more_models_than_checkpoints_are_left_are_refused_before_anything_is_touched(
    grid: Swept,
) -> None:
    words = (*QUICK, *GRID, "sweep.keep_models=4", "sweep.resume=latest")
    before = (grid.place / "manifest.json").stat().st_mtime_ns
    again = sweep(*words, cwd=grid.folder)
    assert (again.done.returncode, again.done.stdout) == (2, "")
    assert_helpful(again.done.stderr, "sweep.keep_models=4: the checkpoints of jobs")
    assert f"sweep.keep_models={KEPT}" in again.done.stderr
    assert again.parent.info.status == "FINISHED"
    assert again.parent.data.tags == grid.parent.data.tags
    assert (grid.place / "manifest.json").stat().st_mtime_ns == before


def test_a_kept_model_is_in_the_experiment_of_its_run_and_can_be_used(grid: Swept) -> None:
    run = next(run for run in grid.children if "model_uri" in run.data.tags)
    logged = grid.client.get_logged_model(run.data.tags["model_uri"].removeprefix("models:/"))
    assert logged.source_run_id == run.info.run_id
    assert logged.experiment_id == run.info.experiment_id
    assert str(grid.folder / "mlartifacts/synthetic") in logged.artifact_location
    mlflow.set_tracking_uri(f"sqlite:///{grid.folder}/mlflow.db")
    model = mlflow.tensorflow.load_model(run.data.tags["model_uri"])
    assert model.input_shape == (None, 28, 28, 1)


def test_the_data_is_made_once_for_all_jobs(grid: Swept) -> None:
    for stage in ("ingest", "preprocess"):
        found = [run.data.tags[f"cache/{stage}"] for run in grid.children]
        assert found.count("miss") <= 1, found
    assert len(list((grid.folder / "data/synthetic").glob("raw-*"))) == 1


def test_the_last_line_names_the_sweep_its_best_run_and_what_it_reached(grid: Swept) -> None:
    assert grid.said == {
        "sweep_id": grid.parent.info.run_id,
        "best_run_id": grid.parent.data.tags["best.run_id"],
        "val/accuracy": f"{grid.parent.data.metrics['sweep/best']:.4f}",
    }
    assert grid.done.stdout.count("finished, model kept") == KEPT
    assert "Traceback" not in grid.done.stderr
    told = [line for line in grid.done.stderr.splitlines() if line.startswith("job ")]
    assert sorted(line.split()[1] for line in told) == ["0", "1", "2", "3"]


def test_what_a_job_prints_is_in_its_folder(grid: Swept) -> None:
    for run in grid.children:
        lines = (grid.place / run.data.tags[INDEX] / "output.txt").read_text().splitlines()
        printed = [results(line)["run_id"] for line in lines if line.startswith("run_id=")]
        assert set(printed) == {run.info.run_id}
        assert "run_id=" not in "".join(grid.done.stdout.splitlines()[:-1])


def test_the_command_of_a_job_repeats_it_on_its_own(grid: Swept, tmp_path: Path) -> None:
    run = grid.of(1)
    python, *words = shlex.split(run.data.tags["command"])
    assert (python, words[:2]) == ("python", ["-m", "pipeline"])
    assert not any(word.startswith(("sweep", "hydra", "-m")) for word in words[2:])
    alone = pipeline(*words[2:], cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert results(alone.stdout)["val_accuracy"] == f"{run.data.metrics['val/accuracy']:.4f}"


def test_a_sweep_that_is_another_one_is_not_resumed_and_stays_as_it_was(grid: Swept) -> None:
    words = (*QUICK, "seed=0,1,2", GRID[1], "train.batch_size=64", "sweep.resume=latest")
    other = sweep(*words, cwd=grid.folder)
    assert (other.done.returncode, other.done.stdout) == (2, "")
    lines = other.done.stderr.splitlines()
    assert lines[0].startswith("sweep.resume: this is not the same sweep")
    assert "  seed was 0,1, is 0,1,2" in lines
    assert "  train.batch_size was 128, is 64" in lines
    assert "4 jobs then, 6 now" in lines[-1]
    assert other.parent.info.status == "FINISHED"
    assert other.parent.data.tags == grid.parent.data.tags
    assert other.parent.data.params == grid.parent.data.params
    assert len(other.runs) == len(grid.runs)


def test_a_job_is_no_sweep_to_resume(grid: Swept) -> None:
    job = grid.of(0).info.run_id
    with inside(grid.folder), pytest.raises(RequestError, match=f"sweep.resume={job}: there is no"):
        find_sweep(job, configured("dataset=synthetic"))


# --- failures ---

DIVERGING = ("dataset=synthetic", "model=mlp", "model.hidden=[16]", "optimizer=sgd", *LEAN)
SOME_FAIL = ("train.epochs=1", "optimizer.learning_rate=0.05,1e30,1e29,0.01")


@dataclass(frozen=True)
class Failing:
    """A sweep whose jobs 1 and 2 fail whenever they are run: stopped twice, then let go on."""

    at_first: Swept
    at_second: Swept
    to_its_end: Swept


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Failing:
    cwd, words = tmp_path_factory.mktemp("failing"), (*DIVERGING, *SOME_FAIL, "sweep.keep_models=1")
    return Failing(
        as_it_is_now(sweep(*words, "sweep.on_failure=stop", cwd=cwd, drawn=False)),
        as_it_is_now(
            sweep(*words, "sweep.resume=latest", "sweep.max_failures=2", cwd=cwd, drawn=False)
        ),
        as_it_is_now(sweep(*words, "sweep.resume=latest", cwd=cwd)),
    )


def test_on_failure_stop_starts_nothing_after_a_failed_job(failing: Failing) -> None:
    swept = failing.at_first
    assert swept.done.returncode == 1
    assert swept.states() == [(0, "FINISHED"), (1, "FAILED")]
    assert swept.parent.info.status == "FAILED"
    assert "stopped after job 1 failed" in swept.done.stderr
    assert f"sweep.resume={swept.parent.info.run_id}" in swept.done.stderr
    assert "Traceback" not in swept.done.stderr


def test_max_failures_stops_at_that_many(failing: Failing) -> None:
    swept = failing.at_second
    assert swept.done.returncode == 1
    assert swept.states() == [(0, "FINISHED"), (1, "FAILED"), (1, "FAILED"), (2, "FAILED")]
    assert "stopped after job 2 failed" in swept.done.stderr


@matrix(24)
def test_a_failed_job_costs_only_itself_and_says_why(failing: Failing) -> None:
    swept = failing.to_its_end
    assert swept.done.returncode == 1
    assert swept.states()[-1] == (3, "FINISHED")
    failed = next(run for run in swept.children[::-1] if index_of(run) == 1)
    assert failed.info.status == "FAILED"
    assert "the loss became nan in epoch 1" in failed.data.tags["error"]
    assert failed.data.tags["traceback"].startswith("Traceback (most recent call last)")
    [told] = [line for line in swept.done.stderr.splitlines() if line.startswith("job 1 failed")]
    assert "the loss became nan in epoch 1" in told
    table = "".join(line for line in swept.done.stdout.splitlines() if line.startswith("│"))
    assert table.count("failed") == 2
    assert "loss became nan" in " ".join(table.replace("│", " ").split())


def test_a_sweep_of_which_a_job_failed_is_reported_and_failed(failing: Failing) -> None:
    swept = failing.to_its_end
    assert swept.parent.info.status == "FAILED"
    last = swept.done.stderr.splitlines()[-1]
    assert last.startswith("2 of 4 jobs failed; ")
    assert f"sweep.resume={swept.parent.info.run_id}" in last
    metrics = swept.parent.data.metrics
    assert (metrics["sweep/finished"], metrics["sweep/failed"]) == (2, 2)
    assert "2 of 4 jobs failed" in swept.parent.data.tags["error"]
    assert artifact(swept.parent, "plots/objective.png").exists()
    assert swept.said["best_run_id"] in swept.ids("FINISHED")
    assert ["model_uri" in swept.of(index).data.tags for index in (0, 3)].count(True) == 1


def test_resuming_runs_again_what_failed_and_nothing_that_finished(failing: Failing) -> None:
    swept = failing.to_its_end
    tries = [index for index, _ in swept.states()]
    assert [tries.count(index) for index in range(4)] == [1, 3, 2, 1]
    assert failing.at_first.parent.info.run_id == swept.parent.info.run_id
    assert swept.of(0).info.run_id == failing.at_first.of(0).info.run_id


@matrix(24)
def test_a_job_that_takes_too_long_is_failed_and_the_others_finish(tmp_path: Path) -> None:
    long = ("train.epochs=100000,1", "sweep.timeout_s=8", "sweep.keep_models=0")
    swept = sweep("dataset=synthetic", "model=linear", *LEAN, *long, cwd=tmp_path, drawn=False)
    assert swept.done.returncode == 1
    assert swept.states() == [(0, "FAILED"), (1, "FINISHED")]
    assert "took longer than sweep.timeout_s=8" in swept.of(0).data.tags["error"]
    took = (swept.of(0).info.end_time - swept.of(0).info.start_time) / 1000
    assert 1 < took < 60  # the limit counts from before the run is opened
    # It closed its run itself, with all that it had.
    assert {"config.yaml", "data.txt"} <= {p.name for p in artifact(swept.of(0), "").iterdir()}


def test_a_job_that_died_before_it_had_a_run_has_failed_whatever_became_of_an_earlier_try(
    tmp_path: Path,
) -> None:
    config = configured("dataset=synthetic", "tracking.uri=null")
    with inside(tmp_path), record(config, tmp_path / "sweep") as parent:
        known = children(parent, [SweepObjective(metric="val/accuracy", maximize=True)])
        own, tags = parent.client.get_run(parent.id), {PARENT: parent.id, INDEX: "0"}
        earlier = parent.client.create_run(own.info.experiment_id, tags=tags)
        known.close_orphans()
        assert parent.client.get_run(earlier.info.run_id).info.status == "KILLED"
        settled = known.settle(Job(index=0, params={"seed": "0"}), "killed by SIGKILL")
        assert (settled.status, settled.error) == (FAILED, "killed by SIGKILL")


def test_a_run_that_still_lives_is_not_closed_by_its_sweep(tmp_path: Path) -> None:
    config = configured("dataset=synthetic", "tracking.uri=null")
    with inside(tmp_path), record(config, tmp_path / "sweep") as parent:
        known = children(parent, [SweepObjective(metric="val/accuracy", maximize=True)])
        here = parent.client.get_run(parent.id).info.experiment_id
        silent = {"heartbeat.pid": "999999999", "heartbeat.started": "1"}
        runs = [
            parent.client.create_run(here, tags=signs() | more | {PARENT: parent.id, INDEX: index})
            for index, more in (("0", {}), ("1", silent))
        ]
        assert known.close_orphans() == {0}
        found = [parent.client.get_run(run.info.run_id) for run in runs]
        assert [run.info.status for run in found] == ["RUNNING", "KILLED"]
        assert found[1].data.tags["error"] == "its process is gone"
        assert "error" not in found[0].data.tags


def test_a_job_counts_by_the_epoch_it_kept(tmp_path: Path) -> None:
    config = configured("dataset=synthetic", "tracking.uri=null")
    with inside(tmp_path), record(config, tmp_path / "sweep") as parent:
        known = children(parent, [SweepObjective(metric="val/accuracy", maximize=True)])
        own, tags = parent.client.get_run(parent.id), {PARENT: parent.id, INDEX: "0"}
        run_id = parent.client.create_run(own.info.experiment_id, tags=tags).info.run_id
        for name, value in (("val/accuracy", 0.6), ("kept/val/accuracy", 0.8)):
            parent.client.log_metric(run_id, name, value)
        parent.client.set_terminated(run_id)
        settled = known.settle(Job(index=0, params={}), None)
        assert settled.values == (0.8,)


# --- interruptions ---

# The first of the jobs is short, the others long enough to be met at work.
LONG = ("dataset=synthetic", "model=linear", "train.epochs=1,150,151", *LEAN)
INTERRUPTED = (*LONG, "sweep.keep_models=1", "hydra.launcher.n_jobs=2")


@dataclass(frozen=True)
class Interrupted:
    """A sweep interrupted by Ctrl-C, resumed, ended by SIGTERM, resumed, and then completed."""

    by_ctrl_c: Swept
    by_sigterm: Swept
    completed: Swept
    alive: list[list[psutil.Process]]
    intruder: subprocess.CompletedProcess[str]


def met_at_work(process: WarmProcess, cwd: Path) -> list[psutil.Process]:
    """A sweep's process and its workers when its first job is done and two others run."""
    everybody: list[psutil.Process] = []

    def at_work() -> bool:
        client = mlflow.MlflowClient(f"sqlite:///{cwd}/mlflow.db")
        runs = client.search_runs(["1"], "attributes.status = 'RUNNING'")
        jobs = {
            index_of(run): int(run.data.tags[BEAT_PID]) for run in runs if INDEX in run.data.tags
        }
        try:
            everybody[:] = [psutil.Process(pid) for pid in (process.pid, *jobs.values())]
        except psutil.NoSuchProcess:  # its run is about to be closed
            return False
        return jobs.keys() == {1, 2} and all(
            "epoch" in path.read_text()
            for path in cwd.glob("multirun/*/*/*/output.txt")
            if path.parent.name in ("1", "2")
        )

    until(lambda: list(cwd.glob("multirun/*/*/0/output.txt")), process)
    until(at_work, process)
    return everybody


def to_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def stands_still(process: psutil.Process) -> bool:
    return gone(process) or bool(process.status() == psutil.STATUS_STOPPED)


def hold_still(process: WarmProcess, everybody: list[psutil.Process], cwd: Path) -> None:
    """Stops a sweep's processes at a moment when none of them is writing to the store."""

    def stopped_while_not_writing() -> bool:
        to_all(everybody, signal.SIGSTOP)
        until(lambda: all(map(stands_still, everybody)), process)  # a signal takes its time
        if is_free(cwd / "mlflow.db"):
            return True
        to_all(everybody, signal.SIGCONT)
        return False

    until(stopped_while_not_writing, process)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    cwd = tmp_path_factory.mktemp("interrupted")
    with begun("-m", *INTERRUPTED, cwd=cwd, before=undrawn) as process:
        first = met_at_work(process, cwd)
        to_all(first, signal.SIGINT)  # as a terminal does
        by_ctrl_c = as_it_is_now(Swept(folder=cwd, done=process.ended(PATIENCE_S)))
    alive = [[p for p in first if not gone(p)]]

    with begun("-m", *INTERRUPTED, "sweep.resume=latest", cwd=cwd, before=undrawn) as process:
        sweep_id = by_ctrl_c.parent.info.run_id
        second = met_at_work(process, cwd)
        hold_still(process, second, cwd)  # or it might be done before the other is refused
        intruder = pipeline("-m", *INTERRUPTED, f"sweep.resume={sweep_id}", cwd=cwd)
        to_all(second, signal.SIGCONT)
        process.send_signal(signal.SIGTERM)  # as a batch system does
        by_sigterm = as_it_is_now(Swept(folder=cwd, done=process.ended(PATIENCE_S)))
    alive.append([p for p in second if not gone(p)])

    completed = sweep(*INTERRUPTED, "sweep.resume=latest", cwd=cwd, drawn=False)
    return Interrupted(by_ctrl_c, by_sigterm, completed, alive, intruder)


@matrix(13)
def test_ctrl_c_ends_a_sweep_and_says_so_of_every_run(interrupted: Interrupted) -> None:
    swept = interrupted.by_ctrl_c
    assert (swept.done.returncode, swept.done.stdout) == (130, "")
    assert swept.done.stderr.splitlines()[-1].startswith("stopped by SIGINT; ")
    assert "Traceback" not in swept.done.stderr
    assert swept.states() == [(0, "FINISHED"), (1, "KILLED"), (2, "KILLED")]
    assert swept.parent.info.status == "KILLED"
    assert interrupted.alive[0] == []


def test_an_interrupted_job_has_closed_its_own_run_with_what_it_had(
    interrupted: Interrupted,
) -> None:
    for run in interrupted.by_ctrl_c.children[1:]:
        assert run.data.tags["error"] == "KeyboardInterrupt"
        assert "val/accuracy" in run.data.metrics
        assert artifact(run, "config.yaml").exists()


@matrix(13)
def test_sigterm_ends_a_sweep_as_ctrl_c_does(interrupted: Interrupted) -> None:
    swept = interrupted.by_sigterm
    assert (swept.done.returncode, swept.done.stdout) == (143, "")
    assert swept.done.stderr.splitlines()[-1].startswith("stopped by SIGTERM; ")
    assert swept.states() == [(0, "FINISHED"), *[(1, "KILLED")] * 2, *[(2, "KILLED")] * 2]
    assert swept.parent.info.status == "KILLED"
    assert interrupted.alive[1] == []


def test_a_sweep_is_worked_on_by_one_process_at_a_time(interrupted: Interrupted) -> None:
    intruder = interrupted.intruder
    assert (intruder.returncode, intruder.stdout) == (2, "")
    assert_helpful(intruder.stderr, "sweep.resume: another process is at work on")


def test_a_resumed_sweep_is_completed_without_running_again_what_had_finished(
    interrupted: Interrupted,
) -> None:
    swept = interrupted.completed
    assert swept.done.returncode == 0, swept.done.stderr
    assert [index for index, state in swept.states() if state == "FINISHED"] == [0, 1, 2]
    assert len(swept.children) == 7
    assert swept.of(0).info.run_id == interrupted.by_ctrl_c.of(0).info.run_id
    assert swept.said["sweep_id"] == interrupted.by_ctrl_c.parent.info.run_id
    assert swept.said["best_run_id"] in swept.ids("FINISHED")


def test_a_completed_sweep_bears_no_trace_of_having_been_interrupted(
    interrupted: Interrupted,
) -> None:
    parent = interrupted.completed.parent
    assert parent.info.status == "FINISHED"
    assert parent.data.tags.keys() & {"error", "traceback"} == set()
    assert parent.data.metrics["sweep/finished"] == 3
    assert (parent.data.metrics["sweep/failed"], parent.data.metrics["sweep/killed"]) == (0, 0)


# --- searches ---

SEARCH = (*QUICK, "hydra/sweeper=optuna", "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))")
SEEDED = (*SEARCH, "sweep.seed=3", "+sweep.sampler_options.n_startup_trials=2")


def tried(swept: Swept) -> list[str]:
    return [run.data.params["optimizer.learning_rate"] for run in swept.children]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    words = (*SEEDED, "sweep.n_trials=3", "sweep.keep_models=1")
    return sweep(*words, cwd=tmp_path_factory.mktemp("search"), drawn=False)


def test_a_search_is_recorded_as_a_grid_is(search: Swept) -> None:
    assert search.done.returncode == 0, search.done.stderr
    assert search.parent.info.status == "FINISHED"
    assert search.states() == [(index, "FINISHED") for index in range(3)]
    assert len(set(tried(search))) == 3
    assert all(1e-4 <= float(rate) <= 1e-1 for rate in tried(search))
    values = [run.data.metrics["val/accuracy"] for run in search.children]
    assert search.parent.data.metrics["sweep/best"] == max(values)
    assert search.said["val/accuracy"] == f"{max(values):.4f}"
    assert [index_of(run) for run in search.children if "model_uri" in run.data.tags] == [
        values.index(max(values))
    ]
    manifest = json.loads(artifact(search.parent, "manifest.json").read_text())
    assert manifest["settings"]["adaptive"] is True
    assert manifest["jobs"] == []


@only_stressed  # test_study.py resumes searches without training
def test_a_search_given_more_trials_adds_those_that_the_whole_one_would_have_tried(
    search: Swept, tmp_path: Path
) -> None:
    part = sweep(*SEEDED, "sweep.n_trials=2", "sweep.keep_models=0", cwd=tmp_path)
    assert part.states() == [(index, "FINISHED") for index in range(2)], part.done.stderr
    words = ("sweep.n_trials=3", "sweep.keep_models=0", "sweep.resume=latest")
    whole = sweep(*SEEDED, *words, cwd=tmp_path)
    assert whole.states() == [(index, "FINISHED") for index in range(3)], whole.done.stderr
    assert whole.ids("FINISHED")[:2] == part.ids("FINISHED")
    assert tried(whole) == tried(search)


def test_an_unpromising_trial_is_pruned_which_is_no_failure(tmp_path: Path) -> None:
    pruning = (
        *("train.epochs=3", "hydra/sweeper=optuna", "optimizer.learning_rate=choice(1e-6,0.1)"),
        *("sweep.n_trials=2", "sweep.sampler=random", "sweep.seed=0", "sweep.pruner=median"),
        "+sweep.pruner_options={n_startup_trials: 1, n_warmup_steps: 1}",
    )
    words = [word for word in QUICK if not word.startswith("train.epochs")]
    swept = sweep(*words, *pruning, "sweep.keep_models=0", cwd=tmp_path, drawn=False)
    assert swept.done.returncode == 0, swept.done.stderr
    assert [float(rate) for rate in tried(swept)] == [0.1, 1e-6]
    assert swept.states() == [(0, "FINISHED"), (1, "KILLED")]
    pruned = swept.of(1)
    assert pruned.data.tags["sweep.pruned"].startswith("pruned after epoch ")
    assert pruned.data.tags.keys() & {"error", "traceback"} == set()
    assert 1 <= len(swept.client.get_metric_history(pruned.info.run_id, "val/accuracy")) < 3
    metrics = swept.parent.data.metrics
    assert (metrics["sweep/finished"], metrics["sweep/pruned"]) == (1, 1)
    assert (metrics["sweep/failed"], swept.parent.info.status) == (0, "FINISHED")


def test_two_objectives_are_searched_with_hydras_basic_launcher_too(tmp_path: Path) -> None:
    two = ("sweep.objective=[val/accuracy,model/parameters]",)
    space = ("model=mlp", "model.hidden=choice([8],[16])", "seed=choice(0,1,2)")
    words = ("dataset=synthetic", "train.epochs=1", *LEAN, *space, *two)
    how = ("hydra/sweeper=optuna", "hydra/launcher=basic", "sweep.n_trials=2")
    swept = sweep(*words, *how, "sweep.keep_models=1", cwd=tmp_path)
    assert swept.done.returncode == 0, swept.done.stderr
    assert swept.states() == [(index, "FINISHED") for index in range(2)]
    assert swept.parent.info.status == "FINISHED"
    best = swept.client.get_run(swept.said["best_run_id"]).data
    assert list(swept.said) == ["sweep_id", "best_run_id", "val/accuracy", "model/parameters"]
    assert swept.said["val/accuracy"] == f"{best.metrics['val/accuracy']:.4f}"
    assert float(swept.said["model/parameters"]) == best.metrics["model/parameters"]
    assert swept.parent.data.tags["sweep.objective"] == "val/accuracy, model/parameters"
    assert "test/accuracy" in best.metrics
    assert "model_uri" in best.tags
    assert artifact(swept.parent, "plots/objective.png").exists()
