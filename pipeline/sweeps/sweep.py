"""A sweep, step by step: from the words of a multirun to ranked jobs and kept models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.config.effects import may_lack_effect, refuse_without_effect, untested
from pipeline.config.flat import config_sha256
from pipeline.config.schema import Config
from pipeline.sweeps.jobs import Grid, Job, JobSource, Multirun, grid, short_keys
from pipeline.sweeps.launch import open_workers, require_at_once, settle_in
from pipeline.sweeps.manifest import Manifest, jobs_of, manifest
from pipeline.sweeps.outcomes import FAILED, objectives, ranked
from pipeline.sweeps.results import log_results, print_results, show_preview
from pipeline.sweeps.running import SweepJobs
from pipeline.sweeps.runs import children
from pipeline.sweeps.space import all_corners, corners, distributions
from pipeline.sweeps.study import Search, open_storage, require_sense
from pipeline.system.errors import PipelineError, RequestError
from pipeline.system.folders import owner
from pipeline.tracking.lifecycle import record
from pipeline.tracking.recording import reopen
from pipeline.tracking.runs import find_sweep

MOST_COMBINED = 64  # combinations of bounds and choices that are composed


def sweep(multirun: Multirun, launcher: Any, *, adaptive: bool) -> None:
    """Runs a multirun; checks everything before the first job.

    Raises:
        RequestError: a job cannot be composed, or the sweep to resume is a different one.
        PipelineError: at the end, if a job failed.
    """
    config = multirun.config
    objectives(config.sweep)
    if config.tracking.offline:
        raise RequestError(
            "tracking.offline=true: a sweep ranks its jobs by what the store has of them; choose a "
            "store with tracking.uri=…"
        )
    if adaptive:
        require_at_once(launcher, multirun.composed.hydra.runtime.choices["hydra/launcher"])
    if config.sweep.preview:
        plan, jobs = _planned(multirun, adaptive=adaptive)
        show_preview(plan, jobs, config, launcher)
        return
    count = config.sweep.n_trials if adaptive else len(grid(multirun.searched))
    with open_workers(launcher, count) as workers:  # they start while the jobs are checked
        resumed, folder = _place(config, multirun)
        plan, jobs = _planned(multirun, adaptive=adaptive, before=folder if resumed else None)
        storage = open_storage(_storage(config, folder)) if adaptive else None
        with _alone(folder):
            if resumed:
                plan.require_same(folder)
                _require_checkpoints(resumed, folder, config)
            plan.save(folder)
            settle_in(launcher, folder)
            named = _named(config, plan)
            with record(named, folder, run_id=resumed, searched=plan.searched) as parent:
                running = SweepJobs(
                    multirun=multirun,
                    workers=workers,
                    source=_source(multirun, jobs, parent.id, folder, storage),
                    runs=children(parent, objectives(config.sweep)),
                    folder=folder,
                )
                _carry_out(running, plan, resumed=resumed is not None)


def _carry_out(running: SweepJobs, plan: Manifest, *, resumed: bool) -> None:
    parent, objectives = running.runs.parent, running.runs.objectives
    parent.save_text("manifest.json", plan.text)
    if resumed:
        running.catch_up()
    outcomes = running.carry_out(
        lambda ended: log_results(
            parent, ended, objectives, list(plan.searched), running.multirun.scales
        )
    )
    print_results(parent.id, outcomes, objectives)
    if failed := sum(outcome.state == FAILED for outcome in outcomes):
        raise PipelineError(
            f"{failed} of {len(outcomes)} jobs failed; what each printed is in {running.folder}; "
            f"run them again with sweep.resume={parent.id}"
        )


def _planned(
    multirun: Multirun, *, adaptive: bool, before: Path | None = None
) -> tuple[Manifest, list[Job]]:
    """The manifest and the known jobs, after composing all of them.

    `before` is the folder of the sweep to resume, whose jobs keep their order.

    Raises:
        RequestError: a job cannot be composed, or two of a new sweep are the same.
    """
    if adaptive:
        require_sense(multirun.config.sweep)
        ends = enumerate(corners(distributions(multirun.searched)))
        tried = [Job(index=index, params=params) for index, params in ends]
        checked = [(job, multirun.compose(job)) for job in tried]
        if before is None:
            _require_distinct(checked, [config_sha256(config) for _, config in checked])
            if may_lack_effect(multirun.typed):
                _require_effects(multirun, _combined(multirun))
        return manifest(multirun, [], adaptive=True), []
    if multirun.config.sweep.pruner != "none":
        raise RequestError("sweep.pruner: only an adaptive search prunes, hydra/sweeper=search")
    jobs = (before and jobs_of(before, multirun)) or grid(multirun.searched)
    checked = [(job, multirun.compose(job)) for job in jobs]
    plan = manifest(multirun, checked, adaptive=False)
    if before is None:
        _require_distinct(checked, [job["config_sha256"] for job in plan.jobs])
        _require_effects(multirun, checked)
    return plan, jobs


def _require_effects(multirun: Multirun, jobs: Sequence[tuple[Job, Config]]) -> None:
    """Refuses a typed setting that has no effect in any of the jobs.

    Raises:
        RequestError: names it.
    """
    configs = [config for _, config in jobs]
    if not multirun.config.sweep.keep_models:
        configs = [untested(config) for config in configs]
    refuse_without_effect(multirun.typed, configs)


def _combined(multirun: Multirun) -> list[tuple[Job, Config]]:
    """What a search may try, by every combination of bounds and choices; empty if too many."""
    params = list(islice(all_corners(distributions(multirun.searched)), MOST_COMBINED + 1))
    jobs = [Job(index=index, params=one) for index, one in enumerate(params)]
    found = []
    for job in jobs if len(jobs) <= MOST_COMBINED else ():
        with suppress(RequestError):  # such a job would fail
            found.append((job, multirun.compose(job)))
    return found


def _require_distinct(jobs: Sequence[tuple[Job, Config]], checksums: Sequence[str]) -> None:
    """Refuses a sweep that would repeat a run, as with `seed=1,1` or `0.1,1e-1`.

    Raises:
        RequestError: names two such jobs.
    """
    before: dict[str, list[tuple[Job, Config]]] = defaultdict(list)
    for (job, config), checksum in zip(jobs, checksums, strict=True):
        alike = before[checksum]
        if same := next((other for other, known in alike if known == config), None):
            raise RequestError(
                f"jobs {same.index} ({same}) and {job.index} ({job}) are the same run: give each "
                "value once, or tell repetitions apart, as with +tracking.tags.repetition=1,2"
            )
        alike.append((job, config))


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


def _named(config: Config, plan: Manifest) -> Config:
    keys = ", ".join(short_keys(plan.searched).values())
    name = config.tracking.run_name or f"sweep of {keys}"
    return replace(config, tracking=replace(config.tracking, run_name=name))


def _require_checkpoints(sweep_id: str, folder: Path, config: Config) -> None:
    """Checks that the best jobs so far still have their checkpoints.

    Raises:
        RequestError: `sweep.keep_models` exceeds the number of kept checkpoints.
    """
    runs = children(reopen(sweep_id, config.tracking, folder), objectives(config.sweep))
    best = ranked(list(runs.outcomes().values()), runs.objectives)[: config.sweep.keep_models]
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


def _source(
    multirun: Multirun, jobs: list[Job], sweep_id: str, folder: Path, storage: Any
) -> JobSource:
    if storage is None:
        return Grid(jobs)
    config = multirun.config
    settings = replace(
        config.sweep, storage=_storage(config, folder), study=config.sweep.study or sweep_id
    )
    return Search(settings, multirun.searched, sweep_id=sweep_id, storage=storage)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RequestError(f"sweep.resume: another process is at work on {folder}") from None
    try:
        yield
    finally:
        lock.release()
