"""Runs Keras' optimizer updates and batch normalisation as single TensorFlow kernels.

Keras writes both as a dozen small operations. On a CPU, the updates cost more than the matrix
products of a small network, and normalisation nearly as much as the convolutions between. The
formulas, the state and the saved model remain those of Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import keras
import tensorflow as tf

from pipeline.training.precision import nested_layers

# The least that the kernel takes on a GPU.
LEAST_EPSILON = 1.001e-5

Update = Callable[[Any, tf.Tensor, keras.Variable, tf.Tensor], None]
Decay = Callable[[Any, Sequence[Any]], None]
Clip = Callable[[Any, Sequence[tf.Tensor]], Sequence[tf.Tensor]]
DECAYS = ("weight_decay", "adam_weight_decay")  # of Keras' optimizers
RateShare = Callable[[Any, Any], Any]  # of the learning rate: by optimizer and variable


@contextmanager
def fused_updates(
    optimizer: keras.optimizers.Optimizer,
    shares: Sequence[float] | None = None,
    since: Sequence[int] | None = None,
    *,
    kernels: bool = True,
) -> Iterator[None]:
    """Makes `optimizer` update each variable with one kernel, if TensorFlow has one for it.

    Formulas and state remain those of Keras; other optimizers are not changed. `shares` are factors
    of the learning rate, one per trainable variable, and `since` the steps (from 0) before which a
    variable is not changed. Both also apply to weight decay. A variable that waits does not count
    in the norm of all gradients by which the others are clipped. Without `kernels`, which XLA does
    not need, the operations are Keras' own. Steps must be traced within this context.
    """
    kernels = kernels and not hasattr(optimizer, "inner_optimizer")
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
    update = _update_for(optimizer, kernels=kernels)
    if shares is None:
        replaced: dict[str, Callable[..., Any]] = {"update_step": update} if update else {}
    else:
        share = _share_of(shares, since or [0] * len(shares))
        replaced = {
            "update_step": _shared(update or type(optimizer).update_step, share),
            "_apply_weight_decay": _with_shared_decay(type(optimizer)._apply_weight_decay, share),
        }
        if since and optimizer.global_clipnorm:
            clip = _clipped_apart(type(optimizer)._clip_gradients, since)
            replaced["_clip_gradients"] = clip
    for name, method in replaced.items():
        setattr(optimizer, name, MethodType(method, optimizer))
    try:
        yield
    finally:
        for name in replaced:
            delattr(optimizer, name)


@contextmanager
def fused_norms(model: keras.Model) -> Iterator[None]:
    """Makes each batch normalisation of `model` train with one kernel forward and one back.

    The statistics are over all axes but the last; others, renormalisation and synchronised
    statistics stay as Keras computes them.
    """
    found = {id(layer): layer for layer in nested_layers(model)}  # once each, also if shared
    norms = [layer for layer in found.values() if _is_fusible(layer)]
    for norm in norms:
        norm.call = MethodType(_normed, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.call


def _is_fusible(layer: keras.Layer) -> bool:
    # The exact class: a subclass may have another formula. The kernel computes in float32.
    if type(layer) is not keras.layers.BatchNormalization or layer.compute_dtype == "float64":
        return False
    plain = layer.scale and layer.center and not layer.renorm and not layer.synchronized
    last = layer.axis in (-1, layer.input_spec.ndim - 1)
    return plain and last and layer.epsilon >= LEAST_EPSILON


def _normed(layer: Any, inputs: tf.Tensor, training: Any = None, mask: Any = None) -> tf.Tensor:
    if mask is not None or not training or not layer.trainable:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    gamma, beta = (tf.cast(variable.value, tf.float32) for variable in (layer.gamma, layer.beta))
    maps = inputs if inputs.shape.rank == 4 else tf.reshape(inputs, [-1, 1, 1, inputs.shape[-1]])
    nothing = tf.zeros([0])
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=maps, scale=gamma, offset=beta, mean=nothing, variance=nothing, epsilon=layer.epsilon
    )
    number = tf.cast(tf.size(maps) // maps.shape[-1], tf.float32)  # of values per channel
    variance = tf.stop_gradient(variance) * ((number - 1) / number)  # the kernel divides by n - 1
    for moving, batch in (
        (layer.moving_mean, tf.stop_gradient(mean)),
        (layer.moving_variance, variance),
    ):
        moving.assign(moving * layer.momentum + batch * (1 - layer.momentum))
    return outputs if maps is inputs else tf.reshape(outputs, tf.shape(inputs))


def _share_of(shares: Sequence[float], since: Sequence[int]) -> RateShare:
    def share(optimizer: Any, variable: Any) -> float | tf.Tensor:
        index = optimizer._get_variable_index(variable)
        if not since[index]:
            return shares[index]
        waits = tf.cast(optimizer.iterations, tf.int64) < since[index]
        return tf.where(waits, 0.0, shares[index])

    return share


def _shared(update: Update, share: RateShare) -> Update:
    """The same update with each variable's share of the learning rate."""

    def slower(
        optimizer: Any, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        update(optimizer, gradient, variable, learning_rate * share(optimizer, variable))

    return slower


def _with_shared_decay(decay: Decay, share: RateShare) -> Decay:
    """The same weight decay with each variable's share."""

    def slower(optimizer: Any, variables: Sequence[Any]) -> None:
        if not any(getattr(optimizer, name, None) for name in DECAYS):
            return
        for variable in variables:
            before = tf.identity(variable)
            decay(optimizer, [variable])
            # Without a rounding error if the share is 0 or 1.
            part = tf.cast(share(optimizer, variable), before.dtype)
            variable.assign(part * tf.identity(variable) + (1 - part) * before)

    return slower


def _clipped_apart(clip: Clip, since: Sequence[int]) -> Clip:
    """The same clipping, in which the gradients of variables that wait do not shorten the others.

    Their own are clipped as before, since their moments follow them while they wait.
    """

    def clipped(optimizer: Any, gradients: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        together = clip(optimizer, gradients)
        if len(gradients) != len(since):  # a variable has no gradient: Keras has left it out
            return together
        waits = [tf.cast(optimizer.iterations, tf.int64) < first for first in since]
        pairs = [*zip(waits, gradients, strict=True)]
        alone = clip(optimizer, [tf.where(wait, tf.zeros_like(one), one) for wait, one in pairs])
        return [tf.where(*three) for three in zip(waits, together, alone, strict=True)]

    return clipped


def _update_for(optimizer: keras.optimizers.Optimizer, *, kernels: bool) -> Update | None:
    # The exact classes: a subclass may have another formula.
    if type(optimizer) is keras.optimizers.Ftrl:
        return _ftrl
    if not kernels:
        return None
    if type(optimizer) in (keras.optimizers.Adam, keras.optimizers.AdamW):
        return None if optimizer.amsgrad else _adam
    if type(optimizer) is keras.optimizers.SGD and optimizer.momentum != 0:
        return _momentum
    return None


def _adam(
    optimizer: Any, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
) -> None:
    index = optimizer._get_variable_index(variable)
    dtype = variable.dtype
    step = tf.cast(optimizer.iterations + 1, dtype)
    beta_1, beta_2 = (tf.constant(beta, dtype) for beta in (optimizer.beta_1, optimizer.beta_2))
    tf.raw_ops.ResourceApplyAdam(
        var=_handle(variable),
        m=_handle(optimizer._momentums[index]),
        v=_handle(optimizer._velocities[index]),
        beta1_power=tf.pow(beta_1, step),
        beta2_power=tf.pow(beta_2, step),
        lr=tf.cast(learning_rate, dtype),
        beta1=beta_1,
        beta2=beta_2,
        epsilon=tf.constant(optimizer.epsilon, dtype),
        grad=tf.cast(gradient, dtype),
    )


def _momentum(
    optimizer: Any, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
) -> None:
    index = optimizer._get_variable_index(variable)
    dtype = variable.dtype
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=_handle(variable),
        accum=_handle(optimizer.momentums[index]),
        lr=tf.cast(learning_rate, dtype),
        grad=tf.cast(gradient, dtype),
        momentum=tf.constant(optimizer.momentum, dtype),
        use_nesterov=optimizer.nesterov,
    )


def _ftrl(
    optimizer: Any, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
) -> None:
    """Keras' own update, which divides by the learning rate, unless that is 0."""

    def step() -> tf.Tensor:
        type(optimizer).update_step(optimizer, gradient, variable, learning_rate)
        return tf.constant(True)

    tf.cond(tf.cast(learning_rate, tf.float32) > 0, step, lambda: tf.constant(False))


def _handle(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    # Depending on the caller, Keras passes its own kind of variable or TensorFlow's.
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
