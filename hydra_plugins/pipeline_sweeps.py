"""The project's sweepers and launcher as Hydra's plugins; the work is in `pipeline/`."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# Hydra imports this file at every start, so the methods import what they need.


class GridSweeper(Sweeper):
    """`hydra/sweeper=grid`: every combination."""

    adaptive = False

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keeps Hydra's arguments; our task function is a job of the sweep, not Hydra's own run."""
        from pipeline.sweeps.launch import do_job

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=do_job, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Carries out the multirun that the command line asks for."""
        from pipeline.libraries import import_slow
        from pipeline.sweeps.jobs import asked_for
        from pipeline.sweeps.plan import plan_sweep

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        multirun = asked_for(arguments, self.config, loader, adaptive=self.adaptive)
        plan = plan_sweep(multirun, self.launcher, adaptive=self.adaptive)
        import_slow("pipeline.sweeps.sweep").sweep(plan, self.launcher)


class OptunaSweeper(GridSweeper):
    """`hydra/sweeper=search` or `optuna`: adaptive search.

    If hydra-optuna-sweeper is installed, whose configuration is also called `optuna`, Hydra passes
    its settings as well; they have no effect here.
    """

    adaptive = True

    def __init__(self, **_: object) -> None:
        super().__init__()


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: worker processes that are started once and share the cores."""

    def __init__(self, n_jobs: int, threads: int | None) -> None:
        self.n_jobs, self.threads = n_jobs, threads

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keeps Hydra's arguments."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs a batch of jobs, for Hydra's own sweeper."""
        from pipeline.sweeps.launch import launch_batch

        return launch_batch(self, job_overrides, initial_job_idx)
