"""The classes behind training/optimizers.py. Saved models never need them; checkpoints do."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

registered = keras.saving.register_keras_serializable("pipeline")


@registered
class Muon(keras.optimizers.Muon):
    """Keras' Muon, which also takes filters [H,W,I,O], as matrices [H·W·I, O].

    Keras' own leaves filters to AdamW. This one does so only if the matrix has a single column, as
    for filters of depthwise convolutions.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        shape = variable.shape
        excluded = any(name in variable.path for name in self.exclude_layers)
        return excluded or len(shape) not in (2, 4) or shape[-1] == 1

    def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
        self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
        direction = ops.add(gradient, self.momentum * m) if self.nesterov else m
        matrix = ops.reshape(direction, (-1, variable.shape[-1]))
        orthogonal = self.zeropower_via_newtonschulz5(matrix, self.ns_steps)
        update = self.lr_adjust(ops.cast(lr, variable.dtype) * orthogonal)
        self.assign_sub(variable, ops.reshape(update, variable.shape))


@registered
class ScheduleFree(keras.optimizers.Optimizer):
    """Schedule-free AdamW: a variable is `y`, where gradients are taken; `z` is its slot.

    The average `x`, which is evaluated, is computed from y = (1 - beta_1) z + beta_1 x.
    """

    def __init__(  # noqa: PLR0913 (as Keras')
        self,
        learning_rate: float = 0.0025,
        decay: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        warmup_steps: int = 0,
        name: str = "schedule_free",
        **more: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **more)
        self.decay, self.beta_1, self.beta_2 = decay, beta_1, beta_2
        self.epsilon, self.warmup_steps = epsilon, warmup_steps

    def build(self, variables: Any) -> None:
        """Creates the slots; `z` begins where the variable does."""
        if self.built:
            return
        super().build(variables)
        self.z, self.squares = self.add_optimizer_variables(variables, ["z", "squares"])
        for z, variable in zip(self.z, variables, strict=True):
            z.assign(variable)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of algorithm 1 of the paper, in the form of its reference implementation."""
        index, dtype = self._get_variable_index(variable), variable.dtype
        z, squares = self.z[index], self.squares[index]
        step = ops.cast(self.iterations + 1, dtype)
        lr = ops.cast(learning_rate, dtype) * self._risen(step)
        gradient = ops.cast(gradient, dtype)
        self.assign_add(squares, (ops.square(gradient) - squares) * (1 - self.beta_2))
        unbiased = squares / (1 - ops.power(ops.cast(self.beta_2, dtype), step))
        direction = gradient / (ops.sqrt(unbiased) + self.epsilon) + self.decay * variable
        c = ops.square(self._risen(step)) / self._sum_of_squares(step)
        self.assign(
            variable,
            (1 - c) * variable + c * z + lr * (self.beta_1 * (1 - c) - 1) * direction,
        )
        self.assign_sub(z, lr * direction)

    def show_average(self) -> None:
        """Gives the variables the values of `x`."""
        for variable, z in zip(self._trainable_variables, self.z, strict=True):
            variable.assign((variable - (1 - self.beta_1) * z) / self.beta_1)

    def show_trained(self) -> None:
        """Gives the variables back the values of `y`."""
        for variable, z in zip(self._trainable_variables, self.z, strict=True):
            variable.assign((1 - self.beta_1) * z + self.beta_1 * variable)

    def get_config(self) -> dict[str, Any]:
        """All settings."""
        names = ("decay", "beta_1", "beta_2", "epsilon", "warmup_steps")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def _risen(self, step: Any) -> Any:
        """The fraction of the learning rate that a step of the warm-up has reached."""
        return ops.minimum(step / max(self.warmup_steps, 1), 1.0)

    def _sum_of_squares(self, step: Any) -> Any:
        """The sum of the squares of `_risen` from the first step to this one."""
        steps = max(self.warmup_steps, 1)
        rising = ops.minimum(step, steps)
        return rising * (rising + 1) * (2 * rising + 1) / (6 * steps**2) + step - rising
