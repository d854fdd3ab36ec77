from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.data.datasets import synthetic
from pipeline.data.values import Split, flaw_in
from pipeline.system.errors import PipelineError, RequestError
from pipeline.training import build, models
from pipeline.training.check import check_model
from pipeline.training.predictor import predict, predictor, warm_predictor
from pipeline.training.train import train
from tests.commands import configured
from tests.splits import in_splits
from tests.stress.matrix import matrix

pytestmark = pytest.mark.slow

layers = keras.layers
Head = Callable[[Any], Any]
SHAPE = (6, 6, 1)


def split(images: Any) -> Split:
    return Split(images=images, labels=np.zeros(len(images), np.int32))


def model(head: Head) -> keras.Model:
    """The scaled pixels, and what `head` makes of them."""
    images = keras.Input(SHAPE, dtype="uint8")
    return keras.Model(
        images, head(layers.Flatten()(layers.Rescaling(1 / 255)(images))), name="mine"
    )


@keras.saving.register_keras_serializable()
class Registered(layers.Layer):
    def call(self, x: Any) -> Any:
        return 2 * x


class Untold(layers.Layer):
    """A layer whose configuration lacks what its constructor needs."""

    def __init__(self, factor: float, **more: Any) -> None:
        super().__init__(**more)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return self.factor * x


def two_heads(x: Any) -> Any:
    return [layers.Dense(3, activation="softmax")(x), layers.Dense(3, activation="softmax")(x)]


def nan(x: Any) -> Any:
    return layers.Dense(
        3, activation="softmax", bias_initializer=keras.initializers.Constant(np.nan)
    )(x)


@pytest.mark.parametrize(
    ("head", "classes", "said"),
    [
        (layers.Dense(3, bias_initializer=keras.initializers.Constant(-9)), 3, "some are negative"),
        (layers.Dense(3, activation="relu"), 3, "those of an image sum to"),
        (layers.Dense(3, activation="sigmoid"), 3, "those of an image sum to"),
        (
            layers.Dense(2, activation="sigmoid", kernel_initializer="zeros"),
            2,
            "of an image sum to",
        ),
        (layers.Dense(3, activation="log_softmax"), 3, "some are negative"),
        (layers.Dense(4, activation="softmax"), 3, r"gives \(None, 4\), but .* 3 classes"),
        (layers.Dense(1, activation="sigmoid"), 2, r"gives \(None, 1\), but .* 2 classes"),
        (two_heads, 3, "but the data set's 3 classes need"),
        (lambda x: {"a": layers.Dense(3, activation="softmax")(x)}, 3, "gives a dict, not one"),
        (nan, 3, "some are NaN or infinite"),
    ],
)
@matrix(35)
def test_a_model_that_gives_no_probabilities_is_refused(
    head: Head, classes: int, said: str
) -> None:
    with pytest.raises(RequestError, match=rf"model=my/net: .*{said}.*softmax"):
        check_model(model(head), classes, called="model=my/net")


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Lambda(lambda x: 2 * x),
        lambda: keras.Sequential([keras.Input((36,)), layers.Lambda(lambda x: 2 * x)]),
        lambda: Untold(2.0),
    ],
)
def test_a_model_that_cannot_be_loaded_again_is_refused_with_what_to_use(layer: Any) -> None:
    with pytest.raises(
        RequestError,
        match=r"=my/net: cannot be loaded again after saving: .* keras\.ops .* register",
    ):
        check_model(
            model(lambda x: layers.Dense(3, activation="softmax")(layer()(x))),
            3,
            called="model=my/net",
        )


def test_a_model_that_is_too_large_to_be_loaded_again_is_refused_with_its_size() -> None:
    images = keras.Input((2100, 2100, 1), dtype="uint8")
    maps = layers.Conv2D(32, 3, padding="same")(images)
    outputs = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(maps))
    with pytest.raises(
        RequestError,
        match=r"^model=my/net: .* gives 141,120,000 numbers .*134,217,728.*dataset.size",
    ):
        check_model(keras.Model(images, outputs, name="large"), 3, called="model=my/net")


@pytest.mark.parametrize(
    "head",
    [
        layers.Dense(3, activation="softmax"),
        layers.Dense(3, activation="softmax", dtype="float16"),
        layers.Dense(3, activation="softmax", dtype="bfloat16"),
        lambda x: layers.Activation("softmax")(layers.Dense(3)(Registered()(x))),
        lambda x: keras.ops.softmax(layers.Dense(3)(keras.ops.sqrt(x))),
        layers.Dense(3, activation="softmax", kernel_initializer="zeros"),
    ],
)
def test_a_model_that_gives_probabilities_passes_and_keeps_its_weights(head: Head) -> None:
    made = model(head)
    before = [weight.copy() for weight in made.get_weights()]
    check_model(made, 3, called="model=my/net")
    for weight, then in zip(made.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, then)
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    probabilities = predict(made, split(images), batch_size=2)
    assert (probabilities.dtype, flaw_in(probabilities)) == (np.float32, None)


def logits(images: Any, classes: int) -> Any:
    return layers.Dense(classes)(layers.Flatten()(images))


PREPARED = in_splits(
    synthetic(train_size=40, test_size=20, classes=3, image_shape=SHAPE, noise=32.0, seed=0),
    validation_size=10,
    seed=0,
)


def test_a_model_of_a_configuration_is_checked_before_it_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured("model=linear")
    monkeypatch.setattr(models, "linear", logits)
    with pytest.raises(RequestError, match="model=linear: its outputs are not probabilities"):
        build.build_model(config, PREPARED)


def test_the_check_changes_no_random_number_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured("model.hidden=[6]", "train.epochs=2", "train.tensorboard=false")

    def weights(folder: str) -> list[Any]:
        made = build.build_model(config, PREPARED)
        train(made, PREPARED, config, tmp_path / folder, [])
        return list(made.get_weights())

    checked = weights("checked")
    monkeypatch.setattr(build, "check_model", lambda model, classes, called: None)
    for one, other in zip(checked, weights("unchecked"), strict=True):
        np.testing.assert_array_equal(one, other)


@matrix(25)
def test_a_model_whose_weights_are_nan_predicts_nothing() -> None:
    made = model(layers.Dense(3, activation="softmax"))
    made.set_weights([np.full_like(weight, np.nan) for weight in made.get_weights()])
    images = np.zeros((2, *SHAPE), np.uint8)
    for ask in (
        lambda: predict(made, split(images), batch_size=2),
        lambda: predictor(made)(images),
    ):
        with pytest.raises(PipelineError, match="not probabilities: some are NaN"):
            ask()
    with pytest.raises(RequestError, match="not probabilities: some are NaN"):
        warm_predictor(made, SHAPE, 3)


@pytest.mark.parametrize(
    ("probabilities", "flaw"),
    [
        ([[0.5, 0.5], [1, 0]], None),
        ([[0.333, 0.333, 0.333]], None),
        ([[0.6, 0.6]], "those of an image sum to 1.2"),
        ([[1.5, -0.5]], "some are negative (-0.5)"),
        ([[np.inf, 0]], "some are NaN or infinite"),
        (np.zeros((0, 3)), None),
    ],
)
@matrix(25)
def test_what_keeps_numbers_from_being_probabilities_is_told(
    probabilities: Any, flaw: str | None
) -> None:
    assert flaw_in(np.array(probabilities, np.float32)) == flaw
