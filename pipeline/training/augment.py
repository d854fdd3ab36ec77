"""Random changes to scaled images f32[N,H,W,C] while training; no effect when predicting.

They are layers of the model. A new one is a function here and a file in conf/augment/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.config.rules import Share
from pipeline.system.imports import Lazy

if TYPE_CHECKING:
    import keras
else:
    keras = Lazy("keras")  # as in models.py: checked without TensorFlow

Tensor = Any


def flip_and_shift(images: Tensor, *, horizontal_flip: bool, shift: Share) -> Tensor:
    """Mirrors every second image and moves each by up to `shift` of its height and width."""
    x = images
    if horizontal_flip:
        x = keras.layers.RandomFlip("horizontal", name="flip")(x)
    if shift > 0:
        x = keras.layers.RandomTranslation(shift, shift, fill_mode="nearest", name="shift")(x)
    return x
