"""Runs the jobs of a sweep by a launcher of Hydra's, the project's own or another."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from omegaconf import open_dict

from pipeline.config.allowed import check_composed
from pipeline.config.compose import Composer
from pipeline.config.messages import explain
from pipeline.sweeps.pool import Call, Ended, Pool
from pipeline.system.errors import RequestError, first_line

OUTPUT = "output.txt"  # what a job prints, in its folder
MODULES = [
    "pipeline.sweeps.one_job",
    "matplotlib.backends.backend_agg",
]  # which take seconds to import


Run = Callable[..., Iterator[Ended]]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A job as a launcher takes it: its number, its overrides, its folder."""

    index: int
    words: Sequence[str]
    folder: Path


def is_local(launcher: Any) -> bool:
    """Whether it is the project's own, which takes jobs one by one."""
    return hasattr(launcher, "threads")


def shares(launcher: Any) -> tuple[int, int]:
    """Worker processes of the local launcher, and threads of each.

    Raises:
        RequestError: `hydra.launcher.n_jobs` or `threads` is no number of workers or threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = launcher.n_jobs
    threads = launcher.threads or max(1, (cores or 1) // max(1, workers))
    if workers < 1 or threads < 1:
        raise RequestError("hydra.launcher.n_jobs and hydra.launcher.threads: 1 or more")
    return workers, threads


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does jobs: `run` yields each one's end and asks only for what can start."""

    run: Run
    stop: Callable[[], None]
    """Ends what still runs."""


@contextmanager
def opened(launcher: Any, jobs: int) -> Iterator[Workers]:
    """Those for about so many jobs, who get ready at once.

    A launcher other than `local` takes batches: everything if the jobs are all known `at_once`,
    its `n_jobs` otherwise.
    """
    if not is_local(launcher):
        yield Workers(run=partial(_in_batches, launcher), stop=lambda: None)
        return
    workers, threads = shares(launcher)
    work = (launcher.hydra_context, launcher.task_function, launcher.config, Singleton.get_state())
    payload = cloudpickle.dumps(work)

    def run(launches: Iterable[Launch], *, at_once: bool = True) -> Iterator[Ended]:
        return pool.run(
            Call(
                key=launch.index,
                function=carry_out,
                arguments=(payload, launch.index, launch.words),
                output=launch.folder / OUTPUT,
            )
            for launch in launches
        )

    with Pool(workers, threads=threads, modules=MODULES) as pool:
        pool.start(jobs)
        yield Workers(run=run, stop=pool.stop)


def launch_batch(
    launcher: Any, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Runs jobs in worker processes and returns when all have ended, as Hydra's launchers do."""
    folder = Path(launcher.config.hydra.sweep.dir)
    launches = [
        Launch(index=first + place, words=words, folder=folder / str(first + place))
        for place, words in enumerate(job_overrides)
    ]
    with opened(launcher, len(launches)) as workers:
        ended = {end.key: end for end in workers.run(launches)}
    return [_returned(ended[launch.index], launch) for launch in launches]


def carry_out(payload: bytes, index: int, words: Sequence[str]) -> None:
    """One job, in a worker: composes its configuration and runs it as Hydra would."""
    hydra_context, task_function, composer, singletons = _unpacked(payload)
    Singleton.set_state(singletons)
    setup_globals()
    composed = composer.compose(words)
    check_composed(composed)
    with open_dict(composed):
        composed.hydra.job.id, composed.hydra.job.num = str(index), index
    done = run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    _ = done.return_value  # raises what the job raised


@lru_cache(maxsize=1)  # a worker serves one sweep
def _unpacked(payload: bytes) -> tuple[Any, Any, Composer, Any]:
    hydra_context, task_function, config, singletons = cloudpickle.loads(payload)
    composer = Composer(hydra_context.config_loader, config)
    return hydra_context, task_function, composer, singletons


def _in_batches(
    launcher: Any, launches: Iterable[Launch], *, at_once: bool = True
) -> Iterator[Ended]:
    waiting, size = iter(launches), _batch_size(launcher, at_once=at_once)
    while batch := list(itertools.islice(waiting, size)):
        done = launcher.launch([launch.words for launch in batch], batch[0].index)
        for launch, result in zip(batch, done, strict=True):
            yield Ended(key=launch.index, error=_error(result))


def _batch_size(launcher: Any, *, at_once: bool) -> int | None:
    """How many jobs to hand over together; None for all."""
    parallel = getattr(launcher, "joblib", None) or getattr(launcher, "params", None)
    if not parallel:  # Hydra's basic launcher would tell of all its jobs when the last has ended
        return 1
    if at_once:
        return None
    jobs = int(parallel.get("n_jobs") or parallel.get("array_parallelism") or 1)
    return jobs if jobs > 0 else os.cpu_count()


def _error(done: JobReturn) -> str | None:
    if done.status is JobStatus.COMPLETED:
        return None
    try:
        return str(done.return_value)
    except Exception as error:
        return first_line(explain(error))


def _returned(ended: Ended, launch: Launch) -> JobReturn:
    done = JobReturn(overrides=launch.words, status=JobStatus.COMPLETED)
    if ended.error is not None:
        done.status, done.return_value = JobStatus.FAILED, RuntimeError(ended.error)
    return done
