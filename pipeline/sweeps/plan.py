"""Plans a sweep: composes and checks its jobs before MLflow is imported, or anything recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from pipeline.config.builders import check_keys
from pipeline.config.effects import Rule, may_lack_effect, refuse_without_effect, untested
from pipeline.config.flat import config_sha256
from pipeline.config.named_runs import names_runs, teacher_runs, weights_run
from pipeline.config.schema import Config, has_no_validation
from pipeline.config.words import key_of, quoted_word
from pipeline.data.load import require_data
from pipeline.sweeps.jobs import Job, Multirun, grid
from pipeline.sweeps.launch import is_local, require_at_once, workers_and_threads
from pipeline.sweeps.manifest import Manifest, jobs_of, manifest
from pipeline.sweeps.outcomes import objectives
from pipeline.sweeps.space import all_corners, corners, distributions, whole_numbers
from pipeline.system.errors import RequestError
from pipeline.training.pretrained import require_weights

MOST_COMBINED = 64  # combinations of bounds and choices that are composed

Composed = Sequence[tuple[Job, Config]]

_FOR_KEPT_JOBS = Rule(
    keys=("evaluate.leakage", "evaluate.report"),
    when=lambda config: config.sweep.keep_models == 0,
    because="with sweep.keep_models=0: it is for the jobs whose models are kept",
    mend="leave it out, or set sweep.keep_models above 0",
    nothing=(False,),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep with its manifest and its known jobs, which are those of a grid."""

    multirun: Multirun
    adaptive: bool
    manifest: Manifest
    jobs: Sequence[Job]
    naming: Sequence[Config]
    """A configuration for each choice of recorded runs that jobs name."""


def plan_sweep(multirun: Multirun, launcher: Any, *, adaptive: bool) -> Plan:
    """Composes the jobs of a new sweep, and refuses what cannot work.

    Of a sweep to resume only the settings are checked: its folder knows its jobs (`plan_again`).

    Raises:
        RequestError: a job cannot be composed, two are the same, a setting has no effect in any of
            them, or the data of one is not there.
    """
    _require_settings(multirun, launcher, adaptive=adaptive)
    if multirun.config.sweep.resume is not None:
        return _plan(multirun, [], adaptive=adaptive)
    jobs = _ends(multirun) if adaptive else grid(multirun.searched)
    composed = [(job, _composed(multirun, job)) for job in jobs]
    _require_distinct(composed)
    _require_objectives(multirun.config, [one for _, one in composed])
    refuse_without_effect(multirun.typed, [multirun.config], rules=[_FOR_KEPT_JOBS])
    if adaptive:
        _require_effects_of_search(multirun, composed)
    else:
        _require_effects(multirun, composed)
    _require_possible(composed, here=is_local(launcher), adaptive=adaptive)
    return _plan(multirun, composed, adaptive=adaptive)


def _require_settings(multirun: Multirun, launcher: Any, *, adaptive: bool) -> None:
    """Refuses settings of the sweep itself that cannot work.

    Raises:
        RequestError: names the first.
    """
    config = multirun.config
    objectives(config.sweep)
    if config.tracking.offline:
        raise RequestError(
            "tracking.offline=true: a sweep ranks its jobs by what the store has of them; choose a "
            "store with tracking.uri=…"
        )
    if multirun.composed.hydra.job.chdir:
        raise RequestError(
            "hydra.job.chdir=true: jobs in folders of their own would not find the sweep's store "
            "and data; leave it out, a job's files are in its folder anyway"
        )
    if is_local(launcher):
        workers_and_threads(launcher)
    if adaptive:
        require_at_once(launcher, multirun.composed.hydra.runtime.choices["hydra/launcher"])
    elif config.sweep.pruner != "none":
        raise RequestError("sweep.pruner: only an adaptive search prunes, hydra/sweeper=search")


def _require_objectives(config: Config, jobs: Iterable[Config]) -> None:
    """Checks that each job will have validation images if it is judged by them."""
    by_validation = [one for one in config.sweep.objective if one.startswith("val/")]
    if by_validation and any(map(has_no_validation, jobs)):
        raise RequestError(
            f"sweep.objective={','.join(by_validation)}: a job with preprocess.validation_size=0 "
            "has no validation images to be judged by; set it above 0"
        )


def plan_again(multirun: Multirun, folder: Path, *, adaptive: bool) -> Plan:
    """Composes the jobs of a sweep to resume, in the order of its manifest in `folder`.

    Raises:
        RequestError: a job cannot be composed.
    """
    jobs = _ends(multirun) if adaptive else jobs_of(folder, multirun) or grid(multirun.searched)
    composed = [(job, multirun.compose(job)) for job in jobs]
    return _plan(multirun, composed, adaptive=adaptive)


def _plan(multirun: Multirun, composed: Composed, *, adaptive: bool) -> Plan:
    known = [] if adaptive else composed
    return Plan(
        multirun=multirun,
        adaptive=adaptive,
        manifest=manifest(multirun, known, adaptive=adaptive),
        jobs=[job for job, _ in known],
        naming=_naming(composed),
    )


def _naming(jobs: Composed) -> list[Config]:
    first: dict[Any, Config] = {}
    for _, config in jobs:
        if names_runs(config):
            first.setdefault((teacher_runs(config), weights_run(config)), config)
    return [*first.values()]


def _ends(multirun: Multirun) -> list[Job]:
    """Jobs in which each choice and each bound of a search occurs.

    Raises:
        RequestError: the settings of the search are incompatible.
    """
    from pipeline.sweeps.study import require_sense  # imports SQLAlchemy, which a grid needs not

    require_sense(multirun.config.sweep, multirun.searched)
    ends = enumerate(corners(distributions(multirun.searched)))
    return [Job(index=index, params=params) for index, params in ends]


def _composed(multirun: Multirun, job: Job) -> Config:
    """The configuration of a job.

    Raises:
        RequestError: it cannot be composed; says so if whole numbers of an interval could.
    """
    try:
        return multirun.compose(job)
    except RequestError as error:
        for override in multirun.searched:
            if (meant := whole_numbers(override)) and _takes_whole(multirun, job, override):
                told = f"{error}; an interval of whole numbers is written {quoted_word(meant)}"
                raise RequestError(told) from error
        raise


def _takes_whole(multirun: Multirun, job: Job, override: Override) -> bool:
    key = override.get_key_element()
    whole = str(round(float(job.params[key])))
    with suppress(RequestError):
        multirun.compose(replace(job, params={**job.params, key: whole}))
        return True
    return False


def _require_effects(multirun: Multirun, jobs: Composed) -> None:
    """Refuses a typed setting that has no effect in any of the jobs.

    Raises:
        RequestError: names it.
    """
    configs = [config for _, config in jobs]
    if not multirun.config.sweep.keep_models:
        configs = [untested(config) for config in configs]
    refuse_without_effect(multirun.typed, configs)


def _require_effects_of_search(multirun: Multirun, ends: Composed) -> None:
    """Refuses a typed setting, also of the pruner, that has no effect in any trial.

    Raises:
        RequestError: names it.
    """
    from pipeline.sweeps.study import require_time_to_prune  # imports SQLAlchemy

    if may_lack_effect(multirun.typed):
        _require_effects(multirun, _combined(multirun))
    settings = multirun.config.sweep
    typed = any(key_of(word).startswith("sweep.pruner") for word in multirun.typed)
    if typed or settings.pruner == "hyperband":  # which fails; a file may set more than is needed
        longest = max(config.train.epochs for _, config in ends)
        require_time_to_prune(settings, longest, typed=typed)


def _combined(multirun: Multirun) -> Composed:
    """What a search may try, by every combination of bounds and choices; empty if too many."""
    params = list(islice(all_corners(distributions(multirun.searched)), MOST_COMBINED + 1))
    jobs = [Job(index=index, params=one) for index, one in enumerate(params)]
    found = []
    for job in jobs if len(jobs) <= MOST_COMBINED else ():
        with suppress(RequestError):  # such a job would fail
            found.append((job, multirun.compose(job)))
    return found


def _require_distinct(jobs: Composed) -> None:
    """Refuses a sweep that would repeat a run, as with `seed=1,1` or `0.1,1e-1`.

    Raises:
        RequestError: names two such jobs.
    """
    before: dict[str, list[tuple[Job, Config]]] = defaultdict(list)
    for job, config in jobs:
        alike = before[config_sha256(config)]
        if same := next((other for other, known in alike if known == config), None):
            raise RequestError(
                f"jobs {same.index} ({same}) and {job.index} ({job}) are the same run: give each "
                "value once, or tell repetitions apart, as with +tracking.tags.repetition=1,2"
            )
        alike.append((job, config))


def _require_possible(jobs: Composed, *, here: bool, adaptive: bool) -> None:
    """Refuses a sweep whose data or weights are not there, or none of whose models can be built.

    A single job whose sizes fit no model may fail: other combinations of a grid's values work.
    Only what runs `here` finds its files on this machine.

    Raises:
        RequestError: says what is missing, or why the first model cannot be built.
    """
    configs = [config for _, config in jobs]
    models = _different(configs, "model")
    refused = []
    for config in models:
        try:
            check_keys("model", config.model, config.choices.model)
        except RequestError as error:
            refused.append(error)
    if refused and len(refused) == len(models) and (not adaptive or len(models) == 1):
        raise refused[0]
    if not here:
        return
    for config in _different(configs, "dataset"):
        require_data(config)
    for config in models:
        if weights_run(config) is None:
            require_weights(config.model)


def _different(configs: Iterable[Config], group: str) -> list[Config]:
    """The first configuration with each leaf of a group."""
    first: dict[str, Config] = {}
    for config in configs:
        first.setdefault(repr(getattr(config, group)), config)
    return list(first.values())
