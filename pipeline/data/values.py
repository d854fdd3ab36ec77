"""The values that pass between stages; shapes and dtypes are checked where a value is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, int, int]  # height, width, channels of an image
# A run's `val/…` metrics go on to the last epoch; under this and their name are the kept one's.
KEPT = "kept/"


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise ValueError(rule)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Labelled images: `images` u8[N,H,W,C] with values 0–255, `labels` i32[N].

    Raises:
        ValueError: a shape or dtype differs from these, or the lengths differ.
    """

    images: Array
    labels: Array

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        _require(images.dtype == np.uint8, f"images must be uint8, not {images.dtype}")
        _require(images.ndim == 4, f"images must be [N,H,W,C], not {images.shape}")
        _require(labels.dtype == np.int32, f"labels must be int32, not {labels.dtype}")
        _require(
            labels.shape == images.shape[:1],
            f"{images.shape[0]} images but labels of shape {labels.shape}",
        )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class RawData:
    """A data set as its source has it.

    `source` says where it came from (a folder, an address, a generator's name), `cached` whether
    it was read from the local cache this time; neither changes the content.

    Raises:
        ValueError: a label lies outside the class names, or train and test shapes differ.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    source: str
    cached: bool = False

    def __post_init__(self) -> None:
        _require(len(self.class_names) >= 2, "a data set needs at least two classes")
        for name, split in (("train", self.train), ("test", self.test)):
            _require(len(split) > 0, f"the {name} split has no images")
            low, high = int(split.labels.min()), int(split.labels.max())
            _require(
                0 <= low and high < len(self.class_names),
                f"{name} labels span {low}–{high}, but there are {len(self.class_names)} classes",
            )
        _require(
            self.train.images.shape[1:] == self.test.images.shape[1:],
            f"train images are {self.train.images.shape[1:]}, test {self.test.images.shape[1:]}",
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over every name, shape, dtype, image and label of both splits."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for split in (self.train, self.test):
            for array in (split.images, split.labels):
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What training takes: three splits and the pixel statistics of the training one.

    `val` may be empty (`preprocess.validation_size=0`). `mean`, `std`: f32[C], in pixel values
    (0–255), over the training images. `fingerprint` is the data set's, `RawData.fingerprint`.
    """

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    mean: Array
    std: Array
    fingerprint: str
    source: str
    cached: bool = False

    def __post_init__(self) -> None:
        channels = self.train.images.shape[3]
        for name, value in (("mean", self.mean), ("std", self.std)):
            _require(
                value.dtype == np.float32 and value.shape == (channels,),
                f"{name} must be f32[{channels}], not {value.dtype}{list(value.shape)}",
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model with what its training showed.

    `history`: one list per metric (`train/loss`, `val/accuracy`, …), one value per epoch.
    `images_per_s`: training images per second, validation and checkpoints included.
    `best_epoch`: the best epoch (from 1) by the validation metric, None without validation.
    `kept_epoch`: the epoch (from 1) whose weights the model has.
    `untrained`: builds the model again as it was before training, for plots that compare the two.
    """

    model: keras.Model
    history: dict[str, list[float]]
    images_per_s: float
    best_epoch: int | None
    kept_epoch: int
    untrained: Callable[[], keras.Model]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's answers on one split: `images` u8[N,H,W,C], `labels` i32[N], `probs` f32[N,K]."""

    images: Array
    labels: Array
    probs: Array
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        expected = (len(self.labels), len(self.class_names))
        _require(self.probs.dtype == np.float32, f"probs must be float32, not {self.probs.dtype}")
        _require(self.probs.shape == expected, f"probs must be {expected}, not {self.probs.shape}")

    @cached_property
    def predicted(self) -> Array:
        """The most probable class of each image, i32[N]."""
        return self.probs.argmax(axis=1).astype(np.int32)

    @cached_property
    def correct(self) -> Array:
        """Whether each prediction is right, bool[N]."""
        return self.predicted == self.labels

    @cached_property
    def confidence(self) -> Array:
        """The probability of the predicted class, f32[N]."""
        return self.probs.max(axis=1)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run shows: `metrics` by MLflow name, `figures` and `texts` by artefact path."""

    metrics: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
