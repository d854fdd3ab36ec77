from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.load import preprocess
from pipeline.data.values import Predictions, Prepared
from pipeline.training.build import build_model
from pipeline.training.leakage import divided_ignoring_groups, leakage_of
from pipeline.training.predictor import predict
from pipeline.training.train import train
from tests.commands import configured, of_data
from tests.pictures import noise, put, read


@pytest.fixture
def frames(tmp_path: Path) -> Prepared:
    """Frames of ten subjects of noise: what class a subject has cannot be learnt from others."""
    rng = np.random.default_rng(0)
    for subject in range(10):
        look = noise(subject, (8, 8)).astype(int)
        for frame in range(8):
            pixels = (look + rng.integers(-3, 4, look.shape)).clip(0, 255).astype(np.uint8)
            name = f"{('cat', 'dog')[subject % 2]}/subject{subject}_{frame}.png"
            put(tmp_path / "frames" / name, pixels)
    raw = read(tmp_path / "frames", tmp_path / "data")
    return preprocess(raw, of_data({}, "folder", tmp_path / "data", validation_size=0.2, seed=0))


def test_a_split_that_ignores_groups_has_the_sizes_and_classes(frames: Prepared) -> None:
    drawn = divided_ignoring_groups(frames, seed=0)
    for name in ("train", "val", "test"):
        one, other = getattr(frames, name), getattr(drawn, name)
        assert len(one) == pytest.approx(len(other), abs=2)
    rows = [set(split.rows.tolist()) for split in (drawn.train, drawn.val, drawn.test)]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 80
    assert rows[2] != set(frames.test.rows.tolist())


@pytest.mark.slow
def test_frames_of_few_subjects_fall_to_chance_and_the_claim_without_groups_is_told(
    frames: Prepared, tmp_path: Path
) -> None:
    settings = ("model=linear", "train.epochs=30", "train.batch_size=8", "train.tensorboard=false")
    config = configured("dataset=digits", *settings, "optimizer.learning_rate=0.01")
    model = train(build_model(config, frames), frames, config, tmp_path / "run", ()).model
    probabilities = predict(model, frames.test, batch_size=100)
    honest = Predictions(
        split=frames.test, probabilities=probabilities, class_names=frames.class_names
    )
    evaluation = leakage_of(config, frames, honest, tmp_path)
    assert evaluation.metrics["leakage/test_accuracy"] >= 0.9
    assert evaluation.metrics["leakage/difference"] >= 0.25
    assert not (tmp_path / "ignoring-groups").exists()
