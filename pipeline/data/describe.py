"""Describes a data set: counts, shapes, sizes, colours, classes, duplicates, skipped files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.data.files import rest
from pipeline.data.measures import QUANTITIES, Measures, sizes
from pipeline.data.values import EXACT, Index, RawData, Split, shown_shape
from pipeline.system.errors import in_percent
from pipeline.system.terminal import as_line, printable

MOST_NAMED = 20  # files


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """One split in numbers: `shape` [N,H,W,C], dtypes, label range, images per class."""

    shape: tuple[int, ...]
    image_dtype: str
    label_dtype: str
    label_range: tuple[int, int]
    per_class: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """The picture files behind a data set.

    `sizes` are minimum, median and maximum of height, width and aspect ratio; `modes` counts the
    Pillow modes. `equal`, `near` and `conflicts` are numbers of pairs; `conflicts` are those with
    two classes. `unreadable`, `left_out` and `notes` as in `values.Index`.
    """

    sizes: Mapping[str, tuple[float, float, float]]
    modes: tuple[tuple[str, int], ...]
    equal: int
    near: int
    conflicts: int
    unreadable: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """The facts about a data set that matter before training on it.

    `duplicates`: number of test images that occur, pixel by pixel, in the training split.
    `quantities`: mean and standard deviation of brightness, contrast and colour
    (`measures.QUANTITIES`) over the images of each split, if they were measured. `excluded`: number
    of images that `dataset.exclude` left out.
    """

    splits: Mapping[str, SplitFacts]
    class_names: tuple[str, ...]
    duplicates: int
    fingerprint: str
    source: str
    quantities: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    pictures: PictureFacts | None = None
    excluded: int = 0


@lru_cache(maxsize=1)
def describe(raw: RawData, measures: Measures | None = None) -> Description:
    """Describes a data set without reading its images, with their `measures` if given."""
    classes = len(raw.class_names)
    return Description(
        splits={name: _facts(split, classes) for name, split in raw.splits.items()},
        class_names=raw.class_names,
        duplicates=raw.duplicates,
        fingerprint=raw.fingerprint,
        source=raw.source,
        quantities={} if measures is None else _quantities(raw, measures),
        pictures=None if raw.index is None else _pictures(raw.index),
        excluded=raw.excluded,
    )


def description_table(description: Description) -> Table:
    """The description as a table for the terminal."""
    names = description.splits
    title = f"Data from {printable(description.source)}"
    made = Table("", *names, title=Text(title, "table.title"))
    facts = names.values()
    made.add_row("images", *(f"{split.shape[0]:,}" for split in facts))
    made.add_row("shape", *(shown_shape(split.shape[1:]) for split in facts))
    made.add_row("dtypes", *(f"{split.image_dtype}, {split.label_dtype}" for split in facts))
    made.add_row("labels", *("{}–{}".format(*split.label_range) for split in facts))
    for name, values in description.quantities.items():
        made.add_row(name, *("{:.3g} ± {:.2g}".format(*values[split]) for split in names))
    test_size = description.splits["test"].shape[0]
    share = f"{description.duplicates:,} ({in_percent(description.duplicates / test_size, 2)}%)"
    shown = (share if name == "test" else "" for name in names)
    made.add_row("also in train", *shown, end_section=True)
    for index, name in enumerate(description.class_names):
        counts = [(split.per_class[index], split.shape[0]) for split in facts]
        told = (f"{count:,} ({in_percent(count / size, 1)}%)" for count, size in counts)
        made.add_row(Text(printable(name)), *told)
    made.caption = f"SHA-256 {description.fingerprint[:16]}…"
    return made


def lines(description: Description) -> list[str]:
    """Lines about excluded images, and about the picture files if there are any."""
    facts, said = description.pictures, list[str]()
    if description.excluded:
        said.append(f"images left out by dataset.exclude: {description.excluded:,}")
    if facts is None:
        return said
    said += facts.notes
    ranges = (
        f"{name} {low:.4g}–{high:.4g} (median {median:.4g})"
        for name, (low, median, high) in facts.sizes.items()
    )
    said.append(f"sizes: {', '.join(ranges)}")
    said.append("modes: " + ", ".join(f"{count:,} {mode}" for mode, count in facts.modes))
    if facts.equal or facts.near:
        crossing = f", {facts.conflicts:,} of them under two classes" if facts.conflicts else ""
        said.append(f"pairs: {facts.equal:,} equal, {facts.near:,} alike{crossing}")
    if told := rest(facts.left_out):
        said.append(told)
    if facts.unreadable:
        said.append(f"skipped, as they cannot be read: {len(facts.unreadable):,}")
        said += [as_line(f"  {file}: {reason}") for file, reason in facts.unreadable[:MOST_NAMED]]
        if (more := len(facts.unreadable) - MOST_NAMED) > 0:
            said.append(f"  and {more:,} more")
    return said


def text(description: Description) -> str:
    """The description as plain text, 100 columns at most."""
    console = Console(file=StringIO(), width=100, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(description_table(description))
        for line in lines(description):
            console.print(line, soft_wrap=True)
    return capture.get()


def _quantities(raw: RawData, measures: Measures) -> dict[str, dict[str, tuple[float, float]]]:
    found: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in QUANTITIES}
    start = 0
    for split, images in raw.splits.items():
        values = measures.values[start : start + len(images)]
        start += len(images)
        for name, column in zip(QUANTITIES, values.T, strict=True):
            found[name][split] = (float(column.mean()), float(column.std()))
    if raw.train.image_shape[2] == 1:
        del found["colour"]
    return found


def _pictures(index: Index) -> PictureFacts:
    equal = int((index.duplicates[:, 2] == EXACT).sum())
    return PictureFacts(
        sizes={
            name: (float(values.min()), float(np.median(values)), float(values.max()))
            for name, values in sizes(np.asarray(index.sizes)).items()
        },
        modes=tuple(Counter(index.modes).most_common()),
        equal=equal,
        near=len(index.duplicates) - equal,
        conflicts=len(index.conflicts),
        unreadable=index.unreadable,
        left_out=index.left_out,
        notes=index.notes,
    )


def _facts(split: Split, classes: int) -> SplitFacts:
    return SplitFacts(
        shape=(len(split), *split.image_shape),
        image_dtype=str(split.images.dtype),
        label_dtype=str(split.labels.dtype),
        label_range=(int(split.labels.min()), int(split.labels.max())),
        per_class=tuple(np.bincount(split.labels, minlength=classes).tolist()),
    )
