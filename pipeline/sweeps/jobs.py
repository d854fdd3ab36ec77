"""Turns the words of a multirun into jobs: what they share, and the values that each tries."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from typing import Any, Literal, Protocol

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.compose import Composer, known_to_hydra
from pipeline.config.effects import may_lack_effect, with_effect
from pipeline.config.messages import error_line
from pipeline.config.schema import Config, validate
from pipeline.config.trusted import trust_again, trusted
from pipeline.config.words import LEFT_TO_JOBS, as_typed, quoted, quoted_word, words_of
from pipeline.sweeps.outcomes import FINISHED, Outcome
from pipeline.sweeps.ranges import numbers
from pipeline.system.errors import RequestError
from pipeline.system.secrets import hide_word
from pipeline.tracking.values import SEED, SHORT

ABOUT_SWEEPS = ("sweep=", "sweep.", "hydra")
PARENTS_ALONE = ("sweep.storage", "sweep.study", "sweep.resume", "sweep.preview")
MOST_JOBS = 100_000  # in a grid
LOG = "log"  # the tag of intervals and ranges that a search draws from logarithmically
_LONG = 8  # numbers with more characters are shortened
_SHORT = {"learning_rate": "lr"}
AxisScale = Literal["log", "linear"]
_EXAMPLE = "python -m pipeline -m optimizer.learning_rate=1e-4,1e-3 seed=0,1,2"

# Keys that the sweep sets for all jobs, and that therefore cannot be searched.
SWEEPS_OWN = {
    "sweep": "it is about the sweep as a whole",
    "hydra": "it is about the sweep as a whole",
    "tracking.uri": "all jobs of a sweep are recorded in one store",
    "tracking.experiment": "all jobs of a sweep are recorded in its experiment",
    "tracking.artifact_root": "all jobs of a sweep are recorded in its experiment",
    "tracking.run_name": "jobs are named by what they try",
    "tracking.log_model": "the best sweep.keep_models save their models",
    "evaluate.test": "the best sweep.keep_models are evaluated on the test split",
    "data_dir": "all jobs of a sweep share one cache",
}
# Those of Hydra that a file of a job could set.
_HYDRAS = ("hydra.launcher", "hydra.sweeper", "hydra.sweep", "hydra.job.chdir")
# Keys that have no effect in a sweep, even with a single value.
NO_EFFECT = {
    "sweep.job": "the sweep fills it in",
    "hydra.sweep.subdir": "a job's folder has its number; the sweep's is hydra.sweep.dir",
    "hydra.run": "a sweep's folder is hydra.sweep.dir",
    "hydra.sweeper": "sweep.… configures the search; see conf/sweep/default.yaml",
    "tracking.log_model": "sweep.keep_models says how many of the best save their models",
    "run_id": "it names a recorded run, but a sweep creates new ones",
    "choices": "Hydra fills it in",
}
_UNFIT = (HydraException, OmegaConfBaseException)  # what words raise that do not fit the files
# Keys that only an adaptive search uses.
SEARCHS_OWN = ("n_trials", "sampler", "sampler_options", "seed", "storage", "study")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep; `params` are the swept values as on a command line."""

    index: int
    params: Mapping[str, str]

    @property
    def overrides(self) -> list[str]:
        """The words of a command line that set `params`."""
        return [f"{key}={value}" for key, value in self.params.items()]

    def __str__(self) -> str:
        return job_name(self.params)


@dataclass(frozen=True, kw_only=True)
class Multirun:
    """A requested multirun, as read from the command line."""

    fixed: Sequence[str]
    searched: Sequence[Override]
    composed: DictConfig
    loader: ConfigLoader
    unplaced: Mapping[str, str]
    """Fixed values for keys that only some configurations have, which `composed` lacks."""
    typed: Sequence[str]
    """The words of the command line, without those for Hydra."""

    @cached_property
    def config(self) -> Config:
        """The checked configuration that the jobs share."""
        return _checked(self.composed)

    @cached_property
    def _composer(self) -> Composer:
        return Composer(self.loader, self.composed)

    @cached_property
    def _tries_files(self) -> bool:
        return any(map(self._composer.chooses_a_file, self.searched))

    def compose(self, job: Job) -> Config:
        """The checked configuration of a job.

        Raises:
            RequestError: Hydra cannot compose it, a value is refused, or a file that it chooses
                sets what the sweep decides; the message names the job.
        """
        others = trusted()  # the modules of other jobs, which are checked further
        try:
            composed = self._composer.compose([*self.fixed, *job.overrides])
            if self._tries_files:
                _require_the_sweeps_own(composed, self.composed)
            return _checked(composed)
        except Exception as error:
            raise RequestError(f"job {job.index} ({job}): {error_line(error)}") from error
        finally:
            trust_again(others)

    @property
    def scales(self) -> dict[str, AxisScale]:
        """The scale of searched intervals and ranges by key: logarithmic with `tag(log,…)`."""
        return {
            one.get_key_element(): "log" if LOG in space.tags else "linear"
            for one in self.searched
            if isinstance(space := one.value(), IntervalSweep | RangeSweep)
        }

    def words(self, job: Job) -> list[str]:
        """The overrides of a job, without those for Hydra and for the sweep itself."""
        left_out = ("hydra.", "hydra/", *PARENTS_ALONE)
        fixed = [word for word in self.fixed if not word.lstrip("+~").startswith(left_out)]
        return [*fixed, *job.overrides]

    def command(self, job: Job) -> str:
        """The command that repeats a job on its own."""
        about_all = (*ABOUT_SWEEPS, "tracking.uri=")
        fixed = [word for word in self.fixed if not word.lstrip("+~").startswith(about_all)]
        words = fixed + job.overrides
        if may_lack_effect(words):  # in this job: it would be refused
            with suppress(RequestError):  # the job fails, and says why
                words = with_effect(words, self.compose(job))
        return shlex.join(["python", "-m", "pipeline", *self._places, *map(hide_word, words)])

    @property
    def _places(self) -> Iterator[str]:
        """The flags and words that say where configuration files are."""
        hydra = self.composed.hydra
        for source in hydra.runtime.config_sources:
            if source.provider == "command-line":
                yield f"--config-dir={source.path}"
        if hydra.job.config_name != "config":
            yield f"--config-name={hydra.job.config_name}"
        yield from (one for one in hydra.overrides.hydra if one.startswith("hydra.searchpath="))


def asked_for(
    words: Sequence[str], composed: DictConfig, loader: ConfigLoader, *, adaptive: bool
) -> Multirun:
    """Reads the words of a command line, and with them `sweep.params`.

    Raises:
        RequestError: nothing is searched, or a word has no effect in this kind of sweep.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(list(words))
    about_hydra = parser.parse_overrides(  # Hydra lists these overrides separately
        [word for word in composed.hydra.overrides.hydra if not word.startswith("hydra.mode=")]
    )
    _require_effect([*about_hydra, *given], composed, adaptive=adaptive)
    keys = {override.get_key_element() for override in given}
    kept: dict[str, Any] = OmegaConf.to_container(composed.sweep.params)  # type: ignore[assignment]
    from_file = parser.parse_overrides(
        [word for key, word in words_of(kept).items() if key not in keys]
    )
    _require_effect(from_file, composed, adaptive=adaptive)
    every = [*from_file, *given]
    searched = [one for one in every if one.is_sweep_override() and not _is_left_to_jobs(one)]
    if not searched:
        raise RequestError(
            "nothing to sweep over: give a key several values, as in\n"
            f"{_EXAMPLE}\nor choose a sweep from conf/sweep/, as in sweep=lr_grid"
        )
    for one in searched:
        _require_known_tags(one)
    fixed = [word for one in every if one not in searched and (word := _fixed(one))]
    unplaced: list[str] = []
    if left := [_fixed(one) for one in every if _is_left_to_jobs(one)]:
        composed, unplaced = _placed(Composer(loader, composed), fixed, left, searched)
    return Multirun(
        fixed=fixed,
        searched=searched,
        composed=composed,
        loader=loader,
        unplaced=dict(word.partition("=")[::2] for word in unplaced),
        typed=[as_typed(word) for word in words],
    )


def _placed(
    composer: Composer, fixed: Sequence[str], left: Sequence[str], searched: Sequence[Override]
) -> tuple[DictConfig, list[str]]:
    """The sweep's own configuration with its `fixed` words, and those that do not fit it.

    Of the words that were `left` to the jobs, some may be for keys that only the files have that
    jobs try; each job is checked.

    Raises:
        HydraException: no files are tried, and a word does not fit.
    """
    try:
        return composer.compose(fixed), []
    except _UNFIT:
        if not any(map(composer.chooses_a_file, searched)):
            raise
    own = [word for word in fixed if word not in left]
    unplaced = [word for word in left if not _fits(composer, [*own, word])]
    return composer.compose([word for word in fixed if word not in unplaced]), unplaced


def _fits(composer: Composer, words: Sequence[str]) -> bool:
    try:
        composer.compose(words)
    except _UNFIT:
        return False
    return True


def grid(searched: Sequence[Override]) -> list[Job]:
    """One job for every combination of values; the last key varies fastest.

    Raises:
        RequestError: a key has no value, or an interval, which has infinitely many.
    """
    values = {}
    for override in searched:
        if not override.is_discrete_sweep():
            raise RequestError(
                f"{override.input_line}: a grid needs single values; list them, or search the "
                "interval with hydra/sweeper=search"
            )
        values[override.get_key_element()] = swept_values(override)
    count = math.prod(map(len, values.values()))
    if count > MOST_JOBS:
        raise RequestError(
            f"{count:,} jobs: a grid may have at most {MOST_JOBS:,}; try fewer values"
        )
    return [
        Job(index=index, params=dict(zip(values, combination, strict=True)))
        for index, combination in enumerate(product(*values.values()))
    ]


def swept_values(override: Override) -> list[str]:
    """The values of a key to try, as texts.

    Raises:
        RequestError: there are none.
    """
    if isinstance(override.value(), RangeSweep):
        values = list(map(repr, numbers(override)))
    else:
        values = list(override.sweep_string_iterator())
    if not values:
        raise RequestError(f"{override.input_line}: has no value to try")
    return values


class JobSource(Protocol):
    """A source of jobs: a grid, or a search that learns from their outcomes."""

    known: bool
    """Whether all jobs are known before the first one runs."""
    total: int
    """Number of jobs in total."""
    job_settings: Mapping[str, str]
    """Settings about the source for each job, by the names of `JobSettings`."""

    def jobs(self) -> Iterator[Job]:
        """Yields the jobs still to run, on demand."""

    def known_jobs(self) -> Mapping[int, Job]:
        """The jobs so far, by index."""

    def tell(self, outcome: Outcome) -> None:
        """Receives the outcome of a job."""

    def catch_up(self, ended: Mapping[int, Outcome]) -> None:
        """Receives the outcomes of an interrupted sweep."""


class Grid:
    """A source whose jobs are all known in advance."""

    known = True

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.all, self.total, self.done = jobs, len(jobs), set[int]()
        self.job_settings: Mapping[str, str] = {}

    def jobs(self) -> Iterator[Job]:
        """Yields the jobs that have not finished yet."""
        return (job for job in self.all if job.index not in self.done)

    def known_jobs(self) -> dict[int, Job]:
        """All jobs, by index."""
        return {job.index: job for job in self.all}

    def tell(self, outcome: Outcome) -> None:
        """Does nothing: a grid does not learn."""

    def catch_up(self, ended: Mapping[int, Outcome]) -> None:
        """Leaves out the jobs that have finished."""
        self.done = {index for index, outcome in ended.items() if outcome.status == FINISHED}


def job_name(params: Mapping[str, str]) -> str:
    """Parameters in short form, for names of jobs: `lr=0.001 dropout=0.1`."""
    names = short_keys(params)
    return " ".join(f"{names[key]}={brief(text)}" for key, text in params.items())


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each key, or as many parts as make it unique; `seed` is a run's own seed."""
    plain = {key: key.lstrip("+") for key in keys}
    parts = {key: text.split(".") for key, text in plain.items()}
    names = {key: _SHORT.get(last[-1], last[-1]) for key, last in parts.items()}
    while repeated := {
        name for name, count in Counter([SEED, *names.values()]).items() if count > 1
    }:
        longer = {
            key: ".".join(parts[key][-(name.count(".") + 2) :])
            for key, name in names.items()
            if name in repeated
        }
        if all(names[key] == name for key, name in longer.items()):
            return {**names, **{key: key for key in longer}}
        names |= longer
    return names


def brief(text: str) -> str:
    """A value for people to read: a long number with four significant digits, if not a whole one.

    Seeds and dates of as many digits would look the same. Ids of runs are shortened.
    """
    if len(text) <= _LONG or text.lstrip("+-").isdecimal():
        return text
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return with_short_ids(text)


def with_short_ids(text: str) -> str:
    """A text with the first characters of each run's id in place of the whole."""
    return re.sub(r"\b[0-9a-f]{32}\b", lambda found: found[0][:SHORT], text)


def _require_effect(given: Sequence[Override], composed: DictConfig, *, adaptive: bool) -> None:
    """Refuses words that a sweep would ignore or overwrite.

    Raises:
        RequestError: names the word, and what to do instead.
    """
    count = Counter(one.get_key_element().lstrip("+") for one in given)
    for one in given:
        key, line = one.key_or_group, as_typed(str(one.input_line))
        if count[one.get_key_element().lstrip("+")] > 1:
            lines = [as_typed(str(o.input_line)) for o in given if o.key_or_group == key]
            raise RequestError(f"{' and '.join(lines)}: give {key} once")
        if reason := _reason(key, NO_EFFECT) or _of_a_verb(key, composed):
            raise RequestError(f"{line} has no effect in a sweep: {reason}")
        searched = one.is_sweep_override() and not _is_left_to_jobs(one)
        if searched and (reason := _reason(key, SWEEPS_OWN)):
            raise RequestError(f"{line} cannot be searched: {reason}; {_one_value(one)}")
        if not adaptive and key.startswith(tuple(f"sweep.{name}" for name in SEARCHS_OWN)):
            raise RequestError(
                f"{line} has no effect on a grid: only an adaptive search uses it, "
                "hydra/sweeper=search"
            )
    names = {one.key_or_group for one in given}
    if composed.sweep.on_failure == "stop" and composed.sweep.max_failures is not None:
        raise RequestError(
            f"sweep.max_failures={composed.sweep.max_failures} has no effect beside "
            "sweep.on_failure=stop, which stops at the first; leave one of them out"
        )
    idle = [name for name in names if _is_in(name, "sweep.pruner_options")]
    if idle and composed.sweep.pruner == "none" and "sweep.resume" not in names:
        raise RequestError(
            f"{min(idle)} has no effect with sweep.pruner=none; leave it out, or choose a pruner"
        )
    if "sweep.resume" in names and (other := names & {"sweep.preview", "hydra.sweep.dir"}):
        raise RequestError(f"{min(other)} has no effect with sweep.resume; leave one of them out")


def _one_value(searched: Override) -> str:
    """How to give one value to a key of the sweep's own."""
    key, values = searched.key_or_group, str(searched.input_line).partition("=")[2]
    swept = key.removeprefix("sweep.params.")
    if swept == key:
        return "give it one value"
    word = quoted_word(f"+sweep.params={{{swept}: {quoted(values)}}}")  # a key may have dots
    return f"write {swept}={values}, or quote the values: {word}"


def _reason(key: str, table: Mapping[str, str]) -> str | None:
    return next((why for own, why in table.items() if _is_in(key, own)), None)


def _is_in(key: str, group: str) -> bool:
    return key == group or key.startswith((f"{group}.", f"{group}/"))


def _of_a_verb(key: str, composed: DictConfig) -> str | None:
    first = key.replace("/", ".").partition(".")[0]
    heeded = {one.name for one in fields(Config)} | {"hydra", "experiment"}
    return f"{first} belongs to another verb" if first in composed and first not in heeded else None


def _require_the_sweeps_own(composed: DictConfig, master: DictConfig) -> None:
    """Refuses a file, chosen by a job, that sets a key of the sweep's own.

    Raises:
        RequestError: names the first such key.
    """
    for key in (*SWEEPS_OWN, *_HYDRAS):
        if key != "hydra" and _plain(composed, key) != _plain(master, key):
            why = _reason(key, SWEEPS_OWN)
            raise RequestError(f"its file sets {_differing(key, composed, master)}: {why}")


def _differing(key: str, composed: DictConfig, master: DictConfig) -> str:
    now, then = _plain(composed, key), _plain(master, key)
    if not isinstance(now, dict) or not isinstance(then, dict):
        return key
    return next(f"{key}.{name}" for name in now | then if now.get(name) != then.get(name))


def _plain(composed: DictConfig, key: str) -> Any:
    value = OmegaConf.select(composed, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _is_left_to_jobs(override: Override) -> bool:
    value = override.value()
    return isinstance(value, Sweep) and LEFT_TO_JOBS in value.tags


def _require_known_tags(override: Override) -> None:
    """Refuses a tag without effect: the search would draw evenly where `tag(lgo,…)` was typed.

    Raises:
        RequestError: with the tag that there is.
    """
    space, line = override.value(), override.input_line
    tags = space.tags if isinstance(space, Sweep) else set()
    if unknown := sorted(tags - {LOG}):
        raise RequestError(f"{line}: there is no tag {unknown[0]}; the only one is {LOG}")
    if tags and not isinstance(space, IntervalSweep | RangeSweep):
        raise RequestError(f"{line}: tag({LOG},…) is for intervals and ranges, not for a choice")


def _fixed(override: Override) -> str:
    line = str(override.input_line or "")
    return as_typed(line) if _is_left_to_jobs(override) else line


def _checked(composed: DictConfig) -> Config:
    with known_to_hydra(composed):
        return validate(composed)
