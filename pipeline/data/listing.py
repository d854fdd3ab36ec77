"""Recognises how a user's pictures are laid out, and lists them with their classes and splits."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from pipeline.data.files import Unreadable, natural, picture_endings, rest
from pipeline.data.places import LARGEST, Contents, Folder, Place
from pipeline.data.values import Array
from pipeline.system.errors import RequestError

SPLITS = ("train", "val", "test")
Classes = list[str | int] | dict[str | int, str | int | list[str | int]] | None
"""The classes of a data set: a selection in order, or the names that each class unites."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """A user's pictures: which there are, and what is known of them before any is read.

    `root` is a folder or an archive; `files` are POSIX paths relative to it, or names of members.
    A name that is not UTF-8 holds surrogates, as `os.fsdecode` gives them; `files.printable` shows
    it. `labels` i32[n] are indices into `class_names`; `splits` are "train", "val" or "test", "" if
    the pictures are not divided yet. `columns` are the further columns of a list, one text per
    file. `layout` says in one line what was recognised, `left_out` counts what was not taken,
    `unreadable` names what should have been but cannot be, `notes` say what a user should know.
    """

    root: Path
    files: tuple[str, ...]
    labels: Array
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    layout: str
    place: Place
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[tuple[str, int], ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def rest(self) -> str:
        """What was left out, as `left out: 5 .heic, 1 linked folder`; empty if nothing was."""
        return rest(self.left_out)

    @property
    def order(self) -> Array:
        """The indices i64[n] of all files in the order in which reading them is fastest.

        A compressed tar archive must be read in this order, by one thread: going back in it means
        unpacking it from its beginning.
        """
        return np.arange(len(self))

    @contextmanager
    def opened(self, index: int) -> Iterator[BinaryIO]:
        """Opens a file to read its bytes; safe from several threads.

        Raises:
            OSError, ValueError: it cannot be read, with the reason.
        """
        with self.place.opened(self.files[index]) as file:
            yield file

    def read(self, index: int) -> bytes:
        """The bytes of a file; safe from several threads.

        Raises:
            OSError, ValueError: it cannot be read, or is larger than any picture.
        """
        with self.opened(index) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"has more than {LARGEST:,} bytes, which no picture has")
        return content

    def stamps(self) -> Array:
        """Four numbers per file, i64[n,4], that change when its content does.

        Of a file on disk: size, times of modification and change in ns, inode; -1 if it is gone.
        """
        stamps = self.place.stamps(self.files)
        return np.fromiter((number for stamp in stamps for number in stamp), np.int64).reshape(
            -1, 4
        )


def listed(path: str | os.PathLike[str], *, classes: Classes = None) -> Listing:
    """Lists the pictures of a folder, an archive or a list, as they are laid out.

    Raises:
        RequestError: there is no data set; the message says what was found and what to type.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise RequestError(f"dataset.path={path}: no such folder")
    place = Folder(root)
    return _class_folders(place, place.contents())


def _class_folders(place: Place, contents: Contents) -> Listing:
    left_out = Counter(contents.left_out)
    files, folders = [], []
    for name in contents.files:
        ending = PurePosixPath(name).suffix.lower()
        if ending not in picture_endings():
            left_out[ending or "without an ending"] += 1
        elif "/" not in name:
            left_out["loose picture"] += 1
        else:
            files.append(name)
            folders.append(name.partition("/")[0])
    names = sorted(set(folders), key=natural)
    if len(names) < 2:
        raise RequestError(
            f"dataset.path={place.root}: {len(names)} class folders; at least two are needed"
        )
    index = {name: number for number, name in enumerate(names)}
    return Listing(
        root=place.root,
        files=tuple(files),
        labels=np.array([index[folder] for folder in folders], np.int32),
        class_names=tuple(unicodedata.normalize("NFC", name) for name in names),
        splits=("",) * len(files),
        layout=f"{len(names)} class folders",
        place=place,
        left_out=tuple(left_out.most_common()),
    )
