"""The schedules and optimizers that Keras lacks, by their formulas and through a training."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.config.builders import build
from pipeline.data.datasets import synthetic
from pipeline.data.split import preprocess
from pipeline.data.values import Array
from pipeline.system.errors import RequestError
from pipeline.training.build import build_model, kept
from pipeline.training.checkpoint import progress_of
from pipeline.training.saved import load_saved
from pipeline.training.train import train
from tests.commands import configured

pytestmark = pytest.mark.slow

RAW = synthetic(train_size=60, test_size=20, classes=3, image_shape=(6, 6, 1), noise=32.0, seed=0)
PREPARED = preprocess(RAW, validation_size=20, seed=0)
SMALL = ("train.batch_size=8", "train.epochs=3", "train.tensorboard=false")


@pytest.mark.parametrize("beside", ["schedule=cosine", "train.ema=0.9"])
def test_schedule_free_takes_the_place_of_schedules_and_averages(beside: str) -> None:
    with pytest.raises(RequestError, match=f"averages weights in place of {beside[:5]}"):
        configured("optimizer=schedule_free", beside)


def test_gradients_are_clipped_one_by_one_or_together() -> None:
    def steps(key: str) -> list[float]:
        words = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.learning_rate=1")
        optimizer = build(configured(*words, f"optimizer.{key}=1").optimizer)
        variables = [keras.Variable(np.zeros(2, np.float32)) for _ in range(2)]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in ([3.0, 4], [0.0, 12])], variables)
        return [value for variable in variables for value in np.array(variable).tolist()]

    assert steps("clipnorm") == pytest.approx([-3 / 5, -4 / 5, 0, -1])
    assert steps("global_clipnorm") == pytest.approx([-3 / 13, -4 / 13, 0, -12 / 13])


def fitted(folder: Path, *overrides: str, resumed: bool = False) -> keras.Model:
    config = configured(*SMALL, *overrides)
    start = progress_of(folder / "checkpoints" / "last.keras") if resumed else None
    return train(build_model(config, PREPARED), PREPARED, config, folder, [], start).model


def flat(model: keras.Model) -> Array:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


@pytest.mark.parametrize(
    "choices",
    [
        "model.hidden=[6] optimizer=schedule_free train.keep=best optimizer.warmup_steps=3",
        "optimizer=muon model=cnn model.filters=[3] model.dense=5 train.ema=0.8",
    ],
)
def test_a_training_with_an_optimizer_of_ours_resumes_and_is_saved_without_it(
    choices: str, tmp_path: Path
) -> None:
    words = choices.split()
    whole = fitted(tmp_path / "whole", *words)
    assert type(whole.optimizer) is keras.optimizers.SGD  # anybody can load it
    fitted(tmp_path, *words, "train.epochs=2")
    np.testing.assert_array_equal(flat(fitted(tmp_path, *words, resumed=True)), flat(whole))
    last = tmp_path / "checkpoints" / "last.keras"
    again = kept(load_saved(last, called="last", compile=True))  # as a sweep completes a job
    if "best" not in choices:
        np.testing.assert_array_equal(flat(again), flat(whole))
    assert type(again.optimizer) is keras.optimizers.SGD
