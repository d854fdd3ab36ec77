"""From the words of a multirun to its jobs: what they share, and what each of them tries."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Protocol

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from pipeline.config.compose import Composer
from pipeline.config.messages import explain
from pipeline.config.schema import Config, validate
from pipeline.sweeps.outcomes import FINISHED, Outcome
from pipeline.system.errors import RequestError

ABOUT_SWEEPS = ("sweep=", "sweep.", "+sweep.", "hydra")
LONG = 8  # characters of a number that is shown as it is
EXAMPLE = "python -m pipeline -m optimizer.learning_rate=1e-4,1e-3 seed=0,1,2"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep: `params` are what it tries, as they would stand on a command line."""

    index: int
    params: Mapping[str, str]

    @property
    def overrides(self) -> list[str]:
        """The words of a command line that set `params`."""
        return [f"{key}={value}" for key, value in self.params.items()]

    def __str__(self) -> str:
        return shown(self.params)


@dataclass(frozen=True, kw_only=True)
class Multirun:
    """A multirun as it was asked for, before anything of it is decided."""

    fixed: Sequence[str]
    searched: Sequence[Override]
    composed: DictConfig
    loader: ConfigLoader

    @cached_property
    def config(self) -> Config:
        """What the jobs have in common, checked."""
        return _checked(self.composed)

    @cached_property
    def _composer(self) -> Composer:
        return Composer(self.loader, self.composed)

    def compose(self, job: Job) -> Config:
        """The checked configuration of a job.

        Raises:
            RequestError: naming the job, if Hydra cannot compose it or a value of it is refused.
        """
        try:
            return _checked(self._composer.compose([*self.fixed, *job.overrides]))
        except Exception as error:
            raise RequestError(f"job {job.index} ({job}): {explain(error)}") from error

    def command(self, job: Job) -> str:
        """What repeats a job on its own."""
        # An address may carry a password.
        words = [
            word for word in self.fixed if not word.startswith((*ABOUT_SWEEPS, "tracking.uri="))
        ]
        return shlex.join(["python", "-m", "pipeline", *words, *job.overrides])


def asked_for(words: Sequence[str], composed: DictConfig, loader: ConfigLoader) -> Multirun:
    """Reads the words of a command line, and with them `sweep.params`.

    Raises:
        RequestError: nothing is searched.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(list(words))
    keys = {override.get_key_element() for override in given}
    kept: dict[str, str] = OmegaConf.to_container(composed.sweep.params)  # type: ignore[assignment]
    words_kept = [f"{key}={value}" for key, value in kept.items() if key not in keys]
    every = [*parser.parse_overrides(words_kept), *given]
    searched = [override for override in every if override.is_sweep_override()]
    if not searched:
        raise RequestError(
            "nothing to sweep over: give a key several values, as in\n"
            f"{EXAMPLE}\nor choose a sweep that is kept in conf/sweep/, as in sweep=lr_grid"
        )
    fixed = [override.input_line for override in every if not override.is_sweep_override()]
    return Multirun(
        fixed=[line for line in fixed if line],
        searched=searched,
        composed=composed,
        loader=loader,
    )


def grid(searched: Sequence[Override]) -> list[Job]:
    """A job for every combination; the last key's values change from job to job.

    Raises:
        RequestError: a key has no value at all, or an interval, of which there is no end.
    """
    values = {}
    for override in searched:
        key = override.get_key_element()
        if not override.is_discrete_sweep():
            raise RequestError(
                f"{override.input_line}: a grid needs single values; list them, or search the "
                "interval with hydra/sweeper=optuna"
            )
        values[key] = list(override.sweep_string_iterator())
        if not values[key]:
            raise RequestError(f"{override.input_line}: has no value to try")
    return [
        Job(index=index, params=dict(zip(values, combination, strict=True)))
        for index, combination in enumerate(product(*values.values()))
    ]


class Source(Protocol):
    """Where jobs come from: a grid, or a search that learns from each one's end."""

    at_once: bool
    """Whether the jobs are known before the first of them runs."""
    total: int
    """How many there will be."""
    told: Mapping[str, str]
    """Values of the configuration by which a job knows its source."""

    def jobs(self) -> Iterator[Job]:
        """The jobs still to run, each when it is asked for."""

    def known_jobs(self) -> Mapping[int, Job]:
        """The jobs that there have been, by index."""

    def tell(self, outcome: Outcome) -> None:
        """Takes note of how a job ended."""

    def catch_up(self, ended: Mapping[int, Outcome]) -> None:
        """Takes note of what an interrupted sweep had got done."""


class Grid:
    """Jobs that are known beforehand."""

    at_once = True

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.all, self.total, self.done = jobs, len(jobs), set[int]()
        self.told: Mapping[str, str] = {}

    def jobs(self) -> Iterator[Job]:
        """Those that have not finished before."""
        return (job for job in self.all if job.index not in self.done)

    def known_jobs(self) -> dict[int, Job]:
        """All jobs, by index."""
        return {job.index: job for job in self.all}

    def tell(self, outcome: Outcome) -> None:
        """A grid learns nothing."""

    def catch_up(self, ended: Mapping[int, Outcome]) -> None:
        """Leaves out the jobs that have finished."""
        self.done = {index for index, outcome in ended.items() if outcome.state == FINISHED}


def shown(params: Mapping[str, str]) -> str:
    """Parameters in short: `learning_rate=0.001, dropout=0.1`."""
    return ", ".join(f"{key.rpartition('.')[2]}={brief(text)}" for key, text in params.items())


def brief(text: str) -> str:
    """A value for people to read: a long number with four digits that count."""
    try:
        return f"{float(text):.4g}" if len(text) > LONG else text
    except ValueError:
        return text


def _checked(composed: DictConfig) -> Config:
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)
    try:
        return validate(composed)
    finally:
        HydraConfig.instance().cfg = before
