from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.describe import describe, lines
from pipeline.data.load import ingest, preprocess
from pipeline.data.values import Identity, RawData
from pipeline.system.errors import RequestError
from tests.commands import of_data
from tests.data.test_load import LEAF, SPLIT, synthetic
from tests.pictures import class_folders, noise, put, read


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = class_folders(tmp_path_factory.mktemp("photos"))
    put(folder / "cat/-1 °.png", noise(77))
    put(folder / "dog/twice.png", noise(1))  # as cat/001.png
    return folder


def listed(folder: Path, *rows: str, head: str = "file", name: str = "exclude.csv") -> str:
    (folder / name).write_text("\n".join([head, *rows, ""]))
    return str(folder / name)


def files(raw: RawData, split: str = "train") -> set[str]:
    assert raw.index is not None
    return {raw.index.files[row] for row in getattr(raw, split).rows.tolist()}


def test_excluded_pictures_are_in_no_split_and_the_others_stay_where_they_were(
    photos: Path, tmp_path: Path
) -> None:
    whole = read(photos, tmp_path)
    out = {"cat/002.png", sorted(files(whole, "test"))[0]}
    left = read(photos, tmp_path, exclude=listed(tmp_path, *out))
    assert files(left) == files(whole) - out
    assert files(left, "test") == files(whole, "test") - out
    assert left.excluded == 2
    assert left.fingerprint != whole.fingerprint
    assert lines(describe(left))[0] == "images left out by dataset.exclude: 2"
    assert len(list(tmp_path.glob("folder/pixels-*"))) == 1, "no picture is decoded again"


def test_excluding_one_of_two_equal_pictures_settles_their_conflict(
    photos: Path, tmp_path: Path
) -> None:
    whole = read(photos, tmp_path)
    left = read(photos, tmp_path, exclude=listed(tmp_path, "dog/twice.png"))
    assert whole.index
    assert left.index
    assert (len(whole.index.conflicts), len(left.index.conflicts)) == (1, 0)
    assert "the same picture under two classes" not in "\n".join(left.index.notes)


@pytest.mark.parametrize(
    "spelt", ["cat/-1 °.png", "'cat/-1 °.png", "./cat/-1 °.png", "{photos}/cat/-1 °.png"]
)
def test_a_file_may_be_named_as_tables_and_shells_name_it(
    spelt: str, photos: Path, tmp_path: Path
) -> None:
    left = read(photos, tmp_path, exclude=listed(tmp_path, spelt.format(photos=photos)))
    assert left.excluded == 1
    assert "cat/-1 °.png" not in files(left) | files(left, "test")


def test_a_file_may_be_named_as_messages_name_it(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos")
    put(folder / "cat/a\x1b.png", noise(77))
    left = read(folder, tmp_path, exclude=listed(tmp_path, "cat/a\\x1b.png"))
    assert left.excluded == 1


def test_files_that_are_not_there_are_named(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = read(photos, tmp_path, exclude=listed(tmp_path, "cat/001.png", "cat/gone.png"))
    told = "1 of the 2 files that dataset.exclude names are not there: cat/gone.png"
    assert told in lines(describe(left))
    assert told in caplog.messages, "also in a run"
    with pytest.raises(RequestError, match=r"gone\.png; files are named as in cat/"):
        read(photos, tmp_path, exclude=listed(tmp_path, "cat/gone.png"))


def test_excluded_files_that_cannot_be_read_are_no_fault(photos: Path, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "some")
    (folder / "cat/bad.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"bad\.png"):
        read(folder, tmp_path, on_bad="refuse")
    left = read(folder, tmp_path, on_bad="refuse", exclude=listed(tmp_path, "cat/bad.png"))
    assert left.index
    assert left.index.unreadable == ()


def test_places_of_a_split_are_excluded_and_the_pixels_are_shared(tmp_path: Path) -> None:
    whole = synthetic(tmp_path)
    rows = ("train,3", "test,0", "train,3")
    left = synthetic(tmp_path, exclude=listed(tmp_path, *rows, head="split,index"))
    assert left.train.rows.tolist() == [row for row in range(30) if row != 3]
    assert np.array_equal(left.test.labels, whole.test.labels[1:])
    assert left.train.images.filename == whole.train.images.filename  # type: ignore[attr-defined]
    assert left.excluded == 2
    assert left.fingerprint != whole.fingerprint
    again = synthetic(tmp_path, exclude=listed(tmp_path, *rows, head="split,index"))
    assert again.fingerprint == left.fingerprint == RawData.fingerprint.func(again)  # type: ignore[attr-defined]
    prepared = preprocess(left, of_data(LEAF, "synthetic", tmp_path, **SPLIT))
    assert 3 not in prepared.train.rows
    assert 3 not in prepared.val.rows


def test_a_runs_data_is_found_again_when_its_list_is_gone(tmp_path: Path) -> None:
    leaf = {**LEAF, "exclude": listed(tmp_path, "train,3", head="split,index")}
    config = of_data(leaf, "synthetic", tmp_path)
    left = ingest(config)
    Path(leaf["exclude"]).unlink()
    again = ingest(config, identity=Identity(fingerprint=left.fingerprint))
    assert again.train.rows.tolist() == left.train.rows.tolist()
    with pytest.raises(RequestError, match=r"exclude\.csv: No such file"):
        ingest(config)


@pytest.mark.parametrize(
    ("head", "rows", "told"),
    [
        ("split,index", ["train,30"], r"line 2: there is no train 30; there are train 0–29"),
        ("split,index", ["train,-1"], "there is no train -1"),
        ("split,index", ["val,1"], "there is no val 1"),
        ("file", ["train/1.png"], "needs the columns split and index; it has file"),
        ("split,index", [f"test,{index}" for index in range(12)], "nothing of the test split"),
        (
            "split,index",
            [f"train,{index}" for index in range(29)],
            "nothing to train with of class_",
        ),
    ],
)
def test_what_cannot_be_excluded_is_refused(
    head: str, rows: Sequence[str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=told):
        synthetic(tmp_path, exclude=listed(tmp_path, *rows, head=head))


def test_a_list_of_places_does_not_fit_files(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="needs the column file; it has split, index"):
        read(photos, tmp_path, exclude=listed(tmp_path, "train,1", head="split,index"))


def test_an_empty_list_excludes_nothing(photos: Path, tmp_path: Path) -> None:
    whole = read(photos, tmp_path)
    assert read(photos, tmp_path, exclude=listed(tmp_path)).fingerprint == whole.fingerprint
    everything = synthetic(tmp_path)
    assert synthetic(tmp_path, exclude=listed(tmp_path)).fingerprint == everything.fingerprint


@pytest.mark.parametrize("line", ["cat/001.png", "train,3"])
def test_a_list_of_one_line_without_a_header_is_refused(
    line: str, photos: Path, tmp_path: Path
) -> None:
    exclude = listed(tmp_path, head=line)
    with pytest.raises(RequestError, match="which is its header; write one above it:"):
        read(photos, tmp_path, exclude=exclude)
    with pytest.raises(RequestError, match="which is its header; write one above it:"):
        synthetic(tmp_path, exclude=exclude)


def test_how_many_are_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        synthetic(tmp_path, exclude=listed(tmp_path, "train,7", head="split,index"))
    assert "dataset.exclude leaves out 1 image" in caplog.messages
