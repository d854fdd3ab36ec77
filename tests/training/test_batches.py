from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config import trusted
from pipeline.data.datasets import synthetic
from pipeline.data.values import Fitted, Prepared
from pipeline.system.errors import PipelineError, RequestError
from pipeline.training.batches import (
    changed_batches,
    class_weights,
    preview,
    smoothed,
    training_batch,
)
from pipeline.training.build import build_model, kept
from pipeline.training.checkpoint import progress_of
from pipeline.training.saved import load_saved
from pipeline.training.train import train
from tests.commands import configured
from tests.splits import in_splits
from tests.stress.matrix import matrix, only_stressed

pytestmark = pytest.mark.slow
RAW = synthetic(train_size=60, test_size=20, classes=3, image_shape=(6, 6, 1), noise=32.0, seed=0)
PREPARED = in_splits(RAW, validation_size=20, seed=0)
SMALL = ("train.batch_size=8", "train.epochs=3", "train.tensorboard=false", "model.hidden=[6]")
MIXED = (
    *("augment=flip_crop", "augment.mixup=1", "augment.cutmix=1", "augment.erasing=0.5"),
    *("train.label_smoothing=0.1", "train.class_weight=balanced"),
)


def config(*overrides: str) -> Any:
    return configured(*SMALL, *overrides)


def trained(
    folder: Path, *overrides: str, prepared: Prepared = PREPARED, resumed: bool = False
) -> Fitted:
    settings = config(*overrides)
    start = progress_of(folder / "checkpoints" / "last.keras") if resumed else None
    return train(build_model(settings, prepared), prepared, settings, folder, [], start)


def flat(model: keras.Model) -> Any:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def taken(*overrides: str, prepared: Prepared = PREPARED) -> Any:
    """What the training step and the validation step of a model take of four images."""
    model, seen = build_model(config(*overrides), prepared), []
    model.train_step = model.test_step = seen.append
    images, labels = prepared.train.batch(0, 4), prepared.train.labels[:4]
    with changed_batches(model, prepared, config(*overrides)):
        for step in (model.train_step, model.test_step):
            step((tf.constant(images), tf.constant(labels)))
    assert np.array_equal(seen[0][0], images)
    return [[np.array(part) for part in parts[1:]] for parts in seen], labels


def test_smoothing_spreads_a_share_of_a_target_over_all_classes() -> None:
    targets = tf.constant([[0, 1, 0, 0], [0.5, 0, 0.5, 0]])
    expected = [[0.025, 0.925, 0.025, 0.025], [0.475, 0.025, 0.475, 0.025]]
    np.testing.assert_allclose(smoothed(targets, 0.1), expected, atol=1e-7)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 6 + [1] * 3 + [3], np.int32)
    weights = class_weights(labels, 4)
    present = np.unique(labels)
    expected = compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(weights[present], expected, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)


def test_only_training_has_smoothed_targets() -> None:
    (training, validation), labels = taken("train.label_smoothing=0.3")
    one_hot = np.eye(3, dtype=np.float32)[labels]
    np.testing.assert_allclose(training[0], 0.7 * one_hot + 0.1, atol=1e-6)
    np.testing.assert_array_equal(validation[0], one_hot)
    assert len(training) == len(validation) == 1


def test_only_training_weighs_classes() -> None:
    labels = np.sort(PREPARED.train.labels)[::-1].copy()
    few = replace(PREPARED, train=replace(PREPARED.train, labels=labels))
    (training, validation), labels = taken("train.class_weight=balanced", prepared=few)
    np.testing.assert_allclose(training[1], class_weights(few.train.labels, 3)[labels])
    assert len(validation) == 1


def test_the_loss_of_validation_is_that_of_the_kept_model_on_labels(tmp_path: Path) -> None:
    fitted = trained(tmp_path, *MIXED)
    split = PREPARED.val
    found = fitted.model.evaluate(
        split.batch(0, len(split)), split.labels, verbose=0, return_dict=True
    )
    assert found["loss"] == pytest.approx(fitted.history["val/loss"][-1], rel=1e-5)
    assert found["accuracy"] == pytest.approx(fitted.history["val/accuracy"][-1], rel=1e-5)
    last = tmp_path / "checkpoints" / "last.keras"
    again = kept(load_saved(last, called="last", compile=True))  # as a sweep completes a job
    assert isinstance(again.loss, keras.losses.SparseCategoricalCrossentropy)
    np.testing.assert_array_equal(flat(again), flat(fitted.model))


@only_stressed  # test_teacher.py resumes augmented training, test_train.py with XLA
@matrix(12)
def test_interrupted_training_draws_the_same_changes_with_xla_too(tmp_path: Path) -> None:
    piece = ("augment=flip_crop", "augment.mixup=0.4", "train.xla=true", "train.epochs=2")
    whole = trained(tmp_path / "whole", *piece)
    trained(tmp_path, *piece, "train.epochs=1")
    resumed = trained(tmp_path, *piece, resumed=True)
    np.testing.assert_array_equal(flat(resumed.model), flat(whole.model))
    assert resumed.history == whole.history


def test_the_model_never_sees_the_augmentation() -> None:
    layers = [layer.name for layer in build_model(config("augment=flip_crop"), PREPARED).layers]
    assert layers[:3] == ["images", "scaling", "flatten"]


Words = Callable[..., tuple[str, ...]]
OWN = """
from dataclasses import replace
import keras
import tensorflow as tf
from pipeline.config.rules import Share
from pipeline.training.pieces import Batch
from tests.splits import in_splits


def inverted(batch: Batch, *, share: Share) -> Batch:
    chosen = batch.uniform(7, batch.size[0]) < share
    images = tf.where(chosen[:, None, None, None], 255 - batch.images, batch.images)
    return replace(batch, images=images, targets=batch.targets[:, ::-1])


def scaled(batch: Batch) -> Batch:
    return replace(batch, images=tf.cast(batch.images, tf.float32) / 255)


def halved(batch: Batch) -> Batch:
    return replace(batch, targets=batch.targets[:, :2])


def images_alone(batch: Batch) -> Batch:
    return batch.images


def dimmed(images, *, share: Share):
    return images * (1 - share)


def cropped(images):
    return keras.layers.RandomCrop(4, 3)(images)


def coloured(images):
    return keras.layers.Concatenate()([images] * 3)


def two(images):
    return [images, images]


def by_numpy(batch: Batch) -> Batch:
    inverted = tf.numpy_function(lambda images: 255 - images, [batch.images], tf.uint8)
    return replace(batch, images=inverted)


def failing(batch: Batch) -> Batch:
    return batch.pictures


def by_epoch(batch: Batch) -> Batch:
    assert batch.epoch.dtype == tf.int64
    return batch
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Words]:
    """The words that choose one of the augmentations in a module of the user's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_augment.py").write_text(OWN)
    trust = "trusted_modules=[my_augment]"
    yield lambda name, *words: (
        trust,
        "augment=none",
        f"augment._target_=my_augment.{name}",
        *words,
    )
    trusted.trust([])
    sys.modules.pop("my_augment", None)


def test_an_augmentation_of_ones_own_that_takes_a_batch_changes_batches_and_their_targets(
    own: Words,
) -> None:
    words = own("inverted", "+augment.share=1")
    layers = [layer.name for layer in build_model(config(*words), PREPARED).layers]
    assert layers[:3] == ["images", "scaling", "flatten"]
    rows = preview(PREPARED, config(*words), rows=3, versions=2)
    assert rows is not None
    np.testing.assert_array_equal(rows[:, 1], 255 - rows[:, 0])
    images, labels = PREPARED.train.batch(0, 4), PREPARED.train.labels[:4]
    batch = training_batch(
        config(*words), tf.constant(images), tf.one_hot(labels, 3), tf.constant(0), tf.constant(0)
    )
    np.testing.assert_array_equal(batch.images, 255 - images)
    np.testing.assert_array_equal(np.argmax(batch.targets, axis=1), 2 - labels)
    some = preview(PREPARED, config(*own("inverted", "+augment.share=0.5")), rows=4, versions=8)
    assert some is not None
    assert 0 < (some[:, 1:] != some[:, :1]).any(axis=(2, 3, 4)).mean() < 1


def test_an_augmentation_may_call_numpy_which_gives_no_shape(own: Words, tmp_path: Path) -> None:
    fitted = trained(tmp_path, *own("by_numpy"), "train.epochs=1")
    assert fitted.augmented is not None
    np.testing.assert_array_equal(fitted.augmented[:, 1], 255 - fitted.augmented[:, 0])


def test_an_augmentation_that_fails_is_named(own: Words) -> None:
    with pytest.raises(PipelineError, match=r"^my_augment.failing: AttributeError: 'Batch' obj"):
        preview(PREPARED, config(*own("failing")))


def test_an_augmentation_of_ones_own_that_takes_images_is_a_layer(
    own: Words,
) -> None:
    rows = preview(PREPARED, config(*own("dimmed", "+augment.share=0.5")), rows=3, versions=1)
    assert rows is not None
    np.testing.assert_allclose(rows[:, 1], rows[:, 0] / 2, atol=1)


def test_after_a_layer_that_changes_the_size_images_have_their_size_again(own: Words) -> None:
    model = build_model(config(*own("cropped")), PREPARED)
    names = [layer.name for layer in model.layers]
    assert names[3] == "resized"
    shown = keras.Model(model.input, model.get_layer("resized").output)
    images = PREPARED.train.batch(0, 3)
    np.testing.assert_allclose(shown(images, training=False), images / 255, atol=1e-6)
    assert shown(images, training=True).shape == (3, 6, 6, 1)
    rows = preview(PREPARED, config(*own("cropped")), rows=3, versions=2)
    assert rows is not None
    assert rows.shape == (3, 3, 6, 6, 1)


@pytest.mark.parametrize(("name", "made"), [("coloured", r"\[None, 6, 6, 3\]"), ("two", "list")])
def test_a_layer_that_returns_other_than_images_is_refused_before_training(
    name: str, made: str, own: Words
) -> None:
    with pytest.raises(
        RequestError, match=rf"^augment._target_: my_augment.{name} makes {made} of .* 1 channels$"
    ):
        build_model(config(*own(name)), PREPARED)


def test_the_number_of_an_epoch_has_one_type(own: Words) -> None:
    words = own("by_epoch")
    taken(*words)
    preview(PREPARED, config(*words))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("scaled", r"returns images float32\[4, 6, 6, 1\], not uint8\[4, 6, 6, 1\]"),
        ("halved", r"returns targets float32\[4, 2\], not float32\[4, 3\]"),
        ("images_alone", r"returns \w+, not a Batch"),
    ],
)
def test_an_augmentation_that_returns_no_batch_of_images_and_targets_is_refused(
    name: str, reason: str, own: Words
) -> None:
    with pytest.raises(RequestError, match=rf"^augment._target_: my_augment.{name} {reason}$"):
        preview(PREPARED, config(*own(name)), rows=4)


def test_a_model_with_another_loss_is_refused(tmp_path: Path) -> None:
    model = build_model(config(), PREPARED)
    model.compile(loss="mse")
    with pytest.raises(RequestError, match="loss is not SparseCategoricalCrossentropy"):
        train(model, PREPARED, config("augment=flip_crop"), tmp_path, [])


@pytest.mark.parametrize("augment", ["flip_crop", "flip_and_shift"])
def test_a_preview_has_images_and_versions_of_them_in_rows(augment: str) -> None:
    rows = preview(PREPARED, config(f"augment={augment}"), rows=3, versions=4)
    assert rows is not None
    assert (rows.shape, rows.dtype) == ((3, 5, 6, 6, 1), np.uint8)
    np.testing.assert_array_equal(rows[:, 0], PREPARED.train.batch(0, 3))
    assert (rows[:, 1:] != rows[:, :1]).any(axis=(2, 3, 4)).mean() > 0.5
    assert preview(PREPARED, config()) is None


def test_nothing_is_said_of_graphs_while_batches_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, "augment=flip_crop", "train.epochs=1")
    assert [record.message for record in caplog.records if "AutoGraph" in record.message] == []
