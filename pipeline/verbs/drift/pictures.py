"""Finds the pictures that are compared with a run's, and reads their classes as the run did."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.data.files import rest
from pipeline.data.listing import LOOSE, OUTSIDE, Listing, listed, unlabelled, unlabelled_list
from pipeline.system.errors import RequestError, counted, first_of
from pipeline.system.terminal import printable

KEY = "drift.path"
_FOLDER = "pipeline.data.datasets.folder"
_COLUMNS = ("path_column", "label_column", "split_column")
_NAMED = 3  # rows of a list in a remark
_ADVICE = re.compile(r"; name [^;\n]*: dataset\.\w+=\S+")  # on keys that `drift` does not have


@dataclass(frozen=True, kw_only=True, eq=False)
class NewPictures:
    """The new pictures; without `has_classes`, the labels of the listing mean nothing.

    `foreign` are the names that would be their classes, if none of these is a class of the run.
    """

    listing: Listing
    has_classes: bool
    foreign: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """What was recognised and what was left out, one line each."""
        listing = self.listing
        notes = [note.replace("dataset.path", KEY) for note in listing.notes]
        said = [f"read as {listing.layout}", *notes, rest(listing.left_out)]
        if rows := listing.unreadable:
            told = first_of(
                rows, _NAMED, lambda row: f"{printable(row.file)}: {row.reason}", separator="; "
            )
            said.append(f"left out: {counted(len(rows), 'row', 'rows')} of the list: {told}")
        if self.foreign:
            names = first_of(self.foreign, _NAMED, printable)
            said.append(f"classes are not compared, as the run has none of these: {names}")
        return [*filter(None, said)]


def new_pictures(path: str, dataset: Mapping[str, Any], known: Collection[str]) -> NewPictures:
    """The pictures at a path, with their classes if they have any.

    `dataset` are the keys of the run's data set, `known` the names of its classes. If it was one of
    the user's own pictures, its classes, columns and root are used where they fit. If more pictures
    lie loose than in class folders, or no class is a known one (folders per month or camera), all
    are taken, without classes.

    Raises:
        RequestError: there are no pictures; the message names `drift.path`.
    """
    with of_drift():
        return _found(path, _keys(dataset), known)


@contextmanager
def of_drift() -> Iterator[None]:
    """Makes errors about a data set name `drift.path`, without advice on keys of data sets."""
    try:
        yield
    except RequestError as error:
        first, *more = _ADVICE.sub("", str(error)).replace("dataset.path", KEY).split("\n")
        lines = [first, *(line for line in more if "dataset." not in line)]
        raise RequestError("\n".join(lines)) from error


def _keys(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that say how the run's own pictures were read; none of another data set."""
    if dataset["_target_"] != _FOLDER:
        return {}
    keys = ("classes", "root", "max_bad", *_COLUMNS)
    return {key: dataset[key] for key in keys if dataset[key] is not None}


def _found(path: str, keys: Mapping[str, Any], known: Collection[str]) -> NewPictures:
    # The list's own folder comes before the run's root, which may hold files of the same names.
    ways = _without(keys, ("root",), (), ("classes", "root"), ("classes",))
    try:
        found = _first(partial(listed, path, compared=True, **way) for way in ways)
    except RequestError:
        with suppress(RequestError):
            return NewPictures(listing=_all_pictures(path, keys), has_classes=False)
        raise
    if _is_mostly_loose(found):
        return NewPictures(listing=_all_pictures(path, keys), has_classes=False)
    if {*found.class_names}.isdisjoint(known):
        names = found.class_names
        with suppress(RequestError):  # a list in a folder that holds no picture itself
            found = _all_pictures(path, keys)
        return NewPictures(listing=found, has_classes=False, foreign=names)
    return NewPictures(listing=found, has_classes=True)


def _without(keys: Mapping[str, Any], *several: tuple[str, ...]) -> list[dict[str, Any]]:
    """The keys without some of them, for each of several choices that makes a difference."""
    ways: list[dict[str, Any]] = []
    for some in several:
        way = {key: value for key, value in keys.items() if key not in some}
        if way not in ways:
            ways.append(way)
    return ways


def _first(attempts: Iterable[Callable[[], Listing]]) -> Listing:
    """The first listing that is not refused; raises the first refusal if all are."""
    problem: RequestError | None = None
    for attempt in attempts:
        try:
            return attempt()
        except RequestError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _all_pictures(path: str, keys: Mapping[str, Any]) -> Listing:
    """All pictures of a folder or archive, or those that a list names, without classes."""
    if found := unlabelled(path, key=KEY, path_column=keys.get("path_column")):
        return found
    given = {key: keys[key] for key in ("root", "path_column", "max_bad") if key in keys}
    ways = _without(given, ("root",), (), ("path_column", "root"), ("path_column",))
    return _first(partial(unlabelled_list, path, key=KEY, **way) for way in ways)


def _is_mostly_loose(found: Listing) -> bool:
    """Whether more pictures lie beside the class folders than in them."""
    beside = sum(count for what, count in found.left_out if what in (LOOSE, OUTSIDE))
    return beside > len(found)
