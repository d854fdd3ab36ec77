"""Every file under conf/experiment/ trains two steps, on small images and with a small network."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pipeline.config.builders import check_keys
from pipeline.config.schema import Config
from pipeline.data.datasets import synthetic
from pipeline.training import models
from pipeline.training.build import build_model
from pipeline.training.train import train
from tests.commands import CONF, ROOT, configured, pipeline
from tests.pictures import class_folders
from tests.splits import in_splits

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PREPARED = in_splits(
    synthetic(train_size=60, test_size=10, classes=2, image_shape=(8, 8, 1), noise=32.0, seed=0),
    validation_size=20,
    seed=0,
)
NARROW = {
    "widths": [3, 4],
    "width": 8,
    "widen": 1,
    "depth": 10,
    "blocks": 1,
    "hidden": [4, 4],
    "filters": [2],
}


def small(config: Config) -> Config:
    """The same configuration with a narrow network and two steps."""
    model = {key: NARROW.get(key, value) for key, value in config.model.items()}
    if "weights" in model:  # which need not be installed
        model |= {"weights": None, "trainable": "all", "size": 16, "unfreeze_epochs": 0}
    settings = replace(config.train, epochs=1, batch_size=8, tensorboard=False, plots=[])
    return replace(config, model=model, train=settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_trains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "LITE_STAGES", ((1, 3, 2, 1, 8), (1, 3, 2, 2, 8)))
    config = small(configured(f"experiment={name}"))
    prepared = PREPARED.limited(16)
    model = build_model(config, prepared, checked=True)
    optimizer = model.optimizer  # the model that is saved has none of ours
    fitted = train(model, prepared, config, tmp_path, [])
    assert int(optimizer.iterations) == 2
    assert np.isfinite(fitted.history["val/loss"]).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_says_what_was_measured_and_how_to_repeat_it(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    header = text[: text.index("\n\n")]
    for part in (f"experiment={name}", "# accuracy: ", "wall time"):
        assert part in header


def measured(header: str) -> str | None:
    """The test accuracy that the header of a recipe states, with its deviation if it has one."""
    found = re.search(r"# accuracy: (\d\.\d{3,}(?: ± \d\.\d+)?)", header)
    return found and found[1]


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md"])
def test_the_tables_of_recipes_have_the_accuracies_of_the_files(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", (ROOT / page).read_text("utf-8"), re.M)
    tabled = {name: text for name, text in rows if name in NAMES}
    assert {"fast", "tiny", "best_mlp", "stamps", "emoji"} <= tabled.keys()
    for name, text in tabled.items():
        found = measured((CONF / "experiment" / f"{name}.yaml").read_text("utf-8"))
        assert text.startswith(found or "not measured"), name


def test_the_files_that_the_readers_are_promised_are_there() -> None:
    recipes = {"seed_mlp", "best_mlp", "tiny", "fast", "small", "good", "best", "stamps", "emoji"}
    assert recipes | {"debug", "overfit"} <= set(NAMES)


def of(split: Any) -> list[int]:
    return np.bincount(split.labels).tolist()


def test_debug_sees_one_batch_of_training_and_of_validation_and_nothing_of_the_test() -> None:
    config = configured("experiment=debug")
    assert config.train.batch_size == config.preprocess.limit
    assert (config.train.epochs, config.evaluate.test) == (1, False)
    few = PREPARED.limited(4)
    assert (of(few.train), of(few.val)) == ([2, 2], [2, 2])
    assert len(few.test) == len(PREPARED.test)


SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml") if path.stem != "default")


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_the_command_in_a_sweep_file_is_one_that_can_be_carried_out(
    name: str, tmp_path: Path
) -> None:
    text = (CONF / "sweep" / f"{name}.yaml").read_text(encoding="utf-8")
    found = re.search("#   python -m pipeline (-m .*)", text.replace("\\\n#", ""))
    assert found
    words = shlex.split(found[1])
    class_folders(tmp_path / "photos", 2)
    shown = pipeline(*words, "sweep.preview=true", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "nothing was run" in shown.stdout
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("name", SWEEPS)
def test_every_value_that_a_sweep_file_lists_is_possible(name: str) -> None:
    """An impossible one fails only the trials that try it, after the preview."""
    file = CONF / "sweep" / f"{name}.yaml"
    recipe = re.findall(r"experiment=\w+", file.read_text("utf-8"))[:1]
    for key, values in OmegaConf.load(file).get("params", {}).items():
        space = OverridesParser.create().parse_override(f"{key}={values}")
        for value in space.sweep_string_iterator() if space.is_choice_sweep() else ():
            config = configured(*recipe, f"{key}={value}")
            check_keys("model", config.model, config.choices.model)


@pytest.mark.slow
def test_overfit_reaches_100_percent(tmp_path: Path) -> None:
    config = configured(
        "experiment=overfit", "train.epochs=20", "train.xla=false", "train.plots=[]"
    )
    prepared = PREPARED.limited(config.preprocess.limit)
    fitted = train(build_model(config, prepared, checked=True), prepared, config, tmp_path, [])
    assert fitted.history["train/accuracy"][-1] == 1
