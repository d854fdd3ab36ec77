"""Processes that are killed: rows 9, 10 and 14."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.tracking.heartbeat import GONE
from pipeline.tracking.lifecycle import record
from tests.commands import QUICK, begun, configured, inside, pipeline
from tests.stress.matrix import matrix, only_stressed, stressed, tally
from tests.stress.stores import missing_points
from tests.warm import fork

pytestmark = pytest.mark.slow

FORCED = ("promote.force=true", "reason=it is the first")
EPOCHS = 5
WORDS = (*QUICK, f"train.epochs={EPOCHS}")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def runs_of(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [one.experiment_id for one in client.search_experiments()]
    return list(client.search_runs(experiments))


def assert_sound(folder: Path) -> None:
    """Checks that the store is no damaged file, and that no file has but half of its content."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for path in folder.rglob("*.npz"):
        if not path.name.startswith("."):
            np.load(path).close()


# --- in any stage and verb ---


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a champion and two pictures to classify."""
    folder = tmp_path_factory.mktemp("kills")
    assert pipeline(*WORDS, cwd=folder).returncode == 0
    promoted = pipeline("promote", "dataset=synthetic", "run_id=latest", *FORCED, cwd=folder)
    assert promoted.returncode == 0, promoted.stderr
    np.save(folder / "images.npy", np.zeros((2, 28, 28), np.uint8))
    return folder


def of_models(folder: Path) -> dict[Path, str]:
    """A checksum of each file of a saved model."""
    paths = [path for path in folder.glob("mlartifacts/*/models/**/*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def assert_unharmed(folder: Path, before: dict[Path, str]) -> None:
    """Checks that the models that there were are as they were."""
    assert before
    assert before.items() <= of_models(folder).items()


VERBS: dict[str, tuple[str, ...]] = {
    "run": (*WORDS, "seed=1"),
    "train": ("train", *WORDS, "seed=2"),
    "ingest": ("ingest", "dataset=digits"),
    "preprocess": ("preprocess", "dataset=digits"),
    "evaluate": ("evaluate", "dataset=synthetic", "run_id=latest"),
    "report": ("report", "dataset=synthetic", "run_id=latest"),
    "compare": ("compare", "dataset=synthetic"),
    "promote": ("promote", "dataset=synthetic", "run_id=latest", *FORCED),
    "predict": ("predict", "dataset=synthetic", "images=images.npy"),
    "reproduce": ("reproduce", "dataset=synthetic", "run_id=latest"),
    "doctor": ("doctor", "dataset=synthetic", "fix=true"),
    "sync": ("sync",),
}


@only_stressed
@matrix(9)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_killed_at_any_moment_leaves_everything_sound(verb: str, kept: Path) -> None:
    draw, before = random.Random(verb), of_models(kept)
    kills = stressed(12, 1)
    began = time.monotonic()
    ended = pipeline(*VERBS[verb], cwd=kept)
    assert ended.returncode == 0, ended.stderr
    took = time.monotonic() - began
    for _ in range(kills):
        with begun(*VERBS[verb], cwd=kept):
            time.sleep(draw.uniform(0.1, took))
        assert_sound(kept)
        assert_unharmed(kept, before)
    tally(kills)
    again = pipeline(*VERBS[verb], cwd=kept)
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    assert pipeline("doctor", "dataset=synthetic", "fix=true", cwd=kept).returncode == 0
    assert {run.info.status for run in runs_of(kept)} <= {"FINISHED", "KILLED"}


# --- within saving and sending ---


def kill_at(owner: str, name: str, number: int, after: bool) -> None:
    """Kills this process at the call of that number of a function, before or after it."""
    module, _, class_name = owner.rpartition(".")
    place = getattr(__import__(module, fromlist=[class_name]), class_name)
    original, seen = getattr(place, name), [0]

    def call(*given: Any, **more: Any) -> Any:
        seen[0] += 1
        if seen[0] == number and not after:
            die()
        found = original(*given, **more)
        if seen[0] == number:
            die()
        return found

    setattr(place, name, call)


MOMENTS: tuple[tuple[str, str, int, bool], ...] = (
    *[("mlflow.MlflowClient", name, 1, after) for name in ("create_run", "log_model_artifacts",
      "create_logged_model", "finalize_logged_model", "log_artifacts", "set_terminated",
      "log_outputs", "log_inputs") for after in (False, True)],
    *[("pathlib.Path", "replace", number, bool(number % 2)) for number in range(1, 34)],
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert pipeline(*WORDS, cwd=folder).returncode == 0
    return folder


def predictions(folder: Path) -> dict[str, Any]:
    [path] = folder.glob("outputs/*/*/artifacts/predictions.npz")
    with np.load(path) as arrays:
        return dict(arrays)


def resumed(folder: Path) -> None:
    """Resumes the killed run, or begins again where nothing can be resumed."""
    ended = pipeline("resume", "dataset=synthetic", "run_id=latest", cwd=folder)
    assert "Traceback" not in ended.stderr, ended.stderr
    if ended.returncode:
        assert ended.returncode == 2, ended.stderr
        refusals = (
            "there is no checkpoint",
            "was stopped as it began",
            "no runs",
            "is finished",
            "no run",
        )
        assert any(text in ended.stderr for text in refusals), ended.stderr
        if "FINISHED" not in {run.info.status for run in runs_of(folder)}:
            assert pipeline(*WORDS, cwd=folder).returncode == 0


@matrix(10)
def test_a_run_that_is_killed_while_it_saves_or_sends_is_completed_as_if_nothing_had_been(
    whole: Path, tmp_path: Path
) -> None:
    moments = random.Random(1).sample(MOMENTS, min(len(MOMENTS), stressed(len(MOMENTS), 2)))
    expected = predictions(whole)
    killed = 0
    for number, moment in enumerate(moments):
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = pipeline(*WORDS, cwd=folder, before=partial(kill_at, *moment))
        if ended.returncode == 0:  # there were fewer calls than that
            continue
        assert ended.returncode == -signal.SIGKILL, (moment, ended.stderr)
        killed += 1
        resumed(folder)
        synced = pipeline("sync", cwd=folder)
        assert synced.returncode == 0, (moment, synced.stderr)
        assert_sound(folder)
        assert_complete(folder, expected, moment)
    tally(killed)


def assert_complete(folder: Path, expected: dict[str, Any], moment: object) -> None:
    """Checks that one run is FINISHED, with each point once, one model and its predictions."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = runs_of(folder)
    finished = [run for run in runs if run.info.status == "FINISHED"]
    assert len(finished) == 1, (moment, [run.info.status for run in runs])
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}, moment
    [run] = finished
    assert missing_points(client, run.info.run_id, EPOCHS, ("train/loss", "val/loss")) == 0
    models = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    assert [str(model.status) for model in models] == ["READY"], moment
    paths = [
        path
        for path in folder.glob("outputs/*/*/artifacts/predictions.npz")
        if (path.parents[1] / "run_id").read_text() == run.info.run_id
    ]
    with np.load(paths[0]) as arrays:
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=str(moment))


# --- orphans ---


def begin_and_die(folder: Path, then: Callable[[], None] = die) -> None:
    """Records two epochs of a run, and dies."""
    with inside(folder), record(configured(), folder / "outputs/today/killed") as recording:
        for epoch in (1, 2):
            recording.log_epoch(epoch, {"train/loss": 1 / epoch})
        recording.outbox.arrive(10)  # type: ignore[union-attr]
        recording.log_epoch(3, {"train/loss": 0.1})
        then()


@matrix(14)
def test_a_killed_run_that_cannot_be_resumed_is_closed_all_the_same(tmp_path: Path) -> None:
    process = fork(begin_and_die, tmp_path)
    process.join(60)
    refused = pipeline("resume", "dataset=fashion_mnist", "run_id=latest", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    [run] = runs_of(tmp_path)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", GONE)


@matrix(14)
def test_the_next_run_closes_one_that_was_killed_and_sends_what_it_had_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = fork(begin_and_die, tmp_path)
    process.join(60)
    [run] = runs_of(tmp_path)
    assert run.info.status == "RUNNING"
    with inside(tmp_path), record(configured(), tmp_path / "outputs/today/next"):
        said = capsys.readouterr().err
    assert (
        f"sent what an earlier run had recorded: outputs/today/killed: run_id={run.info.run_id}"
        in said
    )
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.get_run(run.info.run_id)
    assert (found.info.status, found.data.tags["error"]) == ("KILLED", GONE)
    assert missing_points(client, run.info.run_id, 3, ["train/loss"]) == 0
    assert found.info.end_time == max(
        point.timestamp for point in client.get_metric_history(run.info.run_id, "train/loss")
    )
