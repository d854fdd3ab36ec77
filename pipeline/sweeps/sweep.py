"""A sweep, step by step: from the words of a multirun to ranked jobs and kept models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.config.messages import error_line
from pipeline.config.named_runs import weights_run
from pipeline.config.schema import Config
from pipeline.config.sweep import Sweep
from pipeline.data.load import ingest
from pipeline.sweeps.jobs import Grid, Job, JobSource, Multirun, grid, short_keys
from pipeline.sweeps.launch import open_workers, settle_in
from pipeline.sweeps.manifest import Manifest
from pipeline.sweeps.outcomes import Outcome, objectives, ranked
from pipeline.sweeps.plan import Plan, plan_again
from pipeline.sweeps.results import log_results, print_results, show_preview
from pipeline.sweeps.running import SweepJobs
from pipeline.sweeps.runs import children
from pipeline.sweeps.study import (
    Search,
    open_storage,
    pass_on_secret_address,
    require_shareable,
    require_trials,
    trial_count,
)
from pipeline.system.errors import PipelineError, RequestError
from pipeline.system.folders import owner
from pipeline.tracking.lifecycle import record
from pipeline.tracking.recording import reopen
from pipeline.tracking.runs import find_sweep, require_named_runs, require_sound_leakage


def sweep(plan: Plan, launcher: Any) -> None:
    """Runs a planned sweep.

    Raises:
        RequestError: the sweep to resume is a different one, or a run that it needs is not there.
        PipelineError: the sweep itself failed, or, at the end, a job failed or was killed.
    """
    multirun, adaptive = plan.multirun, plan.adaptive
    config = multirun.config
    searched = multirun.searched
    count = trial_count(config.sweep, searched) if adaptive else len(grid(searched))
    if config.sweep.preview:
        show_preview(plan.manifest, plan.jobs, count, config, launcher)
        return
    if config.sweep.resume is None:
        for one in plan.naming:
            require_named_runs(one)
            if one.evaluate.leakage and weights_run(one) is not None:
                require_sound_leakage(one, ingest(one))  # it is measured after all have trained
    if adaptive:
        pass_on_secret_address(config.sweep)
    with open_workers(launcher, count) as workers:  # they start while the store is asked
        resumed, folder = _place(config, multirun)
        if resumed:
            plan = plan_again(multirun, folder, adaptive=adaptive)
            plan.manifest.require_same(folder)
        storage = _opened_storage(config, multirun, folder) if adaptive else None
        with _alone(folder, resumed=resumed is not None):
            if resumed:
                _require_what_it_has_left(resumed, folder, config, storage)
            plan.manifest.save(folder)
            settle_in(launcher, folder)
            named, keys = _named(config, plan.manifest), plan.manifest.searched
            with (
                _failed_work(folder),
                record(named, folder, run_id=resumed, searched=keys) as parent,
            ):
                running = SweepJobs(
                    multirun=multirun,
                    workers=workers,
                    source=_source(multirun, plan.jobs, parent.id, folder, storage),
                    runs=children(parent, objectives(config.sweep)),
                    folder=folder,
                )
                _run_and_report(running, plan.manifest, resumed=resumed is not None)


@contextmanager
def _failed_work(folder: Path) -> Iterator[None]:
    """Tells what goes wrong from here on from a wrong request."""
    try:
        yield
    except (PipelineError, BrokenPipeError):  # the latter may be that nobody reads the results
        raise
    except Exception as error:
        raise PipelineError(f"{error_line(error)}\nThe sweep is in {folder}") from error


def _run_and_report(running: SweepJobs, manifest: Manifest, *, resumed: bool) -> None:
    parent, objectives = running.runs.parent, running.runs.objectives
    parent.save_text("manifest.json", manifest.text)
    if resumed:
        running.catch_up()
    outcomes = running.carry_out(
        lambda ended: log_results(
            parent, ended, objectives, list(manifest.searched), running.multirun.scales
        )
    )
    print_results(parent.id, outcomes, objectives)
    running.require_complete()


def _place(config: Config, multirun: Multirun) -> tuple[str | None, Path]:
    """The run of the sweep to resume, if any, and the sweep's folder."""
    if config.sweep.resume is None:
        folder = Path(multirun.composed.hydra.sweep.dir).absolute()
        if other := owner(folder):
            raise RequestError(
                f"hydra.sweep.dir={folder}: is the folder of sweep {other}; resume that with "
                f"sweep.resume={other}, or choose another folder"
            )
        return None, folder
    found = find_sweep(config.sweep.resume, config)
    folder = Path(str(found.sweep_folder))
    if (other := owner(folder)) not in (None, found.id):
        raise RequestError(f"sweep.resume={found.id}: its folder {folder} is now that of {other}")
    return found.id, folder


def _named(config: Config, manifest: Manifest) -> Config:
    keys = ", ".join(short_keys(manifest.searched).values())
    name = config.tracking.run_name or f"sweep of {keys}"
    return replace(config, tracking=replace(config.tracking, run_name=name))


def _require_what_it_has_left(sweep_id: str, folder: Path, config: Config, storage: Any) -> None:
    """Checks that a sweep to resume still has the trials of its jobs, and the best checkpoints.

    Raises:
        RequestError: they are gone.
    """
    runs = children(reopen(sweep_id, config.tracking, folder), objectives(config.sweep))
    outcomes = runs.outcomes()
    if storage is not None:
        settings = _with_its_study(config, sweep_id, folder)
        require_trials(storage, settings, sweep_id=sweep_id, jobs=outcomes)
    _require_checkpoints(ranked(list(outcomes.values()), runs.objectives), folder, config)


def _require_checkpoints(ranking: Sequence[Outcome], folder: Path, config: Config) -> None:
    """Checks that the best jobs so far still have their checkpoints.

    Raises:
        RequestError: `sweep.keep_models` exceeds the number of kept checkpoints.
    """
    best = ranking[: config.sweep.keep_models]
    gone = [
        position
        for position, outcome in enumerate(best)
        if not outcome.kept and not (folder / str(outcome.index) / "checkpoints").exists()
    ]
    if gone:
        jobs = ", ".join(str(best[position].index) for position in gone)
        raise RequestError(
            f"sweep.keep_models={config.sweep.keep_models}: the checkpoints of jobs {jobs} are "
            "gone, because they were not among the best to keep; resume with "
            f"sweep.keep_models={gone[0]}, or start a new sweep"
        )


def _storage(config: Config, folder: Path) -> str:
    return config.sweep.storage or str(folder / "study.journal")


def _opened_storage(config: Config, multirun: Multirun, folder: Path) -> Any:
    storage = open_storage(_storage(config, folder))
    if config.sweep.study is not None:
        require_shareable(storage, config.sweep, multirun.searched)
    return storage


def _source(
    multirun: Multirun, jobs: Sequence[Job], sweep_id: str, folder: Path, storage: Any
) -> JobSource:
    if storage is None:
        return Grid(jobs)
    settings = _with_its_study(multirun.config, sweep_id, folder)
    return Search(settings, multirun.searched, sweep_id=sweep_id, storage=storage)


def _with_its_study(config: Config, sweep_id: str, folder: Path) -> Sweep:
    """The settings of a search with the place and the name of its study."""
    study = config.sweep.study or sweep_id
    return replace(config.sweep, storage=_storage(config, folder), study=study)


@contextmanager
def _alone(folder: Path, *, resumed: bool) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if resumed:
            at_work = f"sweep.resume: another process is at work on {folder}"
            raise RequestError(f"{at_work}; wait until it has ended") from None
        raise RequestError(
            f"hydra.sweep.dir={folder}: another sweep is at work in this folder; choose another one"
        ) from None
    try:
        yield
    finally:
        lock.release()
