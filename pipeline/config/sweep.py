"""What a multirun (`-m`) is asked for: the group `sweep` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.rules import Count, Positive, Seed, listed_in, one_of

Objective = Annotated[str, listed_in("pipeline.evaluation.metrics", "OBJECTIVES")]


@dataclass
class JobSettings:
    """What a sweep tells one of its jobs; a run that belongs to no sweep has null for all of it."""

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
    """The finished run of one of the best jobs, to be evaluated and its model to be saved."""
    study: str | None = MISSING
    """Name of the Optuna study that may prune the job."""
    storage: str | None = MISSING
    """Where that study is kept; null if the address is secret and in the environment instead."""


@dataclass
class Sweep:
    """What a multirun (`-m`) tries, and how it goes about it."""

    params: dict[str, str] = MISSING
    """What to try for each key, as on the command line, whose own values take precedence."""
    objective: Annotated[list[Objective], Field(min_length=1)] = MISSING
    """Metrics by which trials are compared; the first ranks them."""
    direction: list[Annotated[str, one_of("maximize", "minimize")]] | None = MISSING
    """For each objective, whether to maximize or minimize it; null takes what the metric says."""
    n_trials: Count = MISSING
    """Trials in all of an adaptive search (`hydra/sweeper=search`), resumed or not."""
    sampler: Annotated[str, one_of("tpe", "random", "gp", "grid", "nsga2")] = MISSING
    """How an adaptive search proposes: Optuna's sampler of that name."""
    sampler_options: dict[str, Any] = MISSING
    """Arguments of the sampler's class in Optuna."""
    pruner: Annotated[str, one_of("none", "median", "asha", "hyperband")] = MISSING
    """What ends an adaptive search's unpromising trials early: Optuna's pruner of that name."""
    pruner_options: dict[str, Any] = MISSING
    """Arguments of the pruner's class in Optuna."""
    seed: Seed = MISSING
    """Seed of the sampler."""
    storage: str | None = MISSING
    """Optuna's storage: a database URL, or a journal file; null keeps one in the sweep's folder."""
    study: str | None = MISSING
    """Name of the study in the storage, for several sweeps to work on; null takes the sweep's."""
    keep_models: Annotated[int, Field(ge=0)] = MISSING
    """How many of the best keep model and checkpoints and are evaluated on the test split."""
    on_failure: Annotated[str, one_of("continue", "stop")] = MISSING
    """Whether the sweep goes on when a job fails."""
    max_failures: Count | None = MISSING
    """Failed jobs after which the sweep stops; null goes on."""
    timeout_s: Positive | None = MISSING
    """Seconds after which a job is ended as failed."""
    memory_mb: Positive | None = MISSING
    """Resident memory of a job's process above which it is ended as failed."""
    preview: bool = MISSING
    """Show what would run, all of it checked, and run nothing."""
    resume: str | None = MISSING
    """Id of the sweep to go on with, or `latest`."""
    job: JobSettings = field(default_factory=JobSettings)
