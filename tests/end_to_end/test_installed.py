"""The wheel, installed apart from the checkout, in a small project of somebody's own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import ROOT, environment, results
from tests.stores import empty_store
from tests.stress.matrix import only_stressed

pytestmark = pytest.mark.slow

MODELS = '''"""A model and a metric."""

import keras
import numpy as np

from pipeline.config.rules import Count
from pipeline.data.values import Predictions


def tiny(images: object, classes: int, *, width: Count) -> object:
    """One hidden layer."""
    x = keras.layers.Dense(width, activation="relu")(keras.layers.Flatten()(images))
    return keras.layers.Dense(classes, activation="softmax", name="probabilities")(x)


def top2(predictions: Predictions) -> float:
    """Share of images whose class is among the two most probable."""
    best = np.argsort(predictions.probs, axis=1)[:, -2:]
    return float((best == predictions.labels[:, None]).any(axis=1).mean())
'''
MINE = """# @package _global_
defaults:
  - override /dataset: synthetic
  - override /model: tiny
train: {epochs: 1, tensorboard: false, plots: []}
evaluate: {metrics: [loss, accuracy, my_models.top2], report: false, plots: []}
"""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A folder with the installed package, and one with a project that uses it."""

    packages: Path
    project: Path

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """The command `pixpipe` in the project."""
        return subprocess.run(
            [sys.executable, self.packages / "bin" / "pixpipe", *words],
            cwd=self.project,
            env=environment(PYTHONPATH=str(self.packages), **more),
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="module")
def pixpipe(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    packages, project = folder / "packages", folder / "project"
    built = [*pip, "wheel", *offline, "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(built, check=True, env=os.environ | {"SOURCE_DATE_EPOCH": "1600000000"})
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", str(packages), str(wheel)], check=True)
    for name, text in {
        "my_models.py": MODELS,
        "conf/model/tiny.yaml": "_target_: my_models.tiny\nwidth: 8 # of the hidden layer\n",
        "conf/experiment/mine.yaml": MINE,
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    git = ["git", "-C", str(project), "-c", "user.name=T", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "First"], check=True)
    empty_store(project)
    return Installed(packages=packages, project=project)


@pytest.fixture(scope="module")
def run(pixpipe: Installed) -> dict[str, str]:
    done = pixpipe("experiment=mine", "trusted_modules=[my_models]")
    assert done.returncode == 0, done.stderr
    return results(done.stdout)


def test_the_installed_package_is_the_one_that_runs(pixpipe: Installed) -> None:
    told = pixpipe("--info", "searchpath")
    assert str(pixpipe.packages / "pipeline" / "conf") in told.stdout
    assert str(pixpipe.project / "conf") in told.stdout
    assert str(ROOT / "conf") not in told.stdout


def test_a_model_a_metric_and_an_experiment_of_ones_own_are_run(
    pixpipe: Installed, run: dict[str, str]
) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{pixpipe.project}/mlflow.db")
    recorded = client.get_run(run["run_id"]).data
    assert 0 < recorded.metrics["test/top2"] <= 1
    assert recorded.metrics["test/top2"] >= recorded.metrics["test/accuracy"]
    assert recorded.params["model.width"] == "8"
    head = subprocess.run(
        ["git", "-C", str(pixpipe.project), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    assert recorded.tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert recorded.tags["version.pipeline"] == "0.1.0"
    assert len(recorded.tags["trusted.my_models"]) == 64
    (kept,) = (pixpipe.project / "mlartifacts").rglob("code/my_models.py")
    assert kept.read_text() == MODELS


@only_stressed  # config/test_trusted.py reads recorded runs so
def test_what_the_run_trusted_is_not_trusted_by_who_reads_it(
    pixpipe: Installed, run: dict[str, str]
) -> None:
    refused = pixpipe("evaluate", f"run_id={run['run_id']}")
    assert refused.returncode == 2
    assert "if you trust the module my_models, add trusted_modules=[my_models]" in refused.stderr


@only_stressed  # config/test_trusted.py reads recorded runs so
def test_the_defaults_of_a_project_may_trust(pixpipe: Installed, run: dict[str, str]) -> None:
    defaults = pixpipe.project / "conf" / "project" / "default.yaml"
    defaults.parent.mkdir()
    defaults.write_text("# @package _global_\ntrusted_modules: [my_models]\n")
    done = pixpipe("evaluate", f"run_id={run['run_id']}")
    assert done.returncode == 0, done.stderr
