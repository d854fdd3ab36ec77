"""The training, validation and test splits, and the pixel statistics of the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import lazy_loader as lazy
import numpy as np
from pydantic import Field

from pipeline.data.values import Array, Prepared, RawData, Split
from pipeline.system.errors import RequestError

sklearn = lazy.load("sklearn")  # takes a second, and a cached result does not need it

_CHUNK = 2**20  # pixel values; bincount converts each to eight bytes


def preprocess(
    raw: RawData, *, validation_size: Annotated[int, Field(ge=0)], seed: int
) -> Prepared:
    """Moves `validation_size` images, stratified by class, from the training split to validation.

    0 leaves the validation split empty. The images of a split keep their order.

    Raises:
        RequestError: one of the two splits would be too small to hold every class.
    """
    return divided(raw, divide(raw, validation_size=validation_size, seed=seed))


def divide(raw: RawData, *, validation_size: int, seed: int) -> dict[str, Array]:
    """Works out the division that `preprocess` makes, and the pixel statistics.

    `train` and `val` are positions i64[n] in the source's training split; `mean` and `std`, f32[C],
    are those of the pixels at `train`.

    Raises:
        RequestError: as `preprocess`.
    """
    train, val = _stratified(raw, validation_size, seed)
    mean, std = pixel_statistics(raw.train.select(train))
    return {"train": train, "val": val, "mean": mean, "std": std}


def divided(raw: RawData, division: Mapping[str, Array], *, cached: bool = False) -> Prepared:
    """Applies the result of `divide` to `raw`; reads and copies no image."""
    return Prepared(
        train=raw.train.select(division["train"]),
        val=raw.train.select(division["val"]),
        test=raw.test,
        class_names=raw.class_names,
        mean=division["mean"],
        std=division["std"],
        fingerprint=raw.fingerprint,
        source=raw.source,
        cached=cached,
    )


def pixel_statistics(split: Split) -> tuple[Array, Array]:
    """Mean and standard deviation of each channel of a split's images, f32[C] each.

    Exact, from counts of the 256 values: a float copy would take 8 times the images' memory.
    """
    values = np.arange(256)
    counts = np.zeros((split.image_shape[2], 256), np.int64)
    for images in split.batches(max(1, _CHUNK // max(1, split.images[:1].size))):
        for channel in range(len(counts)):
            counts[channel] += np.bincount(images[..., channel].reshape(-1), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, np.newaxis]) ** 2).sum(axis=1)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def _stratified(raw: RawData, validation_size: int, seed: int) -> tuple[Array, Array]:
    indices = np.arange(len(raw.train))
    if validation_size == 0:
        return indices, indices[:0]
    _check_size(raw.train.labels, validation_size)
    train, val = sklearn.model_selection.train_test_split(
        indices, test_size=validation_size, stratify=raw.train.labels, random_state=seed
    )
    return np.sort(train), np.sort(val)


def _check_size(labels: Array, validation_size: int) -> None:
    present, counts = np.unique(labels, return_counts=True)
    low, high = len(present), len(labels) - len(present)
    if counts.min() < 2:
        raise RequestError(
            f"preprocess.validation_size={validation_size} is impossible: class "
            f"{present[counts.argmin()]} has only one training image; set it to 0"
        )
    if not low <= validation_size <= high:
        raise RequestError(
            f"preprocess.validation_size={validation_size} is out of range: with "
            f"{len(labels):,} training images of {len(present)} classes it is 0 or {low}–{high}"
        )
