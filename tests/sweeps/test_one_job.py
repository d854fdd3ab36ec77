from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.sweeps.one_job import run_one, within
from pipeline.system.errors import PipelineError, RequestError
from pipeline.tracking.runs import find_run
from tests.commands import LEAN, configured, environment, inside
from tests.pictures import class_folders
from tests.stress.matrix import matrix
from tests.warm import run_warm

pytestmark = pytest.mark.slow

TOO_LONG = "^took longer than sweep.timeout_s=0.2$"

# A block in a process of its own, which may be taken down; it tells how the block ended.
ALONE = """
import sys, time
from pipeline.sweeps import one_job
from pipeline.system.errors import PipelineError

one_job.CLOSE_S = 1.0
print("ready", flush=True)
started = time.monotonic()
try:
    with one_job.within(seconds=0.2, memory_mb=None):
        {block}
except PipelineError as error:
    print(error)
    print(time.monotonic() - started < one_job.CLOSE_S)
"""
STUBBORN = """
        while True:
            try:
                time.sleep(0.05)
            except PipelineError:
                print("asked", flush=True)
"""


@pytest.fixture(autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    """The signal's handler and the threads are as before, in whatever way a block ended."""
    handler, threads = signal.getsignal(signal.SIGALRM), threading.active_count()
    yield
    assert signal.getsignal(signal.SIGALRM) == handler
    assert threading.active_count() == threads


def compute(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def alone(block: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "alone.py").write_text(ALONE.format(block=block))
    return run_warm([], cwd=folder, env=environment(), timeout=60, module="alone")


def test_a_block_within_its_limits_ends_as_it_would() -> None:
    with within(seconds=60, memory_mb=1_000_000):
        compute(0.7)
    with pytest.raises(ZeroDivisionError), within(seconds=60, memory_mb=None):
        raise ZeroDivisionError


def test_a_block_without_limits_is_not_watched() -> None:
    threads = threading.active_count()
    with within(seconds=None, memory_mb=None):
        assert threading.active_count() == threads


@matrix(24)
def test_a_block_that_takes_too_long_is_ended_with_the_limit_by_name() -> None:
    started = time.monotonic()
    with pytest.raises(PipelineError, match=TOO_LONG), within(seconds=0.2, memory_mb=None):
        compute(30)
    assert time.monotonic() - started < 5


@matrix(24)
def test_a_block_that_needs_too_much_memory_is_ended_with_the_limit_by_name() -> None:
    limit = r"^needs [\d,]+ MB, above sweep.memory_mb=10$"
    with pytest.raises(PipelineError, match=limit), within(seconds=None, memory_mb=10):
        compute(30)


def test_a_block_that_is_ended_may_tidy_up() -> None:
    tidied = []
    with pytest.raises(PipelineError, match=TOO_LONG), within(seconds=0.2, memory_mb=None):
        try:
            compute(30)
        finally:
            compute(1)
            tidied.append(True)
    assert tidied == [True]


def test_a_handler_of_the_signal_is_back_in_its_place() -> None:
    def mine(*_: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGALRM, mine)
    try:
        with pytest.raises(PipelineError), within(seconds=0.2, memory_mb=None):
            compute(30)
        assert signal.getsignal(signal.SIGALRM) is mine
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_block_that_waits_is_ended_too(tmp_path: Path) -> None:
    ended = alone("time.sleep(30)", tmp_path)
    assert ended.stdout.splitlines() == ["ready", "took longer than sweep.timeout_s=0.2", "True"]
    assert ended.returncode == 0


@matrix(24)
def test_a_block_that_does_not_end_takes_its_process_with_it(tmp_path: Path) -> None:
    ended = alone(STUBBORN, tmp_path)
    assert ended.stdout.splitlines() == ["ready", "asked"]
    assert ended.returncode == 1
    reason = "took longer than sweep.timeout_s=0.2, and does not end by itself"
    assert ended.stderr.splitlines()[-1] == reason


@matrix(24)
def test_a_limit_that_something_drops_is_raised_again_after_the_epoch() -> None:
    limits = within(seconds=0.2, memory_mb=None)
    with pytest.raises(PipelineError, match=TOO_LONG), limits as check:
        check(0, {})
        with suppress(PipelineError):  # as a destructor does
            compute(30)
        check(1, {})
        pytest.fail("the limit was dropped")


def test_leakage_is_measured_for_a_job_that_is_kept_and_not_while_others_compete(
    tmp_path: Path,
) -> None:
    photos = class_folders(tmp_path / "photos", count=12)
    words = (f"dataset.path={photos}", "dataset.size=8", "evaluate.leakage=true")
    config = configured("dataset=folder", *words, "model=linear", "train.epochs=1", *LEAN)
    with inside(tmp_path):
        result = run_one(config, tmp_path / "job")
        assert result is not None
        competing = find_run(result.run_id, config)
        assert not [name for name in competing.logged if name.startswith("leakage/")]
        job = replace(config.sweep.job, completes=result.run_id)
        kept = replace(config, sweep=replace(config.sweep, job=job))
        assert run_one(kept, tmp_path / "job") is not None
        logged = find_run(result.run_id, config).logged
    claimed, honest = logged["leakage/test_accuracy"], logged["test/accuracy"]
    assert logged["leakage/difference"] == pytest.approx(claimed - honest)


def test_limits_need_the_main_thread_and_say_so() -> None:
    told = list[str]()

    def job() -> None:
        with (
            pytest.raises(RequestError, match="need a launcher that runs jobs in processes") as it,
            within(seconds=1, memory_mb=None),
        ):
            pass
        told.append(str(it.value))

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert len(told) == 1
