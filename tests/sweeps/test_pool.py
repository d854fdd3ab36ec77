from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.sweeps import pool as pools
from pipeline.sweeps.pool import Call, Ended, Pool
from tests.commands import environment
from tests.stress.matrix import matrix

pytestmark = pytest.mark.slow

LONG_S = 60.0  # more than anything here takes

# A terminal's parent with one task, which tells when it has started and when it was asked to end.
PARENT = """
import os, signal, time
from pathlib import Path
from pipeline.sweeps.pool import Pool, Call

def stubborn():
    Path("started.part").write_text(str(os.getpid()))
    Path("started.part").rename("started")
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            Path("asked").touch()

signal.signal(signal.SIGINT, signal.default_int_handler)
with Pool(1, threads=1) as pool:
    list(pool.run([Call(key=0, function=stubborn)]))
"""


def until(condition: Callable[[], object]) -> None:
    """Waits until something is true, which it soon should be."""
    end = time.monotonic() + LONG_S / 2
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended, if only its init has not noticed yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def tasks(*functions: Callable[[], Any]) -> list[Call]:
    return [Call(key=key, function=function) for key, function in enumerate(functions)]


def results(pool: Pool, *functions: Callable[[], Any]) -> list[Any]:
    """What functions that end well return, in their order."""
    ended = list(pool.run(tasks(*functions)))
    assert [one.error for one in ended] == [None] * len(functions)
    return [one.result for one in sorted(ended, key=lambda one: one.key)]


def meet(mine: Path, other: Path) -> None:
    mine.touch()
    until(other.exists)


def busy(folder: Path) -> None:
    """Runs until it is interrupted, then tidies up, in which a second SIGTERM is no hindrance."""
    try:
        (folder / "started").write_text(str(os.getpid()))
        time.sleep(LONG_S)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        (folder / "tidied").touch()


def stubborn(folder: Path) -> None:
    """Ignores that it is interrupted."""
    (folder / "started").write_text(str(os.getpid()))
    while True:
        try:
            time.sleep(LONG_S)
        except KeyboardInterrupt:
            (folder / "asked").touch()


def die_of(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(LONG_S)


def fork_and_die(folder: Path) -> None:
    """Dies, while a child has its end of the pipe."""
    if child := os.fork():
        (folder / "child").write_text(str(child))
        die_of(signal.SIGKILL)
    time.sleep(LONG_S)
    os._exit(0)


class Unreadable:
    """A value that can be sent but not received."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def leave_while(function: Callable[[Path], None], folder: Path) -> int:
    """Leaves a pool by an error while a task runs; returns the id of its worker."""
    work = [Call(key=0, function=function, arguments=(folder,)), Call(key=1, function=int)]
    with pytest.raises(ZeroDivisionError), Pool(2, threads=1) as pool:
        assert next(pool.run(work)) == Ended(key=1, result=0)
        until(lambda: (folder / "started").exists() and (folder / "started").read_text())
        raise ZeroDivisionError
    return int((folder / "started").read_text())


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process group of its own, as in a terminal, in which a worker is busy."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until((tmp_path / "started").exists)
    yield process
    process.kill()
    process.wait()


def test_results_come_with_the_keys_of_their_tasks() -> None:
    work = [Call(key=10 + n, function=divmod, arguments=(n, 2)) for n in range(5)]
    with Pool(2, threads=1) as pool:
        ended = {one.key: one for one in pool.run(work)}
    assert ended == {10 + n: Ended(key=10 + n, result=(n // 2, n % 2)) for n in range(5)}


def test_with_one_worker_a_source_knows_each_result_before_it_is_asked_again() -> None:
    known: list[int] = []

    def source() -> Iterator[Call]:
        for key in range(4):
            assert known == list(range(key))
            yield Call(key=key, function=abs, arguments=(-key,))

    with Pool(1, threads=1) as pool:
        for ended in pool.run(source()):
            known.append(ended.result)
    assert known == [0, 1, 2, 3]


def test_a_task_is_taken_only_when_a_worker_is_free() -> None:
    taken: list[int] = []

    def source() -> Iterator[Call]:
        for key in range(6):
            taken.append(key)
            yield Call(key=key, function=int)

    with Pool(2, threads=1) as pool:
        for number, _ in enumerate(pool.run(source()), start=1):
            assert len(taken) <= number + 1


def test_two_workers_run_at_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with Pool(2, threads=1) as pool:
        assert results(pool, lambda: meet(one, other), lambda: meet(other, one)) == [None, None]


def test_a_free_worker_goes_on_while_another_is_busy(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    work = tasks(lambda: until(sign.exists), lambda: None, sign.touch)
    with Pool(2, threads=1) as pool:
        assert [ended.key for ended in pool.run(work)] == [1, 2, 0]


@matrix(24)
def test_a_task_that_fails_or_takes_its_process_down_costs_only_itself() -> None:
    failures: dict[str, Callable[[], Any]] = {
        "ZeroDivisionError: integer division or modulo by zero": lambda: 1 // 0,
        "ValueError: one": lambda: exec("raise ValueError('one\\ntwo')"),
        "SystemExit: 3": lambda: sys.exit(3),
        "KeyboardInterrupt: no reason given": lambda: exec("raise KeyboardInterrupt"),
        "exit code 4": lambda: os._exit(4),
        "exit code 0": lambda: os._exit(0),
        "killed by SIGKILL": lambda: die_of(signal.SIGKILL),
        "killed by SIGSEGV": faulthandler._sigsegv,  # type: ignore[attr-defined]
        "TypeError: cannot pickle '_thread.lock' object": threading.Lock,
        "ValueError: invalid literal for int() with base 10: 'no number'": Unreadable,
    }
    work = [function for failing in failures.values() for function in (failing, int)]
    with Pool(2, threads=1) as pool:
        ended = sorted(pool.run(tasks(*work)), key=lambda one: one.key)
    assert [one.error for one in ended[::2]] == list(failures)
    assert [(one.error, one.result) for one in ended[1::2]] == [(None, 0)] * len(failures)


def test_a_worker_is_used_again_and_replaced_when_it_has_died() -> None:
    with Pool(1, threads=1) as pool:
        work = tasks(os.getpid, os.getpid, lambda: os._exit(1), os.getpid)
        first, second, died, last = [ended.result for ended in pool.run(work)]
    assert first == second != last
    assert died is None


def test_no_more_workers_are_started_than_there_are_tasks() -> None:
    before = len(psutil.Process().children())
    with Pool(8, threads=1) as pool:
        results(pool, int)
        assert len(psutil.Process().children()) <= before + 2  # with multiprocessing's own


@matrix(24)
def test_a_worker_that_dies_between_two_tasks_costs_none() -> None:
    with Pool(1, threads=1) as pool:
        [first] = results(pool, os.getpid)
        os.kill(first, signal.SIGTERM)
        until(lambda: multiprocessing.active_children() == [])
        [second] = results(pool, os.getpid)
    assert first != second


@matrix(24)
def test_a_dead_worker_is_noticed_though_a_child_of_it_lives(tmp_path: Path) -> None:
    with Pool(1, threads=1) as pool:
        work = [Call(key=0, function=fork_and_die, arguments=(tmp_path,))]
        assert [ended.error for ended in pool.run(work)] == ["killed by SIGKILL"]
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_the_last_line_tells_why_a_worker_has_ended(tmp_path: Path) -> None:
    output = tmp_path / "output.txt"

    def end(last: str) -> None:
        print(last, file=sys.stderr)
        os._exit(3)

    with Pool(1, threads=1) as pool:
        calls = (
            Call(
                key=0, function=end, arguments=("x" * 9_000 + "\nno place left\n",), output=output
            ),
            Call(key=1, function=os._exit, arguments=(3,), output=output),
        )
        ended = [one.error for one in pool.run(calls)]
    assert ended == ["exit code 3: no place left", "exit code 3"]


def test_a_worker_has_its_share_of_threads_and_the_parents_environment_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in pools.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # by the user
    before = dict(os.environ)
    with Pool(1, threads=3) as pool:
        [theirs] = results(pool, lambda: dict(os.environ))
    assert theirs["OMP_NUM_THREADS"] == "7"
    assert {theirs[name] for name in pools.THREAD_VARIABLES if name != "OMP_NUM_THREADS"} == {"3"}
    assert dict(os.environ) == before
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # as good as not set
    with Pool(1, threads=3) as pool:
        [theirs] = results(pool, lambda: dict(os.environ))
    assert {theirs[name] for name in pools.THREAD_VARIABLES} == {"3"}
    assert dict(os.environ) == before | {"OMP_NUM_THREADS": ""}


def test_the_variables_are_set_before_a_script_imports_anything(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from pipeline.sweeps.pool import Pool, Call\n"
        "at_import = os.environ.get('OMP_NUM_THREADS')\n"
        "if __name__ == '__main__':\n"
        "    with Pool(1, threads=3) as pool:\n"
        "        seen = lambda: __import__('__main__').at_import\n"
        "        print(*[ended.result for ended in pool.run([Call(key=0, function=seen)])])\n"
    )
    env = environment()
    env.pop("OMP_NUM_THREADS", None)
    ran = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=LONG_S
    )
    assert (ran.stdout, ran.stderr) == ("3\n", "")


def test_leaving_by_an_error_interrupts_a_task_which_may_tidy_up(tmp_path: Path) -> None:
    pid = leave_while(busy, tmp_path)
    assert (tmp_path / "tidied").exists()
    assert not psutil.pid_exists(pid)


def test_a_task_that_ignores_it_is_killed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "GRACE_S", 1.0)
    pid = leave_while(stubborn, tmp_path)
    assert (tmp_path / "asked").exists()
    assert not psutil.pid_exists(pid)


def test_a_second_ctrl_c_kills_what_does_not_end_at_once(
    parent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    worker = int((tmp_path / "started").read_text())
    os.killpg(parent.pid, signal.SIGINT)
    until((tmp_path / "asked").exists)
    assert not gone(worker)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(pools.GRACE_S / 2) == -signal.SIGINT
    assert gone(worker)


def test_a_busy_worker_ends_when_its_parent_is_killed(
    parent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    parent.kill()
    until(lambda: gone(int((tmp_path / "started").read_text())))


def test_leaving_leaves_no_process_and_no_open_file() -> None:
    with Pool(1, threads=1) as pool:
        results(pool, int)  # multiprocessing's tracker has started
    me = psutil.Process()
    children, files = me.children(), me.num_fds()
    with Pool(1, threads=1) as pool:
        results(pool, int)
        with_worker = me.num_fds()
        assert results(pool, *[int] * 200) == [0] * 200
        assert len(list(pool.run(tasks(*[lambda: os._exit(1)] * 4)))) == 4
        results(pool, int)
        assert me.num_fds() == with_worker
    assert (me.children(), me.num_fds()) == (children, files)


def test_what_the_source_raises_comes_through() -> None:
    def source() -> Iterator[Call]:
        yield Call(key=0, function=int)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Pool(1, threads=1) as pool:
        list(pool.run(source()))


def test_a_pool_starts_no_worker_that_nothing_would_end() -> None:
    pool = Pool(1, threads=1)
    with pytest.raises(RuntimeError, match="with statement"):
        next(pool.run(tasks(int)))
    with pool:
        pass
    with pytest.raises(RuntimeError, match="with statement"):
        next(pool.run(tasks(int)))


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (1, 0)])
def test_a_pool_needs_a_worker_and_a_thread(workers: int, threads: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Pool(workers, threads=threads)


def test_a_pool_is_imported_without_a_slow_library() -> None:
    code = "import sys, pipeline.sweeps.pool\n"
    code += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    slow = {"hydra", "keras", "matplotlib", "mlflow", "numpy", "sklearn", "tensorflow"}
    assert "cloudpickle" in ran.stdout.split()
    assert slow & set(ran.stdout.split()) == set()


def test_a_worker_is_replaced_after_so_many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sweeps.pool.MOST_CALLS", 3)
    with Pool(1, threads=1) as pool:
        pids = [
            ended.result for ended in pool.run(Call(key=n, function=os.getpid) for n in range(7))
        ]
    assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4] == pids[5] != pids[6]


SLOW_MODULE = "import pathlib, time; pathlib.Path('importing').touch(); time.sleep(600)"


def test_a_pool_that_is_stopped_does_not_wait_for_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.sweeps.pool.LEAVE_S", LONG_S)  # what a worker is killed after
    with Pool(1, threads=1, modules=["slow_module"]) as pool:
        pool.start(1)
        until((tmp_path / "importing").exists)
        [worker] = [one for one in multiprocessing.active_children() if one.name == "worker"]
        pool.stop()
    assert worker.exitcode == -signal.SIGTERM
