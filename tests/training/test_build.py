"""The network as it is compiled, and the trained model as it is kept.

What it computes is tested with the models (test_models.py) and in training (test_train.py).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

from pipeline.data.datasets import synthetic
from pipeline.system.errors import RequestError
from pipeline.training import build, models
from pipeline.training.build import build_model, kept, loss_and_metrics, prepare_keras
from tests.commands import configured
from tests.splits import in_splits

pytestmark = pytest.mark.slow

RAW = synthetic(train_size=60, test_size=20, classes=3, image_shape=(6, 6, 1), noise=32.0, seed=0)
PREPARED = in_splits(RAW, validation_size=20, seed=0)
LINEAR = ("model=linear", "train.batch_size=16")


def built(*overrides: str) -> keras.Model:
    return build_model(configured(*LINEAR, *overrides), PREPARED)


def test_the_network_is_compiled_with_the_chosen_optimizer_loss_and_accuracy() -> None:
    model = built("optimizer=sgd", "optimizer.learning_rate=0.25", "train.ema=0.5")
    assert (model.input_shape, model.output_shape) == ((None, 6, 6, 1), (None, 3))
    assert model.inputs[0].dtype == "uint8"
    assert type(model.optimizer) is keras.optimizers.SGD
    assert float(model.optimizer.learning_rate) == 0.25
    assert (model.optimizer.use_ema, model.optimizer.ema_momentum) == (True, 0.5)
    assert type(model.loss) is keras.losses.SparseCategoricalCrossentropy
    assert loss_and_metrics()["metrics"][0].name == "accuracy"


def test_a_schedule_ends_with_the_last_step_of_the_last_epoch() -> None:
    model = built("schedule=cosine", "train.epochs=4", "optimizer.learning_rate=0.5")
    schedule = model.optimizer._learning_rate
    assert schedule.decay_steps == 4 * 3  # of 40 images in batches of 16
    assert float(schedule(0)) == 0.5


def test_a_model_is_checked_unless_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    classes: list[int] = []
    monkeypatch.setattr(build, "check_model", lambda model, count, called: classes.append(count))
    built()
    assert classes == [3]
    build_model(configured(*LINEAR), PREPARED, checked=True)
    assert classes == [3]


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("mine/net", "mine_net"),
        ("größe", "gr__e"),
        ("a+b", "a_b"),
        ("_x", "model_x"),
        ("ü", "model_"),
    ],
)
def test_a_model_may_have_any_name_that_a_file_of_its_group_may_have(
    choice: str, name: str
) -> None:
    config = configured(*LINEAR)
    named = replace(config, choices=replace(config.choices, model=choice))
    assert build_model(named, PREPARED).name == name


def test_what_a_job_before_asked_of_tensorflow_holds_for_that_job_alone() -> None:
    found = []
    for wanted in ("true", "false"):
        prepare_keras(configured(*LINEAR, f"train.deterministic={wanted}"))
        found.append(tf_config.is_op_determinism_enabled())
    assert found == [True, False]


def test_the_precision_that_a_notebook_has_set_is_not_that_of_a_run() -> None:
    config = configured(*LINEAR)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        prepare_keras(config)
        model = build_model(config, PREPARED)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in model.layers[1:]} == {"float32"}


def test_what_others_asked_of_tensorflow_stays() -> None:
    """As the variable TF_DETERMINISTIC_OPS does."""
    tf.config.experimental.enable_op_determinism()
    try:
        for wanted in ("true", "false"):
            prepare_keras(configured(*LINEAR, f"train.deterministic={wanted}"))
            assert tf_config.is_op_determinism_enabled()
    finally:
        tf_config.disable_op_determinism()


@pytest.mark.parametrize(
    ("scaling", "channels", "said"),
    [
        ("whitened", 1, "not 9 channels; train.scaling=whitened makes 9 of each: set unit"),
        ("unit", 9, "not 9 channels"),  # of the images themselves
    ],
)
def test_a_network_for_pictures_says_what_it_does_not_take(
    scaling: str, channels: int, said: str
) -> None:
    words = ("model=efficientnet_lite0", "model.weights=null", "model.trainable=all")
    shape = (6, 6, channels)
    raw = synthetic(train_size=60, test_size=20, classes=3, image_shape=shape, noise=32.0, seed=0)
    with pytest.raises(RequestError) as refused:
        build_model(
            configured(*words, f"train.scaling={scaling}"),
            in_splits(raw, validation_size=20, seed=0),
        )
    assert str(refused.value) == f"model=efficientnet_lite0: takes grey or RGB images, {said}"


def test_a_models_weights_follow_the_seed_alone() -> None:
    one, same, other = (built(f"seed={seed}").get_weights()[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_threads_that_build_a_model_at_once_get_the_same_weights() -> None:
    config = configured("model=mlp", "model.hidden=[64,64,64]")
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: build_model(config, PREPARED), range(8))
    for other in others:
        for one, same in zip(other.get_weights(), first.get_weights(), strict=True):
            np.testing.assert_array_equal(one, same)


def test_a_model_whose_loss_takes_shares_of_classes_is_kept_with_one_that_takes_labels() -> None:
    model = built()
    model.compile(optimizer=model.optimizer, loss=keras.losses.CategoricalCrossentropy())
    optimizer = model.optimizer
    assert kept(model) is model
    assert type(model.loss) is keras.losses.SparseCategoricalCrossentropy
    assert model.optimizer is optimizer


def test_a_model_is_kept_without_an_optimizer_that_only_this_package_can_load() -> None:
    model = built("optimizer=muon")
    assert type(kept(model).optimizer) is keras.optimizers.SGD


def test_a_model_in_float32_is_kept_as_it_is() -> None:
    model = built()
    assert kept(model) is model


def test_a_model_is_kept_without_a_schedule_that_only_its_user_can_load() -> None:
    class Mine(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return 0.1

    model = built()
    model.optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert kept(model).optimizer is model.optimizer
    model.compile(keras.optimizers.Adam(Mine()), **loss_and_metrics())
    assert isinstance(kept(model).optimizer, keras.optimizers.SGD)


def test_a_model_that_was_loaded_without_its_optimizer_is_kept_with_one_of_keras() -> None:
    model = built()
    bare = keras.models.clone_model(model)
    model = keras.Model(bare.inputs, bare.outputs)
    assert not model.compiled
    assert kept(model) is model
    assert type(model.optimizer) is keras.optimizers.SGD


@pytest.mark.parametrize("described", [None, {"steps": object()}], ids=["not", "by no JSON"])
def test_a_schedule_that_no_checkpoint_can_describe_is_refused_before_training(
    described: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return 0.1

        def get_config(self) -> dict[str, Any]:
            return described or super().get_config()

    config = configured(*LINEAR, "schedule=cosine")
    made = build.build
    monkeypatch.setattr(
        build, "build", lambda leaf, *more: Mine() if leaf is config.schedule else made(leaf, *more)
    )
    with pytest.raises(RequestError, match=r"^optimizer=adam schedule=cosine: checkpoints cannot"):
        build_model(config, PREPARED)


@pytest.mark.parametrize(
    ("group", "made", "said"),
    [
        ("optimizer", "adam", "keras.optimizers.Adam: returns str, not a Keras Optimizer"),
        ("schedule", lambda: 0.1, "returns function, not a Keras LearningRateSchedule"),
    ],
    ids=["optimizer", "schedule"],
)
def test_what_is_no_optimizer_or_schedule_is_refused(
    group: str, made: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(*LINEAR, "schedule=cosine")
    ours, own = build.build, getattr(config, group)
    monkeypatch.setattr(
        build, "build", lambda leaf, *more: made if leaf is own else ours(leaf, *more)
    )
    with pytest.raises(RequestError, match=said):
        build_model(config, PREPARED)


def test_an_optimizer_that_accumulates_gradients_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured(*LINEAR)
    made = build.build
    slow = keras.optimizers.Adam(gradient_accumulation_steps=4)
    monkeypatch.setattr(
        build, "build", lambda leaf, *more: slow if leaf is config.optimizer else made(leaf, *more)
    )
    with pytest.raises(RequestError, match="gradient_accumulation_steps is not supported"):
        build_model(config, PREPARED)


def backbone(images: Any, classes: int) -> Any:
    """A small backbone, and a head of operations and branches."""
    x = keras.layers.Dense(4, name="base")(keras.layers.Flatten(name="flat")(images))
    x = keras.ops.normalize(keras.layers.Identity(name="features")(x)) * 3.0
    x = keras.layers.Concatenate(name="joined")([x, x + keras.layers.Dense(4, name="hidden")(x)])
    return keras.layers.Dense(classes, activation="softmax", name="probabilities")(x)


def test_the_head_on_a_shared_backbone_is_built_with_all_its_operations_and_branches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = wraps(models.efficientnet_lite)(lambda images, classes, **_: backbone(images, classes))
    monkeypatch.setattr(models, "efficientnet_lite", own)
    words = ("model=efficientnet_lite0", "train.batch_size=16")
    donor = configured(*words, "model.weights=null", "model.trainable=all")
    build_model(donor, PREPARED).save(tmp_path / "donor.keras")
    config = configured(*words, f"model.weights={tmp_path}/donor.keras", "model.trainable=head")
    first, second = (build_model(config, PREPARED) for _ in range(2))
    assert first.get_layer("base") is second.get_layer("base")
    assert first.get_layer("hidden") is not second.get_layer("hidden")
    images = keras.Input((6, 6, 1), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    expected = keras.Model(images, backbone(scaled, 3))
    pixels = PREPARED.test.batch(0, 5)
    for model in (first, second):
        expected.set_weights(model.get_weights())
        np.testing.assert_allclose(model(pixels), expected(pixels), atol=1e-6)
    np.testing.assert_array_equal(first(pixels), second(pixels))


def test_a_backbone_that_was_trained_further_or_replaced_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = wraps(models.efficientnet_lite)(lambda images, classes, **_: backbone(images, classes))
    monkeypatch.setattr(models, "efficientnet_lite", own)
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ("model=efficientnet_lite0", "train.batch_size=16")
    donor = build_model(configured(*words, "model.weights=null", "model.trainable=all"), PREPARED)
    donor.save(tmp_path / "donor.keras")
    config = configured(*words, "model.weights=~/donor.keras", "model.trainable=head")

    def base() -> Any:
        return build_model(config, PREPARED).get_layer("base")

    first, kernel = base(), donor.get_layer("base").get_weights()[0]
    assert base() is first
    first.bias.assign_add(np.ones(4))
    second = base()
    np.testing.assert_array_equal(second.get_weights()[0], kernel)
    np.testing.assert_array_equal(second.get_weights()[1], np.zeros(4))
    second.trainable = True
    assert base() is not second
    assert not base().trainable
    donor.get_layer("base").set_weights([2 * kernel, np.ones(4)])
    donor.save(tmp_path / "donor.keras")
    np.testing.assert_array_equal(base().get_weights()[0], 2 * kernel)
    last = base()
    monkeypatch.setattr(build, "checksums", lambda modules: {"my_models": "changed"})
    assert base() is not last


def test_a_head_that_takes_more_than_the_features_begins_anew_with_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(images: Any, classes: int, **_: Any) -> Any:
        flat = keras.layers.Flatten(name="flat")(images)
        x = keras.layers.Dense(4, name="features")(flat)
        x = keras.layers.Concatenate(name="joined")([x, flat])
        return keras.layers.Dense(classes, activation="softmax", name="probabilities")(x)

    monkeypatch.setattr(models, "efficientnet_lite", wraps(models.efficientnet_lite)(early))
    words = ("model=efficientnet_lite0", "train.batch_size=16")
    donor = configured(*words, "model.weights=null", "model.trainable=all")
    build_model(donor, PREPARED).save(tmp_path / "donor.keras")
    config = configured(*words, f"model.weights={tmp_path}/donor.keras", "model.trainable=head")
    first = build_model(config, PREPARED)
    before = first.get_layer("probabilities").get_weights()
    first.get_layer("probabilities").set_weights([weights + 1 for weights in before])
    second = build_model(config, PREPARED)
    for now, then in zip(second.get_layer("probabilities").get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_channel_that_is_constant_in_training_is_scaled_by_levels() -> None:
    prepared = replace(PREPARED, mean=np.float32([7]), std=np.float32([0]))
    model = build_model(configured(*LINEAR, "train.scaling=standard"), prepared)
    pixels = np.array([6, 7, 9], np.uint8).reshape(3, 1, 1, 1)
    found = model.get_layer("scaling")(np.broadcast_to(pixels, (3, 6, 6, 1)))
    np.testing.assert_allclose(np.array(found)[:, 0, 0, 0], [-1, 0, 2], atol=1e-5)
