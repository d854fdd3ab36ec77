"""The settings of a multirun (`-m`): the group `sweep` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.rules import Count, Positive, Seed, WholeNumber, listed_in, one_of

Objective = Annotated[str, listed_in("pipeline.evaluation.metrics", "OBJECTIVES")]


@dataclass
class JobSettings:
    """The settings that a sweep passes to one of its jobs; all null for a run outside sweeps."""

    parent: str | None = MISSING
    """The sweep's own MLflow run."""
    index: int | None = MISSING
    """Place of the job in the sweep, from 0."""
    name: str | None = MISSING
    """Name of the job's run."""
    experiment: str | None = MISSING
    """The sweep's MLflow experiment, to which the job's run belongs too."""
    command: str | None = MISSING
    """The command that repeats the job on its own."""
    completes: str | None = MISSING
    """The finished run of one of the best jobs, to evaluate and to save the model of."""
    study: str | None = MISSING
    """Name of the Optuna study that may prune the job."""
    storage: str | None = MISSING
    """Storage of that study; null if the address is secret and in the environment instead."""


@dataclass
class Sweep:
    """Settings of a multirun (`-m`)."""

    params: dict[str, str] = MISSING
    """Values to try per key, written as on the command line, which takes precedence."""
    objective: Annotated[list[Objective], Field(min_length=1)] = MISSING
    """Metrics by which jobs are compared; the first ranks them."""
    direction: list[Annotated[str, one_of("maximize", "minimize")]] | None = MISSING
    """For each objective, whether to maximize or minimize it; null takes the metric's direction."""
    n_trials: Count = MISSING
    """Number of trials of an adaptive search (`hydra/sweeper=search`), including those before a
    resume."""
    sampler: Annotated[str, one_of("tpe", "random", "gp", "grid", "nsga2")] = MISSING
    """Optuna's sampler, which proposes the trials of an adaptive search."""
    sampler_options: dict[str, Any] = MISSING
    """Arguments of the sampler's class in Optuna."""
    pruner: Annotated[str, one_of("none", "median", "asha", "hyperband")] = MISSING
    """Optuna's pruner, which ends unpromising trials of an adaptive search early."""
    pruner_options: dict[str, Any] = MISSING
    """Arguments of the pruner's class in Optuna."""
    seed: Seed = MISSING
    """Seed of the sampler."""
    storage: str | None = MISSING
    """Optuna's storage: a database URL, or a journal file; null keeps one in the sweep's folder."""
    study: str | None = MISSING
    """Name of the study in the storage, which sweeps may share; null takes the sweep's."""
    keep_models: WholeNumber = MISSING
    """Number of best jobs that keep model and checkpoints and are evaluated on the test split."""
    on_failure: Annotated[str, one_of("continue", "stop")] = MISSING
    """Whether the sweep continues when a job fails or is killed."""
    max_failures: Count | None = MISSING
    """Failed or killed jobs after which the sweep stops; null sets no limit."""
    timeout_s: Positive | None = MISSING
    """Seconds after which a job is ended as failed."""
    memory_mb: Positive | None = MISSING
    """Resident memory of a job's process above which it is ended as failed."""
    preview: bool = MISSING
    """Show what would run, all of it checked, and run nothing."""
    resume: str | None = MISSING
    """Id of the sweep to resume, or `latest`."""
    job: JobSettings = field(default_factory=JobSettings)
