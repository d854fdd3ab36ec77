"""A data set added as the README says: the cache follows what it is made of."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline.config.trusted import trust
from pipeline.data import datasets
from pipeline.data.content import content_of, stamped
from pipeline.data.load import ingest, raw_folder
from pipeline.data.values import RawData
from tests.commands import of_data

CODE = """
from pathlib import Path
import numpy as np
from pipeline.data.values import RawData, Split

def mine(*, place, options=None):
    place = Path(place).expanduser()
    files = sorted(place.rglob("*.bin")) if place.is_dir() else [place]
    values = [np.frombuffer(file.read_bytes(), np.uint8)[:1] for file in files]
    images = np.concatenate(values).reshape(-1, 1, 1, 1)
    split = Split(images=images, labels=(np.arange(len(images)) % 2).astype(np.int32))
    return RawData(train=split, test=split, class_names=("a", "b"), source=str(place))
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's own with one data set; its cache is `tmp_path/data`."""
    (tmp_path / "code").mkdir()
    path = tmp_path / "code/my_data_sets.py"
    path.write_text(CODE)
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.chdir(tmp_path)
    trust(["my_data_sets"])
    yield path
    trust([])
    sys.modules.pop("my_data_sets", None)


def folder(path: Path, *values: int) -> Path:
    path.mkdir(parents=True)
    for number, value in enumerate(values):
        (path / f"{number}.bin").write_bytes(bytes([value]))
    return path


def mine(place: Path | str, **more: Any) -> RawData:
    leaf = {"_target_": "my_data_sets.mine", "place": str(place), **more}
    return ingest(of_data(leaf, "mine", Path("data")))


def pixels(raw: RawData) -> list[int]:
    return raw.train.batch(0, len(raw.train)).ravel().tolist()


@pytest.mark.usefixtures("code")
def test_two_folders_never_share_an_entry_and_the_same_one_does(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", 1, 2), folder(tmp_path / "other", 3, 4)
    assert (pixels(mine(one)), pixels(mine(other))) == ([1, 2], [3, 4])
    assert mine(one).cached
    assert pixels(mine(one)) == [1, 2]


def replace_in_place(place: Path) -> None:
    file = place / "0.bin"
    before = file.stat()
    file.write_bytes(bytes([9]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as some copying tools do


def add(place: Path) -> None:
    (place / "below").mkdir()
    (place / "below/x.bin").write_bytes(bytes([9]))


def swap(place: Path) -> None:
    (place / "0.bin").rename(place / "x")
    (place / "1.bin").rename(place / "0.bin")
    (place / "x").rename(place / "1.bin")


CHANGES: dict[str, tuple[Callable[[Path], object], list[int]]] = {
    "a picture is changed in place and its time set back": (replace_in_place, [9, 2]),
    "a picture is added in a folder below": (add, [1, 2, 9]),
    "a picture is removed": (lambda place: (place / "0.bin").unlink(), [2]),
    "two pictures swap their names": (swap, [2, 1]),
}


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_changed_folder_never_gets_the_old_entry(
    tmp_path: Path, change: Callable[[Path], object], expected: list[int]
) -> None:
    place = folder(tmp_path / "photos", 1, 2)
    assert pixels(mine(place)) == [1, 2]
    change(place)
    assert sorted(pixels(mine(place))) == sorted(expected)
    assert pixels(mine(place)) != [1, 2]


@pytest.mark.usefixtures("code")
def test_a_changed_file_and_one_behind_a_link_are_read_again(tmp_path: Path) -> None:
    target = folder(tmp_path / "elsewhere", 1, 2)
    place = folder(tmp_path / "photos", 3)
    (place / "link").symlink_to(target)
    before = stamped(str(place))
    (target / "0.bin").write_bytes(bytes([7]))
    assert stamped(str(place)) != before
    single = tmp_path / "one.bin"
    for value in (5, 6):
        single.write_bytes(bytes([value]))
        assert pixels(mine(single)) == [value]


@pytest.mark.usefixtures("code")
def test_a_folder_named_within_a_list_or_mapping_counts_too(tmp_path: Path) -> None:
    place, other = folder(tmp_path / "photos", 1), folder(tmp_path / "masks", 2)
    options = {"masks": [str(other)]}
    assert not mine(place, options=options).cached
    assert mine(place, options=options).cached
    (other / "1.bin").write_bytes(b"x")
    assert not mine(place, options=options).cached


def test_code_that_changes_makes_the_data_anew(tmp_path: Path, code: Path) -> None:
    place = folder(tmp_path / "photos", 1, 2)
    mine(place)
    code.write_text(CODE.replace("return RawData", "images = 255 - images; return RawData"))
    assert not mine(place).cached


def test_a_link_to_the_folder_itself_ends(tmp_path: Path) -> None:
    place = folder(tmp_path / "photos", 1)
    for name in ("loop", "again"):
        (place / name).symlink_to(".")
    (place / "dangling").symlink_to("nowhere")
    assert stamped(str(place)) == stamped(str(place))


def test_a_path_into_an_archive_changes_with_the_archive(tmp_path: Path) -> None:
    archive = tmp_path / "data.zip"
    archive.write_bytes(b"one")
    before = stamped(str(archive / "sub/folder"))
    assert before != stamped(str(archive / "sub"))
    archive.write_bytes(b"other")
    assert stamped(str(archive / "sub/folder")) != before


@pytest.mark.parametrize(
    "value", ["", "~nobody/x", "x" * 5000, "nul\0", "no such place", 3, None, True, 0.5]
)
def test_what_names_no_place_counts_as_it_is(value: Any) -> None:
    assert stamped(value) == value


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_files_pinned_by_checksums_are_the_same_wherever_they_are_found(name: str) -> None:
    leaf = {"_target_": f"pipeline.data.datasets.{name}", "folder": None, "download": True}
    places = [{}, {"folder": "/somewhere"}, {"download": False}]
    found = {raw_folder(of_data({**leaf, **place}, name, Path("data"))) for place in places}
    assert len(found) == 1


@pytest.mark.parametrize("name", ["npz", "idx", "cifar100"])
def test_names_of_classes_are_no_folders(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"one")
    texts = {"class_names": [".", "fine"], "prefix": "fine", "labels": "fine"}
    builder: Any = getattr(datasets, name)
    before = content_of(builder, {"path": "file", **texts})
    (tmp_path / "fine").mkdir()
    (tmp_path / "fine/later.txt").write_text("made by a run")
    assert content_of(builder, {"path": "file", **texts}) == before
    (tmp_path / "file").write_bytes(b"other")
    assert content_of(builder, {"path": "file", **texts}) != before


def test_our_own_data_sets_all_say_what_determines_them() -> None:
    module: ModuleType = datasets
    for name in ("fashion_mnist", "mnist", "digits", "synthetic"):
        assert len(content_of(getattr(module, name), {"seed": 0})) == 2
    with_source = content_of(folder, {"place": "x"})
    assert len(with_source) == 3
    assert np.unique([len(with_source[2])]).tolist() == [64]
