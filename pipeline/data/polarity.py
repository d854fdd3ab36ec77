"""Tells light-on-dark from dark-on-light images by their border, which shows the background."""

from __future__ import annotations

import numpy as np

from pipeline.data.values import Array, Index, Split

_SAMPLE = 250  # images of a split: little of a large file; gives the share to within a few per cent
AGREED = 0.9  # share of the training images whose borders agree, before others are judged by them
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
    """Takes about _SAMPLE evenly spaced images of a split, u8[N,H,W,C]."""
    return split.take(slice(None, None, _step(split)))


def _step(split: Split) -> int:
    return max(1, len(split) // _SAMPLE)


def is_shown_inverted(split: Split, index: Index | None) -> bool:
    """Whether pages and plots show grey images dark on light, as negatives.

    So they show images that agree on a dark border, as digits do, but not a user's own pictures,
    which have an `index`.
    """
    if index is not None or split.image_shape[2] >= 3 or not len(split):
        return False
    some = split.select(np.arange(0, len(split), _step(split)))
    bright = np.concatenate([has_bright_border(images) for images in some.batches()])
    return bool(1 - bright.mean() >= AGREED)


def to_invert(images: Array, trained_dark: float | None) -> Array:
    """Which of u8[N,H,W,C] have the opposite polarity of the training images, bool[N].

    `trained_dark` is the `dark_border_share` of the training images. If it is unknown, or the
    training images differ among themselves, as photos do, no image is marked.
    """
    if trained_dark is None or 1 - AGREED < trained_dark < AGREED:
        return np.zeros(len(images), bool)
    return has_bright_border(images) == (trained_dark >= AGREED)


def with_inverted(images: Array, inverted: Array) -> Array:
    """The images u8[N,H,W,C], with 255 minus each pixel where `inverted`, bool[N], is true."""
    if not inverted.any():
        return images
    return np.where(inverted[:, None, None, None], 255 - images, images)
