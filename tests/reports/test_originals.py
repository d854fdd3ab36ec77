from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.values import RawData, Split
from pipeline.reports import originals
from pipeline.reports.originals import ORIGINAL, ORIGINALS, read_originals, rows_to_show
from tests.pictures import ODD_EXIF, class_folders, noise, put, read
from tests.reports.test_data_page import page_of
from tests.reports.test_page import Page

pytestmark = pytest.mark.slow


def of_arrays(count: int) -> RawData:
    split = Split(images=noise(1, (count, 8, 8, 1)), labels=np.arange(count, dtype=np.int32) % 2)
    return RawData(train=split, test=split, class_names=("a", "b"), source="a test")


def test_twice_as_many_rows_as_are_shown_come_from_the_whole_split() -> None:
    assert rows_to_show(of_arrays(4)).tolist() == [0, 2, 1, 3]
    rows = rows_to_show(of_arrays(240)).tolist()
    assert len(rows) == 2 * ORIGINALS
    assert (min(rows), max(rows[:ORIGINALS]), max(rows)) == (0, 228, 239)


def test_images_without_files_have_no_originals(tmp_path: Path) -> None:
    found = read_originals(of_arrays(30), tmp_path)
    assert (found.rows.shape, found.tiles.shape) == ((0,), (0, ORIGINAL, ORIGINAL, 3))


def test_originals_that_are_gone_are_left_out(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos")
    raw = read(folder, tmp_path / "data")
    for file in folder.rglob("*.png"):
        file.write_bytes(b"other")
    assert Page(page_of(raw, tmp_path / "data")).all("section", id="seen") == []


def test_what_pillow_warns_of_is_not_told_again(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for number in range(6):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        put(file, noise(number, (20, 20, 3)), exif=ODD_EXIF)
    raw = read(tmp_path / "photos", tmp_path / "data")
    assert len(read_originals(raw, tmp_path / "cache").rows) == len(raw.train)
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_originals_in_an_archive_are_shown_too(kind: str, tmp_path: Path) -> None:
    class_folders(tmp_path / "photos")
    archive = Path(shutil.make_archive(str(tmp_path / "all"), kind, tmp_path / "photos"))
    page = Page(page_of(read(archive, tmp_path / "data"), tmp_path / "data"))
    assert "pictures: the file, and the image of" in page.text("section", id="seen")


def test_originals_are_read_once_and_need_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "photos")
    archive = Path(shutil.make_archive(str(tmp_path / "all"), "gztar", tmp_path / "photos"))
    raw = read(archive, tmp_path / "data")
    first = page_of(raw, tmp_path / "data")
    monkeypatch.setattr(originals, "place_at", lambda root: pytest.fail("unpacked again"))
    assert page_of(raw, tmp_path / "data") == first
    assert first.count('class="thumb original"') == ORIGINALS
