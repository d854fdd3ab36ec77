"""Light on dark or dark on light: judged by the border of an image, where its background shows."""

from __future__ import annotations

import numpy as np

from pipeline.data.values import Array, Split

SAMPLE = 250  # training images: few pages of a large file, and a share to within some per cent
AGREED = 0.9  # share of the training images that must have a border alike for a rule to follow
MIDDLE = 127


def has_bright_border(images: Array) -> Array:
    """Whether the median of the outermost pixels is in the upper half of 0–255.

    u8[N,H,W,C] → bool[N].
    """
    frame = np.concatenate(
        [images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1
    )
    bright: Array = (frame > MIDDLE).mean(axis=(1, 2)) > 0.5
    return bright


def dark_border_share(images: Array) -> float:
    """Share of u8[N,H,W,C] with a dark border."""
    return float(1 - has_bright_border(images).mean())


def sample(split: Split) -> Array:
    """About SAMPLE images of a split, evenly spaced, u8[N,H,W,C]."""
    return split.take(slice(None, None, max(1, len(split) // SAMPLE)))


def to_invert(images: Array, trained_dark: float | None) -> Array:
    """Which of u8[N,H,W,C] have the opposite border of what the model was trained on, bool[N].

    `trained_dark` is the `dark_border_share` of the training images. Where that is not known or
    they differ among themselves, as photos do, none.
    """
    if trained_dark is None or 1 - AGREED < trained_dark < AGREED:
        return np.zeros(len(images), bool)
    return has_bright_border(images) == (trained_dark >= AGREED)
