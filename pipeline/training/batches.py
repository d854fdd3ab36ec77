"""Changes batches between the data and the training step: augmentation, targets, weights, teacher.

The changes run in the compiled graph of the step. Their random numbers depend only on the seed of
the run and the number of the step, so a resumed run draws the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_type_hints

import keras
import numpy as np
import tensorflow as tf

from pipeline.config.builders import build, builder_of
from pipeline.config.named_runs import teacher_runs
from pipeline.config.schema import Config
from pipeline.data.values import Array, Prepared, RawData
from pipeline.system.errors import RequestError
from pipeline.training.pieces import Batch
from pipeline.training.precision import computes_in_float32, quicken

BatchChange = Callable[[Any], Any]  # from images and labels to the input of Keras' step


def changes_batches(config: Config) -> bool:
    """Whether any setting changes the batches of training."""
    train = config.train
    targets = train.label_smoothing > 0 or train.class_weight is not None
    return needs_images(config) or targets


def needs_images(config: Config) -> bool:
    """Whether each step of training needs the images themselves, not only features of them."""
    return augments_batches(config) or bool(teacher_runs(config))


@contextmanager
def changed_batches(
    model: keras.Model, prepared: Prepared, config: Config, teachers: Sequence[keras.Model] = ()
) -> Iterator[None]:
    """Makes the steps of `model` change their batches, if `config` sets any such change.

    Training and validation steps then take targets f32[n,K] instead of labels i32[n]; validation
    batches are not changed otherwise. From then on the loss is for targets; `kept` in
    training/build.py undoes that. With `teachers` (images u8[N,H,W,C] → probabilities
    f32[N,K]), training minimises the loss of knowledge distillation from their mean; they compute
    in bfloat16 if `model` does and that is faster.

    Raises:
        RequestError: `model` has another loss than cross-entropy, or a teacher is missing.
    """
    if len(teachers) != len(teacher_runs(config)):
        raise RequestError("train.teacher: the models of its runs must be given as teachers")
    if not changes_batches(config):
        yield
        return
    _take_targets(model)
    if not computes_in_float32(model):
        for teacher in teachers:
            quicken(teacher)
    classes = len(prepared.class_names)
    train_step, test_step = model.train_step, model.test_step
    change = _training_change(model, prepared, config, teachers)
    model.train_step = lambda batch: train_step(change(batch))
    model.test_step = lambda batch: test_step((batch[0], tf.one_hot(batch[1], classes)))
    replaced = ["train_step", "test_step"]
    if teachers:
        model.compute_loss, model.compute_metrics = _distilling(model, classes, config)
        replaced += ["compute_loss", "compute_metrics"]
    try:
        yield
    finally:
        for name in replaced:
            delattr(model, name)


def preview(
    prepared: Prepared, config: Config, *, rows: int = 4, versions: int = 7
) -> Array | None:
    """Training images u8[R,1+V,H,W,C] with `augmented` versions; None without augmentation."""
    if config.augment["_target_"] is None or not len(prepared.train):
        return None
    images = prepared.train.batch(0, min(rows, len(prepared.train)))
    labels = prepared.train.labels[: len(images)]
    return augmented(images, labels, config, len(prepared.class_names), versions=versions)


def augmenter(config: Config, raw: RawData) -> Callable[[Array, Array], Array] | None:
    """Returns a function that augments images for a page; None without augmentation.

    It takes images u8[n,H,W,C] and labels i32[n]; it returns three `augmented` versions of each
    image, u8[n,3,H,W,C].
    """
    if config.augment["_target_"] is None:
        return None
    classes = len(raw.class_names)
    return lambda images, labels: augmented(images, labels, config, classes, versions=3)[:, 1:]


def augmented(
    images: Array, labels: Array, config: Config, classes: int, *, versions: int
) -> Array:
    """Each of the images u8[n,H,W,C], then versions of it as training sees them: u8[n,1+V,H,W,C].

    For an augmentation that is a layer, these are its outputs; for one of batches, those of the
    first epochs. The configuration must have an augmentation.
    """
    if augments_batches(config):
        targets = tf.one_hot(labels, classes)
        changed = [
            training_batch(config, tf.constant(images), targets, tf.constant(n), tf.constant(n))
            for n in range(versions)
        ]
        return np.stack([images, *(batch.images.numpy() for batch in changed)], axis=1)
    scaled = keras.Input(images.shape[1:], name="images")
    layers = keras.Model(scaled, augmented_by_layers(scaled, config), name="augmentation")
    shown = [layers(images / np.float32(255), training=True) for _ in range(versions)]
    pixels = [np.clip(np.round(255 * np.array(x)), 0, 255).astype(np.uint8) for x in shown]
    return np.stack([images, *pixels], axis=1)


def augmented_by_layers(images: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    """Scaled images f32[N,H,W,C] as the layers of an augmentation change them.

    They are the images themselves if no augmentation is chosen, or one of batches. Those of another
    size are scaled and padded to the size of the images: `RandomCrop` crops in training only.

    Raises:
        RequestError: it gives anything other than images of as many channels.
    """
    if config.augment["_target_"] is None or augments_batches(config):
        return images
    changed = build(config.augment, images)
    given = images.shape
    found: tuple[int | None, ...] = getattr(changed, "shape", ())
    if len(found) != len(given) or found[-1] != given[-1]:
        told = [*found] if found else type(changed).__name__
        raise RequestError(
            f"augment._target_: {config.augment['_target_']} makes {told} of images {[*given]}; "
            f"return images with {given[-1]} channels"
        )
    if found == given:
        return changed
    return keras.layers.Resizing(*given[1:3], pad_to_aspect_ratio=True, name="resized")(changed)


def class_weights(labels: Array, classes: int) -> Array:
    """A weight per class, f32[K], inverse to its number of images; over all images they average 1.

    As `compute_class_weight("balanced")` of scikit-learn.
    """
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))).astype(np.float32)


def smoothed(targets: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Targets f32[n,K] with the share `smoothing` spread evenly over all classes."""
    return targets * (1 - smoothing) + smoothing / targets.shape[1]


def training_batch(
    config: Config, images: tf.Tensor, targets: tf.Tensor, step: tf.Tensor, epoch: tf.Tensor
) -> Batch:
    """A batch u8[n,H,W,C] with targets f32[n,K] as step `step` of training sees it, augmented."""
    seed = tf.stack([tf.constant(config.seed, tf.int64), tf.cast(step, tf.int64)])
    batch = Batch(images=images, targets=targets, seed=seed, epoch=tf.cast(epoch, tf.int64))
    if not augments_batches(config):
        return batch
    changed = build(config.augment, batch)
    if flaw := _flaw_in(changed, batch):
        raise RequestError(f"augment._target_: {config.augment['_target_']} {flaw}")
    # The outputs of tf.numpy_function have none.
    shaped = {
        name: tf.ensure_shape(getattr(changed, name), getattr(batch, name).shape)
        for name in ("images", "targets")
    }
    return replace(changed, **shaped)


def _flaw_in(changed: Any, batch: Batch) -> str | None:
    """What is wrong with what an augmentation made of a batch; None if nothing is."""
    if not isinstance(changed, Batch):
        return f"returns {type(changed).__name__}, not a Batch"
    for name in ("images", "targets"):
        found, given = (tf.convert_to_tensor(getattr(one, name)) for one in (changed, batch))
        if found.dtype != given.dtype or not found.shape.is_compatible_with(given.shape):
            told = [f"{one.dtype.name}{one.shape.as_list()}" for one in (found, given)]
            return f"returns {name} {told[0]}, not {told[1]}"
    return None


def softened(probabilities: tf.Tensor, temperature: float) -> tf.Tensor:
    """Probabilities f32[n,K] at a temperature, which divides the logits."""
    return tf.nn.softmax(tf.math.log(tf.clip_by_value(probabilities, 1e-7, 1.0)) / temperature)


def _distilling(
    model: keras.Model, classes: int, config: Config
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Loss and metrics for targets f32[n,2K]: those of the classes, then the teacher's, softened.

    Targets f32[n,K], as in validation, have the usual loss. Source: Hinton et al. 2015, "Distilling
    the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    loss_of, metrics_of = model.compute_loss, model.compute_metrics
    weight, temperature = config.train.teacher_weight, config.train.teacher_temperature
    true, taught = keras.losses.CategoricalCrossentropy(), keras.losses.KLDivergence()

    def loss(
        x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **more: Any
    ) -> tf.Tensor:
        targets, teacher = y[:, :classes], y[:, classes:]
        usual = loss_of(x=x, y=targets, y_pred=y_pred, sample_weight=sample_weight, **more)
        if y.shape[1] == classes:
            return usual
        distilled = taught(teacher, softened(y_pred, temperature), sample_weight) * temperature**2
        return usual + weight * (distilled - true(targets, y_pred, sample_weight))

    def metrics(x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        found: dict[str, Any] = metrics_of(x, y[:, :classes], y_pred, sample_weight)
        return found

    return loss, metrics


def _training_change(
    model: keras.Model, prepared: Prepared, config: Config, teachers: Sequence[keras.Model]
) -> BatchChange:
    settings, classes = config.train, len(prepared.class_names)
    steps = -(-len(prepared.train) // settings.batch_size)
    weights = tf.constant(
        class_weights(prepared.train.labels, classes)
        if settings.class_weight
        else np.ones(classes, np.float32)
    )

    def change(pair: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        step = tf.convert_to_tensor(model.optimizer.iterations)
        targets = tf.one_hot(pair[1], classes)
        batch = training_batch(config, pair[0], targets, step, step // steps)
        targets = smoothed(batch.targets, settings.label_smoothing)
        if teachers:
            answers = [teacher(batch.images, training=False) for teacher in teachers]
            taught = softened(tf.add_n(answers) / len(answers), settings.teacher_temperature)
            targets = tf.concat([targets, taught], axis=1)
        taken = (batch.images, targets)
        if settings.class_weight is None:
            return taken
        return (*taken, tf.linalg.matvec(batch.targets, weights))

    return change


def augments_batches(config: Config) -> bool:
    """Whether the augmentation takes a `Batch`; otherwise it is a layer of the model, or none."""
    builder = builder_of(config.augment)
    return builder is not None and Batch in get_type_hints(builder).values()


def _take_targets(model: keras.Model) -> None:
    if not isinstance(model.loss, keras.losses.SparseCategoricalCrossentropy):
        raise RequestError(
            "the model's loss is not SparseCategoricalCrossentropy, which an augmentation of "
            "batches, train.label_smoothing, train.class_weight and train.teacher need"
        )
    model.compile(
        optimizer=model.optimizer,
        loss=keras.losses.CategoricalCrossentropy(),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
    )
