"""The checks of a data set, `ingest.checks`: a finding is refused, warned of or ignored."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from pipeline.config.schema import Check, Checks
from pipeline.data.measures import Measures, labels_by_row
from pipeline.data.values import Array, RawData, exceeds
from pipeline.system.errors import RequestError, counted, first_of, in_percent
from pipeline.system.terminal import printable

_NAMED = 3  # classes or files that a message names
IGNORE, REFUSE = "ignore", "refuse"  # besides "warn"

Told = tuple[str, float]  # what was found, and the limit that would accept it
FINE: Told = ("", 0.0)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckFinding:
    """A finding beyond the limit of a check; `key` is the check's, `action` as configured."""

    key: str
    action: str
    text: str
    accepting: float
    """The limit that would accept it."""

    def __str__(self) -> str:
        return f"{self.key}: {self.text}; {self.key}.limit={self.accepting:g} accepts it"


def findings_of(raw: RawData, measures: Measures, checks: Checks) -> list[CheckFinding]:
    """Returns the findings beyond the limits of `checks`, most severe first."""
    found = []
    for one in fields(checks):
        check: Check = getattr(checks, one.name)
        if check.action == IGNORE:
            continue
        text, accepting = _CHECKS[one.name](raw, measures, check.limit)
        if text:
            key = f"ingest.checks.{one.name}"
            found.append(CheckFinding(key=key, action=check.action, text=text, accepting=accepting))
    return sorted(found, key=lambda finding: finding.action != REFUSE)


def apply(found: Sequence[CheckFinding]) -> None:
    """Warns of the findings.

    Raises:
        RequestError: the action of some is to refuse; names each of these.
    """
    if refused := [str(finding) for finding in found if finding.action == REFUSE]:
        raise RequestError("\n".join(refused))
    for finding in found:
        log.warning("%s", finding)


def _smallest_class(raw: RawData, measures: Measures, limit: float) -> Told:
    counts = _counts(raw)
    small = np.flatnonzero(counts < limit)
    if not len(small):
        return FINE
    order = small[np.argsort(counts[small], kind="stable")].tolist()
    told = first_of(order, _NAMED, lambda c: f"{printable(raw.class_names[c])} ({counts[c]:,})")
    have = counted(len(small), "class has", "classes have")
    return f"{have} fewer than {limit:g} training images: {told}", int(counts.min())


def _imbalance(raw: RawData, measures: Measures, limit: float) -> Told:
    counts = _counts(raw)
    least, most = int(counts.argmin()), int(counts.argmax())
    if not counts[least] or not exceeds(counts[most], counts[least], limit):
        return FINE
    names = [printable(raw.class_names[one]) for one in (most, least)]
    ratio = counts[most] / counts[least]
    return (
        f"{names[0]} has {counts[most]:,} training images and {names[1]} {counts[least]:,}, "
        f"{ratio:.3g} to 1, more than {limit:g} to 1; train.class_weight=balanced gives each class "
        "the same weight in training, and the metric balanced_accuracy does so in the evaluation"
    ), math.ceil(ratio)


def _bad_files(raw: RawData, measures: Measures, limit: float) -> Told:
    if raw.index is None or not raw.index.unreadable:
        return FINE
    bad = raw.index.unreadable
    count = len(bad) + len(raw.index.files)
    if not exceeds(len(bad), count, limit):
        return FINE
    told = first_of(bad, _NAMED, lambda one: f"{printable(one[0])} ({one[1]})")
    above = _above(len(bad), count, limit)
    return f"{len(bad):,} of {count:,} files cannot be read{above}: {told}", _share(len(bad), count)


def _conflicts(raw: RawData, measures: Measures, limit: float) -> Told:
    pairs = conflicts(raw, measures)
    count = len(np.unique(pairs))
    total = len(measures.rows)
    if not exceeds(count, total, limit):
        return FINE
    told = first_of(
        pairs.tolist(), _NAMED, lambda pair: " = ".join(called(raw, row) for row in pair)
    )
    above = _above(count, total, limit)
    return (
        f"{count:,} of {total:,} images occur under two classes{above}: {told}",
        _share(count, total),
    )


def _blank(raw: RawData, measures: Measures, limit: float) -> Told:
    rows = measures.rows[measures.blank]
    total = len(measures.rows)
    if not exceeds(len(rows), total, limit):
        return FINE
    told = first_of(rows.tolist(), _NAMED, lambda row: called(raw, row))
    above = _above(len(rows), total, limit)
    return (
        f"{len(rows):,} of {total:,} images are of one colour{above}: {told}",
        _share(len(rows), total),
    )


_CHECKS = {
    "smallest_class": _smallest_class,
    "imbalance": _imbalance,
    "bad_files": _bad_files,
    "conflicts": _conflicts,
    "blank": _blank,
}


def conflicts(raw: RawData, measures: Measures) -> Array:
    """Pairs of rows of equal images with different labels, i64[M,2]; every such row is in one."""
    labels = labels_by_row(raw)
    equal: dict[int, list[int]] = {}  # by the first row of each set
    for first, row in measures.equal.tolist():
        equal.setdefault(first, [first]).append(row)
    pairs: list[tuple[int, int]] = []
    for rows in equal.values():
        first, *others = [row for row in rows if labels[row] >= 0] or rows[:1]
        unlike = [row for row in others if labels[row] != labels[first]]
        pairs += [(first, row) for row in unlike]
        if unlike:
            same = (row for row in others if labels[row] == labels[first])
            pairs += [(min(row, unlike[0]), max(row, unlike[0])) for row in same]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def called(raw: RawData, row: int) -> str:
    """The name of a row of the packed array: its file, or its split and index in that.

    The index is that of `dataset.exclude`: it also counts the images which that leaves out.
    """
    if raw.index is not None:
        return printable(raw.index.files[row])
    for name, split in (raw.whole or raw).splits.items():
        if len(positions := np.flatnonzero(split.rows == row)):
            return f"{name} no. {positions[0]}"
    return f"row {row}"


def _counts(raw: RawData) -> Array:
    """Training images of each class, i64[K]."""
    return np.bincount(raw.train.labels, minlength=len(raw.class_names))


def _above(count: int, total: int, limit: float) -> str:
    if not limit:
        return ""
    return f" ({in_percent(count / total, 2)}%, more than {in_percent(limit, 2)}%)"


def _share(count: int, total: int) -> float:
    """The share as a limit that accepts it: rounded up to four digits."""
    return math.ceil(10_000 * count / total) / 10_000
