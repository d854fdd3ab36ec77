"""Trains the head of a frozen backbone on features that are computed once per data set and kept.

The head is a model of its own that shares its layers with the whole model. So it trains and
predicts in seconds, and the whole model, from images to probabilities, has the head's weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline.config.builders import has_backbone
from pipeline.config.schema import Config
from pipeline.config.trusted import checksums, trusted
from pipeline.data import cache
from pipeline.data.load import data_folder
from pipeline.data.values import Array, Features, Prepared, Split
from pipeline.training.batches import needs_images
from pipeline.training.build import build_model, loss_and_metrics
from pipeline.training.precision import computes_in_float32, in_float32
from pipeline.training.pretrained import features_tensor, head_on, is_fixed

_BATCH = 32  # images at once: a backbone needs about 20 MB for each
TELL_S = 15.0  # between two lines of progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """The trained part of a model whose backbone is frozen.

    `model`: features f32[N,F] → probabilities f32[N,K], compiled. `backbone`: images u8[N,H,W,C] →
    features f32[N,F], which are kept in `folder`. With `limited`, splits have few of the images.
    """

    model: keras.Model
    backbone: keras.Model
    folder: Path
    limited: bool = False
    _known: list[tuple[Array, Array]] = field(default_factory=list, repr=False)

    def of(self, split: Split) -> Features:
        """The features of a split, which are computed if the cache does not have them.

        They are computed of all packed images at once, for other splits and runs; with `limited`,
        only of the split's own.
        """
        if self.limited:
            features = _cached(self.folder, self.backbone, split.take(slice(None)))
            return Features(images=features, rows=np.arange(len(split)), labels=split.labels)
        features = self._of_packed(split.images)
        return Features(images=features, rows=split.rows, labels=split.labels)

    def _of_packed(self, images: Array) -> Array:
        """The features of a packed array; the splits that share it share them, too."""
        for known, features in self._known:
            if known is images:
                return features
        features = _cached(self.folder, self.backbone, images)
        self._known.append((images, features))
        return features

    def untrained(self) -> Callable[[], keras.Model]:
        """A function that builds this head with the weights that it has now."""
        weights = self.model.get_weights()
        # Not compiled: Keras would build the optimizer anew, and cannot if it is the user's own.
        plain = keras.Model(self.model.inputs, self.model.outputs, name=self.model.name)

        def build() -> keras.Model:
            copy = keras.models.clone_model(plain)
            copy.set_weights(weights)
            return copy

        return build


def head_of(model: keras.Model, config: Config) -> Head | None:
    """The head of a compiled model with a frozen backbone, which trains on features of the images.

    None if anything up to `features` is trained or random, if there is augmentation, if a teacher
    needs the images, if the features are no vectors (maps, tokens), or if the head takes anything
    else than them.

    The first run that needs features keeps them in the data cache, keyed by the checksums of images
    and backbone; later runs and the other jobs of a sweep read them.
    """
    if not has_backbone(config.model) or config.model["trainable"] != "head":
        return None
    if config.augment["_target_"] is not None or needs_images(config) or not is_fixed(model):
        return None
    if len(features_tensor(model).shape) != 2:
        return None
    if (head := _separate(model)) is None:
        return None
    backbone = keras.Model(model.input, features_tensor(model))
    backbone = backbone if computes_in_float32(backbone) else in_float32(backbone)
    return Head(
        model=head,
        backbone=backbone,
        folder=data_folder(config),
        limited=config.preprocess.limit is not None,
    )


def takes_images(model: keras.Model) -> bool:
    """Whether a model takes images u8[N,H,W,C]; only a head does not."""
    return bool(model.inputs[0].dtype == "uint8")


def whole(model: keras.Model, prepared: Prepared, config: Config) -> keras.Model:
    """The model from images to probabilities: `model` itself, or a new one with it as its head."""
    if takes_images(model):
        return model
    built = build_model(config, prepared, checked=True)
    for layer in model.layers:
        if layer.weights:
            built.get_layer(layer.name).set_weights(layer.get_weights())
    return built


def _cached(folder: Path, backbone: keras.Model, images: Array) -> Array:
    key = cache.key(images=cache.checksum(images), backbone=_digest(backbone))
    entry = cache.load_or_build(
        folder / f"features-{key}", lambda: ({"features": _stream(backbone, images)}, {})
    )
    return entry.arrays["features"]


def _digest(backbone: keras.Model) -> str:
    """SHA-256 (hex) of what determines the features: layers, the user's code, and weights."""
    described = json.dumps(backbone.get_config()["layers"], default=str, sort_keys=True)
    digest = hashlib.sha256(described.encode())
    if re.search(r'"registered_name": "[^"]*>', described):  # a class or function of the user's
        digest.update(json.dumps(checksums(trusted()), sort_keys=True).encode())
    for weight in backbone.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def _stream(backbone: keras.Model, images: Array) -> cache.Stream:
    shape = (len(images), *backbone.output_shape[1:])
    return cache.Stream(shape=shape, dtype=np.dtype(np.float32), parts=_computed(backbone, images))


def _computed(backbone: keras.Model, images: Array) -> Iterator[Array]:
    """Yields the features of `images` in batches, and logs the progress."""
    spec = tf.TensorSpec([None, *images.shape[1:]], tf.uint8)
    forward = tf.function(
        lambda batch: backbone(batch, training=False), input_signature=[spec], autograph=False
    )
    started = told = time.monotonic()
    for start in range(0, len(images), _BATCH):
        yield forward(tf.constant(images[start : start + _BATCH])).numpy()
        now, done = time.monotonic(), min(start + _BATCH, len(images))
        if now - told > TELL_S or done == len(images):
            told, left = now, (now - started) / done * (len(images) - done)
            log.info(
                "Features of %s of %s images, %.0f s left", f"{done:,}", f"{len(images):,}", left
            )
    cache.let_go(images)


def _separate(model: keras.Model) -> keras.Model | None:
    """What follows `features` as a model, compiled with the optimizer of `model` if that is.

    None if the head also takes anything before them.
    """
    features = keras.Input(features_tensor(model).shape[1:], name="features_input")
    outputs = head_on(model, features)
    if outputs is None:
        return None
    head = keras.Model(features, outputs, name=f"{model.name}_head")
    if model.compiled:  # one that was loaded is not, and only predicts
        head.compile(optimizer=model.optimizer, **loss_and_metrics())
    return head
