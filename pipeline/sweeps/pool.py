"""Worker processes for a sweep's jobs, where a job that takes its process down costs only itself.

The standard library's ProcessPoolExecutor and joblib break with the first worker that dies; pebble
gives up when an idle one does, and leaves a stopped call three seconds to tidy up.
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

from pipeline.sweeps.worker import STOPS, serve
from pipeline.system.errors import one_line

GRACE_S = 30.0  # what a busy worker gets to tidy up when the pool is left
LEAVE_S = 5.0  # what an idle worker gets to end
CHECK_S = 1.0  # how often to ask after workers: what a call has forked may hold a dead one's pipe
THREADS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
THREADS += ["TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"]
MOST_TASKS = 40  # of a worker, then replaced: TensorFlow keeps some memory of every model


@dataclass(frozen=True, kw_only=True)
class Call:
    """A function call for a worker; its stdout and stderr are appended to the file `output`."""

    key: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    output: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A call that ended: with a result, or with a line that says why there is none."""

    key: int
    result: Any = None
    error: str | None = None


class Pool:
    """At most so many worker processes of `threads` threads each; use it in a `with` statement.

    Each begins by importing `modules`; `start` has some of them do so before there is a call.
    Leaving it by an error, or early, stops what still runs: a call gets a KeyboardInterrupt and
    `GRACE_S` to tidy up, which a second KeyboardInterrupt here ends. No worker outlives us.
    """

    def __init__(self, workers: int, *, threads: int, modules: Sequence[str] = ()) -> None:
        if min(workers, threads) < 1:
            raise ValueError("a pool needs at least one worker and one thread")
        self._most = workers
        self._threads = threads
        self._modules = tuple(modules)
        self._open = False
        self._workers: dict[Connection[Any, Any], SpawnProcess] = {}
        self._busy: dict[Connection[Any, Any], int] = {}
        self._given: Counter[Connection[Any, Any]] = Counter()

    def start(self, workers: int) -> None:
        """Starts so many workers, or as many as there may be, for the calls to come."""
        while len(self._workers) < min(workers, self._most):
            self._start_worker()

    def stop(self) -> None:
        """Ends all workers, those at work as well; to leave the pool does so, too."""
        self._open = False
        try:
            for connection in self._workers:
                connection.close()  # which ends those that wait for a call
            for connection in self._workers:
                if connection in self._busy or not self._given[connection]:
                    self._workers[connection].terminate()  # at work, or still importing
        finally:
            _end(self._workers.values(), GRACE_S if self._busy else LEAVE_S)
            self._workers.clear()
            self._busy.clear()

    def run(self, calls: Iterable[Call]) -> Iterator[Ended]:
        """Yields every call when it has ended, in whatever way; so too what an earlier run left.

        A call is taken when a worker is free and all that is known has been yielded, so that the
        source can learn from it. What the source raises, or pickling a call, comes through.
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
        """What became of a worker's call; the worker is then free, or gone."""
        key = self._busy.pop(here)
        answer = b""
        with suppress(EOFError, OSError):
            answer = here.recv_bytes() if here.poll() else b""
        if not answer:
            return Ended(key=key, error=self._dismiss(here))
        try:
            return Ended(key=key, **pickle.loads(answer))
        except Exception as error:
            return Ended(key=key, error=one_line(error))

    def _give(self, call: Call) -> None:
        output = (call.output or Path(os.devnull)).absolute()
        packed = cloudpickle.dumps((call.function, call.arguments))
        here = self._free_worker()
        self._busy[here] = call.key
        self._given[here] += 1
        with suppress(OSError):  # the worker has died, which is noticed like any other death
            here.send_bytes(pickle.dumps((output, packed)))

    def _free_worker(self) -> Connection[Any, Any]:
        for here in [here for here in self._workers if here not in self._busy]:
            if self._workers[here].exitcode is None and self._given[here] < MOST_TASKS:
                return here
            self._dismiss(here)
        return self._start_worker()

    def _start_worker(self) -> Connection[Any, Any]:
        if not self._open:
            raise RuntimeError("a pool is used within its with statement, which ends its workers")
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, self._modules), name="worker")
        with _inherited(self._threads):
            process.start()
            self._workers[here] = process
            there.close()  # or the worker's death would not be seen
        return here

    def _dismiss(self, here: Connection[Any, Any]) -> str:
        """Lets go of a worker that has died or is about to; says how it did."""
        process = self._workers.pop(here)
        del self._given[here]
        here.close()
        _end([process], LEAVE_S)
        by_signal = {-number: f"killed by {number.name}" for number in signal.Signals}
        return by_signal.get(process.exitcode or 0, f"exit code {process.exitcode}")


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """What a process begins with: its threads, and signals held back until it is ready for them.

    The main module, imported first, may import NumPy. What the user has set stands.
    """
    added = [name for name in THREADS if name not in os.environ]
    resource_tracker.ensure_running()  # to start it later would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    os.environ.update(dict.fromkeys(added, str(threads)))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
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
