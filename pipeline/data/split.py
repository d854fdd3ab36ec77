"""Works out which images are for training and which for validation; pixel statistics."""

from __future__ import annotations

from collections.abc import Sequence

import lazy_loader as lazy
import numpy as np

from pipeline.config.rules import CountOrShare
from pipeline.data.grouping import held_out
from pipeline.data.values import Array, RawData, Split
from pipeline.system.errors import RequestError

sklearn = lazy.load("sklearn")  # takes a second, and a cached result does not need it

_CHUNK = 2**20  # pixel values; bincount converts each to eight bytes


def divide(raw: RawData, *, validation_size: CountOrShare, seed: int) -> dict[str, Array]:
    """Moves `validation_size` images, stratified by class, from the training split to validation.

    Returns `train` and `val`, positions i64[n] in the source's training split, and `mean` and
    `std`, f32[C], of the pixels at `train`: what `RawData.divided` takes.

    A share is rounded to whole images, at least one of each class. 0 leaves the validation split
    empty. The images of a split keep their order. Pictures of one group stay together, even if
    their number becomes another; a validation split of the source's own is used as it is.

    Raises:
        RequestError: one of the two splits would be too small to hold every class.
    """
    train, val = _stratified(raw, validation_size, seed)
    mean, std = pixel_statistics(raw.train.select(train))
    return {"train": train, "val": val, "mean": mean, "std": std}


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


def _stratified(raw: RawData, validation_size: CountOrShare, seed: int) -> tuple[Array, Array]:
    indices, labels = np.arange(len(raw.train)), raw.train.labels
    if validation_size == 0 or raw.val is not None:
        return indices, indices[:0]
    if raw.index is not None:
        if validation_size >= 1:
            _check_range(labels, int(validation_size))
        groups = raw.index.groups[raw.train.rows]
        val = held_out(labels, groups, validation_size, seed=seed).mask
        _require_some(val, validation_size)
        return indices[~val], indices[val]
    if validation_size < 1:
        validation_size = max(len(np.unique(labels)), round(validation_size * len(labels)))
    size = int(validation_size)
    _check_size(labels, size, raw.class_names)
    train, chosen = sklearn.model_selection.train_test_split(
        indices, test_size=size, stratify=labels, random_state=seed
    )
    if len({len(np.unique(labels[part])) for part in (indices, train, chosen)}) > 1:
        # scikit-learn gives a part nothing of a class that is too rare for it.
        val = held_out(labels, indices, size, seed=seed).mask
        train, chosen = indices[~val], indices[val]
    return np.sort(train), np.sort(chosen)


def _require_some(chosen: Array, validation_size: CountOrShare) -> None:
    if not chosen.any():
        raise RequestError(
            f"preprocess.validation_size={validation_size} is impossible: every group has the last "
            "training pictures of a class; set it to 0"
        )


def _check_size(labels: Array, validation_size: int, class_names: Sequence[str]) -> None:
    present, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        name = class_names[present[counts.argmin()]]
        raise RequestError(
            f"preprocess.validation_size={validation_size} is impossible: class {name!r} has only "
            "one training image; set it to 0"
        )
    _check_range(labels, validation_size)


def _check_range(labels: Array, validation_size: int) -> None:
    classes = len(np.unique(labels))
    low, high = classes, len(labels) - classes
    if not low <= validation_size <= high:
        raise RequestError(
            f"preprocess.validation_size={validation_size} is out of range: with "
            f"{len(labels):,} training images of {classes} classes it is 0 or {low}–{high}"
        )
