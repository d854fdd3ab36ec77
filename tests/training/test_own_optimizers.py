from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from pipeline.config.builders import build
from pipeline.data.values import Array
from tests.commands import configured

pytestmark = pytest.mark.slow


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
