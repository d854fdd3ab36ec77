"""From a data set's configuration to verified, memory-mapped arrays; and what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.config.builders import build
from pipeline.data import cache
from pipeline.data.split import preprocess
from pipeline.data.values import Array, Prepared, RawData, Split
from pipeline.system.errors import RequestError

# These say where to look, never what the content is: checksums pin that.
_PLACES = frozenset({"folder", "download"})
ROWS_AT_ONCE = 1024  # images compared by their bytes, for which Python needs a copy


def ingest(dataset: Mapping[str, Any], *, name: str, data_dir: Path) -> RawData:
    """The data set of a checked leaf (`_target_` and its parameters), from the cache if there.

    `name` is the leaf's choice, such as `fashion_mnist`; the cache is `data_dir/<name>/raw-<key>`.

    Raises:
        RequestError: no source has it, a file is damaged, or the content is not a data set.
        OSError: the cache cannot be written; names the file.
    """
    folder = raw_folder(dataset, name=name, data_dir=data_dir)
    return _raw(cache.load_or_build(folder, lambda: _fetched(dataset, name)))


@lru_cache(maxsize=1)  # the next job of a process asks for the fingerprint and description again
def _raw(entry: cache.Entry) -> RawData:
    return RawData(
        train=_split(entry.arrays, "train"),
        test=_split(entry.arrays, "test"),
        class_names=tuple(entry.meta["class_names"]),
        source=entry.meta["source"],
        cached=entry.cached,
    )


def raw_folder(dataset: Mapping[str, Any], *, name: str, data_dir: Path) -> Path:
    """Where the cache has, or would have, the data set of a checked leaf."""
    content = {key: value for key, value in dataset.items() if key not in _PLACES}
    return data_dir / name / f"raw-{cache.key(**content)}"


def prepare(raw: RawData, config: Mapping[str, Any], *, name: str, data_dir: Path) -> Prepared:
    """`preprocess(raw, **config)`, from the cache `data_dir/<name>/prepared-<key>` if there.

    The test split is `raw`'s own; the others are memory-mapped.

    Raises:
        RequestError: a parameter of `config` does not fit the data set.
        OSError: the cache cannot be written; names the file.
    """
    key = cache.key(fingerprint=raw.fingerprint, **config)

    def build_splits() -> cache.Content:
        made = preprocess(raw, **config)
        arrays = {**_arrays("train", made.train), **_arrays("val", made.val)}
        return {**arrays, "mean": made.mean, "std": made.std}, {}

    entry = cache.load_or_build(data_dir / name / f"prepared-{key}", build_splits)
    cache.let_go(raw.train.images)  # the run has its own copy of them now
    return Prepared(
        train=_split(entry.arrays, "train"),
        val=_split(entry.arrays, "val"),
        test=raw.test,
        class_names=raw.class_names,
        mean=entry.arrays["mean"],
        std=entry.arrays["std"],
        fingerprint=raw.fingerprint,
        source=raw.source,
        cached=entry.cached,
    )


def _fetched(dataset: Mapping[str, Any], name: str) -> cache.Content:
    try:
        raw: RawData = build(dict(dataset))
    except ValueError as error:
        raise RequestError(f"dataset={name}: {error}; see {dataset['_target_']}") from error
    arrays = {**_arrays("train", raw.train), **_arrays("test", raw.test)}
    return arrays, {"class_names": raw.class_names, "source": raw.source}


def _arrays(name: str, split: Split) -> dict[str, Array]:
    return {f"{name}_images": split.images, f"{name}_labels": split.labels}


def _split(arrays: Mapping[str, Array], name: str) -> Split:
    return Split(images=arrays[f"{name}_images"], labels=arrays[f"{name}_labels"])


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """One split in numbers: `shape` [N,H,W,C], dtypes, lowest and highest label, images a class."""

    shape: tuple[int, ...]
    image_dtype: str
    label_dtype: str
    label_range: tuple[int, int]
    per_class: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What there is to know about a data set before training on it.

    `duplicates`: how many test images are also, pixel by pixel, in the training split.
    """

    splits: Mapping[str, SplitFacts]
    class_names: tuple[str, ...]
    duplicates: int
    fingerprint: str
    source: str


@lru_cache(maxsize=1)
def describe(raw: RawData) -> Description:
    """Counts, shapes, dtypes, label ranges, class balance and duplicates of a data set."""
    classes = len(raw.class_names)
    return Description(
        splits={"train": _facts(raw.train, classes), "test": _facts(raw.test, classes)},
        class_names=raw.class_names,
        duplicates=_duplicates(raw.train.images, raw.test.images),
        fingerprint=raw.fingerprint,
        source=raw.source,
    )


def table(description: Description) -> Table:
    """The description for the terminal."""
    made = Table("", *description.splits, title=f"Data from {description.source}")
    facts = description.splits.values()
    made.add_row("images", *(f"{split.shape[0]:,}" for split in facts))
    made.add_row("shape", *("×".join(map(str, split.shape[1:])) for split in facts))
    made.add_row("dtypes", *(f"{split.image_dtype}, {split.label_dtype}" for split in facts))
    made.add_row("labels", *("{}–{}".format(*split.label_range) for split in facts))
    test_size = description.splits["test"].shape[0]
    share = description.duplicates / test_size
    made.add_row("also in train", "", f"{description.duplicates:,} ({share:.2%})", end_section=True)
    for index, name in enumerate(description.class_names):
        counts = [(split.per_class[index], split.shape[0]) for split in facts]
        made.add_row(name, *(f"{count:,} ({count / size:.1%})" for count, size in counts))
    made.caption = f"SHA-256 {description.fingerprint[:16]}…"
    return made


def text(description: Description) -> str:
    """The description as plain text, 100 columns at most."""
    console = Console(file=StringIO(), width=100, color_system=None)
    with console.capture() as capture:
        console.print(table(description))
    return capture.get()


def _facts(split: Split, classes: int) -> SplitFacts:
    return SplitFacts(
        shape=split.images.shape,
        image_dtype=str(split.images.dtype),
        label_dtype=str(split.labels.dtype),
        label_range=(int(split.labels.min()), int(split.labels.max())),
        per_class=tuple(np.bincount(split.labels, minlength=classes).tolist()),
    )


def _duplicates(train: Array, test: Array) -> int:
    rows = list(_rows(test))
    known = set(rows)
    found = {row for row in _rows(train) if row in known}
    return sum(row in found for row in rows)


def _rows(images: Array) -> Iterator[bytes]:
    """Each image's bytes; a void dtype, because a byte string would lose trailing zeros."""
    for start in range(0, len(images), ROWS_AT_ONCE):
        part = images[start : start + ROWS_AT_ONCE]
        flat = np.ascontiguousarray(part).reshape(len(part), -1)
        yield from flat.view(f"V{flat.shape[1]}").ravel().tolist()
