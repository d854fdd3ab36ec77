from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from pipeline.data.datasets import synthetic
from pipeline.system.errors import PipelineError
from pipeline.training import build, loop
from pipeline.training.build import build_model
from pipeline.training.predictor import predictor, with_features
from pipeline.training.train import train
from tests.commands import configured
from tests.splits import in_splits

pytestmark = pytest.mark.slow

RAW = synthetic(train_size=20, test_size=4, classes=2, image_shape=(6, 6, 1), noise=32.0, seed=0)
PREPARED = in_splits(RAW, validation_size=4, seed=0)
SAID = "OOM when allocating tensor with shape[784,64] and type float on /job:localhost by mklcpu"
TOLD = r"^there is not enough memory for an array of the shape \[784,64\]; lower "


def fails(*_: Any, **__: Any) -> None:
    raise tf.errors.ResourceExhaustedError(None, None, SAID)


def test_a_model_and_a_training_that_are_too_large_for_memory_end_with_what_to_lower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = configured("model=linear", "train.epochs=1", "train.tensorboard=false")
    model = build_model(config, PREPARED)
    monkeypatch.setattr(loop, "fit", fails)
    with pytest.raises(PipelineError, match=TOLD + "train.batch_size"):
        train(model, PREPARED, config, tmp_path, [])
    monkeypatch.setattr(build, "build", fails)
    with pytest.raises(PipelineError, match=TOLD + "train.batch_size"):
        build_model(config, PREPARED)


def test_a_prediction_that_is_too_large_for_memory_ends_with_what_to_lower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = keras.Input((6, 6, 1), dtype="uint8")
    model = keras.Model(images, keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(images)))
    forwards = [predictor(model), with_features(model)]
    monkeypatch.setattr(tf, "constant", fails)
    for forward in forwards:
        with pytest.raises(PipelineError, match=TOLD + ".* evaluate.batch_size, or batch_size of"):
            forward(PREPARED.test.batch(0, 2))
