"""Pretrained models are models like any other: each verb, with a small backbone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from pipeline.run import run
from pipeline.training import models
from tests.commands import LEAN, begun, carried_out, configured, inside, pipeline, results
from tests.stress.matrix import only_stressed

pytestmark = pytest.mark.slow
STAGES = ((1, 3, 2, 1, 8), (1, 3, 2, 2, 8))
DATA = (
    *("dataset=synthetic", "dataset.train_size=40", "dataset.test_size=12", "dataset.classes=3"),
    *("dataset.image_shape=[12,10,3]", "preprocess.validation_size=8"),
)
SMALL = (*DATA, "model=efficientnet_lite0", "model.size=16", "train.batch_size=16", *LEAN)
GATES = ("min_test_accuracy", "min_class_recall", "max_ece", "max_latency_ms")


class PowerCut(Exception):
    pass


def cut(epoch: int, metrics: Any) -> None:
    if epoch == 2:
        raise PowerCut


@pytest.fixture(scope="module", autouse=True)
def short_network() -> Iterator[None]:
    """EfficientNet-Lite with two blocks: building all of it takes seconds each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "LITE_STAGES", STAGES)
        yield


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a run from scratch, and its id."""
    folder = tmp_path_factory.mktemp("backbones")
    words = (*SMALL, "model.weights=null", "model.trainable=all", "train.epochs=1")
    with inside(folder):
        return folder, run(configured(*words), folder / "outputs").run_id


def called(verb: str, run_id: str, *words: str) -> Any:
    folder = Path.cwd() / f"{verb}-{time.monotonic_ns()}"
    return carried_out(verb, "dataset=synthetic", f"run_id={run_id}", *words, folder=folder)


@pytest.mark.parametrize(
    "trained",
    [
        "head",
        pytest.param("top", marks=only_stressed),
        pytest.param("all model.unfreeze_epochs=1 model.backbone_rate=0.5", marks=only_stressed),
    ],
)
def test_a_run_is_resumed_reproduced_and_evaluated_to_the_same_bits(
    donor: tuple[Path, str], trained: str, tmp_path: Path
) -> None:
    folder, source = donor
    choices = (f"model.weights={source[:8]}", *f"model.trainable={trained}".split())
    config = configured(*SMALL, *choices, "train.epochs=2")
    with inside(folder):
        with pytest.raises(PowerCut):
            run(config, tmp_path, cut)
        resumed = carried_out("resume", "dataset=synthetic", "run_id=latest", folder=tmp_path)
        kept = len([*folder.glob("data/synthetic/features-*")])
        reproduced = called("reproduce", resumed.run_id)
        assert reproduced.verdict == "bit-identical"
        if trained == "head":
            evaluated = called("evaluate", resumed.run_id, *LEAN[1:3])
            assert evaluated.test_accuracy == resumed.test_accuracy
            assert called("report", resumed.run_id) is not None
    # A model that was saved and loaded again has the features that were computed for training.
    assert kept == len([*folder.glob("data/synthetic/features-*")]) <= 1


def test_a_picture_of_any_size_and_colour_is_predicted_by_the_promoted_and_served_model(
    donor: tuple[Path, str],
) -> None:
    folder, source = donor
    rng = np.random.default_rng(0)
    pictures = {"RGBA": (30, 50, 4), "L": (9, 40)}
    (folder / "pictures").mkdir()
    for mode, shape in pictures.items():
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels, mode).save(folder / "pictures" / f"{mode}.png")
    with inside(folder):
        words = (f"model.weights={source}", "train.epochs=1")
        made = run(configured(*SMALL, *words), folder / "head").run_id
        called("promote", made, *(f"promote.{gate}=null" for gate in GATES))
    predicted = pipeline("predict", "dataset=synthetic", "images=pictures", cwd=folder)
    assert "images=2 skipped=0" in predicted.stdout, predicted.stderr
    with begun("serve", "dataset=synthetic", "port=0", cwd=folder) as server:
        while (said := server.out.read_text()).count("\n") < 3:
            assert server.poll() is None, server.err.read_text()
            time.sleep(0.05)
        address = re.search(r"http://\S+", said)
        assert address
        for mode in pictures:
            png = {"Content-Type": "image/png"}
            content = (folder / "pictures" / f"{mode}.png").read_bytes()
            answer = requests.post(f"{address[0]}/predict", content, headers=png, timeout=60)
            assert answer.status_code == 200, answer.text


OWN = """
import keras

from pipeline.config.rules import Positive


def small(images, classes, *, weights: str | None, trainable: str, backbone_rate: Positive | None):
    x = keras.layers.Flatten(name="flat")(images)
    x = keras.layers.Dense(4, activation="relu", name="base")(x)
    x = keras.layers.Identity(name="features")(x)
    return keras.layers.Dense(classes, activation="softmax", name="probabilities")(x)
"""
LEAF = "_target_: my_models.small\nweights: {}\ntrainable: {}\nbackbone_rate: null\n"


@only_stressed  # training/test_pretrained.py computes the features of a head once
def test_the_jobs_of_a_sweep_share_the_features_of_a_backbone_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(OWN)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    for name, leaf in {
        "whole": LEAF.format("null", "all"),
        "own": LEAF.format("x", "head"),
    }.items():
        (tmp_path / "conf" / "model" / f"{name}.yaml").write_text(leaf)
    trust = {"PIPELINE_TRUSTED_MODULES": "my_models"}
    base = (*DATA, "train.epochs=1", *LEAN)
    donor = pipeline(*base, "model=whole", cwd=tmp_path, **trust)
    assert donor.returncode == 0, donor.stderr
    source = results(donor.stdout)["run_id"]
    swept = pipeline(
        *("-m", *base, "model=own", f"model.weights={source}", "optimizer.learning_rate=0.1,0.01"),
        cwd=tmp_path,
        **trust,
    )
    assert swept.returncode == 0, swept.stderr
    assert len([*tmp_path.glob("data/synthetic/features-*")]) == 1
