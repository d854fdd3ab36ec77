"""The head of a frozen backbone, on a network of two layers.

That it trains as the whole does is tested with pretrained models (test_pretrained.py).
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.data.values import Prepared, Split
from pipeline.training import features
from pipeline.training.build import loss_and_metrics
from pipeline.training.features import Head, head_of, takes_images, whole
from pipeline.training.predictor import predict
from pipeline.training.pretrained import FEATURES

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 2, 2, 1), np.uint8)


def split(start: int, end: int) -> Split:
    rows = np.arange(start, end)
    return Split(images=IMAGES, rows=rows, labels=(rows % 3).astype(np.int32))


PREPARED = Prepared(
    train=split(0, 20),
    val=split(20, 30),
    test=split(30, 40),
    class_names=("a", "b", "c"),
    mean=np.zeros(1, np.float32),
    std=np.ones(1, np.float32),
    fingerprint="f" * 64,
    source="a test",
)


def network(*, frozen: bool = True, before: keras.layers.Layer | None = None) -> keras.Model:
    """Four pixels → two features → three probabilities."""
    keras.utils.set_random_seed(0)
    images = keras.Input((2, 2, 1), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, name="scaling")(images)
    x = x if before is None else before(x)
    x = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(2, name=FEATURES, trainable=not frozen)(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="probabilities")(x)
    model = keras.Model(images, outputs, name="tiny")
    model.compile(optimizer=keras.optimizers.SGD(), **loss_and_metrics())
    return model


def config(folder: Path, **model: Any) -> Any:
    return SimpleNamespace(
        data_dir=str(folder),
        choices=SimpleNamespace(dataset="noise"),
        model={"weights": "x", "trainable": "head", **model},
        augment={"_target_": None},
        train=SimpleNamespace(teacher=None),
        preprocess=SimpleNamespace(limit=None),
    )


def head(folder: Path) -> Head:
    found = head_of(network(), config(folder))
    assert found is not None
    return found


def test_features_are_computed_once_and_read_after_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    computed = head(tmp_path).of(PREPARED.train).images
    kernel, bias = network().get_layer(FEATURES).get_weights()
    expected = (IMAGES.reshape(40, 4) / np.float32(255)) @ kernel + bias
    np.testing.assert_allclose(computed, expected, atol=1e-6)
    assert "Features of 40 of 40 images" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(head(tmp_path).of(PREPARED.test).images, computed)
    assert "Features of" not in caplog.text


@keras.saving.register_keras_serializable("test_features")
class Doubled(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return 2 * x


def test_features_of_a_layer_of_the_users_own_are_computed_anew_where_its_code_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own = network(before=Doubled())
    for code, computed in (("a", True), ("a", False), ("b", True)):
        monkeypatch.setattr(features, "checksums", lambda modules, code=code: {"mine": code})
        caplog.clear()
        found = head_of(own, config(tmp_path))
        assert found is not None
        found.of(PREPARED.train)
        assert ("Features of" in caplog.text) == computed
    assert len([*tmp_path.rglob("features-*")]) == 2


def test_a_split_of_the_packed_images_has_its_rows_of_the_features(tmp_path: Path) -> None:
    found = head(tmp_path)
    test = found.of(PREPARED.test)
    np.testing.assert_array_equal(test.rows, PREPARED.test.rows)
    np.testing.assert_array_equal(test.labels, PREPARED.test.labels)
    assert test.images is found.of(PREPARED.train).images


def test_of_limited_splits_only_their_own_images_have_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limited = config(tmp_path)
    limited.preprocess.limit = 5
    found = head_of(network(), limited)
    assert found is not None
    few = found.of(PREPARED.train.limited(5))
    assert "Features of 5 of 5 images" in caplog.text
    assert few.images.shape == (5, 2)
    every = head(tmp_path).of(PREPARED.train.limited(5))
    np.testing.assert_array_equal(few.batch(0, 5), every.batch(0, 5))
    np.testing.assert_array_equal(few.labels, every.labels)


def test_a_head_predicts_what_the_whole_does_and_shares_its_layers(tmp_path: Path) -> None:
    model = network()
    settings = config(tmp_path)
    found = head_of(model, settings)
    assert found is not None
    assert takes_images(model)
    assert not takes_images(found.model)
    assert whole(model, PREPARED, settings) is model
    expected = model.predict(PREPARED.test.batch(0, 10), verbose=0)
    probabilities = predict(model, PREPARED.test, batch_size=7, head=found)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert found.model.layers[-1] is model.layers[-1]
    assert found.model.optimizer is model.optimizer


def test_the_untrained_head_has_the_weights_that_it_had(tmp_path: Path) -> None:
    found = head(tmp_path)
    before = found.model.get_weights()
    build = found.untrained()
    found.model.set_weights([weight + 1 for weight in before])
    for weight, earlier in zip(build().get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, earlier)


def test_where_the_features_change_there_is_no_head(tmp_path: Path) -> None:
    settings = config(tmp_path)
    assert head_of(network(frozen=False), settings) is None
    settings.augment["_target_"] = "my.layer"  # which may draw from a generator that nobody sees
    assert head_of(network(), settings) is None
    settings.augment["_target_"] = None
    assert head_of(network(), config(tmp_path, trainable="all")) is None
    settings.train.teacher = "abcd"
    assert head_of(network(), settings) is None
    assert not list(tmp_path.iterdir())


def branched(*, early: bool) -> keras.Model:
    """A model whose head normalises, divides and joins again; `early` takes pixels as well."""
    images = keras.Input((2, 2, 1), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, name="scaling")(images)
    flat = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(2, name=FEATURES, trainable=False)(flat)
    x = keras.ops.normalize(x) * 3.0
    joined = keras.layers.Concatenate(name="joined")(
        [x + keras.layers.Dense(2, name="hidden")(x), flat if early else x]
    )
    outputs = keras.layers.Dense(3, activation="softmax", name="probabilities")(joined)
    model = keras.Model(images, outputs, name="branched")
    model.compile(optimizer=keras.optimizers.SGD(), **loss_and_metrics())
    return model


def test_a_head_with_operations_and_branches_predicts_what_the_whole_does(tmp_path: Path) -> None:
    model = branched(early=False)
    found = head_of(model, config(tmp_path))
    assert found is not None
    expected = model.predict(PREPARED.test.batch(0, 10), verbose=0)
    probabilities = predict(model, PREPARED.test, batch_size=7, head=found)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert found.model.get_layer("hidden") is model.get_layer("hidden")
    features = found.of(PREPARED.test).batch(0, 10)
    again = found.untrained()().predict(features, verbose=0)
    np.testing.assert_allclose(again, expected, atol=1e-6)


def test_a_head_that_also_takes_what_is_before_the_features_is_not_trained_alone(
    tmp_path: Path,
) -> None:
    assert head_of(branched(early=True), config(tmp_path)) is None


def test_features_that_are_maps_are_not_kept(tmp_path: Path) -> None:
    images = keras.Input((2, 2, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, name=FEATURES)(images)
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(x))
    assert head_of(keras.Model(images, x), config(tmp_path)) is None


def test_the_untrained_head_needs_no_optimizer(tmp_path: Path) -> None:
    class Mine(keras.optimizers.SGD):  # type: ignore[misc]
        """An optimizer that Keras cannot find by its name."""

    model = network()
    model.compile(optimizer=Mine(), **loss_and_metrics())
    found = head_of(model, config(tmp_path))
    assert found is not None
    np.testing.assert_array_equal(found.untrained()().get_weights()[0], model.get_weights()[2])
