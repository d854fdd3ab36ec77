"""The values passed between stages; each checks its shapes and dtypes when it is created."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]
Tensor = Any  # of TensorFlow or Keras, whose import takes seconds
Shape = tuple[int, int, int]  # height, width, channels of an image
SPLITS = ("train", "val", "test")
# The splits that a model is judged by, the decisive one first, with their names in texts.
JUDGED_SPLITS = {"test": "test", "val": "validation"}
# A run's `val/…` metrics end with the last epoch; those of the kept epoch have this prefix.
KEPT = "kept/"
BLOCK_BYTES = 2**25  # of images that are processed together
_USUAL = 28 * 28  # pixels of an image


def images_at_once(shape: Sequence[int], most: int) -> int:
    """Images of shape [H,W,C] to give a model at once: `most`, fewer if larger than 28×28."""
    return max(1, min(most, most * _USUAL // max(1, math.prod(shape[:-1]))))


def images_per_block(shape: Sequence[int]) -> int:
    """Images u8[H,W,C] of this shape in a block of about BLOCK_BYTES; at least one."""
    return max(1, BLOCK_BYTES // max(1, math.prod(shape)))


def exceeds(count: int, total: int, limit: float) -> bool:
    """Whether `count` of `total` are a larger share than `limit`; no part of nothing is.

    As a quotient: 0.29 × 100 is less than 29, but 29 / 100 is 0.29.
    """
    return count > 0 and (not total or count / total > limit)


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise ValueError(rule)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Split:
    """Labelled images: rows of a packed array, which other splits may share.

    `images` u8[N,H,W,C] with values 0–255 is the packed array, memory-mapped if it comes from the
    cache. `rows` i64[n] are the indices of the split's images in it, in order; the default is all.
    `labels` i32[n] belong to the rows.

    Raises:
        ValueError: a shape or dtype is wrong, the lengths differ, or a row lies outside the packed
            array.
    """

    images: Array
    labels: Array
    rows: Array = None  # type: ignore[assignment]  # every row, set below

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        self._check_kind()
        _require(labels.dtype == np.int32, f"labels must be int32, not {labels.dtype}")
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(len(images)))
        rows = self.rows
        _require(rows.dtype == np.int64, f"rows must be int64, not {rows.dtype}")
        _require(rows.ndim == 1, f"rows must be [n], not {rows.shape}")
        _require(
            labels.shape == rows.shape, f"{len(rows)} images but labels of shape {labels.shape}"
        )
        if len(rows):
            low, high = int(rows.min()), int(rows.max())
            _require(
                0 <= low and high < len(images), f"rows span {low}–{high} of {len(images)} images"
            )

    def _check_kind(self) -> None:
        images = self.images
        _require(images.dtype == np.uint8, f"images must be uint8, not {images.dtype}")
        _require(images.ndim == 4, f"images must be [N,H,W,C], not {images.shape}")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Split({len(self):,} images {shown_shape(self.image_shape)})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def take(self, positions: Any) -> Array:
        """The images at these `positions`: u8[m,H,W,C] for i64[m], u8[H,W,C] for an int."""
        taken: Array = self.images[self.rows[positions]]
        return taken

    def batch(self, start: int, stop: int) -> Array:
        """Images `start` to `stop`, u8[m,H,W,C]; no copy if their rows are contiguous."""
        rows = self.rows[start:stop]
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self.images[rows[0] : rows[0] + len(rows)]
        return self.take(slice(start, stop))

    def batches(self, size: int | None = None) -> Iterator[Array]:
        """Yields all images in order as batches u8[m,H,W,C] of `size` images, or of about 32 MB."""
        size = size or images_per_block(self.images.shape[1:])
        for start in range(0, len(self), size):
            yield self.batch(start, start + size)

    def select(self, positions: Array) -> Split:
        """A split of the images at these `positions` i64[m] of this one; copies no image."""
        return Split(images=self.images, rows=self.rows[positions], labels=self.labels[positions])

    @classmethod
    def joined(cls, splits: Sequence[Split]) -> Split:
        """One split of the images of several, which must be of the same packed array."""
        images = splits[0].images
        lengths = {len(split.images) for split in splits}
        _require(len(lengths) == 1, f"the splits are of different arrays, of {lengths} images")
        return cls(
            images=images,
            rows=np.concatenate([split.rows for split in splits]),
            labels=np.concatenate([split.labels for split in splits]),
        )

    def limited(self, most: int) -> Split:
        """At most so many of the images, spread evenly over the classes."""
        seen: Counter[int] = Counter()
        turns = np.empty(len(self), np.int64)  # how many of its class come before each image
        for position, label in enumerate(self.labels.tolist()):
            turns[position] = seen[label]
            seen[label] += 1
        return self.select(np.sort(np.argsort(turns, kind="stable")[:most]))


class Texts(Sequence[str]):
    """Texts as two arrays, which may be memory-mapped: the bytes of all, and where each ends.

    `content` u8[bytes] is UTF-8; bytes of file names that are not become surrogates.
    """

    def __init__(self, content: Array, ends: Array) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Packs texts."""
        parts = [text.encode("utf-8", "surrogateescape") for text in texts]
        content = np.frombuffer(b"".join(parts), np.uint8)
        return cls(content, np.cumsum([len(part) for part in parts], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[one] for one in range(len(self))[index]]
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        taken = self.content[start : int(self.ends[index])]
        return taken.tobytes().decode("utf-8", "surrogateescape")


EXACT, NEAR = 0, 1  # kinds of duplicates


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """The files behind a packed array of pictures: one entry per row of the array, N in all.

    `files` are relative to `root`, a folder or an archive. `sha256` u8[N,32] are checksums of the
    files, `digests` u8[N,32] checksums of their decoded pixels. `sizes` i32[N,2] are the height and
    width of the upright pictures, `modes` their Pillow modes. `labels` i32[N]. Pictures with the
    same number in `groups` i64[N] belong together and are in one split. `duplicates` i64[M,3] are
    pairs of rows with EXACT or NEAR; of a set of equal pictures, each is paired with the first.
    `columns` are further texts of each picture, by name. `unreadable` are files with the reason;
    `left_out` counts what was not taken for a picture; `notes` say what was found and done.
    """

    root: str
    files: Sequence[str]
    sha256: Array
    digests: Array
    sizes: Array
    modes: Sequence[str]
    labels: Array
    groups: Array
    duplicates: Array
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unreadable: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("files", "labels", "groups")}
        _require(len(set(lengths.values())) == 1, f"an index has one entry per row, not {lengths}")

    @cached_property
    def grouping(self) -> str:
        """SHA-256 (hex) of `groups`."""
        return hashlib.sha256(np.ascontiguousarray(self.groups).data).hexdigest()

    @cached_property
    def conflicts(self) -> Array:
        """Those pairs of `duplicates` that have different labels, i64[M,3]."""
        labels = self.labels[self.duplicates[:, :2]]
        conflicts: Array = self.duplicates[labels[:, 0] != labels[:, 1]]
        return conflicts


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Features(Split):
    """Features f32[N,F] of a frozen backbone, in place of a split's images."""

    def _check_kind(self) -> None:
        images = self.images
        _require(images.dtype == np.float32, f"features must be float32, not {images.dtype}")
        _require(images.ndim == 2, f"features must be [N,F], not {images.shape}")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RawData:
    """A data set as its source provides it.

    `source` says where it came from (a folder, an address, a generator's name), `cached` whether
    it was read from the local cache this time; neither is part of the content. `val` is a
    validation split that the source itself has. Sets of picture files have an `index` of them and
    `fit`, how these were fitted to the size of the images (`data/pictures.py`). `excluded` is the
    number of images that `dataset.exclude` left out; `whole` is the data set with them, unless it
    has an `index`: the list names images by their positions in its splits.

    Raises:
        ValueError: a label lies outside the class names, two of these are equal, or the shapes of
            two splits differ.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    source: str
    cached: bool = False
    val: Split | None = None
    index: Index | None = None
    fit: str | None = None
    excluded: int = 0
    whole: RawData | None = None

    def __post_init__(self) -> None:
        _require(len(self.class_names) >= 2, "a data set needs at least two classes")
        twice = [name for name, times in Counter(self.class_names).items() if times > 1]
        _require(not twice, f"two classes have the same name: {twice[:1]}")
        given = {"train": self.train, "test": self.test}
        given |= {"validation": self.val} if self.val else {}
        for name, split in given.items():
            _require(len(split) > 0, f"the {name} split has no images")
            low, high = int(split.labels.min()), int(split.labels.max())
            _require(
                0 <= low and high < len(self.class_names),
                f"{name} labels span {low}–{high}, but there are {len(self.class_names)} classes",
            )
            _require(
                self.train.image_shape == split.image_shape,
                f"train images are {self.train.image_shape}, {name} {split.image_shape}",
            )

    def __repr__(self) -> str:
        return _described(self)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that the source has, by name."""
        given = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in given.items() if split is not None}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all names, shapes, dtypes, images and labels of each split."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for split in filter(None, (self.train, self.test, self.val)):
            digest.update(f"{split.images.dtype.str}{(len(split), *split.image_shape)}".encode())
            for images in split.batches():
                digest.update(np.ascontiguousarray(images).data)
            digest.update(f"{split.labels.dtype.str}{split.labels.shape}".encode())
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()

    @property
    def identity(self) -> Identity:
        """What a recorded run knows this data by."""
        return Identity(
            fingerprint=self.fingerprint,
            grouping=None if self.index is None else self.index.grouping,
        )

    @cached_property
    def duplicates(self) -> int:
        """Number of test images that occur, pixel by pixel, in the training split."""
        test = [digest for images in self.test.batches() for digest in pixel_digests(images)]
        known = set(test)
        train = (digest for images in self.train.batches() for digest in pixel_digests(images))
        found = known.intersection(train)
        return sum(digest in found for digest in test)

    def divided(self, division: Mapping[str, Array], *, cached: bool = False) -> Prepared:
        """Divides the training split; reads and copies no image.

        `train` and `val` of `division` are positions i64[n] in that split, `mean` and `std`, f32[C]
        each, the statistics of the pixels at `train`. A validation split of the source's own stays.
        """
        return Prepared(
            train=self.train.select(division["train"]),
            val=self.train.select(division["val"]) if self.val is None else self.val,
            test=self.test,
            class_names=self.class_names,
            mean=division["mean"],
            std=division["std"],
            fingerprint=self.fingerprint,
            source=self.source,
            cached=cached,
            fit=self.fit,
            index=self.index,
            whole=self.whole or self,
        )


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What identifies the data of a recorded run.

    `fingerprint` is that of `RawData`. `grouping` is that of its `Index`, which the fingerprint
    leaves out; None if it has none, or if an earlier version recorded the run.
    """

    fingerprint: str
    grouping: str | None = None

    def has_other_groups(self, other: Identity) -> bool:
        """Whether the groups of both are known and differ: then validation images do, too."""
        return None not in (self.grouping, other.grouping) and self.grouping != other.grouping


def pixel_digests(images: Array) -> Iterator[bytes]:
    """Checksums of the pixels of each image of u8[N,H,W,C], 16 bytes each."""
    return (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)


@dataclass(frozen=True, kw_only=True, repr=False)
class Prepared:
    """The input of training: three splits and the pixel statistics of the training split.

    `val` may be empty (`preprocess.validation_size=0`). `mean`, `std`: f32[C], in pixel values
    (0–255), over the training images. `fingerprint`, `fit` and `index` are those of the `RawData`;
    `whole` is this data set without anything left out.
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
    fit: str | None = None
    index: Index | None = None
    whole: RawData | None = None

    def __post_init__(self) -> None:
        channels = self.train.image_shape[2]
        for name, value in (("mean", self.mean), ("std", self.std)):
            _require(
                value.dtype == np.float32 and value.shape == (channels,),
                f"{name} must be f32[{channels}], not {value.dtype}{list(value.shape)}",
            )

    def __repr__(self) -> str:
        return _described(self)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name; that of validation may be empty."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.train.image_shape

    def limited(self, limit: int | None) -> Prepared:
        """Keeps at most so many images of training and of validation, spread over the classes.

        The test split stays whole: figures on a part of it would look like those on all of it.
        """
        if limit is None:
            return self
        return replace(self, train=self.train.limited(limit), val=self.val.limited(limit))

    def predictions(self, split: Split, probabilities: Array) -> Predictions:
        """Combines a split of this data with probabilities f32[N,K] of a model for it."""
        return Predictions(
            split=split,
            probabilities=probabilities,
            class_names=self.class_names,
            index=self.index,
            numbers=self._numbers(split),
        )

    def _numbers(self, split: Split) -> Array:
        """The places of the images of a split in the one of the source that has them."""
        whole = self.whole
        for given in filter(None, (whole.test, whole.val, whole.train) if whole else ()):
            if np.isin(split.rows, given.rows).all():
                order = np.argsort(given.rows)
                return order[np.searchsorted(given.rows, split.rows, sorter=order)]
        return np.arange(len(split))


@dataclass(frozen=True, kw_only=True, repr=False)
class Fitted:
    """A trained model with the results of its training.

    `history`: one list per metric (`train/loss`, `val/accuracy`, …), one value per epoch.
    `images_per_s`: training images per second, including time for validation and checkpoints.
    `best_epoch`: the best epoch (from 1) by the validation metric, None without validation.
    `kept_epoch`: the epoch (from 1) whose weights the model has.
    `untrained`: builds the model, or the part of it that was trained, as it was before training,
    for plots that compare the two.
    `augmented`: u8[R,V,H,W,C], some training images with versions of them as augmentation changes
    them in training; the first of each row is unchanged. None without augmentation.
    """

    model: keras.Model
    history: dict[str, list[float]]
    images_per_s: float
    best_epoch: int | None
    kept_epoch: int
    untrained: Callable[[], keras.Model]
    augmented: Array | None = None

    def __repr__(self) -> str:
        kept = {name: values[self.kept_epoch - 1] for name, values in self.history.items()}
        told = ", ".join(f"{name}={value:.4f}" for name, value in kept.items())
        return f"Fitted(epoch {self.kept_epoch} kept: {told})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Predictions:
    """A model's predictions on a split: `probabilities` f32[N,K], one column per class name.

    `index` describes the files behind the split's images, if they are a user's own pictures.
    `numbers` i64[N] are those that reports give the images: the indices that `dataset.exclude`
    takes, which count the images that it leaves out; for validation images that were drawn from
    training, those in the training split. By default they are those in `split`.
    """

    split: Split
    probabilities: Array
    class_names: tuple[str, ...]
    index: Index | None = None
    numbers: Array = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if self.numbers is None:
            object.__setattr__(self, "numbers", np.arange(len(self.split)))
        expected = (len(self.split), len(self.class_names))
        _require(
            self.probabilities.dtype == np.float32,
            f"probabilities must be float32, not {self.probabilities.dtype}",
        )
        _require(
            self.probabilities.shape == expected,
            f"probabilities must be {expected}, not {self.probabilities.shape}",
        )

    def __repr__(self) -> str:
        right = f"{self.correct.mean():.4f} of them right" if len(self.split) else "none"
        return f"Predictions({len(self.split):,} images, {len(self.class_names)} classes, {right})"

    @property
    def labels(self) -> Array:
        """The true class of each image, i32[N]."""
        return self.split.labels

    @cached_property
    def predicted(self) -> Array:
        """The most probable class of each image, i32[N]."""
        return most_probable(self.probabilities)

    @cached_property
    def correct(self) -> Array:
        """Whether each prediction is right, bool[N]."""
        return self.predicted == self.labels

    @cached_property
    def confidence(self) -> Array:
        """The probability of the predicted class, f32[N]."""
        return self.probabilities.max(axis=1)

    @property
    def probs(self) -> Array:
        """`probabilities`, by the name that they have in metrics written for earlier versions."""
        return self.probabilities


def most_probable(probabilities: Array) -> Array:
    """The most probable class of each row of f32[N,K], i32[N]."""
    classes: Array = probabilities.argmax(axis=1).astype(np.int32)
    return classes


def flaw_in(probabilities: Array, tolerance: float = 0.01) -> str | None:
    """Why the rows of f32[N,K] are not probabilities; None if they are.

    `tolerance` bounds how far the sum of a row may be from 1, since 16-bit numbers are rounded.
    """
    if not np.isfinite(probabilities).all():
        return "some are NaN or infinite"
    if probabilities.size and (low := float(probabilities.min())) < 0:
        return f"some are negative ({low:.3g})"
    sums = probabilities.sum(axis=1, dtype=np.float64)
    worst = float(sums[np.abs(sums - 1).argmax()]) if sums.size else 1.0
    return f"those of an image sum to {worst:.4g}" if abs(worst - 1) > tolerance else None


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """What is found and recorded: `metrics` by MLflow name, `figures` and `texts` by artefact."""

    metrics: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        first = ", ".join(f"{name}={self.metrics[name]:.4f}" for name in [*self.metrics][:4])
        more = f" and {len(self.metrics) - 4} more" if len(self.metrics) > 4 else ""
        return f"Evaluation({first}{more}; {', '.join([*self.figures, *self.texts])})"


def shown_shape(shape: tuple[int, ...]) -> str:
    """The shape of an image, as in `28×28×1`."""
    return "×".join(map(str, shape))


def _described(data: RawData | Prepared) -> str:
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items() if split)
    shape, classes = shown_shape(data.train.image_shape), len(data.class_names)
    return f"{type(data).__name__}({sizes}; {shape}, {classes} classes; {data.source})"
