"""The schedules and optimizers that Keras lacks, by their formulas and through a training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.builders import KERAS_CLASSES, build, check_leaf
from pipeline.data.datasets import synthetic
from pipeline.data.values import Array
from pipeline.system.errors import RequestError
from pipeline.training.build import build_model, kept
from pipeline.training.checkpoint import progress_of
from pipeline.training.fused import fused_updates
from pipeline.training.saved import load_saved
from pipeline.training.train import train
from tests.commands import configured
from tests.splits import in_splits

pytestmark = pytest.mark.slow

RAW = synthetic(train_size=60, test_size=20, classes=3, image_shape=(6, 6, 1), noise=32.0, seed=0)
PREPARED = in_splits(RAW, validation_size=20, seed=0)
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


@pytest.mark.parametrize("name", KERAS_CLASSES["optimizer"][1])
def test_each_optimizer_of_keras_takes_its_steps_in_the_loop(name: str) -> None:
    target = f"keras.optimizers.{name}"
    leaf = check_leaf("optimizer", {"_target_": target, "learning_rate": 0.1})
    optimizer, variable = build(leaf), keras.Variable(np.ones((4, 3), np.float32))
    optimizer.build([variable])

    @tf.function(autograph=False)
    def step() -> None:
        optimizer.apply([keras.ops.ones((4, 3))], [variable])

    with fused_updates(optimizer):
        step()
        step()
    moved = np.array(variable)
    assert (moved < 1).all()
    ones = np.ones((4, 3), np.float32)
    np.testing.assert_allclose(moved, stepped(build(leaf), ones, ones, ones), rtol=1e-5)


def test_the_parameters_of_keras_optimizers_have_rules() -> None:
    def leaf(**given: float) -> dict[str, Any]:
        target = "keras.optimizers.Adafactor"
        return check_leaf("optimizer", {"_target_": target, "learning_rate": 0.1, **given})

    assert build(leaf(beta_2_decay=-0.5, relative_step=False)).beta_2_decay == -0.5
    with pytest.raises(RequestError, match="^optimizer.beta_2_decay: must be below 0"):
        leaf(beta_2_decay=0.5)


@pytest.mark.parametrize("name", ["Muon", "ScheduleFree"])
def test_a_checkpoint_of_an_earlier_version_finds_the_optimizer_of_ours(name: str) -> None:
    made = build(configured(f"optimizer={'muon' if name == 'Muon' else 'schedule_free'}").optimizer)
    known = keras.saving.serialize_keras_object(made)
    assert known["registered_name"] == f"pipeline>{name}"
    known["module"] = "pipeline.training.own_optimizers"
    again = keras.saving.deserialize_keras_object(known)
    assert type(again) is type(made)
    assert again.get_config() == made.get_config()


def fitted(
    folder: Path, *overrides: str, cut: Path | None = None, resumed: bool = False
) -> keras.Model:
    """Trains for three epochs; `cut` gets the checkpoints as they are after two of them."""

    def keep(epoch: int, metrics: Any) -> None:
        if cut and epoch == 3:  # whose checkpoint is not written yet
            shutil.copytree(folder / "checkpoints", cut / "checkpoints")

    config = configured(*SMALL, *overrides)
    start = progress_of(folder / "checkpoints" / "last.keras") if resumed else None
    return train(build_model(config, PREPARED), PREPARED, config, folder, [keep], start).model


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
    whole = fitted(tmp_path / "whole", *words, cut=tmp_path)
    assert type(whole.optimizer) is keras.optimizers.SGD  # anybody can load it
    assert len(progress_of(tmp_path / "checkpoints" / "last.keras").epochs) == 2
    np.testing.assert_array_equal(flat(fitted(tmp_path, *words, resumed=True)), flat(whole))
    last = tmp_path / "checkpoints" / "last.keras"
    again = kept(load_saved(last, called="last", compile=True))  # as a sweep completes a job
    if "best" not in choices:
        np.testing.assert_array_equal(flat(again), flat(whole))
    assert type(again.optimizer) is keras.optimizers.SGD


def stepped(optimizer: keras.optimizers.Optimizer, start: Array, *gradients: Array) -> Array:
    """A variable after a step for each gradient."""
    variable = keras.Variable(start, name="kernel")
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return np.array(variable)


def muon(*overrides: str) -> Any:
    return build(configured("optimizer=muon", "optimizer.weight_decay=0", *overrides).optimizer)


@pytest.mark.parametrize("shape", [(12, 5), (3, 3, 2, 5), (3, 3, 1, 20)])
def test_muon_takes_orthogonal_steps_of_matrices_and_of_filters_as_matrices(
    shape: tuple[int, ...],
) -> None:
    gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    moved = stepped(muon(), np.zeros(shape, np.float32), gradient).reshape(-1, shape[-1])
    scale = 0.002 * 0.2 * np.sqrt(max(moved.shape))
    left, values, right = np.linalg.svd(-moved / scale, full_matrices=False)
    assert 0.65 < values.min() <= values.max() < 1.25  # what five iterations reach
    first, _, last = np.linalg.svd(gradient.reshape(moved.shape), full_matrices=False)
    np.testing.assert_allclose(left @ right, first @ last, atol=1e-3)


@pytest.mark.parametrize("shape", [(5,), (3, 3, 4, 1)])
def test_muon_leaves_biases_and_depthwise_filters_to_adamw(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), rng.normal(size=(2, *shape)).astype(np.float32)
    adamw = keras.optimizers.AdamW(0.002, weight_decay=0)
    expected = stepped(adamw, start, *gradients)
    np.testing.assert_allclose(stepped(muon(), start, *gradients), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["probabilities", "dense_1", "anything"])
def test_muon_leaves_the_last_layer_to_adamw_whatever_its_name(name: str) -> None:
    images = keras.Input((4,))
    x = keras.layers.Dense(4, name="dense")(images)
    x = keras.layers.Dense(4, name="probabilities_before")(x)
    x = keras.layers.Dense(3, name=name)(x)
    model = keras.Model(images, keras.layers.Softmax()(x))
    optimizer = muon()
    optimizer.build(model.trainable_variables)
    with_velocity = [slot is not None for slot in optimizer.adam_velocities]
    assert with_velocity == [False, True, False, True, True, True]


def test_schedule_free_adamw_is_that_of_the_paper() -> None:
    leaf = configured(
        *("optimizer=schedule_free", "optimizer.learning_rate=0.1", "optimizer.warmup_steps=3"),
        *("optimizer.weight_decay=0.01", "optimizer.beta_2=0.9"),
    ).optimizer
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=4), rng.normal(size=(6, 4))
    x = z = y = start
    squares = weights = 0.0
    for step, gradient in enumerate(gradients, start=1):  # algorithm 1, as it stands
        rate = 0.1 * min(step / 3, 1)
        squares = 0.9 * squares + 0.1 * gradient**2
        unbiased = np.sqrt(squares / (1 - 0.9**step)) + 1e-8
        z = z - rate * (gradient / unbiased + 0.01 * y)
        weights += rate**2
        x = x + rate**2 / weights * (z - x)
        y = 0.1 * z + 0.9 * x
    optimizer = build(leaf)
    found = stepped(optimizer, start.astype(np.float32), *gradients.astype(np.float32))
    np.testing.assert_allclose(found, y, atol=1e-5)
    optimizer.show_average()
    np.testing.assert_allclose(optimizer._trainable_variables[0], x, atol=1e-5)
    optimizer.show_trained()
    np.testing.assert_allclose(optimizer._trainable_variables[0], y, atol=1e-5)
