from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.files import FORMATS, PICTURE_ENDINGS, Unreadable, find_files, open_array, opened
from pipeline.data.pictures import load_picture, open_picture
from pipeline.system.errors import RequestError
from tests.stress.matrix import matrix


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(images: Path | str, below: Path) -> list[str]:
    return [str(path.relative_to(below)) for path in find_files(str(images)).files]


def test_a_folder_is_searched_through_in_natural_order(tmp_path: Path) -> None:
    touched(tmp_path, "10.png", "9.png", "B.JPG", "a/2.npy", "a/10.webp", "a/1b.gif", "a1.png")
    assert found(tmp_path, tmp_path) == [
        "9.png",
        "10.png",
        "a/1b.gif",
        "a/2.npy",
        "a/10.webp",
        "a1.png",
        "B.JPG",
    ]


def test_names_that_differ_only_in_zeros_or_case_have_an_order(tmp_path: Path) -> None:
    touched(tmp_path, "a1.png", "a01.png", "A1.png")
    assert found(tmp_path, tmp_path) == ["A1.png", "a01.png", "a1.png"]


def test_digits_of_other_scripts_are_letters(tmp_path: Path) -> None:
    touched(tmp_path, "٣.png", "2.png", "²x.png", "x.png")
    assert len(found(tmp_path, tmp_path)) == 4


def test_what_is_hidden_or_no_image_by_its_name_stays_out_of_a_folder(tmp_path: Path) -> None:
    touched(tmp_path, "a.png", ".b.png", ".git/c.png", "notes.txt", "drawing.eps", "page.pdf")
    assert found(tmp_path, tmp_path) == ["a.png"]


def test_what_is_named_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touched(tmp_path, "notes.txt", ".hidden")
    assert found(tmp_path / "notes.txt", tmp_path) == ["notes.txt"]
    assert found(tmp_path / ".hidden", tmp_path) == [".hidden"]


def test_a_pattern_takes_files_and_searches_folders_each_once(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.png", "a/b/2.png", "c.txt", "d.png")
    assert found(tmp_path / "**", tmp_path) == ["a/1.png", "a/b/2.png", "c.txt", "d.png"]
    assert found(tmp_path / "?.png", tmp_path) == ["d.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    touched(tmp_path, "[1].png", "1.png")
    assert found(tmp_path / "[1].png", tmp_path) == ["[1].png"]
    touched(tmp_path, "photos [old]/a.png", "photos o/b.png")
    assert found(tmp_path / "photos [old]/*.png", tmp_path) == ["photos [old]/a.png"]


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(touched(tmp_path, "a.png")))
    assert found("~/a.png", tmp_path) == ["a.png"]


@pytest.mark.parametrize("images", ["nowhere", "*.png", "nowhere/**"])
def test_nothing_there_is_a_wrong_request(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="no such file, and nothing matches"):
        find_files(images)


def test_a_folder_without_images_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no images in this folder"):
        find_files(str(touched(tmp_path, "notes.txt")))


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that may not be read, not even by root."""
    folder = touched(tmp_path / "closed", "a.png")
    real = os.scandir

    def scandir(path: str) -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return folder


def test_a_folder_that_may_not_be_read_is_told_and_the_others_are_searched(
    closed: Path, tmp_path: Path
) -> None:
    touched(tmp_path, "b/b.png", "z.png")
    there = find_files(str(tmp_path))
    assert [path.name for path in there.files] == ["b.png", "z.png"]
    assert there.unreadable == (Unreadable(file=closed, reason="Permission denied"),)


def test_a_folder_that_is_all_there_is_and_may_not_be_read_is_named(
    closed: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        RequestError, match=r"no images in this folder; .*closed: Permission denied$"
    ):
        find_files(str(tmp_path))


def test_a_picture_of_too_many_pixels_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (50, 60)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    with pytest.raises(ValueError, match="^has 3,000 pixels; make it smaller$"):
        load_picture(tmp_path / "a.png", (10, 10, 1))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (np.array([{}], object), "holds Python objects"),
        (None, "not an array as numpy.save writes it"),
    ],
)
def test_what_is_no_array_of_numbers_is_told_so(made: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"x")
    if made is not None:
        np.save(tmp_path / "a.npy", made)
    with pytest.raises(ValueError, match=reason):
        open_array(tmp_path / "a.npy")


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    Image.new("RGB", (1600, 800)).save(tmp_path / "a.jpg")
    with opened(tmp_path / "a.jpg") as file:
        assert open_picture(file, side=28).size == (100, 50)  # decoded as (200, 100)


@pytest.mark.parametrize("name", ["a.png", "a.npy"])
@matrix(29)
def test_a_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="is not a file"):
        open_array(tmp_path / name) if name.endswith("npy") else opened(tmp_path / name)


def test_an_array_is_mapped_and_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(4, dtype=np.uint8))
    assert isinstance(open_array(tmp_path / "a.npy"), np.memmap)


@matrix(39)
def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="object"):
        open_array(tmp_path / "a.npy")


@matrix(38)
def test_postscript_is_never_handed_to_its_interpreter(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(OSError, match="cannot identify image file"):
        load_picture(tmp_path / "a.png", (28, 28, 1))


def test_what_is_left_out_of_a_folder_is_counted_by_its_ending(tmp_path: Path) -> None:
    touched(tmp_path / "x", "a.png", "b.mpo", "1.HEIC", "2.heic", "notes.txt", "photo", "c.npz")
    touched(tmp_path / "x", ".hidden.heic", ".git/d.heic", "below/3.heic")
    touched(tmp_path / "elsewhere", "e.png")
    (tmp_path / "x/linked").symlink_to(tmp_path / "elsewhere")
    there = find_files(str(tmp_path / "x"))
    assert [path.name for path in there.files] == ["a.png", "b.mpo"]
    assert dict(there.left_out) == {
        ".heic": 3,
        ".txt": 1,
        ".npz": 1,
        "without an ending": 1,
        "linked folder": 1,
    }
    assert there.rest.startswith("left out: 3 .heic, ")
    assert found(tmp_path / "x/linked", tmp_path) == ["x/linked/e.png"]


def test_nothing_left_out_is_nothing_said(tmp_path: Path) -> None:
    assert find_files(str(touched(tmp_path, "a.png"))).rest == ""


def test_of_many_kinds_of_files_the_most_frequent_are_named_and_the_others_counted(
    tmp_path: Path,
) -> None:
    touched(tmp_path, "a.png", "1.heic", "2.heic", *(f"x.k{number}" for number in range(30)))
    told = find_files(str(tmp_path)).rest
    assert told.startswith("left out: 2 .heic, 1 .k")
    assert told.endswith(" and 11 more kinds")


def test_a_folder_of_nothing_that_can_be_read_says_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no images in this folder; left out: 2 .heic$"):
        find_files(str(touched(tmp_path, "a.heic", "b.HEIC")))


@pytest.mark.parametrize("images", ["", " "])
def test_an_empty_name_is_refused_and_is_not_the_current_folder(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(touched(tmp_path, "a.png"))
    with pytest.raises(RequestError, match="images= is empty; name a file, a folder or a pattern"):
        find_files(images)


@pytest.mark.parametrize("pattern", ["", "**", "**/*.png", "**/**/*.png", "*/**/*.png", "*/*.png"])
def test_links_that_lead_back_end_the_search_and_give_each_picture_once(
    tmp_path: Path, pattern: str
) -> None:
    touched(tmp_path, "x/a/1.png", "x/b/2.png")
    for link in ("x/one", "x/two", "x/a/three", "x/a/four"):
        (tmp_path / link).symlink_to(tmp_path / "x")
    assert found(tmp_path / "x" / pattern, tmp_path) == ["x/a/1.png", "x/b/2.png"]
    assert ("linked folder", 4) in find_files(str(tmp_path / "x" / "**" / "*.png")).left_out


def test_patterns_take_brackets_hidden_names_that_are_asked_for_and_no_others(
    tmp_path: Path,
) -> None:
    touched(tmp_path, "a1.png", "a2.png", "b1.png", ".c1.png", "below/a1.png", "A1.PNG")
    assert found(tmp_path / "a[12].png", tmp_path) == ["a1.png", "a2.png"]
    assert found(tmp_path / ".c*", tmp_path) == [".c1.png"]
    assert found(tmp_path / "*" / "*.png", tmp_path) == ["below/a1.png"]
    assert found(tmp_path / "**" / "a1.png", tmp_path) == ["a1.png", "below/a1.png"]


def test_the_endings_of_pictures_are_those_of_the_formats_that_are_read() -> None:
    Image.init()
    known = Image.registered_extensions().items()
    assert {end for end, kind in known if kind in (*FORMATS, "MPO")} == PICTURE_ENDINGS
