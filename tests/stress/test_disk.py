"""Disks that are full or read-only and databases that are locked: rows 21, 22 and 23."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline.run import run
from pipeline.tracking.journal import has_journal
from tests.commands import DRAWN, QUICK, carried_out, configured, inside, pipeline
from tests.stress.matrix import matrix, only_stressed, stressed, tally
from tests.stress.stores import assert_recorded
from tests.stress.test_kills import FORCED, VERBS, assert_sound, assert_unharmed, of_models, runs_of

pytestmark = [pytest.mark.slow, only_stressed]

EPOCHS, SIZE_MB = 12, 64
HELPFUL_LINES = 6
REASONS = (
    *("No space left", "disk is full", "disk I/O", "cannot be written", "free"),
    *("Read-only", "read-only", "readonly"),
)


# --- a locked database ---


@matrix(21)
@pytest.mark.parametrize("seconds", [15, 60])
def test_a_store_that_is_locked_for_long_delays_no_epoch_and_loses_nothing(
    seconds: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    waits, last = list[float](), [0.0]
    with inside(tmp_path) as here:
        assert carried_out("sync", folder=here) == []
        run(configured(*QUICK), tmp_path / "first")
        store = sqlite3.connect(here / "mlflow.db", isolation_level=None, check_same_thread=False)

        def watch(epoch: int, _: dict[str, float]) -> None:
            if epoch > 1:
                waits.append(time.perf_counter() - last[0])
            if epoch == 2:
                store.execute("BEGIN EXCLUSIVE")
                threading.Timer(seconds, lambda: store.execute("ROLLBACK")).start()
            time.sleep(1.2 * seconds / EPOCHS)
            last[0] = time.perf_counter()

        made = run(configured(*QUICK, f"train.epochs={EPOCHS}"), tmp_path / "run", watch)
        from mlflow import MlflowClient

        uri = os.environ["MLFLOW_TRACKING_URI"]
        assert_recorded(MlflowClient(uri), made.run_id, tmp_path / "run", EPOCHS)
    assert max(waits) < 2
    assert "Traceback" not in capfd.readouterr().err


@matrix(21)
def test_a_store_that_is_locked_at_the_start_is_refused_with_the_reason(tmp_path: Path) -> None:
    assert pipeline(*QUICK, cwd=tmp_path).returncode == 0
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as store:
        store.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        ended = pipeline(*QUICK, cwd=tmp_path)
        assert time.monotonic() - began < 20
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "locked" in ended.stderr
    assert "mlflow.db" in ended.stderr
    assert len(ended.stderr.splitlines()) <= 2, ended.stderr


# --- a disk of its own ---


def mounted(*words: str) -> None:
    made = subprocess.run(["mount", *words], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"not tried: a file system of its own needs root ({made.stderr.strip()})")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk with a champion, two pictures, and everything that a first run makes."""
    place = tmp_path_factory.mktemp("disk")
    mounted("-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(place))
    try:
        assert pipeline(*QUICK, cwd=place).returncode == 0
        promoted = pipeline("promote", "dataset=synthetic", "run_id=latest", *FORCED, cwd=place)
        assert promoted.returncode == 0, promoted.stderr
        np.save(place / "images.npy", np.zeros((2, 28, 28), np.uint8))
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, free: int) -> Path:
    """Fills the disk up to so many bytes; returns the file that does."""
    filler, chunk = disk / "filler", 2**16
    with filler.open("wb") as file:
        left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - free
        while left > 0:
            try:
                file.write(b"\1" * min(chunk, left))
                file.flush()
            except OSError:
                break
            left -= chunk
    return filler


def assert_told(ended: subprocess.CompletedProcess[str]) -> None:
    """Checks that a command that failed says why, in a few lines, without a traceback."""
    assert "Traceback" not in ended.stderr, ended.stderr
    if ended.returncode:
        assert ended.returncode in (1, 2), ended.stderr
        assert ended.stdout == "" or ended.args[3] in ("doctor", "sync", "compare")
        last = ended.stderr.splitlines()[-HELPFUL_LINES:]
        if "doctor" in ended.args:  # whose table has the reasons
            last += ended.stdout.splitlines()
        assert any(reason in line for reason in REASONS for line in last), ended.stderr


FREE = (0, 4_096, 65_536, 200_000, 400_000, 700_000, 1_000_000, 1_500_000, 2_500_000, 4_000_000)


@matrix(22)
def test_a_disk_that_fills_up_in_any_stage_of_a_run_is_told_and_nothing_is_lost(
    disk: Path,
) -> None:
    before = of_models(disk)
    sizes = FREE[:: max(1, len(FREE) // stressed(len(FREE), 2))]
    tally(len(sizes))
    failed = 0
    for number, free in enumerate(sizes):
        known = {run.info.run_id for run in runs_of(disk)}
        filler = fill(disk, free)
        words = (*DRAWN, "model=mlp", "train.epochs=2", f"seed={number + 10}")
        ended = pipeline(*words, cwd=disk)
        filler.unlink()
        assert_told(ended)
        failed += ended.returncode != 0
        assert_unharmed(disk, before)
        after = pipeline(*QUICK, cwd=disk)  # sends what the one before could not
        assert after.returncode == 0, after.stderr
        assert_sound(disk)
        new = [run for run in runs_of(disk) if run.info.run_id not in known]
        wanted = {"FINISHED", "FAILED"} if ended.returncode else {"FINISHED"}
        assert {run.info.status for run in new} <= wanted, (free, ended.stderr)
        assert not [one for one in disk.glob("outputs/*/*") if has_journal(one)]
        subprocess.run(["rm", "-rf", str(disk / "outputs")], check=True)
    assert failed >= 2


@matrix(22)
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("run", "train")])
def test_a_verb_on_a_full_disk_is_told_and_works_once_there_is_space(verb: str, disk: Path) -> None:
    before = of_models(disk)
    filler = fill(disk, 0)
    ended = pipeline(*VERBS[verb], cwd=disk)
    filler.unlink()
    assert_told(ended)
    assert_unharmed(disk, before)
    assert_sound(disk)
    again = pipeline(*VERBS[verb], cwd=disk)
    small = verb == "doctor" and again.stderr.endswith("before a run can work: disk\n")
    assert again.returncode == 0 or small, again.stderr  # doctor warns of so small a disk
    assert {run.info.status for run in runs_of(disk)} <= {"FINISHED", "FAILED"}


@matrix(23)
@pytest.mark.parametrize("place", [".", "mlartifacts", "outputs", "data", "mlflow.db"])
def test_a_folder_that_is_read_only_is_told_before_training(place: str, disk: Path) -> None:
    before = of_models(disk)
    (disk / "outputs").mkdir(exist_ok=True)
    known = {run.info.run_id for run in runs_of(disk)}
    at = disk / place
    mounted("--bind", str(at), str(at))
    try:
        mounted("-o", "remount,ro,bind", str(at))
        # Another number of images, so that something must be written to `data` too.
        words = (*QUICK, "dataset.train_size=777", "preprocess.validation_size=77")
        ended = pipeline(*words, cwd=disk)
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)
    assert_told(ended)
    assert ended.returncode in (1, 2)
    assert "epoch" not in ended.stderr
    assert_unharmed(disk, before)
    again = pipeline(*QUICK, cwd=disk)
    assert again.returncode == 0, again.stderr
    states = {run.info.status for run in runs_of(disk) if run.info.run_id not in known}
    assert states <= {"FINISHED", "FAILED"}
