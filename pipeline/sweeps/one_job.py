"""One job of a sweep: a run that may be ended early, or the completion of one of the best."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import keras
import psutil

from pipeline.config.schema import Config
from pipeline.run import Result, complete, run
from pipeline.sweeps.study import pruning_listener
from pipeline.system.errors import PipelineError, Pruned, RequestError
from pipeline.system.processes import interrupt
from pipeline.tracking.client import awaited
from pipeline.tracking.recording import reopen
from pipeline.tracking.runs import find_run, require_same_weights, with_weights
from pipeline.training.callbacks import EpochListener
from pipeline.training.saved import load_saved

LOOK_S = 0.5  # between two checks of time and memory
CLOSE_S = 10.0  # for a job over its limit to close its run

log = logging.getLogger(__name__)


def run_one(config: Config, folder: Path) -> Result | None:
    """Runs one job of a sweep within its limits; returns None for a pruned one.

    It does not use the test split, measures no leakage and saves no model; only the best jobs do,
    after all have ended.

    Raises:
        PipelineError: it exceeded its limit of time or memory.
    """
    sweep, job = config.sweep, config.sweep.job
    keras.utils.clear_session()  # remove what earlier jobs of this process left
    tracking = replace(config.tracking, experiment=job.experiment, run_name=job.name)
    limits = within(seconds=sweep.timeout_s, memory_mb=sweep.memory_mb)
    with stoppable(), limits as check_limits:
        if job.completes is not None:
            return _complete(replace(config, tracking=tracking), job.completes, folder)
        alone = replace(
            config,
            tracking=replace(tracking, log_model=False),
            evaluate=replace(config.evaluate, test=False, leakage=False),
        )
        listeners = [pruning_listener(sweep, config.train.epochs)] if job.study is not None else []
        try:
            return run(alone, folder, check_limits, *listeners, job=job)
        except Pruned as pruned:
            log.info("%s", pruned)
            return None


@contextmanager
def stoppable() -> Iterator[None]:
    """Makes SIGTERM interrupt the block, so that it closes its run.

    A batch system sends SIGTERM and kills some time later; submitit would ignore it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals only work in the main thread
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_main_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RequestError(
            "sweep.timeout_s and sweep.memory_mb need a launcher that runs jobs in processes"
        )


@contextmanager
def within(*, seconds: float | None, memory_mb: float | None) -> Iterator[EpochListener]:
    """Ends the block when it takes too long or the process uses too much memory.

    The error is raised wherever the block is at that time. Python ignores it in a destructor, and a
    library may, too; the listener, called after each epoch, then raises it again. If the
    block does not end within `CLOSE_S`, the process is ended.

    Raises:
        PipelineError: a limit was exceeded; the message says which.
        RequestError: the block does not run in the main thread of its process.
    """
    if seconds is None and memory_mb is None:
        yield lambda epoch, metrics: None
        return
    _require_main_thread()
    done, passed = threading.Event(), list[str]()
    process, started = psutil.Process(), time.monotonic()
    main = threading.get_ident()

    def stop(*_: object) -> None:
        if passed:
            raise PipelineError(passed[0])

    def watch() -> None:
        while not passed and not done.wait(LOOK_S):
            used_mb = process.memory_info().rss / 1e6
            if seconds is not None and time.monotonic() - started > seconds:
                passed.append(f"took longer than sweep.timeout_s={seconds:g}")
            elif memory_mb is not None and used_mb > memory_mb:
                passed.append(f"needs {used_mb:,.0f} MB, above sweep.memory_mb={memory_mb:g}")
        if passed:
            # A real signal: unlike _thread.interrupt_main, it also ends a blocking system call.
            signal.pthread_kill(main, signal.SIGALRM)
            if not done.wait(CLOSE_S):
                log.error("%s, and does not end by itself", passed[0])
                os._exit(PipelineError.exit_code)

    before = signal.signal(signal.SIGALRM, stop)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        done.set()
        watcher.join()
        signal.signal(signal.SIGALRM, before)


def _complete(config: Config, run_id: str, folder: Path) -> Result:
    """Completes the run of a job that is one of the best: evaluates it and saves its model."""
    recording = reopen(run_id, config.tracking, folder)
    recorded = awaited(lambda: find_run(run_id, config))
    checkpoint = folder / "checkpoints" / f"{config.train.keep}.keras"
    # Keras cannot load an optimizer that scales the loss.
    with_optimizer = config.train.precision != "float16"
    require_same_weights(recorded, with_weights(config))
    model = load_saved(checkpoint, called=str(checkpoint), compile=with_optimizer)
    return complete(config, recorded.config, model, recording, identity=recorded.identity)
