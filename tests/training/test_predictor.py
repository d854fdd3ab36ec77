from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from pipeline.system.errors import RequestError
from pipeline.training.predictor import compiled

SHAPE = (4, 3, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (70, *SHAPE), np.uint8)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(SHAPE, dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("number", [1, 2, 70])
def test_probabilities_are_those_of_the_model_at_inference(model: keras.Model, number: int) -> None:
    probs = compiled(model, SHAPE, 3)(IMAGES[:number])
    expected = model(IMAGES[:number], training=False).numpy()
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, expected, atol=1e-6)


def test_many_threads_get_each_its_own_answer(model: keras.Model) -> None:
    predict = compiled(model, SHAPE, 3)
    expected = predict(IMAGES)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda row: predict(IMAGES[row : row + 1])[0], range(70)))
    np.testing.assert_allclose(answers, expected, atol=1e-6)


def test_a_model_of_other_images_is_refused(model: keras.Model) -> None:
    with pytest.raises(RequestError, match=r"the model takes no images u8\[None, 5, 5, 1\]"):
        compiled(model, (5, 5, 1), 3)


def test_a_model_of_other_classes_than_it_has_names_is_refused(model: keras.Model) -> None:
    with pytest.raises(RequestError, match="gives 3 probabilities for 10 class names"):
        compiled(model, SHAPE, 10)
