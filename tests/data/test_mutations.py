"""Lists, archives and arrays with bytes changed at random: refused by name, or read as they are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.arrays import from_cifar, from_idx, from_npz
from pipeline.data.listing import Listing, listed
from pipeline.data.values import RawData
from pipeline.system.errors import RequestError
from tests.data.test_arrays import (
    IMAGES,
    KERAS,
    LABELS,
    cifar10_files,
    cifar100_files,
    idx_files,
    npz,
)
from tests.data.test_embedded import rows
from tests.data.test_embedded import written as embedding
from tests.data.test_label_lists import ROWS, written
from tests.data.test_listing import placed, touched
from tests.stress.matrix import matrix, stressed, tally

COUNT = stressed(250, 25)  # of each kind of file
CLASS_FOLDERS = {f"{name}/{n}.png": f"{name}{n}".encode() * 9 for name in "ab" for n in range(4)}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three changes: bits flipped, parts cut, repeated or overwritten."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(made) + 1)
        length = min(rng.choice((1, 2, 4, 16, 300)), len(made) - at)
        change = rng.randrange(7)
        if change <= 1 and length:
            made[at] ^= 1 << rng.randrange(8)
        elif change == 2:
            del made[at : at + length]
        elif change == 3:
            made[at:at] = made[at : at + length]
        elif change == 4:
            made[at : at + length] = rng.choice((b"\0", b"\xff", b"9")) * length
        elif change == 5:
            made[at : at + length] = rng.randbytes(length)
        else:
            del made[at:]
    return bytes(made)


def outcomes(
    path: Path,
    read: Callable[[Path], Any],
    same: Callable[[Any], bool],
    *,
    named: Path | None = None,
) -> dict[str, int]:
    """How many mutations of a file are refused, naming it, and how many are read as it was.

    Raises:
        AssertionError: one is read as something else, or refused without the name.
    """
    original = path.read_bytes()
    counts = {"refused": 0, "as it was": 0}
    tally(COUNT)
    for number in range(COUNT):
        path.write_bytes(mutated(original, random.Random(f"{path.name}{number}")))
        told = None
        try:
            found = read(path)
        except RequestError as error:
            told = str(error)
        case = f"mutation {number} of {path.name}: {told}"
        if told is None:
            assert same(found), f"{case} is accepted"
        else:
            assert str(named or path) in told, case
            assert len(told.splitlines()) <= 2, case
        counts["as it was" if told is None else "refused"] += 1
    path.write_bytes(original)
    return counts


def contents(listing: Listing) -> dict[str, bytes | None]:
    """The bytes of each file; None if it is told to be damaged, or is empty and so no picture."""
    found: dict[str, bytes | None] = {}
    for index, name in enumerate(listing.files):
        try:
            found[name] = listing.read(index) or None
        except ValueError:
            found[name] = None
    return found


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
@matrix(28)
def test_a_mutated_archive_is_refused_or_what_it_was(kind: str, tmp_path: Path) -> None:
    def same(listing: Listing) -> bool:
        read = contents(listing)
        # What is missing must have been counted; what is there is as it was, or told.
        left = sum(count for _, count in listing.left_out)
        return len(CLASS_FOLDERS) - len(read) <= left and all(
            content in (None, CLASS_FOLDERS.get(name)) for name, content in read.items()
        )

    path = placed(tmp_path, kind, CLASS_FOLDERS)
    assert outcomes(path, listed, same)["refused"] > COUNT // 3


@matrix(28)
def test_a_mutated_tar_archive_is_refused_or_has_the_files_it_had(tmp_path: Path) -> None:
    path = placed(tmp_path, "tar", CLASS_FOLDERS)
    assert outcomes(path, listed, lambda listing: {*listing.files} == {*CLASS_FOLDERS})["refused"]


LISTED = [f"p/{number}.png" for number in range(30)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@matrix(28)
def test_a_mutated_list_never_names_what_is_not_there(kind: str, tmp_path: Path) -> None:
    listed_rows: list[dict[str, Any]] = [
        ROWS[number % 3] | {"file": name} for number, name in enumerate(LISTED)
    ]
    touched(tmp_path, *LISTED)
    if kind == "csv":
        path = tmp_path / "list.csv"
        lines = [",".join(json.dumps(value) for value in row.values()) for row in listed_rows]
        path.write_text("\n".join([",".join(listed_rows[0]), *lines]))
    else:
        path = written(tmp_path, kind, listed_rows)

    def same(listing: Listing) -> bool:
        known = {*LISTED} >= {*listing.files} and "" not in listing.class_names
        text = "".join([*listing.class_names, *listing.columns, *listing.notes, listing.layout])
        return known and text.isprintable() and all(map(listing.read, range(len(listing))))

    assert outcomes(path, partial(listed, max_bad=0.2), same)["refused"] > COUNT // 10


@matrix(28)
def test_a_mutated_file_with_pictures_inside_is_refused_or_has_the_pictures_it_had(
    tmp_path: Path,
) -> None:
    path = embedding(tmp_path / "pets.parquet", rows(range(24)))
    names = {*listed(path).files}

    def same(listing: Listing) -> bool:
        # Whether the bytes are a picture's is seen when it is decoded: Parquet has no checksums.
        classes = {*listing.class_names}
        known = classes <= {"cat", "dog"} or classes == {"0", "1"}  # or without the names
        return known and {*listing.files} <= names and len(contents(listing)) == len(listing)

    assert outcomes(path, partial(listed, max_bad=0.2), same)["refused"] > COUNT // 3


def equals(raw: RawData) -> Callable[[RawData], bool]:
    return lambda other: other.fingerprint == raw.fingerprint


@matrix(28)
def test_a_mutated_npz_file_is_refused_or_what_it_was(tmp_path: Path) -> None:
    path = npz(tmp_path, dict(zip(KERAS, (IMAGES, LABELS, IMAGES[:3], LABELS[:3]), strict=True)))
    read = lambda path: from_npz(str(path), class_names=None)  # noqa: E731
    assert outcomes(path, read, equals(read(path)))["refused"] > COUNT // 3


@pytest.mark.parametrize("packed", [False, True])
@matrix(28)
def test_mutated_idx_files_are_refused_or_what_they_were(packed: bool, tmp_path: Path) -> None:
    files = idx_files("{split}-{what}-ubyte", packed=packed)
    folder = placed(tmp_path, "folder", files)

    def read(path: Path) -> RawData:
        return from_idx(str(folder), prefix=None, transpose=None, class_names=None)

    raw = read(folder)
    # Without a checksum, other pixels and labels are other images.
    same = equals(raw) if packed else lambda other: other.train.images.shape == (*IMAGES.shape, 1)
    for name in files:
        found = outcomes(folder / name, read, same, named=folder)
        assert found["refused"] > COUNT // 3 or not packed


@pytest.mark.parametrize("fine", [None, True])
@matrix(28)
def test_a_mutated_archive_of_cifar_is_refused_or_what_it_was(
    fine: bool | None, tmp_path: Path
) -> None:
    make = cifar10_files if fine is None else cifar100_files
    for python in (False, True):
        path = placed(tmp_path, "tar.gz", make(python))
        read = lambda path: from_cifar(str(path), fine=fine)  # noqa: E731
        assert outcomes(path, read, equals(read(path)))["refused"] > COUNT // 3


@matrix(28)
def test_a_mutated_pickle_of_cifar_is_refused_or_holds_as_many_images(tmp_path: Path) -> None:
    folder = placed(tmp_path, "folder", cifar10_files(python=True))
    path = folder / "cifar-10-batches-py/test_batch"

    def read(_: Path) -> RawData:
        return from_cifar(str(folder), fine=None)

    found = outcomes(path, read, lambda raw: raw.test.images.shape == (2, 32, 32, 3), named=folder)
    assert found["refused"]
