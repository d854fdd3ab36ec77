"""Describes a data set: counts, shapes, class balance, duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.data.values import RawData, Split


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """One split in numbers: `shape` [N,H,W,C], dtypes, label range, images per class."""

    shape: tuple[int, ...]
    image_dtype: str
    label_dtype: str
    label_range: tuple[int, int]
    per_class: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """The facts about a data set that matter before training on it.

    `duplicates`: number of test images that occur, pixel by pixel, in the training split.
    """

    splits: Mapping[str, SplitFacts]
    class_names: tuple[str, ...]
    duplicates: int
    fingerprint: str
    source: str


@lru_cache(maxsize=1)
def describe(raw: RawData) -> Description:
    """Describes a data set: counts, shapes, dtypes, label ranges, class balance, duplicates."""
    classes = len(raw.class_names)
    return Description(
        splits={"train": _facts(raw.train, classes), "test": _facts(raw.test, classes)},
        class_names=raw.class_names,
        duplicates=raw.duplicates,
        fingerprint=raw.fingerprint,
        source=raw.source,
    )


def table(description: Description) -> Table:
    """The description as a table for the terminal."""
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
    console = Console(file=StringIO(), width=100, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table(description))
    return capture.get()


def _facts(split: Split, classes: int) -> SplitFacts:
    return SplitFacts(
        shape=(len(split), *split.image_shape),
        image_dtype=str(split.images.dtype),
        label_dtype=str(split.labels.dtype),
        label_range=(int(split.labels.min()), int(split.labels.max())),
        per_class=tuple(np.bincount(split.labels, minlength=classes).tolist()),
    )
