"""Adaptive search with Optuna: proposes jobs, learns from their outcomes, prunes running ones."""

from __future__ import annotations

import importlib.util
import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lazy_loader
import numpy as np
import sqlalchemy as sa
from hydra.core.override_parser.types import Override

from pipeline.config.sweep import JobSettings, Sweep
from pipeline.sweeps.jobs import MOST_JOBS, Job
from pipeline.sweeps.outcomes import FINISHED, PRUNED, Outcome, objectives
from pipeline.sweeps.space import distributions, size, text_of
from pipeline.system.databases import keep_through_interrupts, reason, without_password
from pipeline.system.errors import Pruned, RequestError, counted, first_line

optuna: Any = lazy_loader.load("optuna")

OLDEST = 5  # major version of Optuna that is supported
_SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "gp": "GPSampler",
    "grid": "BruteForceSampler",  # every combination once, also with several processes
    "nsga2": "NSGAIISampler",
}
_PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "asha": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
# The option of a pruner that says after which epoch it first ends a trial, and its default.
_FIRST_EPOCH = {
    "median": ("n_warmup_steps", 0),
    "asha": ("min_resource", 1),
    "hyperband": ("min_resource", 1),
}
STORAGE = "PIPELINE_SWEEP_STORAGE"  # environment variable of jobs: an address with a password
_LINE = b'{"op_code":'  # what each line of a journal begins with
_PARAMS, _SWEEP = "params", "sweep"  # user attributes of a trial
# User attributes of a study: trials replaced by others, and the names of the metrics
_DISREGARDED, _METRICS = "disregarded", "metrics"


class Search:
    """A sweep's view of a study: each proposed trial becomes a job with the same number.

    Several sweeps may share a study; `n_trials` counts the trials of all of them. A grid ends
    earlier if every combination has been tried.
    """

    known = False

    def __init__(
        self,
        settings: Sweep,
        searched: Sequence[Override],
        *,
        sweep_id: str,
        storage: Any = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.settings, self.sweep_id = settings, sweep_id
        self.total = trial_count(settings, searched)
        self.job_settings: Mapping[str, str] = (
            _of_study(settings) if settings.pruner != "none" else {}
        )
        self.distributions = distributions(searched)
        self.study = optuna.create_study(
            storage=storage or open_storage(str(settings.storage)),
            study_name=settings.study,
            directions=[objective.direction for objective in objectives(settings)],
            sampler=per_trial(settings),
            pruner=make_pruner(settings),
            load_if_exists=True,
        )
        if _METRICS not in self.study.user_attrs:
            self.study.set_user_attr(_METRICS, settings.objective)

    def jobs(self) -> Iterator[Job]:
        """Proposes trials on demand, until there are enough."""
        while not self._has_enough():
            trial = self.study.ask(self.distributions)
            params = {
                key: text_of(value, self.distributions[key]) for key, value in trial.params.items()
            }
            trial.set_user_attr(_SWEEP, self.sweep_id)
            trial.set_user_attr(_PARAMS, params)
            if self._has_enough(before=trial.number):
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                self._disregard(trial.number)  # another process proposed the last trial
                return
            yield Job(index=trial.number, params=params)

    def tell(self, trial: Outcome) -> None:
        """Passes the outcome of a trial on to the study."""
        states = optuna.trial.TrialState
        known = np.isfinite(trial.values).all()
        if trial.status == FINISHED and known:
            self.study.tell(trial.index, list(trial.values))
        elif trial.status == PRUNED:
            self.study.tell(trial.index, state=states.PRUNED)
        else:
            self.study.tell(trial.index, state=states.FAIL)

    def known_jobs(self) -> dict[int, Job]:
        """The jobs that this sweep has proposed, including earlier ones, by index."""
        return {
            trial.number: Job(index=trial.number, params=trial.user_attrs[_PARAMS])
            for trial in self._mine()
            if _PARAMS in trial.user_attrs
        }

    def catch_up(self, ended: Mapping[int, Outcome]) -> None:
        """Updates the study with the runs of an interrupted sweep.

        A trial left running by a killed process gets its final status; a trial that failed or was
        killed is proposed again, as a new trial with the same parameters. One whose job the sweep
        had lost sight of, and which ended well after all, is not; it keeps its number.
        """
        done = {index for index, outcome in ended.items() if outcome.is_complete}
        states = optuna.trial.TrialState
        for trial in self._mine():
            if trial.state == states.RUNNING and trial.number in ended:
                self.tell(ended[trial.number])
            elif trial.state == states.RUNNING:
                self.study.tell(trial.number, state=states.FAIL)
        for trial in self._mine():
            if trial.state == states.FAIL and trial.number not in done:
                self._disregard(trial.number)
                if trial.params:
                    self.study.enqueue_trial(trial.params)

    def _has_enough(self, before: int | None = None) -> bool:
        """Whether there are `n_trials`, or those of a grid have every combination."""
        trials = self._regarded(before)
        if len(trials) >= self.settings.n_trials or self.settings.sampler != "grid":
            return len(trials) >= self.settings.n_trials
        alike = [one.params for one in trials if one.distributions == self.distributions]
        different = {tuple(params[key] for key in self.distributions) for params in alike}
        return len(different) >= _combinations(self.settings, self.distributions)

    def _mine(self) -> list[Any]:
        alone = self.settings.study == self.sweep_id
        return [
            trial
            for trial in self._regarded()
            if trial.user_attrs.get(_SWEEP, self.sweep_id if alone else None) == self.sweep_id
        ]

    def _regarded(self, before: int | None = None) -> list[Any]:
        # Optuna forbids attributes on trials that have ended, but not on the study.
        disregarded = {int(number) for number in self.study.user_attrs.get(_DISREGARDED, [])}
        waiting = optuna.trial.TrialState.WAITING
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)[:before]
            if trial.number not in disregarded and trial.state != waiting
        ]

    def _disregard(self, number: int) -> None:
        disregarded = self.study.user_attrs.get(_DISREGARDED, [])
        self.study.set_user_attr(_DISREGARDED, [*disregarded, number])


def trial_count(settings: Sweep, searched: Sequence[Override]) -> int:
    """Number of trials: `n_trials`, or the number of combinations of a smaller grid."""
    return int(min(settings.n_trials, _combinations(settings, distributions(searched))))


def _combinations(settings: Sweep, spaces: Mapping[str, Any]) -> float:
    """The number of combinations that a grid tries; infinite for other samplers."""
    return math.prod(map(size, spaces.values())) if settings.sampler == "grid" else math.inf


def open_storage(address: str) -> Any:
    """Opens Optuna's storage at a database URL or, for any other text, in a journal file.

    Raises:
        RequestError: the database cannot be used, or the file is no journal.
    """
    if "://" in address:
        keep_through_interrupts(address)
        try:
            return _with_tables(address)
        except (ImportError, sa.exc.SQLAlchemyError) as error:
            shown = without_password(address)
            raise RequestError(f"sweep.storage={shown} cannot be used: {reason(error)}") from error
    path = Path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    _require_journal(path)
    journal = optuna.storages.journal
    backend = journal.JournalFileBackend(address)
    _remove_half_a_line(path)
    try:
        return journal.JournalStorage(backend)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(_no_journal(address)) from error


def _with_tables(address: str) -> Any:
    """Opens a database; tries again where another process makes the tables of a new one, too."""
    for pause_s in (0.2, 1.0, 5.0):
        try:
            return optuna.storages.RDBStorage(address)
        except sa.exc.DBAPIError as error:
            made = isinstance(error, sa.exc.IntegrityError) or "already exists" in str(error.orig)
            if not made:
                raise
            time.sleep(pause_s)
    return optuna.storages.RDBStorage(address)


def _require_journal(path: Path) -> None:
    """Checks how an existing file begins: Optuna would append to any.

    Raises:
        RequestError: the file is no journal.
    """
    if not path.exists():
        return
    if path.is_dir():
        raise RequestError(_no_journal(path))
    with path.open("rb") as file:
        if not _begins_as_a_line(file.read(len(_LINE))):
            raise RequestError(_no_journal(path))


def _begins_as_a_line(text: bytes) -> bool:
    """Whether the text, of which a power failure may have left the end empty, is of a journal."""
    return _LINE.startswith(text[: len(_LINE)].rstrip(b"\0"))


def _remove_half_a_line(path: Path) -> None:
    """Removes what a full disk or a power failure has left unfinished at the end of a journal.

    Optuna would append to it, and could not read the file any more.

    Raises:
        RequestError: the file does not end as a journal does.
    """
    if not _half_a_line(path):
        return
    lock = optuna.storages.journal.JournalFileSymlinkLock(str(path))
    lock.acquire()  # another process may be writing the rest
    try:
        half = _half_a_line(path)
        if not _begins_as_a_line(half):
            raise RequestError(_no_journal(path))
        os.truncate(path, path.stat().st_size - len(half))
    finally:
        lock.release()


def _half_a_line(path: Path) -> bytes:
    return path.read_bytes().rpartition(b"\n")[2]


def _no_journal(path: Path | str) -> str:
    return (
        f"sweep.storage={path}: this is no journal of Optuna, or a damaged one; name another file, "
        "or a database by its address, as in sqlite:///study.db"
    )


def require_shareable(storage: Any, settings: Sweep, searched: Sequence[Override]) -> None:
    """Checks that a sweep can join the study that `sweep.study` names, if that exists.

    Raises:
        RequestError: the study has other objectives, has tried other choices of a searched key or,
            for a grid, other keys.
    """
    try:
        study = optuna.load_study(study_name=settings.study, storage=storage)
    except KeyError:
        return
    _require_same_objectives(study, settings)
    spaces = distributions(searched)
    for trial in study.get_trials(deepcopy=False):
        tried = trial.distributions
        for key in tried.keys() & spaces.keys():
            _require_compatible(settings, key, tried[key], spaces[key])
        if settings.sampler == "grid" and [*tried.items()] != [*spaces.items()][: len(tried)]:
            raise RequestError(
                f"sweep.study={settings.study}: sweep.sampler=grid can only share a study of the "
                f"same keys with the same values, in this order: {', '.join(tried)}"
            )


def require_trials(storage: Any, settings: Sweep, *, sweep_id: str, jobs: Collection[int]) -> None:
    """Checks that the study of a sweep to resume has the trials of its `jobs`, which have runs.

    Otherwise a new study would give their numbers to other trials.

    Raises:
        RequestError: it is not in the storage, or is another one.
    """
    try:
        study = optuna.load_study(study_name=settings.study, storage=storage)
        trials = study.get_trials(deepcopy=False)
    except KeyError:
        trials = []
    mine = {one.number for one in trials if one.user_attrs.get(_SWEEP, sweep_id) == sweep_id}
    if not mine.issuperset(jobs):
        address = str(settings.storage)
        place = without_password(address) if "://" in address else Path(address).absolute()
        raise RequestError(
            f"sweep.resume={sweep_id}: the study with the trials of its jobs is not in "
            f"sweep.storage={place}; restore it there, or start a new sweep"
        )


def _require_same_objectives(study: Any, settings: Sweep) -> None:
    """Checks the objectives: Optuna would go on with the study's, or refuse each trial's result.

    Of a study that no sweep has made, only the directions are known.

    Raises:
        RequestError: they differ.
    """
    metrics = study.user_attrs.get(_METRICS)
    then = [direction.name.lower() for direction in study.directions]
    now = [objective.direction for objective in objectives(settings)]
    if then != now or metrics not in (None, settings.objective):
        raise RequestError(
            f"sweep.study={settings.study}: its trials {_aims(then, metrics or [])}, those of this "
            f"sweep {_aims(now, settings.objective)}; name another study, or the same objectives"
        )


def _require_compatible(settings: Sweep, key: str, then: Any, now: Any) -> None:
    try:
        optuna.distributions.check_distribution_compatibility(then, now)
    except ValueError as error:
        raise RequestError(
            f"sweep.study={settings.study}: its trials have other values of {key} to choose from "
            f"({first_line(str(error))}); name another study, or the same values"
        ) from error


def _aims(directions: Sequence[str], metrics: Sequence[str]) -> str:
    if metrics:
        return " and ".join(map(" ".join, zip(directions, metrics, strict=True)))
    return " and ".join(directions)


def pruning_listener(sweep: Sweep, epochs: int) -> Callable[[int, Mapping[str, float]], None]:
    """Returns a listener that reports each epoch's objective of a job to the study.

    After the last of its `epochs`, a job is never pruned: it has nothing left to save.

    Raises:
        Pruned: in the listener, if the study considers the trial unpromising.
    """
    study = optuna.load_study(
        storage=open_storage(_address(sweep.job)),
        study_name=sweep.job.study,
        sampler=optuna.samplers.RandomSampler(),  # unused here
        pruner=make_pruner(sweep),
    )
    number = sweep.job.index
    trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)

    def listen(epoch: int, metrics: Mapping[str, float]) -> None:
        trial.report(metrics[sweep.objective[0]], epoch)
        if epoch < epochs and trial.should_prune():
            raise Pruned(f"pruned after epoch {epoch}")

    return listen


def pass_on_secret_address(settings: Sweep) -> None:
    """Puts an address with a password, which jobs need for pruning, into the environment.

    Processes inherit it when they start, so this comes before the workers.
    """
    if settings.pruner != "none" and _is_secret(settings.storage):
        os.environ[STORAGE] = str(settings.storage)


def _of_study(settings: Sweep) -> dict[str, str]:
    """The settings that a job needs for pruning, without a secret address."""
    if _is_secret(settings.storage):
        return {"study": str(settings.study)}
    return {"study": str(settings.study), "storage": str(settings.storage)}


def _is_secret(address: str | None) -> bool:
    return address is not None and "://" in address and without_password(address) != address


def _address(job: JobSettings) -> str:
    address = job.storage or os.environ.get(STORAGE)
    if address is None:
        raise RequestError(
            f"sweep.storage: the job's machine lacks the environment variable {STORAGE}, which "
            "holds the address with its password; make the launcher pass it on"
        )
    return address


def make_pruner(settings: Sweep) -> Any:
    """Creates Optuna's pruner for `sweep.pruner`.

    Raises:
        RequestError: an option is refused.
    """
    # `sweep=tpe sweep.pruner=none` leaves the options of the file's own pruner without a use.
    options = {} if settings.pruner == "none" else settings.pruner_options
    made = _made("pruner", optuna.pruners, _PRUNERS[settings.pruner], options)
    if settings.pruner == "hyperband":
        _check_hyperband(options)
    return made


def _check_hyperband(options: Mapping[str, Any]) -> None:
    """Checks what Optuna checks only when a second trial may be pruned.

    Raises:
        RequestError: an option is refused.
    """
    halving = {key: value for key, value in options.items() if key != "max_resource"}
    _made("pruner", optuna.pruners, _PRUNERS["asha"], halving)
    least, most = options.get("min_resource", 1), options.get("max_resource", "auto")
    told = f"sweep.pruner_options: HyperbandPruner: min_resource={least}"
    if not isinstance(least, int):
        raise RequestError(f"{told} must be a whole number")
    if isinstance(most, int) and most < least:
        raise RequestError(f"{told} must not be above max_resource={most}")


def require_sense(settings: Sweep, searched: Sequence[Override]) -> None:
    """Refuses incompatible settings of an adaptive search, and a grid without end.

    Raises:
        RequestError: names them.
    """
    if int(optuna.__version__.partition(".")[0]) < OLDEST:
        raise RequestError(
            f"Optuna {optuna.__version__} is too old to search with (hydra-optuna-sweeper installs "
            f"it); pip uninstall hydra-optuna-sweeper, then pip install 'optuna>={OLDEST}'"
        )
    _require_prunable(settings)
    if settings.sampler == "gp" and importlib.util.find_spec("torch") is None:
        raise RequestError("sweep.sampler=gp: Optuna's GP needs PyTorch; pip install torch")
    make_pruner(settings)
    if settings.resume is None:  # one that was begun with them goes on with them
        _require_effect_and_place(settings)
    _sampler(settings, 0)
    for key, space in distributions(searched).items():
        if settings.sampler == "grid" and size(space) > MOST_JOBS:
            raise RequestError(
                f"sweep.sampler=grid: {key} may have at most {MOST_JOBS:,} values; list them or "
                f"give {key}=range(start,stop,step), or choose another sampler"
            )


def _require_effect_and_place(settings: Sweep) -> None:
    if "seed" in settings.sampler_options:
        raise RequestError(
            "sweep.sampler_options.seed has no effect, because the sampler is seeded by sweep.seed;"
            f" write sweep.seed={settings.sampler_options['seed']}"
        )
    if settings.study is not None and settings.storage is None:
        raise RequestError(
            f"sweep.study={settings.study} has no effect without sweep.storage: each sweep keeps a "
            "study in its own folder; name the storage that sweeps share, or leave the study out"
        )
    if settings.storage is not None and settings.storage.startswith("~/"):
        raise RequestError(
            "sweep.storage: the shell leaves ~ as it is there; write "
            f"sweep.storage=$HOME{settings.storage[1:]}"
        )


def _require_prunable(settings: Sweep) -> None:
    if settings.pruner == "none":
        return
    if len(settings.objective) > 1:
        raise RequestError(
            f"sweep.pruner={settings.pruner}: with two objectives no trial can be pruned; "
            "set sweep.pruner=none"
        )
    if not settings.objective[0].startswith("val/"):
        raise RequestError(
            f"sweep.pruner={settings.pruner} needs an objective that each epoch has, such as "
            f"val/accuracy, not {settings.objective[0]}"
        )


def require_time_to_prune(settings: Sweep, epochs: int, *, typed: bool) -> None:
    """Checks that the pruner may end a trial of this many epochs before the last, if it is `typed`.

    Otherwise only checks that the first epoch is among them, without which hyperband would fail.

    Raises:
        RequestError: an option sets the first epoch beyond them.
    """
    option, least = _FIRST_EPOCH.get(settings.pruner, ("", 0))
    first = settings.pruner_options.get(option, least)
    if isinstance(first, int) and max(first, 1) > epochs - typed:
        raise RequestError(
            f"sweep.pruner_options.{option}={first} leaves sweep.pruner={settings.pruner} without "
            f"effect in {counted(epochs, 'epoch', 'epochs')}; lower it, or train longer"
        )


def _sampler(settings: Sweep, seed: int) -> Any:
    return _made(
        "sampler",
        optuna.samplers,
        _SAMPLERS[settings.sampler],
        {**settings.sampler_options, "seed": seed},
    )


def _made(kind: str, module: Any, name: str, options: Mapping[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return getattr(module, name)(**options)
    except TypeError as error:
        raise RequestError(
            f"sweep.{kind}_options: {name}: {first_line(str(error))}; an option that a file of "
            f"conf/sweep/ sets is left out with '~sweep.{kind}_options.NAME'"
        ) from error
    except ValueError as error:
        raise RequestError(f"sweep.{kind}_options: {name}: {first_line(str(error))}") from error


def per_trial(settings: Sweep) -> Any:
    """A sampler that is re-created for each trial, seeded by `sweep.seed` and the trial's number.

    A resumed search thus proposes the same trials as an uninterrupted one, and processes that share
    a study never draw the same numbers.
    """

    class PerTrial(optuna.samplers.BaseSampler):
        def _of(self, trial: Any) -> Any:
            seed = np.random.SeedSequence([settings.seed, trial.number]).generate_state(1)[0]
            return _sampler(settings, int(seed))

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            self.current = self._of(trial)
            return self.current.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self.current.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, space: Any) -> Any:
            return self.current.sample_independent(study, trial, name, space)

    return PerTrial()
