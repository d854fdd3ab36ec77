from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.values import Array, Split
from pipeline.system.errors import RequestError
from pipeline.training.predictor import (
    predict,
    single_image_ms,
    views_of,
    warm_predictor,
    with_features,
)
from tests.stress.matrix import matrix

SHAPE = (4, 3, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (70, *SHAPE), np.uint8)


def split(images: int) -> Split:
    return Split(images=IMAGES[:images], labels=np.zeros(images, np.int32))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(SHAPE, dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("number", [1, 2, 70])
def test_probabilities_are_those_of_the_model_at_inference(model: keras.Model, number: int) -> None:
    probabilities = warm_predictor(model, SHAPE, 3)(IMAGES[:number])
    expected = model(IMAGES[:number], training=False).numpy()
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


@pytest.mark.parametrize(("most", "sizes"), [(334, [1, 1, 2, 64]), (9, [1, 1, 2, 9]), (1, [1, 1])])
def test_it_is_warmed_up_with_no_more_images_than_it_will_be_given(
    most: int, sizes: list[int], model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    constant = tf.constant

    def noted(batch: Array) -> tf.Tensor:
        given.append(len(batch))
        return constant(batch)

    monkeypatch.setattr(tf, "constant", noted)
    forward = warm_predictor(model, SHAPE, 3, most=most)
    assert given == sizes
    assert len(forward(IMAGES)) == len(IMAGES)


def test_many_threads_get_each_its_own_answer(model: keras.Model) -> None:
    forward = warm_predictor(model, SHAPE, 3)
    expected = forward(IMAGES)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda row: forward(IMAGES[row : row + 1])[0], range(70)))
    np.testing.assert_allclose(answers, expected, atol=1e-6)


@matrix(35)
def test_a_model_of_other_images_is_refused(model: keras.Model) -> None:
    with pytest.raises(RequestError, match=r"the model does not take images u8\[None, 5, 5, 1\]"):
        warm_predictor(model, (5, 5, 1), 3)


@matrix(35)
def test_a_model_of_other_classes_than_it_has_names_is_refused(model: keras.Model) -> None:
    with pytest.raises(RequestError, match="gives 3 probabilities for 10 class names"):
        warm_predictor(model, SHAPE, 10)


@pytest.mark.parametrize("batch_size", [1, 5, 7, 100])
def test_predictions_are_those_of_model_predict_also_in_uneven_batches(
    model: keras.Model, batch_size: int
) -> None:
    images = IMAGES[:21]
    probabilities = predict(model, split(21), batch_size=batch_size)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (21, 3)
    expected = model.predict(images, batch_size=batch_size, verbose=0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)


def test_the_time_of_one_image_is_the_median_without_the_first_calls(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([60.0] * 10 + [0.004] * 40 + [0.002] * 21 + [0.001] * 39)
    clock = [0.0, True]

    def now() -> float:
        clock[1] = not clock[1]
        clock[0] += next(taken) if clock[1] else 0
        return clock[0]

    monkeypatch.setattr("pipeline.training.predictor.time.perf_counter", now)
    assert single_image_ms(model, split(3)) == pytest.approx(2)
    assert next(taken, None) is None


def test_views_are_mirrored_and_moved_copies_of_each_image() -> None:
    image = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3, 1)
    flips = [view[0, :, :, 0].tolist() for view in views_of(image, "flip")]
    assert flips == [[[1, 2, 3], [4, 5, 6]], [[3, 2, 1], [6, 5, 4]]]
    moved = [view[0, :, :, 0].tolist() for view in views_of(image, "flip_and_shift")]
    assert moved[:3] == [flips[0], [[5, 6, 6], [5, 6, 6]], [[1, 1, 2], [1, 1, 2]]]
    assert [np.fliplr(view).tolist() for view in moved[:3]] == moved[3:]


def test_probabilities_of_views_are_their_means() -> None:
    images = keras.Input((2, 2, 1), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), np.uint8)
    split = Split(images=pixels, labels=np.zeros(5, np.int32))
    plain, mirrored = model(pixels), model(pixels[:, :, ::-1])
    found = predict(model, split, batch_size=2, views="flip")
    np.testing.assert_allclose(found, (np.array(plain) + np.array(mirrored)) / 2, atol=1e-6)
    assert found.dtype == np.float32


def around(*, returned: bool) -> keras.Model:
    """A model around a nested network, which is all of it or what comes before the head."""
    inner = keras.Input((None, None, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 2)(inner))
    head = keras.layers.Dense(3, activation="softmax")
    images = keras.Input(SHAPE, dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    network = keras.Model(inner, head(x) if returned else x)
    return keras.Model(images, network(scaled) if returned else head(network(scaled)))


def test_features_are_what_the_head_takes_also_of_a_nested_network() -> None:
    model = around(returned=False)
    features, probabilities = with_features(model)(IMAGES[:5])
    np.testing.assert_allclose(probabilities, model(IMAGES[:5]), atol=1e-6)
    assert features is not None
    np.testing.assert_allclose(model.layers[-1](features), probabilities, atol=1e-6)


def test_a_model_that_only_returns_a_network_has_probabilities_and_no_features() -> None:
    model = around(returned=True)
    features, probabilities = with_features(model)(IMAGES[:5])
    assert features is None
    np.testing.assert_allclose(probabilities, model(IMAGES[:5]), atol=1e-6)


def test_a_model_that_takes_floats_is_given_them() -> None:
    images = keras.Input(SHAPE)
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(images / 255))
    model = keras.Model(images, x)
    expected = model(IMAGES[:5].astype(np.float32))
    np.testing.assert_allclose(predict(model, split(5), batch_size=4), expected, atol=1e-6)
    _, probabilities = with_features(model)(IMAGES[:5])
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
