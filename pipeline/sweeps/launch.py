"""Runs the jobs of a sweep with one of Hydra's launchers: the project's own, or any other."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from omegaconf import DictConfig, open_dict, read_write

from pipeline.config.allowed import check_composed
from pipeline.config.compose import Composer, hide_composed
from pipeline.config.messages import error_line
from pipeline.config.schema import validate
from pipeline.config.words import quoted
from pipeline.libraries import import_slow
from pipeline.sweeps.jobs import Job
from pipeline.sweeps.pool import Call, Ended, Pool
from pipeline.system.errors import PipelineError, RequestError, first_line
from pipeline.system.processes import cores
from pipeline.system.terminal import native_messages_to

OUTPUT = "output.txt"  # what a job prints, in its folder
ONE_JOB = "pipeline.sweeps.one_job"
_MODULES = [ONE_JOB, "matplotlib.backends.backend_agg"]  # these take seconds to import


def _joblib_at_once(launcher: Any) -> int:
    jobs = int(launcher.joblib.get("n_jobs") or 1)  # joblib counts from all cores down: -1 is all
    return jobs if jobs > 0 else max(1, cores() + 1 + jobs)


def _submitit_at_once(launcher: Any) -> int:
    params = launcher.params
    if "array_parallelism" in params:
        return int(params["array_parallelism"])
    return max(1, cores() // int(params.get("cpus_per_task") or 1))  # on this machine


def _ray_at_once(launcher: Any) -> int | None:
    cpus = launcher.ray_cfg.init.get("num_cpus")  # unknown for an existing cluster
    each = launcher.ray_cfg.remote.get("num_cpus") or 1
    return max(1, int(cpus // each)) if cpus else None


# How many jobs each launcher runs at once, by its module; None: unknown.
JOBS_AT_ONCE: Mapping[str, Callable[[Any], int | None]] = {
    "hydra_plugins.pipeline_sweeps": lambda launcher: workers_and_threads(launcher)[0],
    "hydra._internal.core_plugins.basic_launcher": lambda launcher: 1,
    "hydra_plugins.hydra_joblib_launcher": _joblib_at_once,
    "hydra_plugins.hydra_submitit_launcher": _submitit_at_once,
    "hydra_plugins.hydra_ray_launcher": _ray_at_once,
}


def jobs_at_once(launcher: Any) -> int | None:
    """The number of jobs that a launcher runs at once; None if unknown.

    For a launcher that is not in `JOBS_AT_ONCE`, its attribute `n_jobs` tells.
    """
    module = type(launcher).__module__
    for name, of_launcher in JOBS_AT_ONCE.items():
        if module == name or module.startswith(f"{name}."):
            return of_launcher(launcher)
    count = getattr(launcher, "n_jobs", None)
    return count if isinstance(count, int) and count > 0 else None


def require_at_once(launcher: Any, name: str) -> None:
    """Checks that a search, which proposes jobs as others end, can use the launcher of this name.

    Raises:
        RequestError: it is unknown how many jobs the launcher runs at once.
    """
    if jobs_at_once(launcher) is None:
        raise RequestError(
            f"hydra/launcher={name} does not say how many jobs it runs at once, which a search "
            "needs to know: set it (Ray: +hydra.launcher.ray.init.num_cpus=8), search with "
            "hydra/launcher=local, or run a grid"
        )


def is_local(launcher: Any) -> bool:
    """Whether it is the project's own launcher, which takes jobs one by one."""
    return type(launcher).__module__ == "hydra_plugins.pipeline_sweeps"


def workers_and_threads(launcher: Any) -> tuple[int, int]:
    """Number of worker processes of the local launcher, and of threads per worker.

    Raises:
        RequestError: `hydra.launcher.n_jobs` or `threads` is no whole number of at least 1.
    """
    workers = _at_least_1("n_jobs", launcher.n_jobs)
    if launcher.threads is None:
        return workers, max(1, cores() // workers)
    return workers, _at_least_1("threads", launcher.threads)


def _at_least_1(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:  # True is an int as well
        shown = "null" if value is None else value
        raise RequestError(f"hydra.launcher.{name}={shown}: must be a whole number, 1 or more")
    return value


class JobRunner(Protocol):
    """Runs jobs by their overrides `words(job)`, and yields how each ended, by index.

    It takes the next job only when it can start it, or all at once if they are `known` in advance.
    """

    def __call__(
        self, jobs: Iterable[Job], words: Callable[[Job], list[str]], *, known: bool = True
    ) -> Iterator[Ended]:
        """Runs the jobs."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers that run the jobs of a sweep."""

    run: JobRunner
    stop: Callable[[], None]
    """Ends the jobs that are still running."""


@contextmanager
def open_workers(launcher: Any, jobs: int) -> Iterator[Workers]:
    """Provides workers for about this number of `jobs`; local ones start immediately."""
    if not is_local(launcher):
        yield Workers(run=partial(_in_batches, launcher), stop=lambda: None)
        return
    workers, threads = workers_and_threads(launcher)

    def run(
        jobs: Iterable[Job], words: Callable[[Job], list[str]], *, known: bool = True
    ) -> Iterator[Ended]:
        folder = Path(launcher.config.hydra.sweep.dir)
        payload = cloudpickle.dumps(
            (launcher.hydra_context, launcher.task_function, launcher.config, Singleton.get_state())
        )
        return pool.run(
            Call(
                key=job.index,
                function=run_in_worker,
                arguments=(payload, job.index, words(job)),
                output=folder / str(job.index) / OUTPUT,
            )
            for job in jobs
        )

    with Pool(workers, threads=threads, modules=_MODULES) as pool:
        pool.start(jobs)
        yield Workers(run=run, stop=pool.stop)


def settle_in(launcher: Any, folder: Path) -> None:
    """Makes a launcher give each job its own folder, named by index, in the sweep's folder.

    The launcher gets a configuration of its own: the jobs are still compared with the sweep's.
    """
    config = launcher.config = copy.deepcopy(launcher.config)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra = [
            *config.hydra.overrides.hydra,
            f"hydra.sweep.dir={quoted(str(folder))}",
            "hydra.sweep.subdir=${sweep.job.index}",
        ]


def do_job(composed: DictConfig) -> None:
    """Checks and runs one job of a sweep in its folder; called by any launcher.

    Raises:
        PipelineError: what went wrong, in one line, and where to find the details.
    """
    hide_composed(composed)
    folder = Path(HydraConfig.get().runtime.output_dir)
    config = validate(composed)
    try:
        with native_messages_to(folder / "tensorflow.log"):
            implementation = import_slow(ONE_JOB)
        result = implementation.run_one(config, folder)
        if result is not None:
            print(result, flush=True)
    except RequestError:
        raise
    except Exception as error:
        raise PipelineError(f"{error_line(error)}\nThe log is in {folder}") from error


def launch_batch(
    launcher: Any, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Runs jobs in worker processes and returns when all have ended, like Hydra's launchers."""
    jobs = {first + position: list(words) for position, words in enumerate(job_overrides)}
    with open_workers(launcher, len(jobs)) as workers:
        started = (Job(index=index, params={}) for index in jobs)
        ended = {end.key: end for end in workers.run(started, lambda job: jobs[job.index])}
    return [_returned(ended[index], words) for index, words in jobs.items()]


def run_in_worker(payload: bytes, index: int, words: Sequence[str]) -> None:
    """Runs one job in a worker: composes its configuration and runs it as Hydra would."""
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
    launcher: Any,
    jobs: Iterable[Job],
    words: Callable[[Job], list[str]],
    *,
    known: bool = True,
) -> Iterator[Ended]:
    """Runs jobs with a launcher that takes several and returns when all of them have ended.

    The launcher gets all known jobs at once; one that runs one job at a time gets one at a time, so
    that each outcome is seen as soon as the job ends.
    """
    most = jobs_at_once(launcher)
    size = most if not known or most == 1 else None
    waiting = iter(jobs)
    while batch := list(itertools.islice(waiting, size)):
        yield from _launched(launcher, batch, words)


def _launched(
    launcher: Any, batch: Sequence[Job], words: Callable[[Job], list[str]]
) -> Iterator[Ended]:
    try:
        done = launcher.launch([words(job) for job in batch], batch[0].index)
        errors = [_error(one) for one in done]
    except BaseException as error:
        submitted = _submitted(error)
        if not isinstance(error, Exception):  # stopped
            _cancel(submitted)
            raise
        # Such a launcher fails when the first job dies; the others keep running.
        alike = first_line(error_line(error))
        errors = [_waited_for(one) for one in submitted] or [alike] * len(batch)
    for job, error_of_job in zip(batch, errors, strict=True):
        yield Ended(key=job.index, error=error_of_job)


def _submitted(error: BaseException) -> list[Any]:
    """The jobs that submitit's launcher was waiting for, found in one of its local variables."""
    trace = error.__traceback__
    while trace:
        for value in list(trace.tb_frame.f_locals.values()):
            if isinstance(value, list) and value and all(map(_can_be_cancelled, value)):
                return value
        trace = trace.tb_next
    return []


def _can_be_cancelled(value: Any) -> bool:
    return type(value).__module__.startswith("submitit.") and callable(
        getattr(value, "cancel", None)
    )


def _cancel(submitted: Sequence[Any]) -> None:
    """Cancels jobs of a batch system, which would outlive the sweep."""
    for job in submitted:
        with suppress(Exception):  # if one cannot be cancelled, cancel the others
            job.cancel(check=False)
    _end_joblibs_workers()


def _end_joblibs_workers() -> None:
    """Ends joblib's workers, which joblib itself leaves running when a signal ends the process."""
    if loky := sys.modules.get("joblib.externals.loky"):
        loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _waited_for(job: Any) -> str | None:
    try:
        return _error(job.results()[0])
    except Exception as error:
        return first_line(error_line(error))


def _error(done: JobReturn) -> str | None:
    if done.status is JobStatus.COMPLETED:
        return None
    try:
        return str(done.return_value)
    except Exception as error:
        return first_line(error_line(error))


def _returned(ended: Ended, words: Sequence[str]) -> JobReturn:
    done = JobReturn(overrides=words, status=JobStatus.COMPLETED)
    if ended.error is not None:
        done.status, done.return_value = JobStatus.FAILED, RuntimeError(ended.error)
    return done
