"""Updates and normalisation by single kernels, beside Keras' own.

What is fused in a training is tested with its loop (test_loop.py).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.values import Array
from pipeline.training.fused import fused_norms, fused_updates

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
START = RNG.normal(size=(2, 3)).astype(np.float32)
GRADIENTS = RNG.normal(size=(4, 2, 3)).astype(np.float32)
BATCH = RNG.normal(3, 2, (8, 4, 4, 2)).astype(np.float32)

ADAM = {"learning_rate": 0.1, "beta_1": 0.8}
OPTIMIZERS: dict[str, Any] = {
    "Adam": lambda: keras.optimizers.Adam(**ADAM),
    "AdamW": lambda: keras.optimizers.AdamW(weight_decay=0.5, **ADAM),
    "SGD with momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "SGD with Nesterov's": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "plain SGD": lambda: keras.optimizers.SGD(0.1),
    "AMSGrad": lambda: keras.optimizers.Adam(amsgrad=True, **ADAM),
}


def stepped(optimizer: Any, *variables: keras.Variable) -> list[Array]:
    for gradient in GRADIENTS:
        given = [keras.ops.convert_to_tensor(gradient) for _ in variables]
        optimizer.apply(given, list(variables))
    return [np.array(variable) for variable in variables]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_and_state_are_those_of_keras(name: str) -> None:
    own, ours = OPTIMIZERS[name](), OPTIMIZERS[name]()
    [expected] = stepped(own, keras.Variable(START))
    with fused_updates(ours):
        assert ("update_step" in vars(ours)) == (name not in ("plain SGD", "AMSGrad"))
        [found] = stepped(ours, keras.Variable(START))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "update_step" not in vars(ours)
    for mine, theirs in zip(ours.variables, own.variables, strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(theirs), atol=1e-5)


def test_a_share_slows_a_variable_down_and_a_later_start_holds_it_still() -> None:
    def moved(share: float, since: int) -> Array:
        optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
        variable = keras.Variable(START)
        with fused_updates(optimizer, [share], [since]):
            [found] = stepped(optimizer, variable)
        assert not {"update_step", "_apply_weight_decay"} & vars(optimizer).keys()
        return found

    value = START.copy()
    for gradient in GRADIENTS:
        value = (value - value * 0.5 * 0.1 * 0.25) - 0.1 * 0.25 * gradient
    np.testing.assert_allclose(moved(0.25, 0), value, atol=1e-6)
    np.testing.assert_array_equal(moved(0.25, 4), START)
    last = (START - START * 0.5 * 0.1) - 0.1 * GRADIENTS[3]
    np.testing.assert_allclose(moved(1.0, 3), last, atol=1e-6)


def test_a_variable_that_waits_does_not_count_in_the_norm_of_all_gradients() -> None:
    def moved(since: list[int]) -> list[float]:
        optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
        variables = [keras.Variable([0.0]), keras.Variable([0.0])]
        optimizer.build(variables)
        with fused_updates(optimizer, [1.0, 1.0], since):
            for _ in range(2):
                gradients = [keras.ops.convert_to_tensor([value]) for value in (12.0, 5.0)]
                optimizer.apply(gradients, variables)
        assert "_clip_gradients" not in vars(optimizer)
        return [float(variable[0]) for variable in variables]

    assert moved([0, 0]) == pytest.approx([-2 * 12 / 13, -2 * 5 / 13])
    assert moved([1, 0]) == pytest.approx([-12 / 13, -1 - 5 / 13])


@pytest.mark.parametrize("traced", [True, False])
def test_ftrl_takes_no_step_where_the_rate_is_0_and_its_own_afterwards(traced: bool) -> None:
    rates = keras.optimizers.schedules.PolynomialDecay(0.0, 1, end_learning_rate=0.1)
    ours, own = keras.optimizers.Ftrl(rates), keras.optimizers.Ftrl(0.1)
    variable, other = keras.Variable(START), keras.Variable(START)
    for optimizer, one in ((ours, variable), (own, other)):
        optimizer.build([one])

    def step() -> None:
        ours.apply([keras.ops.convert_to_tensor(GRADIENTS[0])], [variable])

    with fused_updates(ours):
        take = tf.function(step, autograph=False) if traced else step
        take()
        np.testing.assert_array_equal(variable, START)
        take()
    own.apply([keras.ops.convert_to_tensor(GRADIENTS[0])], [other])
    np.testing.assert_allclose(np.array(variable), np.array(other), atol=1e-6)


def test_outputs_and_statistics_of_a_normalisation_are_those_of_keras() -> None:
    def trained(*, fused: bool) -> tuple[Array, list[Array]]:
        layer = keras.layers.BatchNormalization(momentum=0.9)
        model = keras.Sequential([keras.Input((4, 4, 2)), layer])
        if not fused:
            return np.array(model(BATCH, training=True)), layer.get_weights()
        with fused_norms(model):
            return np.array(model(BATCH, training=True)), layer.get_weights()

    (found, statistics), (expected, theirs) = trained(fused=True), trained(fused=False)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    for mine, own in zip(statistics, theirs, strict=True):
        np.testing.assert_allclose(mine, own, atol=1e-5)
