"""Optimizers that Keras lacks.

Keyword-only parameters of a builder are the keys of its file in conf/optimizer/; `train.ema` sets
the others. The classes are defined when they are first needed, so that a configuration is checked
without TensorFlow. Saved models never need them; checkpoints do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pipeline.config.rules import (
    Fraction,
    NonNegative,
    Positive,
    PositiveFraction,
    WholeNumber,
    averages,
)
from pipeline.system.imports import Lazy

if TYPE_CHECKING:
    import keras
    from keras import ops
else:
    keras, ops = Lazy("keras"), Lazy("keras.ops")

Optimizer = Any  # naming Keras' type would import it
_classes: dict[str, Callable[[], Any]] = {}


def _defines(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Makes a function define the class of that name once, and register it for checkpoints."""

    def once(define: Callable[[], Any]) -> Callable[[], Any]:
        register = cache(lambda: keras.saving.register_keras_serializable("pipeline")(define()))
        _classes[name] = register
        return register

    return once


def __getattr__(name: str) -> Any:
    """The classes as attributes of the module."""
    if name in _classes:
        return _classes[name]()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def muon(  # noqa: PLR0913 (the keys of its file)
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    *,
    learning_rate: Positive,
    weight_decay: NonNegative,
    momentum: Fraction,
    clipnorm: Positive | None,
    global_clipnorm: Positive | None,
) -> Optimizer:
    """Orthogonalizes the updates of matrices and filters; AdamW updates all other variables.

    AdamW also updates the last layer, whose columns are the classes. Rates are like AdamW's.
    Sources: Jordan 2024, "Muon"; Liu et al. 2025, arXiv:2502.16982.
    """
    return _muon()(
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        momentum=momentum,
        clipnorm=clipnorm,
        global_clipnorm=global_clipnorm,
        use_ema=use_ema,
        ema_momentum=ema_momentum,
    )


@_defines("Muon")
def _muon() -> Any:
    class Muon(keras.optimizers.Muon):
        """Keras' Muon, which also takes filters [H,W,I,O], as matrices [H·W·I, O].

        Keras' own leaves filters to AdamW. This one does so only if the matrix has a single column,
        as for filters of depthwise convolutions. It leaves the last layer of a model to AdamW.
        """

        def build(self, variables: Any) -> None:
            """Creates the slots; the last variables are those of the last layer."""
            layers = [variable.path.rpartition("/")[0] for variable in variables]
            last = [*takewhile(lambda layer: layer == layers[-1] != "", reversed(layers))]
            self._others = len(layers) - len(last)
            super().build(variables)

        def _should_use_adamw(self, variable: Any) -> bool:
            shape = variable.shape
            is_last = self._get_variable_index(variable) >= self._others
            return is_last or len(shape) not in (2, 4) or shape[-1] == 1

        def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
            self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
            direction = ops.add(gradient, self.momentum * m) if self.nesterov else m
            matrix = ops.reshape(direction, (-1, variable.shape[-1]))
            orthogonal = self.zeropower_via_newtonschulz5(matrix, self.ns_steps)
            update = self.lr_adjust(ops.cast(lr, variable.dtype) * orthogonal)
            self.assign_sub(variable, ops.reshape(update, variable.shape))

    return Muon


@averages
def schedule_free(  # noqa: PLR0913 (the keys of its file)
    *,
    learning_rate: Positive,
    weight_decay: NonNegative,
    beta_1: PositiveFraction,
    beta_2: Fraction,
    epsilon: Positive,
    warmup_steps: WholeNumber,
    clipnorm: Positive | None,
    global_clipnorm: Positive | None,
) -> Optimizer:
    """AdamW that averages weights instead of following a schedule.

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682.
    """
    return _schedule_free()(
        learning_rate=learning_rate,
        decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        warmup_steps=warmup_steps,
        clipnorm=clipnorm,
        global_clipnorm=global_clipnorm,
    )


@_defines("ScheduleFree")
def _schedule_free() -> Any:  # noqa: C901 (one method after the other)
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

    return ScheduleFree
