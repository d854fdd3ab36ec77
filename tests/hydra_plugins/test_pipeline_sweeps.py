from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from hydra_plugins.pipeline_sweeps import GridSweeper, LocalLauncher, OptunaSweeper
from pipeline.sweeps.launch import do_job


@pytest.mark.parametrize(
    ("kind", "names"),
    [(Sweeper, {"GridSweeper", "OptunaSweeper"}), (Launcher, {"LocalLauncher"})],
)
def test_hydra_finds_the_plugins(kind: type[Any], names: set[str]) -> None:
    assert names <= {found.__name__ for found in Plugins.instance().discover(kind)}


@pytest.mark.parametrize("kind", [GridSweeper, OptunaSweeper])
def test_a_sweeper_hands_the_multirun_and_the_launcher_to_the_sweep(
    kind: type[GridSweeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Any] = []
    swept: list[Any] = []

    def instantiate_launcher(self: Any, **given: Any) -> str:
        launched.append(given["task_function"])
        return "the launcher"

    def sweep(plan: Any, launcher: Any) -> None:
        swept.append((plan, launcher))

    monkeypatch.setattr(Plugins, "instantiate_launcher", instantiate_launcher)
    monkeypatch.setattr(
        "pipeline.sweeps.jobs.asked_for",
        lambda words, config, loader, *, adaptive: (words, config, loader, adaptive),
    )
    monkeypatch.setattr(
        "pipeline.sweeps.plan.plan_sweep",
        lambda multirun, launcher, *, adaptive: ("planned", multirun, launcher, adaptive),
    )
    monkeypatch.setattr(
        "pipeline.libraries.import_slow", lambda module: SimpleNamespace(sweep=sweep)
    )
    context: Any = SimpleNamespace(config_loader="the loader")
    sweeper, config = kind(), {"seed": 0}
    sweeper.setup(hydra_context=context, task_function=print, config=config)  # type: ignore[arg-type]
    sweeper.sweep(["seed=0,1"])
    adaptive = kind is OptunaSweeper
    assert launched == [do_job]  # a job of the sweep, not Hydra's own run
    multirun = (["seed=0,1"], config, "the loader", adaptive)
    assert swept == [(("planned", multirun, "the launcher", adaptive), "the launcher")]


def test_settings_of_another_sweeper_of_the_same_name_have_no_effect() -> None:
    assert OptunaSweeper(sampler="tpe", n_trials=3).adaptive


def test_the_launcher_keeps_hydras_arguments_and_runs_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher = LocalLauncher(n_jobs=2, threads=None)
    launcher.setup(hydra_context=None, task_function=print, config=None)  # type: ignore[arg-type]
    assert (launcher.n_jobs, launcher.threads, launcher.task_function) == (2, None, print)
    monkeypatch.setattr("pipeline.sweeps.launch.launch_batch", lambda *given: given)
    assert launcher.launch([["seed=0"]], 5) == (launcher, [["seed=0"]], 5)
