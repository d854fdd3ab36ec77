"""Reads data sets that are published as arrays: IDX files, `.npz`, and the archives of CIFAR.

Each function takes what a user names and returns `RawData`. Nothing is unpickled: CIFAR's pickles
are read opcode by opcode, and none of those that are followed can call anything.
"""

from __future__ import annotations

import pickletools
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from pipeline.data.archives import Zip, arrays_at, located
from pipeline.data.files import natural
from pipeline.data.label_lists import split_of
from pipeline.data.pictures import ADVICE, ARRAY_CHANNELS
from pipeline.data.places import Place
from pipeline.data.sources import decoded, decompressed
from pipeline.data.values import Array, RawData, Split
from pipeline.system.errors import RequestError, joined, one_line
from pipeline.system.terminal import as_line, printable

_IMAGES, _LABELS = "images", "labels"
_SIDE, COLOURS = 32, 3  # of CIFAR's images

_IDX = re.compile(
    r"(?P<set>.*?)[-_.]?(?P<split>train|training|t10k|test|testing|val|valid|validation)"
    r"[-_.](?P<what>images|labels)[-_.]idx\d[-_.]ubyte(\.gz)?",
    re.IGNORECASE,
)
_WHAT = {
    **dict.fromkeys(("x", "image", "images", "img", "imgs", "data"), _IMAGES),
    **dict.fromkeys(("y", "label", "labels", "target", "targets"), _LABELS),
}
_EMNIST = "emnist"  # stores each image transposed (Cohen et al. 2017, arXiv:1702.05373)

# By split and what it is, images or labels: an array, or the name of its file or member.
Parts = Mapping[tuple[str, str], Array]
Names = Mapping[tuple[str, str], str]
Part = TypeVar("Part")


def from_idx(
    path: str, *, prefix: str | None, transpose: bool | None, class_names: Sequence[str] | None
) -> RawData:
    """A data set of IDX files: images u8[N,H,W,C], in a folder or archive, gzipped or not.

    `prefix` chooses one of several sets (`emnist-letters`). `transpose` exchanges height and width;
    None does so for files of EMNIST only. Names of classes come from `class_names`, a
    file `<prefix>-mapping.txt` as EMNIST has it, or the labels.

    Raises:
        RequestError: a file is missing or damaged, or files do not fit together.
    """
    place, chosen, found = idx_parts(path, prefix=prefix)
    if transpose is None:
        transpose = chosen.lower().startswith(_EMNIST)
    arrays: dict[tuple[str, str], Array] = {}
    for (split, what), name in found.items():
        file = place.root / name
        with place.opened(name) as opened:
            values = decoded(decompressed(file, opened))
        where = printable(file)
        values = _images(values, where) if what == _IMAGES else _labels(values, where)
        arrays[split, what] = values.swapaxes(1, 2) if what == _IMAGES and transpose else values
    mapped = _characters(place, chosen, found.values()) if class_names is None else None
    turned = ", transposed" if transpose else ""
    return _raw_data(
        arrays, class_names, path, source=f"{path} ({chosen or 'idx'}{turned})", names=mapped
    )


def idx_parts(path: str, *, prefix: str | None) -> tuple[Place, str, Names]:
    """The folder or archive of a set of IDX files, the set's name, and the names of its files.

    Raises:
        RequestError: a file is missing, or it is unclear which set is meant.
    """
    place, below = located(path, "dataset.path", refused=_part_of_set)
    if below and not below.endswith("/") and (why := _part_of_set(place.root / below)):
        raise RequestError(f"dataset.path={path} {why}")
    sets = _idx_sets(name for name in place.contents().files if name.startswith(below))
    chosen = _set_of(sets, prefix, path)
    found = _of_one_folder(sets[chosen], _is_whole, place, below, path)
    _require_parts(found, path, [name.rpartition("/")[2] for name in found.values()])
    return place, chosen, found


def _part_of_set(file: Path) -> str | None:
    """Why a file is not a whole set, going by its name."""
    if _IDX.fullmatch(file.name):
        return f"is one file of a set; name the folder of all: dataset.path={file.parent}"
    return None


def _idx_sets(files: Iterable[str]) -> Mapping[str, Mapping[str, Names]]:
    """The IDX files among these, by the set that they belong to and by their folder."""
    sets: dict[str, dict[str, dict[tuple[str, str], str]]] = {}
    for name in files:
        folder, _, base = name.rpartition("/")
        if match := _IDX.fullmatch(base):
            split = split_of(match["split"]) or "test"  # t10k
            known = sets.setdefault(match["set"], {}).setdefault(folder, {})
            known.setdefault((split, match["what"].lower()), name)
    return sets


def _of_one_folder(
    folders: Mapping[str, Mapping[Part, str]],
    is_whole: Callable[[Collection[Part]], bool],
    place: Place,
    below: str,
    path: str,
) -> Mapping[Part, str]:
    """The files of the folder that has a whole set, else of all folders together.

    Different sets have files of the same names: MNIST, Fashion-MNIST and KMNIST, for example. Of
    several folders with a whole set, it is the one that the `path` names, `below` in its archive.

    Raises:
        RequestError: several folders have a whole set, or the same part of one.
    """
    whole, top = [folder for folder, names in folders.items() if is_whole(names)], below.rstrip("/")
    if top in whole or len(whole) == 1:
        return folders[top if top in whole else whole[0]]
    if whole:
        told = joined([as_line(folder or ".") for folder in whole])
        raise RequestError(
            f"dataset.path={path}: {told} have files of the same names, which may be different "
            f"sets; name the folder of one: dataset.path={printable(place.root / whole[0])}"
        )
    if several := _several(folders):
        raise RequestError(
            f"dataset.path={path}: no folder has a whole set, and files of the same names may be "
            f"of different sets: {several}; bring the files of one set together in a folder"
        )
    return {part: name for names in folders.values() for part, name in names.items()}


def _several(folders: Mapping[str, Mapping[Part, str]]) -> str:
    """The files that lie in several folders, each with these folders; "" without any."""
    holders: defaultdict[Part, list[str]] = defaultdict(list)
    for names in folders.values():
        for part, name in names.items():
            holders[part].append(name)
    return ", ".join(
        f"{as_line(PurePosixPath(found[0]).name)} in "
        + joined([as_line(str(PurePosixPath(name).parent)) for name in found])
        for found in holders.values()
        if found[1:]
    )


def _set_of(sets: Mapping[str, Any], prefix: str | None, path: str) -> str:
    usual = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k or test (.gz)"
    if not sets:
        raise RequestError(f"dataset.path={path}: no IDX files there; they are called {usual}")
    names = ", ".join(sorted(name or "''" for name in sets))
    if prefix is None:
        if len(sets) > 1:
            raise RequestError(
                f"dataset.path={path} has several sets ({names}); choose one: dataset.prefix="
                f"{max(sets)}"
            )
        return next(iter(sets))
    if (wanted := prefix.rstrip("-_.")) not in sets:
        raise RequestError(f"dataset.prefix={prefix}: there are no such files; there are {names}")
    return wanted


def _characters(place: Place, chosen: str, files: Iterable[str]) -> dict[int, str] | None:
    """The characters of each label, if there is a file `<prefix>-mapping.txt`.

    One in a folder of the set's `files` comes first, since other folders may hold other sets.
    """
    wanted = f"{chosen}-mapping.txt"
    names = [name for name in place.contents().files if PurePosixPath(name).name == wanted]
    folders = {PurePosixPath(file).parent for file in files}
    names.sort(key=lambda name: PurePosixPath(name).parent not in folders)
    return _mapping(*_content(place, names[0], most=2**20)) if names else None


def _mapping(content: bytes, where: str) -> dict[int, str]:
    """The characters of each label, as EMNIST lists them: `1 65 97` for `Aa`."""
    lines = content.decode("ascii", "replace").splitlines()
    try:
        rows = [[int(part) for part in line.split()] for line in lines if line.strip()]
        return {row[0]: "".join(map(chr, row[1:])) for row in rows}
    except (ValueError, IndexError, OverflowError) as error:
        raise RequestError(
            f"{where} is damaged ({one_line(error)}); repair it, or name the "
            "classes: dataset.class_names=[…]"
        ) from error


def from_npz(path: str, *, class_names: Sequence[str] | None) -> RawData:
    """A data set in a `.npz` file: images u8[N,H,W] or u8[N,H,W,C] and labels of train and test.

    Arrays are named as Keras (`x_train`, `y_train`, …) or MedMNIST (`train_images`, `val_labels`,
    …) name them; those of a validation split may be missing. Labels are whole numbers or texts,
    [N] or [N,1], or one-hot rows.

    Raises:
        RequestError: an array is missing, damaged, holds Python objects or has a wrong shape.
    """
    archive, found = npz_parts(path)
    arrays = {part: archive.array(name) for part, name in found.items()}
    for part, array in arrays.items():
        where = printable(f"{path}: {found[part].removesuffix('.npy')}")
        arrays[part] = _images(array, where) if part[1] == _IMAGES else _labels(array, where)
    return _raw_data(arrays, class_names, path, source=path)


def npz_parts(path: str) -> tuple[Zip, Names]:
    """The archive in a `.npz` file, and the names of its members.

    Raises:
        RequestError: it is no such file, or an array is missing.
    """
    archive = arrays_at(path, "dataset.path")
    members = {name.removesuffix(".npy"): name for name in archive.members}
    found: dict[tuple[str, str], str] = {}
    for key in members:
        if (part := _part_of(key)) and found.setdefault(part, key) != key:
            raise RequestError(
                f"{path} has several {' '.join(part)}: {printable(f'{found[part]} and {key}')}"
            )
    _require_parts(found, path, list(members))
    return archive, {part: members[key] for part, key in found.items()}


def _part_of(key: str) -> tuple[str, str] | None:
    """The split and the kind of an array by its name: `x_train` and `train_images` are equal."""
    words = [word for word in re.split(r"[^a-z]+", key.casefold()) if word]
    if len(words) != 2:
        return None
    for split, what in (words, words[::-1]):
        if (known := split_of(split)) and what in _WHAT:
            return known, _WHAT[what]
    return None


def _images(array: Array, where: str) -> Array:
    if array.dtype != np.uint8:
        advice = ADVICE.get(array.dtype.kind, "")
        raise RequestError(f"{where} holds {array.dtype.name}, not uint8 with values 0–255{advice}")
    if array.ndim == 3 and (1 in array.shape[1:] or array.shape[2] == COLOURS):
        one = "x[:, 0]" if array.shape[1] == 1 else "x[..., 0]" if array.shape[2] == 1 else "x"
        raise RequestError(
            f"{where} has the shape {list(array.shape)}; for flat images save "
            f"{one}.reshape(-1, height, width{', 3' if one == 'x' else ''}), for grey images of "
            "that size x[..., None]"
        )
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in ARRAY_CHANNELS:
        flat = array.ndim == 2
        advice = "save x.reshape(-1, height, width)" if flat else "images have 1–4 channels"
        if array.ndim == 4 and array.shape[1] in ARRAY_CHANNELS:
            advice = "save x.transpose(0, 2, 3, 1)"
        raise RequestError(f"{where} has the shape {list(array.shape)}; {advice}")
    return array


def _labels(array: Array, where: str) -> Array:
    """Labels [N] of integers or texts, from [N], [N,1] or one-hot rows of any numeric dtype."""
    if array.dtype.kind == "S":  # as HDF5 and TensorFlow have texts
        array = np.char.decode(array, "utf-8", "replace")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.dtype.kind in "biuf":
        if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
            raise RequestError(f"{where} has {array.shape[1]} labels per image; one is needed")
        array = array.argmax(axis=1)
    if array.ndim != 1:
        raise RequestError(f"{where} has the shape {list(array.shape)}; labels are [N]")
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "biuU":
        raise RequestError(f"{where} holds {array.dtype.name}; labels are whole numbers or texts")
    return np.asarray(array)


def _require_parts(found: Mapping[tuple[str, str], Any], path: str, there: Sequence[str]) -> None:
    if lacking := _lacking(found):
        told = ", ".join(map(as_line, there[:12]))
        raise RequestError(
            f"dataset.path={path}: the {' '.join(lacking[0])} are missing; there "
            f"{f'are {told}' if told else 'is nothing'}"
        )


def _is_whole(found: Collection[tuple[str, str]]) -> bool:
    return not _lacking(found)


def _lacking(found: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """The parts that a data set needs besides those found."""
    splits = ("train", "test", *(["val"] if any(split == "val" for split, _ in found) else []))
    needed = [(split, what) for split in splits for what in (_IMAGES, _LABELS)]
    return [part for part in needed if part not in found]


def _raw_data(
    arrays: Parts,
    class_names: Sequence[str] | None,
    path: str,
    *,
    source: str,
    names: Mapping[int, str] | None = None,
) -> RawData:
    """The data set of arrays by split; its labels become 0, 1, … in their natural order.

    `class_names` are the names of the labels in this order, `names` maps each label to its name.
    """
    known = np.unique(arrays["train", _LABELS])
    if known.dtype.kind == "U":
        known = np.array(sorted(known.tolist(), key=natural))
    if class_names is not None and len(class_names) != len(known):
        raise RequestError(
            f"dataset.class_names has {len(class_names)} names, but {path} has {len(known)} labels"
        )
    values = [getattr(label, "item", lambda label=label: label)() for label in known]
    made = list(
        class_names or [as_line((names or {}).get(label) or str(label)) for label in values]
    )
    if len({*made}) < len(made):
        raise RequestError(
            f"dataset.path={path}: two labels have the same name ({', '.join(made)})"
        )
    splits = {}
    for split in dict.fromkeys(split for split, _ in arrays):
        images, labels = arrays[split, _IMAGES], arrays[split, _LABELS]
        if len(images) != len(labels):
            raise RequestError(
                f"dataset.path={path}: {len(images):,} images but {len(labels):,} labels of {split}"
            )
        if extra := sorted({*np.unique(labels).tolist()} - {*known.tolist()}):
            raise RequestError(
                f"dataset.path={path}: label {extra[0]} occurs in {split} but not in train"
            )
        order = np.argsort(known, kind="stable")
        indices = order[np.searchsorted(known, labels, sorter=order)]
        splits[split] = Split(images=images, labels=indices.astype(np.int32))
    try:
        return RawData(
            train=splits["train"],
            val=splits.get("val"),
            test=splits["test"],
            class_names=tuple(made),
            source=source,
        )
    except ValueError as error:
        raise RequestError(f"dataset.path={path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """The layout of one version of CIFAR: names of files, bytes of labels, keys of pickles."""

    train: str
    test: str
    label_bytes: int
    label: int
    names: str
    keys: tuple[str, str] = ("", "")


def cifar_files(fine: bool | None) -> tuple[Cifar, Cifar]:
    """The binary and the Python layout of CIFAR-10 if `fine` is None, else of CIFAR-100."""
    if fine is None:
        return (
            Cifar(
                train=r"data_batch_\d+\.bin",
                test=r"test_batch\.bin",
                label_bytes=1,
                label=0,
                names="batches.meta.txt",
            ),
            Cifar(
                train=r"data_batch_\d+",
                test="test_batch",
                label_bytes=0,
                label=0,
                names="batches.meta",
                keys=("labels", "label_names"),
            ),
        )
    kind = "fine" if fine else "coarse"
    return (
        Cifar(
            train=r"train\.bin",
            test=r"test\.bin",
            label_bytes=2,
            label=int(fine),
            names=f"{kind}_label_names.txt",
        ),
        Cifar(
            train="train",
            test="test",
            label_bytes=0,
            label=0,
            names="meta",
            keys=(f"{kind}_labels", f"{kind}_label_names"),
        ),
    )


def from_cifar(path: str, *, fine: bool | None, source: str | None = None) -> RawData:
    """CIFAR-10 (`fine` is None) or CIFAR-100: images u8[N,32,32,3] from its archive or folder.

    Both the binary and the Python version are read. `fine` chooses between the 100 and the 20
    classes of CIFAR-100.

    Raises:
        RequestError: a file is missing or damaged.
    """
    place, version, files = cifar_parts(path, fine=fine)
    class_names = _cifar_names(*_content(place, files["names"][0], most=2**20), version)
    splits = {}
    for split in ("train", "test"):
        contents = (_content(place, name) for name in files[split])
        parts = [_cifar_part(*one, version, len(class_names)) for one in contents]
        images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        splits[split] = Split(images=images, labels=labels)
    return RawData(
        train=splits["train"],
        test=splits["test"],
        class_names=class_names,
        source=source or path,
    )


def cifar_parts(
    path: str, *, fine: bool | None
) -> tuple[Place, Cifar, Mapping[str, Sequence[str]]]:
    """The folder or archive of CIFAR, its version, and its files: `train`, `test` and `names`.

    Raises:
        RequestError: a file is missing, or it is unclear which of several is meant.
    """
    place, below = located(path, "dataset.path")
    names = [name for name in place.contents().files if name.startswith(below)]
    for version in cifar_files(fine):
        is_whole = partial(_is_whole_cifar, version)
        folders = _cifar_folders(names, version)
        if is_whole({base for files in folders.values() for base in files}):
            files = _of_one_folder(folders, is_whole, place, below, path)
            parts = _cifar_bases(files, version).items()
            return place, version, {part: [files[base] for base in bases] for part, bases in parts}
    there = [PurePosixPath(name).name for name in names]
    kinds = " or ".join(f"{one.names} and {one.test}" for one in cifar_files(fine))
    raise RequestError(
        f"dataset.path={path} is not the published archive or its folder: it lacks "
        f"{kinds.replace(chr(92), '')}; there are {', '.join(map(as_line, there[:12]))}"
    )


def _cifar_folders(names: Iterable[str], version: Cifar) -> Mapping[str, dict[str, str]]:
    """The files of a version of CIFAR among these, by their folder and by their own name."""
    folders: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        folder, _, base = name.rpartition("/")
        if any(_cifar_bases([base], version).values()):
            folders[folder][base] = name
    return folders


def _cifar_bases(bases: Iterable[str], version: Cifar) -> Mapping[str, list[str]]:
    """Which of these names are those of each part: `train`, `test` and `names`."""
    patterns = {"train": version.train, "test": version.test, "names": re.escape(version.names)}
    return {
        part: [base for base in sorted(bases, key=natural) if re.fullmatch(one, base)]
        for part, one in patterns.items()
    }


def _is_whole_cifar(version: Cifar, bases: Collection[str]) -> bool:
    return all(_cifar_bases(bases, version).values())


def _content(place: Place, name: str, most: int = -1) -> tuple[bytes, str]:
    """The first bytes of a file, at most `most` or all of them, and where it is."""
    with place.opened(name) as file:
        return file.read(most), printable(place.root / name)


def _cifar_names(content: bytes, where: str, version: Cifar) -> tuple[str, ...]:
    if version.keys[1]:
        found = _entries(content, where).get(version.keys[1])
        given = found if isinstance(found, list) else []
    else:
        given = content.decode("utf-8", "replace").split()
    names = [_string(one) for one in given if isinstance(one, str | bytes)]
    if len({*names}) < max(2, len(given)):
        raise RequestError(f"{where} does not hold the names of the classes")
    return tuple(map(as_line, names))


def _cifar_part(content: bytes, where: str, version: Cifar, classes: int) -> tuple[Array, Array]:
    """Images u8[n,32,32,3] and labels i32[n] of one file."""
    pixels = COLOURS * _SIDE * _SIDE
    if version.label_bytes:
        record = version.label_bytes + pixels
        if not content or len(content) % record:
            raise RequestError(
                f"{where} is damaged: its {len(content):,} bytes are no multiple of {record:,}"
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, record)
        images: Any = rows[:, version.label_bytes :]
        labels = rows[:, version.label].tolist()
    else:
        entries = _entries(content, where)
        images, labels = entries.get("data"), entries.get(version.keys[0])
        whole = isinstance(labels, list) and all(type(one) is int for one in labels)
        if not isinstance(images, np.ndarray) or images.shape[1:] != (pixels,) or not whole:
            raise RequestError(f"{where} is damaged: it lacks data or {version.keys[0]} of CIFAR")
    if len(images) != len(labels) or not len(labels):
        raise RequestError(f"{where} is damaged: {len(images)} images, {len(labels)} labels")
    if not 0 <= min(labels) <= max(labels) < classes:
        raise RequestError(f"{where}: label {max(labels)}, but there are {classes} classes")
    planes = images.reshape(-1, COLOURS, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels, np.int32)


def _entries(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle of CIFAR, its keys as texts."""
    try:
        found = plain_pickle(content)
    except Exception as error:  # the opcodes of a damaged file may be anything
        raise RequestError(f"{where} is damaged or no part of CIFAR ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise RequestError(f"{where} is no part of CIFAR: it holds {type(found).__name__}")
    return {_string(key): value for key, value in found.items()}


def _string(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def plain_pickle(content: bytes) -> Any:
    """The value in a pickle of dicts, lists, texts, whole numbers and arrays of bytes.

    Its opcodes are followed here, and none of them can call anything: other objects are refused.

    Raises:
        ValueError: it holds something else.
        Exception: anything else that the opcodes of a damaged pickle cause.
    """
    opcodes = _Opcodes()
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "STOP":
            break
        opcodes.follow(opcode.name, argument)
    return opcodes.stack[-1]


class _Opcodes:
    """The stack and the memo of a pickle as its opcodes leave them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Executes an opcode."""
        if name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in _VALUES:
            is_bytes = name.endswith("STRING") and isinstance(argument, str)
            self.stack.append(argument.encode("latin-1") if is_bytes else argument)
        elif name == "GLOBAL" and argument in _GLOBALS:
            self.stack.append(_Named(_GLOBALS[argument]))
        elif not (self.remembers(name, argument) or self.gathers(name) or self.describes(name)):
            raise ValueError(f"it holds {name} {argument or ''}, which is not followed")

    def remembers(self, name: str, argument: Any) -> bool:
        """Follows the opcodes of the memo; says whether this is one."""
        if name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        else:
            return name in ("PROTO", "FRAME")
        return True

    def gathers(self, name: str) -> bool:
        """Follows the opcodes that make one value of several; says whether this is one."""
        if name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            self.stack.append(tuple(self.take(self.marks.pop())))
        elif name in _TUPLES:
            self.stack.append(tuple(self.take(-_TUPLES[name])))
        elif name in ("APPENDS", "APPEND"):
            values = self.take(-1 if name == "APPEND" else self.marks.pop())
            list.extend(self.stack[-1], values)
        elif name in ("SETITEMS", "SETITEM"):
            values = self.take(-2 if name == "SETITEM" else self.marks.pop())
            if any(isinstance(key, tuple) for key in values[::2]):
                raise ValueError("a key is a tuple")  # deep ones exhaust the stack of the process
            dict.update(self.stack[-1], zip(values[::2], values[1::2], strict=True))
        else:
            return False
        return True

    def take(self, start: int) -> list[Any]:
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def describes(self, name: str) -> bool:
        """Follows the opcodes of an array of bytes; says whether this is one."""
        if name == "REDUCE":
            named, arguments = self.take(-2)
            if named.name == "bytes":
                self.stack.append(arguments[0].encode("latin-1"))
            elif named.name == "dtype" and arguments[0] not in ("u1", b"u1"):
                raise ValueError(f"it holds an array of {arguments[0]!r}")
            else:
                self.stack.append(_Named(named.name))
        elif name == "BUILD":
            described, state = self.take(-2)
            if described.name == "array":
                _, shape, _, fortran, content = state
                order: Any = "F" if fortran else "C"
                array = np.frombuffer(content, np.uint8).reshape(shape, order=order)
                # The memo knows the array as it was; the dict or list gets it as it is.
                self.stack.append(array)
            else:
                self.stack.append(described)
        else:
            return False
        return True


@dataclass(frozen=True)
class _Named:
    """Something that a pickle names: an array, its dtype, or the bytes of a text."""

    name: str


_NEW: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_VALUES = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GLOBALS = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "type",
    "numpy dtype": "dtype",
    "_codecs encode": "bytes",
}
