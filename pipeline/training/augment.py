"""Augmentation: random changes to scaled images f32[N,H,W,C] in training; none in prediction.

Augmentations are layers of the model. To add one, add a function here and a file in conf/augment/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.config.rules import Share
from pipeline.system.imports import Lazy

if TYPE_CHECKING:
    import keras
else:
    keras = Lazy("keras")  # configurations are checked without TensorFlow, as in models.py

Tensor = Any


def flip_and_shift(images: Tensor, *, horizontal_flip: bool, shift: Share) -> Tensor:
    """Mirrors random images and moves each by up to `shift` of its height and width."""
    x = images
    if horizontal_flip:
        x = keras.layers.RandomFlip("horizontal", name="flip")(x)
    if shift > 0:
        x = keras.layers.RandomTranslation(shift, shift, fill_mode="nearest", name="shift")(x)
    return x
