from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.sweeps.pool import Call, Pool
from tests.stress.matrix import matrix
from tests.sweeps.test_pool import results, until

pytestmark = pytest.mark.slow


def test_all_that_a_task_writes_is_in_its_file(tmp_path: Path) -> None:
    output = tmp_path / "jobs" / "0" / "job.log"

    def talk() -> None:
        print("printed")
        print("warned", file=sys.stderr)
        os.write(1, b"written\n")
        subprocess.run(["echo", "from a program"])
        ctypes.CDLL(None).printf(b"from C\n")

    with Pool(1, threads=1) as pool:
        work = [
            Call(key=0, function=talk, output=output),
            Call(key=1, function=print, arguments=("lost",)),
            Call(key=2, function=lambda: print("halves") or 1 // 0, output=output),
            Call(key=3, function=faulthandler._sigsegv, output=output),  # type: ignore[attr-defined]
            Call(key=4, function=lambda: print("at its end", end=""), output=output),
        ]
        ended = list(pool.run(work))
    assert [one.key for one in ended if one.error] == [2, 3]
    lines = output.read_text(encoding="utf-8").splitlines()
    assert lines[:6] == ["printed", "warned", "written", "from a program", "from C", "halves"]
    assert "ZeroDivisionError: integer division or modulo by zero" in lines
    assert "Fatal Python error: Segmentation fault" in lines
    assert lines[-1] == "at its end"
    assert "lost" not in lines


@matrix(22)
def test_an_output_that_cannot_be_written_is_the_tasks_error(tmp_path: Path) -> None:
    with Pool(1, threads=1) as pool:
        [ended] = pool.run([Call(key=0, function=int, output=tmp_path)])
        assert str(ended.error).startswith("IsADirectoryError: ")
        assert results(pool, int) == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_worker_ignores_what_reaches_the_whole_process_group(number: signal.Signals) -> None:
    with Pool(1, threads=1) as pool:
        assert results(pool, lambda: os.kill(os.getpid(), number) or "here") == ["here"]


def spawned() -> list[psutil.Process]:
    """The worker processes of this one that have got as far as to be Python anew."""
    workers = psutil.Process().children()
    return [worker for worker in workers if "spawn_main" in " ".join(worker.cmdline())]


def imported(module: str) -> bool:
    return module in sys.modules


def test_workers_that_are_started_import_their_modules_before_there_is_a_task() -> None:
    with Pool(2, threads=1, modules=["no.such.module", "wave"]) as pool:
        pool.start(5)
        until(lambda: len(spawned()) == 2)
        begun = spawned()
        work = [Call(key=n, function=imported, arguments=("wave",)) for n in range(2)]
        assert [one.result for one in pool.run(work)] == [True, True]
        assert {process.pid for process in begun} <= {
            one.pid for one in psutil.Process().children()
        }
