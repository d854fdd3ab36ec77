"""Finds pictures that belong together, and divides data without separating them.

A model that was trained on one picture of a subject, frame of a film or copy of a file, and is
tested on another, looks better than it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.data.values import EXACT, NEAR, Array
from pipeline.system.errors import RequestError

_PARENT = "parent"
COMPARED = 24  # approximate side of the images that are compared with one another
CORRELATED = 0.99
"""Correlation of the pixels of two near-duplicates, at least. A copy in another size, saved as JPEG
or made lighter has 0.995 and more; two frames of a film have it where nothing moves."""
TINTED = 32  # difference of the mean colours of two near-duplicates, at most
_FLAT = 2  # standard deviation of the pixels of an image that shows nothing
NEIGHBOURS = 1000  # images of similar hashes that each is compared with, at most
MOST_PAIRS = 2**19  # of images with similar hashes that are held at once
_PAIRS = 2**12  # compared at once
RULE = 3
"""The version of how data is divided: `held_out`, and `split.py` with it. It is in the key of each
division, of pictures and arrays, so that what an earlier version has divided is divided anew."""

Images = Callable[[Array], Array]  # from positions i64[m] to u8[m,H,W,C]


def named_groups(
    group: str | None, files: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> Array:
    """The group of each file, i64[n], as `dataset.group` says; without one, each has its own.

    `group` is the name of a column, `parent` for the folder that a file is in, or a regular
    expression, which is searched for in the name of the file (in the whole path if it contains a
    slash); what its first parentheses match, else the whole match, names the group. A file
    without a match, or with an empty cell, has a group of its own.

    Raises:
        RequestError: the expression matches no file, or each file differently.
    """
    if group is None:
        return np.arange(len(files))
    if group in columns:
        names: list[str | None] = [cell or None for cell in columns[group]]
    elif group == _PARENT:
        names = [file.rpartition("/")[0] for file in files]
    else:
        names = _matched(group, files, columns)
    numbers: dict[Any, int] = {}
    return np.array(
        [
            numbers.setdefault((position,) if name is None else name, len(numbers))
            for position, name in enumerate(names)
        ],
        np.int64,
    )


def _matched(
    group: str, files: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> list[str | None]:
    columned = f" (columns are {', '.join(columns)})" if columns else ""
    what = f"name a column{columned}, {_PARENT}, or a regular expression such as '^([^_]+)_'"
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise RequestError(
            f"dataset.group={group}: no regular expression ({error}); {what}"
        ) from error
    texts = files if "/" in group else [file.rpartition("/")[2] for file in files]
    found = [pattern.search(text) for text in texts]
    names = [
        None if match is None else match[1 if pattern.groups else 0] or None for match in found
    ]
    if not any(names):
        raise RequestError(f"dataset.group={group}: matches none of the files; {what}")
    if len(set(names) - {None}) == len(names) > 1:
        raise RequestError(f"dataset.group={group}: every file is a group of its own; {what}")
    return names


def duplicates(digests: Array, hashes: Array, images: Images, *, threshold: int | None) -> Array:
    """Pairs of equal and similar pictures, i64[M,3]: two positions and EXACT or NEAR.

    `digests` u8[n,32] are equal for equal pixels. Two pictures are similar if their `hashes` u64[n]
    differ in at most `threshold` bits and their pixels correlate; None looks for equal ones only.
    If similar hashes are more than MOST_PAIRS, as of a camera that stands still, some pairs of
    pictures that others connect are left out.
    """
    _, first, inverse = np.unique(
        np.ascontiguousarray(digests).view("V32").ravel(), return_index=True, return_inverse=True
    )
    firsts = first[inverse]
    equal = np.flatnonzero(firsts != np.arange(len(digests)))
    pairs = [_pairs(firsts[equal], equal, EXACT)]
    if threshold is not None and len(first) > 1:
        distinct = np.sort(first)
        near = _similar(hashes[distinct], lambda places: images(distinct[places]), threshold)
        pairs.append(_pairs(distinct[near[:, 0]], distinct[near[:, 1]], NEAR))
    return np.concatenate(pairs)


def _similar(hashes: Array, images: Images, threshold: int) -> Array:
    """Pairs of positions i64[m,2] whose hashes are close and whose images look the same.

    A pair of a later block of `_close` counts only if it joins two groups, and once for these two.
    """
    similar, groups = np.empty((0, 2), np.int64), np.arange(len(hashes))
    for close in _close(hashes, threshold):
        apart = close[groups[close[:, 0]] != groups[close[:, 1]]]
        apart = np.unique(np.sort(apart, axis=1), axis=0)
        alike = apart[_alike(apart[:, 0], apart[:, 1], images)]
        if len(alike):
            joined = np.sort(groups[alike], axis=1)
            alike = alike[np.unique(joined, axis=0, return_index=True)[1]]
            groups = join_groups(groups, alike)
            similar = np.concatenate([similar, alike])
    return similar


def _pairs(one: Array, other: Array, kind: int) -> Array:
    low, high = np.minimum(one, other), np.maximum(one, other)
    pairs = np.stack([low, high, np.full(len(low), kind)], axis=1).astype(np.int64)
    ordered: Array = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return ordered


def _close(hashes: Array, threshold: int) -> Iterator[Array]:
    """Pairs of positions i64[m,2] whose hashes differ in at most `threshold` bits, in blocks.

    If the 64 bits are cut into threshold + 1 bands, such hashes share at least one band. A block is
    of about MOST_PAIRS; a pair that shares several bands occurs as often.
    """
    edges = np.linspace(0, 64, threshold + 2).astype(int)
    found, held = list[Array](), 0
    for start, stop in pairwise(edges):
        band = (hashes >> np.uint64(start)) & np.uint64(2 ** int(stop - start) - 1)
        order = np.lexsort((hashes, band))
        sorted_bands, positions = band[order], np.arange(len(order))
        for step in range(1, NEIGHBOURS + 1):
            positions = positions[positions < len(order) - step]
            positions = positions[sorted_bands[positions] == sorted_bands[positions + step]]
            if not len(positions):
                break
            one, other = order[positions], order[positions + step]
            near = np.bitwise_count(hashes[one] ^ hashes[other]) <= threshold
            found.append(np.stack([one[near], other[near]], axis=1))
            held += len(found[-1])
            if held >= MOST_PAIRS:
                yield np.concatenate(found)
                found, held = [], 0
    if found:
        yield np.concatenate(found)


def _alike(one: Array, other: Array, images: Images) -> Array:
    """Whether the images of each pair of positions look the same, bool[M]."""
    alike = np.zeros(len(one), bool)
    for start in range(0, len(one), _PAIRS):
        part = slice(start, start + _PAIRS)
        needed = np.unique(np.concatenate([one[part], other[part]]))
        looks = _looks(images, needed)
        first, second = (
            looks[np.searchsorted(needed, positions[part])] for positions in (one, other)
        )
        tint = np.abs(first.mean(axis=1) - second.mean(axis=1)).max(axis=-1)
        first, second = (
            (look - look.mean(axis=1, keepdims=True)).reshape(len(look), -1)
            for look in (first, second)
        )
        sizes = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
        product = np.einsum("ij,ij->i", first, second)
        shows = np.minimum(*sizes) > _FLAT * first.shape[1] ** 0.5
        alike[part] = (
            shows & (tint <= TINTED) & (product >= CORRELATED * np.maximum(sizes[0] * sizes[1], 1))
        )
    return alike


def _looks(images: Images, positions: Array) -> Array:
    """Small versions of the images at these positions, f32[m,pixels,C]."""
    looks = []
    for start in range(0, len(positions), 256):
        taken = images(positions[start : start + 256])
        m, height, width, channels = taken.shape
        down, across = max(1, height // COMPARED), max(1, width // COMPARED)
        rows, columns = height // down, width // across
        taken = taken[:, : rows * down, : columns * across]
        blocks = taken.reshape(m, rows, down, columns, across, channels)
        looks.append(
            blocks.mean(axis=(2, 4), dtype=np.float32).reshape(m, rows * columns, channels)
        )
    return np.concatenate(looks)


def join_groups(groups: Array, pairs: Array) -> Array:
    """The groups i64[n] after joining the two of each pair of positions.

    They are numbered in the order of their first pictures.
    """
    from scipy import sparse  # takes 0.2 s, and a cached result does not need it

    count = len(groups)
    first = np.unique(groups, return_index=True)[1][np.unique(groups, return_inverse=True)[1]]
    one = np.concatenate([np.arange(count), pairs[:, 0]])
    other = np.concatenate([first, pairs[:, 1]])
    graph = sparse.coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    found = sparse.csgraph.connected_components(graph, directed=False)[1]
    _, start, inverse = np.unique(found, return_index=True, return_inverse=True)
    numbered: Array = np.argsort(np.argsort(start))[inverse].astype(np.int64)
    return numbered


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A part of a set of pictures: `mask` bool[n], and the classes that it could not get."""

    mask: Array
    lacking: tuple[int, ...]


def held_out(labels: Array, groups: Array, size: float, *, seed: int) -> HeldOut:
    """Chooses whole groups that hold about `size` pictures, and at least one of each class.

    A `size` below 1 is a share of each class, else a number of pictures of all classes together.
    `labels` i32[n], `groups` i64[n], whose pictures may be of several classes. No class loses its
    last group: one all of whose pictures belong to one group stays whole, and is left out here.
    """
    _, groups = np.unique(groups, return_inverse=True)
    classes, numbers = np.unique(labels, return_inverse=True)
    # A cell is a group with some pictures of a class.
    cells, counts = np.unique(groups * len(classes) + numbers, return_counts=True)
    holders, held = np.divmod(cells, len(classes))
    starts = np.searchsorted(holders, np.arange(holders[-1] + 2))
    rank = np.argsort(np.random.default_rng(seed).permutation(holders[-1] + 1))
    main = _main_classes(holders, held, counts)
    picked, left = np.zeros(len(rank), bool), np.bincount(held)  # groups of each class
    divisible, targets = left > 1, np.zeros(len(classes), np.int64)
    targets[divisible] = _targets(np.bincount(numbers)[divisible], size)

    def picks(group: int) -> bool:
        """Picks a group unless it is the last one left of a class."""
        inside = held[starts[group] : starts[group + 1]]
        if (left[inside] < 2).any():
            return False
        left[inside] -= 1
        picked[group] = True
        return True

    by_class = np.split(np.argsort(held, kind="stable"), np.cumsum(np.bincount(held))[:-1])
    for number in sorted(range(len(classes)), key=lambda one: (len(by_class[one]), one)):
        own = by_class[number]
        is_picked = picked[holders[own]]
        target = targets[number] - counts[own[is_picked]].sum()
        if target <= 0:
            continue
        free = own[~is_picked]
        # Groups that are mostly of this class come first: they move fewer pictures of others.
        free = free[np.lexsort((rank[holders[free]], main[holders[free]] != number))]
        _fill(holders[free], counts[free], int(target), picks)
    mask = picked[groups]
    return HeldOut(mask=mask, lacking=tuple(sorted({*labels.tolist()} - {*labels[mask].tolist()})))


def _targets(counts: Array, size: float) -> Array:
    """How many pictures of each class are to be held out, i64[classes], of `counts` i64[classes].

    A number of all is met by the method of largest remainders, with at least one for each class.
    """
    if size < 1 or not len(counts):
        return np.maximum(1, np.round(size * counts)).astype(np.int64)
    wanted, most = size * counts / counts.sum(), np.maximum(1, counts - 1)
    targets = np.clip(np.floor(wanted), 1, most)
    while lacking := np.sign(size - targets.sum()):
        may_change = targets < most if lacking > 0 else targets > 1
        targets[np.argmax(np.where(may_change, lacking * (wanted - targets), -np.inf))] += lacking
    return targets.astype(np.int64)


def _fill(groups: Array, sizes: Array, target: int, picks: Callable[[int], bool]) -> None:
    """Picks those of the groups, in order, that fit into `target` pictures, or the smallest one.

    `sizes` i64[m] are their pictures of the class; `picks` returns whether a group may be picked.
    """
    taken = 0
    for group, size in zip(groups[:-1].tolist(), sizes[:-1].tolist(), strict=True):
        if taken + size <= target and picks(group):
            taken += size
            if taken == target:
                return
    if not taken:
        for group in groups[np.argsort(sizes, kind="stable")].tolist():
            if picks(group):
                return


def _main_classes(holders: Array, held: Array, counts: Array) -> Array:
    """The most frequent class of each group, i64[groups], from the counts of its cells."""
    order = np.lexsort((held, -counts, holders))
    first = np.unique(holders[order], return_index=True)[1]
    main: Array = held[order[first]]
    return main
