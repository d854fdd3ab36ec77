"""Networks: each maps scaled images f32[N,H,W,C] to class probabilities f32[N,K].

To add a model, add a function here and a file in conf/model/. Positional parameters are passed at
run time; keyword-only ones are the keys of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pipeline.config.rules import Count, Fraction, one_of
from pipeline.system.imports import Lazy

if TYPE_CHECKING:
    import keras
else:
    # Configurations are checked against the signatures below without importing TensorFlow.
    keras = Lazy("keras")

Tensor = Any  # a KerasTensor; naming that type would import Keras
Activation = Annotated[str, one_of("relu", "gelu", "silu", "elu", "leaky_relu", "tanh", "sigmoid")]


def linear(images: Tensor, classes: int) -> Tensor:
    """Multinomial logistic regression on the pixels."""
    return _probabilities(keras.layers.Flatten(name="flatten")(images), classes)


def mlp(
    images: Tensor,
    classes: int,
    *,
    hidden: list[Count],
    activation: Activation,
    dropout: Fraction,
) -> Tensor:
    """Dense layers of `hidden` widths, each followed by dropout.

    The classic 784–256–128–10 network on 28×28 grey images has 235,146 parameters. Kernels are
    initialized Glorot uniform, Keras' default.
    """
    layers = keras.layers
    x = layers.Flatten(name="flatten")(images)
    for number, width in enumerate(hidden, start=1):
        x = layers.Dense(width, activation=activation, name=f"dense_{number}")(x)
        x = layers.Dropout(dropout, name=f"dropout_{number}")(x)
    return _probabilities(x, classes)


def cnn(
    images: Tensor,
    classes: int,
    *,
    filters: list[Count],
    dense: Count,
    activation: Activation,
    dropout: Fraction,
) -> Tensor:
    """One block of 3×3 convolution and 2×2 max pooling per entry of `filters`, then a dense layer.

    Padding allows pooling at every size, so that images of any size down to 1×1 work.
    """
    layers = keras.layers
    x = images
    for number, channels in enumerate(filters, start=1):
        x = layers.Conv2D(
            channels, 3, padding="same", activation=activation, name=f"conv_{number}"
        )(x)
        x = layers.MaxPooling2D(padding="same", name=f"pool_{number}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(dense, activation=activation, name="dense_1")(x)
    x = layers.Dropout(dropout, name="dropout_1")(x)
    return _probabilities(x, classes)


def _probabilities(features: Tensor, classes: int) -> Tensor:
    # Softmax in float32, whatever the precision before: probabilities are compared and summed.
    return keras.layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(
        features
    )
