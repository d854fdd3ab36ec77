from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.pipeline_sweeps import LocalLauncher
from pipeline.sweeps.jobs import Job, grid
from pipeline.sweeps.launch import (
    jobs_at_once,
    open_workers,
    require_at_once,
    settle_in,
    workers_and_threads,
)
from pipeline.system.errors import RequestError
from tests.stress.matrix import matrix
from tests.sweeps.test_jobs import multirun

JOBS = [Job(index=index, params={"seed": str(index)}) for index in (1, 2, 4, 7)]


class Launcher:
    """A launcher that notes what it gets; as those of others, it tells when all have ended."""

    def __init__(self, **settings: Any) -> None:
        self.__dict__ |= settings
        self.batches: list[tuple[int, list[list[str]]]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        self.batches.append((first, [list(words) for words in job_overrides]))
        return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]


def of(module: str, **settings: Any) -> Any:
    """A launcher of the class that a plugin's module has."""
    return type("Theirs", (Launcher,), {"__module__": module})(**settings)


JOBLIB = of("hydra_plugins.hydra_joblib_launcher.joblib_launcher", joblib={"n_jobs": 3})
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
SLURM = of(SUBMITIT, params={"array_parallelism": 9})
RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher"
BASIC = "hydra._internal.core_plugins.basic_launcher"


def ray(**cpus: Any) -> Any:
    return of(RAY, ray_cfg=SimpleNamespace(init=cpus, remote={"num_cpus": 2}))


@pytest.mark.parametrize(
    ("launcher", "jobs"),
    [
        (JOBLIB, 3),
        (SLURM, 9),
        (ray(num_cpus=8), 4),
        (ray(), None),
        (of(BASIC), 1),
        (of("hydra_plugins.mine", n_jobs=5), 5),
        (of("hydra_plugins.mine"), None),
        (of("hydra_plugins.mine", n_jobs="all"), None),
    ],
)
def test_a_launcher_says_how_many_jobs_it_runs_at_once_or_nothing(
    launcher: Any, jobs: int | None
) -> None:
    assert jobs_at_once(launcher) == jobs


@pytest.mark.parametrize("value", ["auto", "all", 2.5, 0, -1, True])
def test_what_is_no_number_of_workers_or_threads_is_refused(value: Any) -> None:
    for key in ("n_jobs", "threads"):
        launcher = LocalLauncher(**{"n_jobs": 1, "threads": None} | {key: value})
        with pytest.raises(RequestError, match=rf"^hydra.launcher.{key}={value}: must be a whole"):
            workers_and_threads(launcher)
    nothing: Any = None
    with pytest.raises(RequestError, match=r"^hydra.launcher.n_jobs=null: must be a whole number"):
        workers_and_threads(LocalLauncher(n_jobs=nothing, threads=1))
    assert workers_and_threads(LocalLauncher(n_jobs=10_000, threads=None)) == (10_000, 1)


def test_a_search_is_refused_a_launcher_that_cannot_say() -> None:
    require_at_once(JOBLIB, "joblib")
    with pytest.raises(RequestError, match="launcher=ray does not say how many jobs it runs at"):
        require_at_once(ray(), "ray")


@pytest.mark.slow
def test_a_job_is_repeated_by_the_same_command_after_its_launcher_has_got_the_sweeps_folder(
    tmp_path: Path,
) -> None:
    asked = multirun("model=mlp,cnn", "train.epochs=5,20", "train.patience=3,10")
    launcher = SimpleNamespace(config=asked.composed)
    jobs = [job for job in grid(asked.searched) if job.params["train.epochs"] == "5"]
    settle_in(launcher, tmp_path)
    assert launcher.config.hydra.sweep.dir == str(tmp_path)
    assert [asked.command(job).removeprefix("python -m pipeline ") for job in jobs] == [
        "model=mlp train.epochs=5 train.patience=3",
        "model=mlp train.epochs=5",
        "model=cnn train.epochs=5 train.patience=3",
        "model=cnn train.epochs=5",
    ]


def carried_out(launcher: Any, *, known: bool) -> list[int]:
    with open_workers(launcher, len(JOBS)) as workers:
        return [end.key for end in workers.run(JOBS, lambda job: job.overrides, known=known)]


@pytest.mark.parametrize(
    "launcher", [ray(), of("hydra_plugins.mine"), of(SUBMITIT, params={"array_parallelism": 2})]
)
def test_any_launcher_gets_a_whole_grid_at_once(launcher: Any) -> None:
    assert carried_out(launcher, known=True) == [1, 2, 4, 7]
    assert launcher.batches == [(1, [["seed=1"], ["seed=2"], ["seed=4"], ["seed=7"]])]


def test_a_search_hands_over_as_many_jobs_as_run_at_once() -> None:
    launcher = of(JOBLIB.__module__, joblib={"n_jobs": 3})
    assert carried_out(launcher, known=False) == [1, 2, 4, 7]
    assert [(first, len(batch)) for first, batch in launcher.batches] == [(1, 3), (7, 1)]


def test_one_job_at_a_time_is_told_of_when_it_ends() -> None:
    launcher = of(BASIC)
    with open_workers(launcher, len(JOBS)) as workers:
        ends: Iterator[Any] = workers.run(JOBS, lambda job: job.overrides)
        assert next(ends).key == 1
        assert len(launcher.batches) == 1


class Submitted:
    """A job of a batch system, as submitit has it."""

    __module__ = "submitit.slurm.slurm"

    def __init__(self, error: str | None = None) -> None:
        self.error, self.cancelled = error, False

    def cancel(self, check: bool = True) -> None:
        self.cancelled = True

    def results(self) -> list[JobReturn]:
        if self.error:
            raise RuntimeError(self.error)
        return [JobReturn(status=JobStatus.COMPLETED)]


class Slurm(Launcher):
    """Waits for its jobs as submitit's launcher does, from whose local variable they are known."""

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        jobs = self.submitted[: len(job_overrides)]
        if self.stopped:
            raise KeyboardInterrupt
        return [job.results()[0] for job in jobs]


def test_a_sweep_that_is_stopped_cancels_its_jobs_in_the_batch_system() -> None:
    submitted = [Submitted() for _ in JOBS]
    launcher = Slurm(submitted=submitted, stopped=True, n_jobs=4)
    with pytest.raises(KeyboardInterrupt):
        carried_out(launcher, known=True)
    assert all(job.cancelled for job in submitted)


@matrix(24)
def test_a_job_that_a_batch_system_kills_costs_only_itself() -> None:
    submitted = [Submitted(), Submitted("out of memory"), Submitted(), Submitted()]
    launcher = Slurm(submitted=submitted, stopped=False, n_jobs=4)
    with open_workers(launcher, len(JOBS)) as workers:
        ends = list(workers.run(JOBS, lambda job: job.overrides))
    assert [end.error for end in ends] == [None, "RuntimeError: out of memory", None, None]
    assert not any(job.cancelled for job in submitted)
