"""A pool of worker processes in which a job that crashes its process does not affect others.

The standard library's ProcessPoolExecutor and joblib break when a worker dies; pebble breaks when
an idle worker dies, and gives a stopped call only three seconds to clean up.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Self

import cloudpickle

from pipeline.sweeps.worker import STOPS, serve_jobs
from pipeline.system.errors import one_line
from pipeline.system.processes import left_unset

GRACE_S = 30.0  # for a busy worker to clean up when the pool is closed
LEAVE_S = 5.0  # for an idle worker to end
CHECK_S = 1.0  # between checks of workers: a call's own child may keep a dead one's pipe open
THREAD_VARIABLES = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
THREAD_VARIABLES += ["TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"]
MOST_CALLS = 40  # per worker, which is then replaced: TensorFlow leaks some memory per model
EXIT_CODE = "exit code"  # begins the reason of a worker that ended by itself
LAST_WORDS = 4096  # bytes at the end of an output, which may say why its worker ended


@dataclass(frozen=True, kw_only=True)
class Call:
    """A function call for a worker; its stdout and stderr are appended to the file `output`."""

    key: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    output: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A call that ended: with a result, or with a one-line reason for its failure."""

    key: int
    result: Any = None
    error: str | None = None


@dataclass(frozen=True)
class _Given:
    """A call that a worker carries out, with the size that its output file had before it."""

    key: int
    output: Path
    size: int

    def explained(self, end: str) -> str:
        """How the worker ended, with the last line that it printed if it ended by itself."""
        if not end.startswith(EXIT_CODE):
            return end
        with suppress(OSError), self.output.open("rb") as file:
            file.seek(max(self.size, _size(self.output) - LAST_WORDS))
            said = file.read().decode("utf-8", "replace").strip().splitlines()
            return f"{end}: {said[-1].strip()}" if said else end
        return end


class Pool:
    """A pool of at most `workers` processes of `threads` threads; use it in a `with` statement.

    Each worker begins by importing `modules`; `start` starts some before the first call. Leaving
    the block early or with an error stops running calls: each gets a KeyboardInterrupt and
    `GRACE_S` to clean up, which a second KeyboardInterrupt here cuts short. No worker outlives the
    pool.
    """

    def __init__(self, workers: int, *, threads: int, modules: Sequence[str] = ()) -> None:
        if min(workers, threads) < 1:
            raise ValueError("a pool needs at least one worker and one thread")
        self._most = workers
        self._threads = threads
        self._modules = tuple(modules)
        self._open = False
        self._workers: dict[Connection[Any, Any], SpawnProcess] = {}
        self._busy: dict[Connection[Any, Any], _Given] = {}
        self._given: Counter[Connection[Any, Any]] = Counter()

    def start(self, workers: int) -> None:
        """Starts up to `workers` workers in advance, within the pool's limit."""
        while len(self._workers) < min(workers, self._most):
            self._start_worker()

    def stop(self) -> None:
        """Ends all workers, including busy ones, as leaving the pool does."""
        self._open = False
        try:
            for connection in self._workers:
                connection.close()  # ends those that wait for a call
            for connection in self._workers:
                if connection in self._busy or not self._given[connection]:
                    self._workers[connection].terminate()  # busy, or still importing
        finally:
            _end(self._workers.values(), GRACE_S if self._busy else LEAVE_S)
            self._workers.clear()
            self._busy.clear()

    def run(self, calls: Iterable[Call]) -> Iterator[Ended]:
        """Yields every call when it has ended, however it ended, including those of an earlier run.

        A call is taken only when a worker is free and all ended calls have been yielded, so that
        the source can learn from them. Exceptions of the source and of pickling are passed on.
        """
        source, more = iter(calls), True
        while more or self._busy:
            free = more and len(self._busy) < self._most
            if ended := self._ended(within=0.0 if free else CHECK_S):
                yield from ended
            elif free and (call := next(source, None)):
                self._give(call)
            elif free:
                more = False

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ended(self, within: float) -> list[Ended]:
        ready = wait(list(self._busy), within)
        dead = [here for here in self._busy if self._workers[here].exitcode is not None]
        return [self._outcome(here) for here in list(self._busy) if here in ready or here in dead]

    def _outcome(self, here: Connection[Any, Any]) -> Ended:
        """The result of a worker's call; the worker is then free, or gone."""
        given = self._busy.pop(here)
        key, answer = given.key, b""
        with suppress(EOFError, OSError):
            answer = here.recv_bytes() if here.poll() else b""
        if not answer:
            return Ended(key=key, error=given.explained(self._dismiss(here)))
        try:
            return Ended(key=key, **pickle.loads(answer))
        except Exception as error:
            return Ended(key=key, error=one_line(error))

    def _give(self, call: Call) -> None:
        output = (call.output or Path(os.devnull)).absolute()
        packed = cloudpickle.dumps((call.function, call.arguments))
        here = self._free_worker()
        self._busy[here] = _Given(call.key, output, _size(output))
        self._given[here] += 1
        with suppress(OSError):  # the worker has died, which is detected like any other death
            here.send_bytes(pickle.dumps((output, packed)))

    def _free_worker(self) -> Connection[Any, Any]:
        for here in [here for here in self._workers if here not in self._busy]:
            if self._workers[here].exitcode is None and self._given[here] < MOST_CALLS:
                return here
            self._dismiss(here)
        return self._start_worker()

    def _start_worker(self) -> Connection[Any, Any]:
        if not self._open:
            raise RuntimeError("a pool is used within its with statement, which ends its workers")
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=serve_jobs, args=(there, self._modules), name="worker")
        with _inherited(self._threads):
            process.start()
            self._workers[here] = process
            there.close()  # otherwise the worker's death would go unnoticed
        return here

    def _dismiss(self, here: Connection[Any, Any]) -> str:
        """Removes a worker that has died or is about to; returns how it ended."""
        process = self._workers.pop(here)
        del self._given[here]
        here.close()
        _end([process], LEAVE_S)
        by_signal = {-number: f"killed by {number.name}" for number in signal.Signals}
        return by_signal.get(process.exitcode or 0, f"{EXIT_CODE} {process.exitcode}")


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """Prepares what a new process inherits: thread settings, and signals blocked until it is ready.

    Threads are set in the environment because the main module, imported first, may import NumPy.
    Values that the user has set stay.
    """
    added = left_unset(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    empty = {name: "" for name in added if name in os.environ}
    resource_tracker.ensure_running()  # its start unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
        os.environ.update(empty)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: Collection[SpawnProcess], within: float) -> None:
    """Waits for workers to end; kills those that do not."""
    until = time.monotonic() + within
    try:
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
