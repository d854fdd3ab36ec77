"""Recognises how a user's pictures are laid out, and lists them with their classes and splits.

A layout is class folders, these below folders of splits (`train/cat/1.png`) or above them, or a
list that names a path and a label per row; each on disk or in an archive.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO

import numpy as np
from pydantic import BeforeValidator

from pipeline.data import embedded, label_lists
from pipeline.data.archives import LARGEST, located
from pipeline.data.files import (
    NO_ENDING,
    PICTURE_ENDINGS,
    Unreadable,
    in_natural_order,
    natural,
    rest,
)
from pipeline.data.label_lists import as_class
from pipeline.data.places import NO_FILE, Contents, Folder, Place
from pipeline.data.values import SPLITS, Array, exceeds
from pipeline.system.errors import RequestError, counted, joined, some_of
from pipeline.system.terminal import as_line, printable


def as_texts(value: Any) -> Any:
    """The value with whole numbers as texts, since `3` in a YAML file names the class "3".

    Raises:
        ValueError: it holds something that is no name.
    """
    if isinstance(value, Mapping):
        return {as_texts(key): as_texts(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_texts(one) for one in value]
    if isinstance(value, bool | float) or value is None:
        raise ValueError(
            f"{value!r} is no name of a class; quote what YAML reads as something else ('true')"
        )
    return str(value)


def _classes(value: Any) -> Any:
    return None if value is None else as_texts(value)


Classes = Annotated[list[str] | dict[str, str | list[str]] | None, BeforeValidator(_classes)]
"""The classes to use, in order, or the names that each of them merges; None for all there are."""

# As counted in what is left out:
LOOSE, UNCHOSEN = "loose picture", "not in dataset.classes"
OUTSIDE = "outside the folders of the splits"
UNLISTED = "not in the list"
TOLD, MANY = 3, 10  # examples and names in a message
SOME = 10  # pictures that may each have a label of their own
_FREE = ("", "train")  # splits of the pictures that a model learns from
# `train-00000-of-00002.parquet`, also with a hash of 16 digits before the ending;
# `train/0000.parquet`, `train/part-00000-….parquet` (Spark), `train/part.0.parquet` (Dask)
_PART = re.compile(
    r"(.*?)(?:-\d+-of-\d+(?:-[0-9a-f]{16})?|(?:(?<=/)|^)(?:\d+|part[-.]\d+\b.*))\.(?:parquet|pq)"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """A user's pictures: which there are, and what is known of them before any is read.

    `root` is a folder or an archive; `files` are POSIX paths relative to it, or names of members,
    in natural order. A name that is not UTF-8 holds surrogates, as `os.fsdecode` gives them;
    `terminal.as_line` makes it text. `labels` i32[n] are indices into `class_names`; `splits` are
    "train", "val" or "test", or all "" if the pictures are not divided. `columns` are the further
    columns of a list, one text per file. `layout` says in one line what was recognised, `left_out`
    counts what is not a picture of the data set, `lists` are the files of the lists that were read,
    `unreadable` names pictures that cannot be used, with the reason, and `notes` say what else a
    user should know; `warnings` are those of them that each run says, too.
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
    lists: tuple[Path, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def order(self) -> Array:
        """The indices i64[n] of all files in the order in which reading them is fastest.

        A compressed tar archive should be read in about this order: going far back in it means
        unpacking it from its beginning.
        """
        return self.place.order(self.files)

    def opened(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Opens a file to read its bytes; safe from several threads.

        Raises:
            OSError, ValueError: it cannot be read, with the reason.
        """
        return self.place.opened(self.files[index])

    def read(self, index: int) -> bytes:
        """The bytes of a file; safe from several threads.

        Raises:
            OSError, ValueError: it cannot be read, or is larger than any picture.
        """
        with self.opened(index) as file:
            return _whole(file)

    def stamps(self) -> Array:
        """Four numbers per file, i64[n,4], that change when its content does; -1 if it is gone.

        Of a file on disk: size, times of modification and change in ns, inode.
        """
        stamps = self.place.stamps(self.files)
        numbers = np.fromiter((number for stamp in stamps for number in stamp), np.int64)
        return numbers.reshape(-1, 4)


def listed(  # noqa: PLR0913 (the keys of `dataset=folder`)
    path: str | os.PathLike[str],
    *,
    classes: Classes = None,
    root: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    max_bad: float = 0.1,
    compared: bool = False,
) -> Listing:
    """Lists the pictures of a folder, an archive or a list, as they are laid out.

    `path` may also lead into an archive (`photos.zip/labels.csv`). `classes` selects, orders and
    merges classes by the names of their folders (`[cat, dog]`, `[animals/cat, …]`) or
    labels; linked folders that it names are entered. The other keys are for lists: `root` is the
    folder or archive that the paths are relative to, by default that of the list; `max_bad` is the
    share of rows without a file or a label above which a list is refused.

    Pictures that are only `compared` with others need no second class, nor every class to train
    with; chosen classes may be missing or merged already, and keys for lists may be of no use.

    Raises:
        RequestError: there is no data set; the message says what was found and what to type.
    """
    columns = {"path": path_column, "label": label_column, "split": split_column}
    wanted = _Wanted(
        path=os.fspath(path),
        classes=_united(classes),
        root=root,
        columns=columns,
        max_bad=max_bad,
        compared=compared,
    )
    place, below = located(wanted.path, "dataset.path", refused=_no_list)
    if below and not below.endswith("/"):
        return _from_list(place, below, wanted)
    return _from_tree(place, below, wanted)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What is asked for; `classes` maps folders or labels to classes, None keeps their names."""

    path: str
    classes: Mapping[str, str] | None
    root: str | None
    columns: Mapping[str, str | None]
    max_bad: float
    compared: bool = False

    @property
    def for_lists(self) -> list[str]:
        """The keys given that have an effect on lists only."""
        given = {"root": self.root} | {f"{key}_column": name for key, name in self.columns.items()}
        return [f"dataset.{key}={value}" for key, value in given.items() if value is not None]

    def refuse(self, problem: str) -> RequestError:
        """An error that names the path."""
        return RequestError(f"dataset.path={self.path}: {problem}")


def _united(classes: Classes) -> Mapping[str, str] | None:
    """The class that each name belongs to, in the order of the classes."""
    classes = _classes(classes)
    if classes is None:
        return None
    pairs = []
    for name in classes:
        sources = classes[name] if isinstance(classes, Mapping) else name
        if sources == []:
            raise RequestError(
                f"dataset.classes: {name!r} unites nothing; name what it unites, as "
                f"{{{name}: [cat, dog]}} does, or leave it out"
            )
        pairs += [
            (as_class(source), as_class(name))
            for source in (sources if isinstance(sources, list) else [sources])
        ]
    for source, count in Counter(source for source, _ in pairs).items():
        if count > 1:
            raise RequestError(f"dataset.classes: {source!r} stands {count} times; keep one")
    if len({name for _, name in pairs}) < 2:
        raise RequestError("dataset.classes must name at least two classes, as [cat, dog] does")
    return dict(pairs)


def _no_list(path: Path) -> str | None:
    """Why a file is neither a list nor an archive that can be read, going by its name."""
    ending = path.suffix.lower()
    if ending in PICTURE_ENDINGS:
        return "is a single picture; name the folder of all"
    if ending == ".npz":
        return f"holds arrays; type dataset=npz dataset.path={path}"
    if ending == ".npy":
        return (
            "is a single array; save images and labels together, "
            "numpy.savez('data.npz', x_train=…, y_train=…, x_test=…, y_test=…), and type "
            "dataset=npz dataset.path=data.npz"
        )
    if "ubyte" in path.name:
        return f"looks like a file of MNIST's kind; type dataset=idx dataset.path={path.parent}"
    if ending in (".xlsx", ".xls", ".xlsm", ".ods", ".numbers"):
        return "is a spreadsheet; save it as CSV"
    if (
        ending in (".gz", ".xz", ".bz2")
        and path.with_suffix("").suffix.lower() in label_lists.KINDS
    ):
        return "is a compressed list; unpack it"
    if ending in (".rar", ".7z", ".zst"):
        return "is an archive that cannot be read; unpack it, and name the folder"
    return None


def _whole(file: BinaryIO) -> bytes:
    content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"has more than {LARGEST:,} bytes")
    return content


class _Tree:
    """Folders with pictures: `loose` counts those directly in each, `below` names its subfolders.

    A folder is written as the beginning of the names in it: `train/cat/`, or "" for the top.
    """

    def __init__(self, pictures: Sequence[str]) -> None:
        self.pictures = pictures
        self.loose = Counter(map(_folder, pictures))
        names: defaultdict[str, set[str]] = defaultdict(set)
        for holder in self.loose:
            folder = holder
            while folder:
                above, _, name = folder[:-1].rpartition("/")
                above += "/" if above else ""
                names[above].add(name)
                folder = above
        self.below = defaultdict(
            list, {folder: sorted(found, key=natural) for folder, found in names.items()}
        )

    def unwrapped(self, folder: str, keep: Collection[str]) -> str:
        """Follows single subfolders down to the first folder that has several, and returns that.

        If there is none, returns the folder above the last, which is a class. Does not enter
        folders whose names are in `keep`.
        """
        above = folder
        while len(self.below[folder]) == 1 and self.below[folder][0] not in keep:
            above, folder = folder, f"{folder}{self.below[folder][0]}/"
        return folder if self.below[folder] else above

    def wrapper(self, folders: Sequence[str], keep: Collection[str]) -> str:
        """The same single subfolders of each of these, above the first that differ; "" without any.

        Like `unwrapped`, it leaves a class as it is and enters no folder whose name or path is in
        `keep`. A subfolder that has no folders in one of these is a class, too, since its pictures
        there would be left out.
        """
        wrapper = ""
        while True:
            inner = {name for folder in folders for name in self.below[f"{folder}{wrapper}"]}
            if len(inner) != 1 or inner & {*keep}:
                return wrapper
            deeper = f"{wrapper}{inner.pop()}/"
            is_class = not all(self.below[f"{folder}{deeper}"] for folder in folders)
            if is_class or any(one.startswith(deeper) for one in keep):
                return wrapper
            wrapper = deeper


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The layout of class folders: they are in the folders of `sides`, each of which has a split.

    With `inverted`, the folders within the class folders stand for splits. `told` is one line;
    `warnings` name what looks like splits and is none.
    """

    told: str
    sides: tuple[tuple[str, str], ...]
    inverted: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _layout(tree: _Tree, top: str, keep: Collection[str]) -> _Layout | None:
    """The layout of class folders below `top`; None if there are fewer than two."""
    folders = tree.below[top]
    if splits := label_lists.splits_among(folders):
        above = {name: one for name, one in splits.items() if tree.below[f"{top}{name}/"]}
        if "train" in above.values():
            return _divided(tree, top, splits, keep)
        if len(splits) == len(folders):
            return None
    if len(folders) < 2:
        return None
    within = f" in {as_line(top)}" if top else ""
    deep = any("/" in one for one in keep)  # a class may be a folder beside the splits within
    chosen = folders if deep else [name for name in folders if as_class(name) in keep] or folders
    words = {name: {*map(label_lists.split_of, tree.below[f"{top}{name}/"])} for name in chosen}
    loose = any(tree.loose[f"{top}{name}/"] for name in chosen)
    if inner := _splits_within(words, loose=loose, others=not deep):
        told = f"{len(chosen)} class folders{within} above {joined(inner)}"
        return _Layout(told=told, sides=((top, ""),), inverted=True)
    deeper = any(tree.below[f"{top}{name}/"] for name in folders)
    told = f"{len(folders)} class folders{within}{', with folders in them' if deeper else ''}"
    warnings = (*_unused_splits(words), *(() if keep else _like_splits(tree, top)))
    return _Layout(told=told, sides=((top, ""),), warnings=warnings)


def _splits_within(
    words: Mapping[str, Collection[str | None]], *, loose: bool, others: bool
) -> list[str]:
    """The splits that the folders within each class folder stand for; None stands for another.

    Others, and pictures that lie `loose`, may be there if each class has `train`, unless `others`
    is false; else what looks like splits may be something else.
    """
    found = set().union(*words.values())
    alone = all(words.values()) and None not in found and not loose
    clear = others and all("train" in one for one in words.values())
    if "train" not in found or not (alone or clear):
        return []
    splits = [split for split in SPLITS if split in found]
    return splits if len(splits) > 1 else []


def _unused_splits(words: Mapping[str, Collection[str | None]]) -> Iterator[str]:
    """Warns of splits within some of the class folders only: their pictures are divided anew."""
    above = [name for name, found in words.items() if {"train"} < {*found} - {None}]
    others = [as_line(name) for name, found in words.items() if "train" not in found]
    if above:
        shown = [as_line(name) for name in above]
        why = f"{some_of(others, MANY)} none of train" if others else "dataset.classes names others"
        select = f", or select those: dataset.classes=[{', '.join(shown)}]" if above[1:] else ""
        yield (
            f"{some_of(shown, MANY)} have folders of splits, but {why}: these "
            "splits are not used, and the test split is drawn from all pictures; arrange all "
            f"classes alike{select}"
        )


def _like_splits(tree: _Tree, top: str) -> Iterator[str]:
    """Warns of class folders that look like splits: a word for one, and the same folders within."""
    inner = {name: {*tree.below[tree.unwrapped(f"{top}{name}/", ())]} for name in tree.below[top]}
    for name in (one for one in inner if label_lists.split_in(one) and len(inner[one]) > 1):
        alike = [one for one in inner if one != name and len(inner[one] & inner[name]) > 1]
        if alike:
            shared = sorted(inner[name] & inner[alike[0]], key=natural)
            both = [as_line(f"{one}/") for one in (name, *alike)]
            yield (
                f"{joined(both)} are classes here, though each holds "
                f"{some_of([*map(as_line, shared)], TOLD)}; if they are splits, call them train, "
                "val and test"
            )
            return


def _divided(tree: _Tree, top: str, splits: Mapping[str, str], keep: Collection[str]) -> _Layout:
    """The layout of class folders below the folders of `splits`, some of which may hold none."""
    ordered = sorted(splits, key=lambda name: SPLITS.index(splits[name]))
    above = {name: splits[name] for name in ordered if tree.below[f"{top}{name}/"]}
    classes = Counter(one for name in above for one in tree.below[f"{top}{name}/"])
    shared = {one for one, count in classes.items() if count > 1} | {*keep}
    wrapper = tree.wrapper([f"{top}{name}/" for name in above], keep)
    sides = [
        (tree.unwrapped(f"{top}{name}/{wrapper}", shared), split) for name, split in above.items()
    ]
    notes = [
        f"{as_line(top + name)}/ has no class folders: its pictures are left out"
        for name in splits
        if name not in above
    ]
    if wrapper:
        within = joined([f"{as_line(top + name)}/" for name in above])
        notes.append(
            f"{as_line(wrapper)} is the only folder in {within}: it is passed through, and the "
            "folders within it are the classes"
        )
    if {*above.values()} == {"train"}:
        sides = [(folder, "") for folder, _ in sides]
    found = {one for folder, _ in sides for one in tree.below[folder]}
    folders = f"{len(found)} class folder{'s' * (len(found) > 1)}"
    told = f"{joined([as_line(folder) for folder, _ in sides])} above {folders}"
    if len(found) == 1:
        told += _classes_within(tree, sides, f"{found.pop()}/")
    return _Layout(told=told, sides=tuple(sides), notes=tuple(notes))


def _classes_within(tree: _Tree, sides: Sequence[tuple[str, str]], only: str) -> str:
    """How the folders within the `only` class folder are made classes, if there are several."""
    inner = sorted({f"{only}{one}" for folder, _ in sides for one in tree.below[f"{folder}{only}"]})
    if len(inner) < 2:
        return ""
    shown = [*map(as_line, inner[:TOLD]), *(["…"] if inner[TOLD:] else [])]
    return f"; for those within it, type dataset.classes=[{','.join(shown)}]"


def _from_tree(place: Place, prefix: str, wanted: _Wanted) -> Listing:
    """Lists the pictures of a folder or archive below `prefix`."""
    keep = tuple(wanted.classes or ())
    contents = place.contents(keep)
    files = [name for name in contents.files if name.startswith(prefix)]
    endings = [_ending(name) for name in files]
    known = PICTURE_ENDINGS
    pictures = [name for name, one in zip(files, endings, strict=True) if one in known]
    left_out = +Counter(contents.left_out)
    left_out.update(one or NO_ENDING for one in endings if one not in known)
    tree = _Tree(pictures)
    top = tree.unwrapped(prefix, keep)
    lists = [name for name, one in zip(files, endings, strict=True) if one in label_lists.ENDINGS]
    # Lists at the top, or in a folder that all pictures lie below.
    found = [one for one in lists if top.startswith(_folder(one))]
    if not pictures and not found:  # as in `data/train-00000-of-00002.parquet`
        found = [one for one in lists if _ending(one) in label_lists.PARQUET]
    layout = _layout(tree, top, keep)
    if layout is None and not found:  # as in `train/metadata.csv`
        of_splits = {f"{top}{name}/" for name in tree.below[top] if label_lists.split_of(name)}
        found = [one for one in lists if _folder(one) in of_splits]
    if found and (layout is None or wanted.for_lists):
        return _from_lists(place, found, wanted, pictures)
    if layout is None:
        raise wanted.refuse(_unclassed(tree, top, wanted.path, contents, left_out))
    if wanted.for_lists and not wanted.compared:
        raise wanted.refuse(f"{wanted.for_lists[0]} is for lists, but it has {layout.told}")
    notes = [*layout.notes, *layout.warnings, *_without_pictures(files, tree, layout)]
    notes += [*_united_by_form(tree, layout), *_not_the_users(contents)]
    notes += [
        f"{as_line(one)} is not used; type dataset.path={printable(place.root / one)}"
        for one in found
    ]
    made = _from_folders(place, tree, layout, wanted, left_out, notes)
    return replace(made, warnings=layout.warnings)


def unlabelled(path: str, *, key: str, path_column: str | None = None) -> Listing | None:
    """All pictures of a folder, archive or Parquet file, without classes; None without pictures.

    Also None for another list. The column of a Parquet file is chosen as for training, with the
    `path_column` that was named there, if the file has it.

    Raises:
        RequestError: nothing lies there, or several columns hold pictures; the message begins with
            `key`.
    """
    place, below = located(path, key)
    left_out: Counter[str] = Counter()
    notes: list[str] = []
    if _ending(below) in label_lists.PARQUET:
        files = _inside(_table(place, below), path_column, f"{key}={path}")
    elif below and not below.endswith("/"):
        return None
    else:
        contents = place.contents(())
        inside = [name for name in contents.files if name.startswith(below)]
        files = tuple(name for name in inside if _ending(name) in PICTURE_ENDINGS)
        notes += _not_the_users(contents)
        left_out += contents.left_out
        left_out.update(_ending(name) or NO_ENDING for name in {*inside} - {*files})
    if not files:
        return None
    layout = "pictures without classes"
    listing = _of_no_class(place, files, layout)
    return replace(listing, left_out=tuple(left_out.most_common()), notes=tuple(notes))


def _inside(table: label_lists.Table, path_column: str | None, told: str) -> tuple[str, ...]:
    """The pictures that lie in a list itself, in the column that training would take."""
    if not table.embedded:
        return ()
    named = path_column if path_column in table.embedded else None
    try:
        chosen = label_lists.without_labels(table, named)
    except RequestError as error:
        raise RequestError(
            f"{told} holds pictures in several columns ({joined(table.embedded)}); remove all but "
            "the one to be read"
        ) from error
    return tuple(name for column in chosen.embedded for name in chosen.columns[column] if name)


def unlabelled_list(
    path: str,
    *,
    key: str,
    root: str | None = None,
    path_column: str | None = None,
    max_bad: float = 0.1,
) -> Listing:
    """The pictures that a list names, without classes; the keys are those of `listed`.

    Raises:
        RequestError: nothing lies there, it is no list, or its paths cannot be used.
    """
    place, below = located(path, key, refused=_no_list)
    if not below or below.endswith("/"):
        raise RequestError(f"{key}={path} is no list")
    table = label_lists.without_labels(_table(place, below), path_column)
    columns = {"path": path_column, "label": label_lists.UNNAMED, "split": None}
    wanted = _Wanted(path=path, classes=None, root=root, columns=columns, max_bad=max_bad)
    pictures, found, _ = _pictures_of(place, below, table, wanted)
    if not found.files:
        raise RequestError(f"{key}={path} names no picture")
    listing = _of_no_class(pictures, tuple(found.files), f"a list ({table.kind}) without classes")
    return replace(
        listing,
        lists=tuple(found.lists),
        unreadable=tuple(found.unreadable),
        notes=tuple(found.notes),
    )


def _of_no_class(place: Place, files: tuple[str, ...], layout: str) -> Listing:
    return Listing(
        root=place.root,
        files=files,
        labels=np.zeros(len(files), np.int32),
        class_names=("",),
        splits=("",) * len(files),
        layout=layout,
        place=place,
    )


def _folder(name: str) -> str:
    """The folder of a file, with a slash at its end; "" at the top."""
    return name[: name.rfind("/") + 1]


def _ending(name: str) -> str:
    """The ending of a file's name in lower case; a path object would take ten times as long."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") + 1 else ""


def _without_pictures(files: Sequence[str], tree: _Tree, layout: _Layout) -> Iterator[str]:
    """Names folders beside the class folders that hold files but no pictures."""
    for side, _ in layout.sides:
        inner = Counter(
            name[len(side) :].partition("/")[0]
            for name in files
            if name.startswith(side) and "/" in name[len(side) :]
        )
        for name, count in inner.items():
            if name not in tree.below[side]:
                folder = as_line(side + name)
                yield f"{folder}/ is no class: none of its {count:,} files is a picture"


def _not_the_users(contents: Contents) -> Iterator[str]:
    """Says which folders are left out since runs or programs made them."""
    # Without their number, which grows from run to run.
    told = [f"{maker} ({as_line(first)}, …)" for maker, first in contents.made.items()]
    if told:
        yield f"left out: folders made by {joined(told)}"


def _united_by_form(tree: _Tree, layout: _Layout) -> Iterator[str]:
    """Notes which classes consist of several folders whose names look alike."""
    for side, _ in layout.sides:
        for name, count in Counter(map(as_class, tree.below[side])).items():
            if count > 1:
                yield f"{name}: {count} folders, written in different Unicode forms, are one class"


def _unclassed(tree: _Tree, top: str, path: str, contents: Contents, left_out: Counter[str]) -> str:
    """Says why there are no classes, and how pictures can be arranged."""
    folders = [as_line(name) for name in tree.below[top]]
    if not tree.pictures:
        found = "no pictures there"
    elif len(folders) == 1:
        found = f"{folders[0]}/ is the only class folder, but two classes are needed"
    elif folders:
        found = f"{joined(folders)} hold pictures, but no class folders"
    else:
        found = f"{len(tree.pictures):,} pictures lie there without class folders"
    told = [found, rest(tuple(left_out.most_common())), *_not_the_users(contents)]
    if contents.linked:
        names = ", ".join(map(as_line, contents.linked[:TOLD]))
        told.append(
            f"a linked folder ({names}) is entered only if dataset.path or dataset.classes names "
            "it, or if it is a split beside another, as train is beside test"
        )
    folder = Path(path).name or path
    ways = f"{folder}/CLASS/1.png, {folder}/train/CLASS/1.png and {folder}/test/CLASS/2.png"
    return (
        f"{'; '.join(filter(None, told))}.\nArrange them as {ways}, or write a list of them with "
        f"the columns path,label and type dataset.path={path.rstrip('/')}/labels.csv"
    )


def _from_folders(
    place: Place,
    tree: _Tree,
    layout: _Layout,
    wanted: _Wanted,
    left_out: Counter[str],
    notes: Sequence[str],
) -> Listing:
    known: dict[str, tuple[str, str]] = {}  # class and split by folder
    files, names, splits = [], [], []
    for file in tree.pictures:
        folder = _folder(file)
        if folder not in known:
            known[folder] = _class_and_split(folder, layout, wanted)
        name, split = known[folder]
        if name in (LOOSE, OUTSIDE):
            left_out[name] += 1
        else:
            files.append(file)
            names.append(name)
            splits.append(split)
    found = _Found(files=files, names=names, splits=splits, notes=notes, left_out=left_out)
    return _listing(place, found, layout.told, wanted)


def _class_and_split(folder: str, layout: _Layout, wanted: _Wanted) -> tuple[str, str]:
    """The class and split of the pictures directly in a folder.

    The class is the deepest folder that dataset.classes names, else the first, or LOOSE or OUTSIDE.
    """
    sides = [one for one in layout.sides if folder.startswith(one[0])]
    if not sides:
        return OUTSIDE, ""
    side, split = sides[0]
    first, *more = folder[len(side) :].split("/")[:-1] or [""]
    if not first:
        return LOOSE, ""
    if layout.inverted:
        if not (more and (found := label_lists.split_of(more[0]))):
            return (OUTSIDE if more else LOOSE), ""
        split, more = found, more[1:]
    parts = [as_class(one) for one in (first, *more)]
    prefixes = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    chosen = (prefix for prefix in prefixes if prefix in (wanted.classes or ()))
    return next(chosen, parts[0]), split


def _from_list(place: Place, name: str, wanted: _Wanted, there: Sequence[str] = ()) -> Listing:
    """Lists the pictures that a list names; counts those that are `there` beside them."""
    pictures, found, layout = _pictures_of(place, name, _table(place, name), wanted)
    _require_classes(found, printable(place.root / name))
    return _listing(pictures, _with_unlisted_counted(found, pictures, there), layout, wanted)


def _with_unlisted_counted(found: _Found, place: Place, there: Sequence[str]) -> _Found:
    """Counts the pictures that are `there` but in no list as left out."""
    listed = {*found.files, *(one.file for one in found.unreadable)}
    left = sum(one not in listed and place.root / one not in listed for one in there)
    return replace(found, left_out=found.left_out + Counter({UNLISTED: left}))


def _from_lists(
    place: Place, names: Sequence[str], wanted: _Wanted, there: Sequence[str]
) -> Listing:
    """Lists the pictures of all lists that lie together, one per split, or of the parts of one.

    These are `train.csv` and `test.csv`, or `train/metadata.csv` and `test/metadata.csv`. Pictures
    that are `there` but in no list are counted.
    """
    if wanted.root is not None:
        there = ()
    series = _series(names)
    if len(names) == 1:
        return _from_list(place, names[0], wanted, there)
    splits = {name: _split_of_list(name) for name in series}
    counts = Counter(filter(None, splits.values()))
    whole = len(series) == 1  # one list in several files
    if not whole and ("train" not in counts or len(counts) < 2 or max(counts.values()) > 1):
        shown = ", ".join(map(as_line, names[:TOLD]))
        raise wanted.refuse(
            f"{len(names)} lists lie there ({shown}); name one: "
            f"dataset.path={printable(place.root / names[0])}"
        )
    notes, parts, of = [], [], []  # `of`: the list and the split of each part
    pictures, layout = place, ""
    for first in sorted(series, key=lambda name: SPLITS.index(splits[name] or "test")):
        split = "" if whole else splits[first]
        for name in series[first]:
            if split is None:
                notes.append(f"{as_line(name)} stands for no split: it is not used")
                continue
            table = _table(place, name)
            labels = split in _FREE or label_lists.has_labels(table, wanted.columns["label"])
            if not labels:
                notes.append(f"{as_line(name)} has no labels: it is not used")
            else:
                pictures, found, layout = _pictures_of(place, name, table, wanted)
                parts.append(found)
                of.append((first, split))
    used = Counter(first for first, _ in of)
    if whole:
        layout = f"{counted(len(parts), 'part', 'parts')} of {layout}"
    elif len(used) > 1:  # a column of splits counts more than the name of its list
        parts = [
            part if any(part.splits) else replace(part, splits=[split] * len(part.files))
            for (_, split), part in zip(of, parts, strict=True)
        ]
        told = [as_line(one) + (f" in {n:,} parts" if n > 1 else "") for one, n in used.items()]
        layout = f"{joined(told)}, one list per split"
    united = _united_lists(parts, [first for first, _ in of], notes, pictures, wanted)
    _require_classes(united, printable(place.root / names[0]))
    found = _with_unlisted_counted(united, pictures, there)
    return _listing(pictures, found, layout, wanted)


def _series(names: Sequence[str]) -> Mapping[str, list[str]]:
    """The files of each list, under the first: the parts that `_PART` tells, else one file."""
    series: dict[str, list[str]] = {}
    firsts: dict[str, str] = {}
    for name in names:
        parted = _PART.fullmatch(name)
        first = firsts.setdefault(parted[1], name) if parted else name
        series.setdefault(first, []).append(name)
    return series


def _split_of_list(name: str) -> str | None:
    path = PurePosixPath(name)
    words = (path.stem, path.parent.name)
    found = (label_lists.split_of(word) or label_lists.split_in(word) for word in words)
    return next(filter(None, found), None)


def _united_lists(
    parts: Sequence[_Found],
    names: Sequence[str],
    notes: Sequence[str],
    pictures: Place,
    wanted: _Wanted,
) -> _Found:
    """The pictures of several lists, in natural order; not those of two classes or splits."""
    rows: dict[str, list[tuple[int, int]]] = defaultdict(list)  # by file: list, row
    for number, part in enumerate(parts):
        for row, file in enumerate(part.files):
            rows[file].append((number, row))
    kept, contrary = [], []
    for file in in_natural_order(rows):
        meant = {(parts[n].names[row], parts[n].splits[row]) for n, row in rows[file]}
        if len(meant) == 1:
            kept.append(rows[file][0])
        else:
            where = joined([as_line(names[n]) for n, _ in rows[file]])
            contrary.append(Unreadable(file=pictures.root / file, reason=f"listed in {where}"))
    told = joined([as_line(name) for name in dict.fromkeys(names)])
    if exceeds(len(contrary), len(rows), wanted.max_bad):
        raise RequestError(_too_many(told, contrary, "pictures", len(rows), wanted.max_bad))
    named = {split for part in parts for split in part.splits}
    if emptied := sorted(named - {parts[n].splits[row] for n, row in kept}):
        raise RequestError(
            f"{told}: no picture is left for {joined(emptied)}: {_some(contrary)}; list each "
            "picture in one of them"
        )
    columns = dict.fromkeys(name for part in parts for name in part.columns)
    return _Found(
        files=[parts[n].files[row] for n, row in kept],
        names=[parts[n].names[row] for n, row in kept],
        splits=[parts[n].splits[row] for n, row in kept],
        columns={
            name: [
                parts[n].columns[name][row] if name in parts[n].columns else "" for n, row in kept
            ]
            for name in columns
        },
        lists=[one for part in parts for one in part.lists],
        unreadable=[*(one for part in parts for one in part.unreadable), *contrary],
        notes=[*notes, *dict.fromkeys(note for part in parts for note in part.notes)],
        label=parts[0].label,
    )


def _require_classes(found: _Found, told: str) -> None:
    """Refuses a list in which each picture to learn from has a label of its own."""
    learnt = [name for name, split in zip(found.names, found.splits, strict=True) if split in _FREE]
    if len({*learnt}) == len(learnt) > SOME:
        raise RequestError(
            f"{told}: each picture has a {found.label} of its own, from which nothing can be "
            "learnt; name the column of the classes: dataset.label_column=…"
        )


def _table(place: Place, name: str) -> label_lists.Table:
    told = printable(place.root / name)
    try:
        with place.opened(name) as file:
            as_it_lies = _ending(name) in label_lists.PARQUET and isinstance(place, Folder)
            content = embedded.mapped(file) if as_it_lies else _whole(file)
            return label_lists.read_table(content, str(place.root / name))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{told} cannot be read: {reason}") from error


def _pictures_of(
    place: Place, name: str, table: label_lists.Table, wanted: _Wanted
) -> tuple[Place, _Found, str]:
    """The place of a list's pictures, what the list says of them, and its layout in one line."""
    told = printable(place.root / name)
    pictures, below = place, _folder(name)
    if wanted.root is not None:
        pictures, below = located(wanted.root, "dataset.root")
        if below and not below.endswith("/"):
            raise RequestError(f"dataset.root={wanted.root} is neither a folder nor an archive")
    folder = pictures.root / below
    rows = label_lists.usable(
        table,
        columns=wanted.columns,
        roots=[f"{one}/{below}".rstrip("/") for one in pictures.absolute],
        folders=[f"{one}/{_folder(name)}".rstrip("/") for one in place.absolute],
        find=lambda paths: _real_names(pictures, below, paths),
        same=lambda one, other: len({*pictures.stamps([below + one, below + other])}) == 1,
    )
    if rows.used[0] in table.embedded and not isinstance(pictures, Folder):
        raise RequestError(f"{told} holds pictures inside an archive; unpack the archive first")
    bad = [
        Unreadable(file=folder / path if path else place.root / name, reason=reason)
        for path, reason in rows.unusable
    ]
    if exceeds(len(bad), len(table.lines), wanted.max_bad):
        missing = [path for path, reason in rows.unusable if reason == label_lists.MISSING]
        near = _whereabouts(pictures, below, missing[0]) if missing else ""
        raise RequestError(_too_many(told, bad, "rows", len(table.lines), wanted.max_bad) + near)
    found = _Found(
        files=[below + path for path in rows.paths],
        names=rows.labels,
        splits=rows.splits,
        columns=rows.columns,
        lists=(place.root / name,),
        unreadable=bad,
        notes=rows.notes,
        label=rows.used[1],
    )
    layout = f"a list ({table.kind}) with the columns {joined([as_line(one) for one in rows.used])}"
    return pictures, found, layout


def _too_many(told: str, bad: Sequence[Unreadable], what: str, number: int, max_bad: float) -> str:
    return (
        f"{told}: {len(bad):,} of {number:,} {what} cannot be used, more than dataset.max_bad="
        f"{max_bad:g} allows: {_some(bad)}"
    )


def _some(bad: Sequence[Unreadable]) -> str:
    examples = "; ".join(f"{printable(one.file)}: {one.reason}" for one in bad[:TOLD])
    return f"{examples}{'; …' if len(bad) > TOLD else ''}"


def _real_names(place: Place, below: str, paths: Sequence[str]) -> list[str]:
    """The name of each path's file relative to the folder `below`, "" if there is no such file.

    A backslash may stand for a slash, and letters with accents have two forms in Unicode.
    """

    def are_files(names: Sequence[str]) -> list[bool]:
        return [stamp != NO_FILE for stamp in place.stamps([below + name for name in names])]

    real = [path if is_file else "" for path, is_file in zip(paths, are_files(paths), strict=True)]
    tried = [
        (row, form) for row, path in enumerate(paths) if not real[row] for form in _forms(path)
    ]
    is_there = are_files([form for _, form in tried])
    for (row, form), is_file in zip(tried, is_there, strict=True):
        if is_file:
            real[row] = form
    return real


def _forms(path: str) -> list[str]:
    """Other ways to write a path."""
    if path.isascii() and "\\" not in path:
        return []
    forms = {
        unicodedata.normalize(form, one)
        for form in ("NFC", "NFD")
        for one in (path, label_lists.with_slashes(path))
    }
    return sorted(forms - {path})


def _whereabouts(place: Place, below: str, path: str) -> str:
    """The real path of a file that a list names, if it is not where the list says."""
    path = label_lists.with_slashes(path)
    name = path.rpartition("/")[2]
    for file in place.contents().files:
        if file.endswith(f"/{path}"):
            root = printable(place.root / file[: -len(path)])
            return f".\nIt lies in another folder: dataset.root={root}"
        if f"/{file}".endswith(f"/{name}"):
            return f".\nThere is {printable(place.root / file)}: fix the paths in the list"
    root = printable(place.root / below)
    return f".\nIts paths are relative to {root}; dataset.root=… names another folder"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Pictures with the names of their folders or their labels, and what else a listing says."""

    files: Sequence[str]
    names: Sequence[str]
    splits: Sequence[str]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    lists: Sequence[Path] = ()
    unreadable: Sequence[Unreadable] = ()
    notes: Sequence[str] = ()
    label: str = ""  # the column that the names come from, if they come from a list


def _listing(place: Place, found: _Found, layout: str, wanted: _Wanted) -> Listing:
    """The listing of the pictures whose class is chosen; checks the classes of each split."""
    if not found.names:
        raise wanted.refuse(f"no picture can be used; {_some(found.unreadable)}")
    classes = _chosen(sorted({*found.names}, key=natural), wanted)
    rows = [row for row, name in enumerate(found.names) if name in classes]
    found.left_out[UNCHOSEN] += len(found.names) - len(rows)
    class_names = tuple(dict.fromkeys(classes.values()))
    if len(class_names) < 2 and not wanted.compared:
        raise wanted.refuse(f"the only class is {class_names[0]!r}, but two are needed; {layout}")
    index = {name: class_names.index(united) for name, united in classes.items()}
    labels = np.array([index[found.names[row]] for row in rows], np.int32)
    splits = tuple(found.splits[row] for row in rows)
    notes = [*found.notes]
    if not wanted.compared:
        notes += _checked(labels, splits, class_names, wanted)
    return Listing(
        root=place.root,
        files=tuple(found.files[row] for row in rows),
        labels=labels,
        class_names=class_names,
        splits=splits,
        layout=layout,
        place=place,
        columns={
            name: tuple(values[row] for row in rows) for name, values in found.columns.items()
        },
        left_out=tuple((+found.left_out).most_common()),
        lists=tuple(found.lists),
        unreadable=tuple(found.unreadable),
        notes=tuple(notes),
    )


def _chosen(there: Sequence[str], wanted: _Wanted) -> Mapping[str, str]:
    """The class of each folder or label to use, of those that are `there`."""
    if wanted.classes is None:
        return {name: name for name in there}
    if wanted.compared:
        known = {name: name for name in wanted.classes.values()} | {**wanted.classes}
        if chosen := {name: known[name] for name in known if name in there}:
            return chosen
    if lacking := [name for name in wanted.classes if name not in there]:
        near = difflib.get_close_matches(lacking[0], there, n=1)
        raise RequestError(
            f"dataset.classes: there are no pictures of {lacking[0]!r}; there are those of "
            f"{some_of(there, MANY)}{f'; did you mean {near[0]!r}?' if near else ''}"
        )
    return wanted.classes


def _checked(
    labels: Array, splits: Sequence[str], class_names: Sequence[str], wanted: _Wanted
) -> Iterator[str]:
    """Checks that training has every class; yields what a user should know of the classes."""
    names = np.array(splits)
    counts = {
        split: np.bincount(labels[names == split], minlength=len(class_names))
        for split in ("", *SPLITS)
        if split in splits
    }
    trained = counts.get("", counts.get("train"))
    if trained is None:
        raise wanted.refuse(f"there are no pictures to train with, only to {joined([*counts])}")
    if not trained.all():
        lacking = [name for name, count in zip(class_names, trained, strict=True) if not count]
        where = [split for split in counts if counts[split][class_names.index(lacking[0])]]
        others = [name for name in class_names if name not in lacking]
        occur, them = ("occur", "them") if len(lacking) > 1 else ("occurs", "it")
        raise wanted.refuse(
            f"{some_of(lacking, MANY)} {occur} in {joined(where)}, but not in train; remove {them} "
            f"there, or select the others: dataset.classes=[{', '.join(others)}]"
        )
    for split, found in counts.items():
        if lacking := [name for name, count in zip(class_names, found, strict=True) if not count]:
            yield f"{split} has no pictures of {some_of(lacking, MANY)}"
    alike: defaultdict[object, list[str]] = defaultdict(list)
    for name in class_names:
        alike[_likeness(name)].append(name)
    for group in alike.values():
        if len(group) > 1:
            yield (
                f"{joined([repr(name) for name in group])} are different classes; to unite them, "
                f"write dataset.classes with {{{group[0]}: [{', '.join(group)}]}}"
            )


def _likeness(name: str) -> object:
    """A key that is equal for names which differ only in case, zeros, or signs between words."""
    if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", name):
        return Decimal(name)
    return re.sub(r"[\W_]+", "", name.casefold()) or name
