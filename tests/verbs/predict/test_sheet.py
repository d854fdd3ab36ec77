from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from pipeline.data.reading import find_images
from pipeline.verbs.predict.sheet import (
    COLUMNS,
    GAP,
    HEADER,
    MOST_PICTURES,
    TILE,
    Sheet,
    read_fonts,
)
from pipeline.verbs.predict.writers import PredictedBlock
from tests.pictures import ODD_EXIF

SHAPE = (4, 4, 1)


def sheet_of(images: np.ndarray, file: Path, *, inverted: bool, batches: int = 1) -> Sheet:
    sheet = Sheet(title="models:/m-1", shape=SHAPE)
    many = len(images)
    predicted = PredictedBlock(
        files=(file,) * many,
        indices=tuple(range(many)) if file.suffix == ".npy" else (None,) * many,
        probabilities=np.tile(np.array([[0.9, 0.1]], np.float32), (many, 1)),
        inverted=np.full(many, inverted),
        class_names=("a class with a name that no tile has room for", "b"),
    )
    for _ in range(batches):
        sheet.add(predicted, images)
    return sheet


def drawn(sheet: Sheet, folder: Path) -> Image.Image:
    sheet.save(folder / "sheet.png")
    with Image.open(folder / "sheet.png") as page:
        return page.copy()


def test_the_first_images_are_kept_as_the_model_saw_them(tmp_path: Path) -> None:
    images = np.full((3, *SHAPE), 200, np.uint8)
    sheet = sheet_of(images, tmp_path / "a.npy", inverted=True, batches=40)
    assert len(sheet.cells) == MOST_PICTURES
    assert np.unique(sheet.cells[0].seen).tolist() == [55]
    assert [cell.index for cell in sheet.cells[:4]] == [0, 1, 2, 0]


def test_a_tile_shows_the_original_and_in_its_corner_what_the_model_saw(tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    Image.new("RGB", (300, 300), "red").save(file)
    seen = np.full((1, *SHAPE), 179, np.uint8)
    page = drawn(sheet_of(seen, file, inverted=True), tmp_path)
    left, top = GAP, HEADER + GAP
    assert page.getpixel((left + 20, top + 20)) == (255, 0, 0)
    assert page.getpixel((left + TILE - 20, top + TILE - 20)) == (76, 76, 76)


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_a_tile_shows_the_original_of_a_file_of_many(kind: str, tmp_path: Path) -> None:
    red, file = tmp_path / "red.png", tmp_path / f"many.{kind}"
    Image.new("RGB", (300, 300), "red").save(red)
    if kind == "zip":
        with ZipFile(file, "w") as archive:
            archive.write(red, "photos/red.png")
    else:
        parquet.write_table(pyarrow.table({"image": [red.read_bytes()]}), file)
    found, opened = find_images(str(file))
    sheet = sheet_of(np.zeros((1, *SHAPE), np.uint8), found.files[0], inverted=False)
    page = drawn(replace(sheet, opened=opened), tmp_path)
    assert page.getpixel((GAP + 20, HEADER + GAP + 20)) == (255, 0, 0)


def test_images_of_an_array_are_drawn_in_rows(tmp_path: Path) -> None:
    images = np.zeros((COLUMNS + 1, 4, 4), np.uint8)
    images[-1] = 255
    np.save(tmp_path / "a.npy", images)
    sheet = sheet_of(images[..., np.newaxis], tmp_path / "a.npy", inverted=False)
    page = drawn(sheet, tmp_path)
    below = page.height - GAP * 2 - 62 - TILE // 2
    assert page.getpixel((GAP + 20, below)) == (255, 255, 255)
    assert page.getpixel((GAP + 20, HEADER + GAP + 20)) == (0, 0, 0)


def test_a_sheet_of_one_image_has_room_for_its_title(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 4, 4), np.uint8))
    sheet = sheet_of(np.zeros((1, *SHAPE), np.uint8), tmp_path / "a.npy", inverted=False)
    page = drawn(sheet, tmp_path)
    assert page.width > 4 * TILE


def test_names_of_several_lines_and_files_that_are_gone_cost_no_sheet(tmp_path: Path) -> None:
    sheet = Sheet(title="models:/a\nb", shape=SHAPE)
    predicted = PredictedBlock(
        files=(tmp_path / "gone\n.png",),
        indices=(None,),
        probabilities=np.array([[0.9, 0.1]], np.float32),
        inverted=np.array([False]),
        class_names=("two\nlines", "b"),
    )
    sheet.add(predicted, np.full((1, *SHAPE), 120, np.uint8))
    page = drawn(sheet, tmp_path)
    assert page.getpixel((GAP + 20, HEADER + GAP + 20)) == (120, 120, 120)


def captions(sheet: Sheet, width: int) -> list[bytes]:
    """What stands below each image of the first row, where it is `width` pixels wide."""
    page = sheet.draw([Image.new("RGB", (TILE, TILE))] * len(sheet.cells), read_fonts())
    top, step = HEADER + GAP + TILE + 6, width + GAP
    lefts = [GAP + step * number for number in range(len(sheet.cells))]
    return [page.crop((left, top, left + width, top + 50)).tobytes() for left in lefts]


def test_files_of_the_same_name_in_several_folders_can_be_told_apart() -> None:
    sheet = sheet_of(np.zeros((3, *SHAPE), np.uint8), Path("a.png"), inverted=False)
    long = "photographs of a long summer"
    for number, folder in enumerate(("cat", "dog", "cat")):
        file = Path(long, folder, "1.png")
        sheet.cells[number] = replace(sheet.cells[number], file=file)
    first, second, third = captions(sheet, TILE)
    assert first == third
    assert first != second


def test_a_name_in_a_script_that_the_font_lacks_is_drawn_with_another() -> None:
    sheet = sheet_of(np.zeros((2, *SHAPE), np.uint8), Path("a.png"), inverted=False)
    for number, label in enumerate("ⒶⒷ"):  # two equal boxes in the sheet's own font
        sheet.cells[number] = replace(sheet.cells[number], label=label)
    first, second = captions(sheet, TILE)
    assert first != second


def test_a_name_may_be_as_wide_as_the_image_and_its_map() -> None:
    explained = SimpleNamespace(maps=np.zeros((1, 4, 4), np.float32), method="occlusion")
    sheet = sheet_of(np.zeros((1, *SHAPE), np.uint8), Path("a.png"), inverted=False)
    sheet = replace(sheet, explain=lambda images, classes: explained)
    other = replace(sheet, cells=[replace(sheet.cells[0], label="a class with a name that no one")])
    assert captions(sheet, 2 * TILE) != captions(other, 2 * TILE)


def test_what_the_model_saw_keeps_its_aspect_ratio(tmp_path: Path) -> None:
    wide = np.full((1, 4, 16, 1), 200, np.uint8)
    page = drawn(sheet_of(wide, tmp_path / "gone.png", inverted=False), tmp_path)
    left, top = GAP, HEADER + GAP
    paper = (228, 232, 237)  # of a tile
    assert page.getpixel((left + TILE // 2, top + TILE // 2)) == (200, 200, 200)
    assert page.getpixel((left + TILE // 2, top + TILE // 8)) == paper
    assert page.getpixel((left + TILE - 20, top + TILE - 10)) == (200, 200, 200)
    assert page.getpixel((left + TILE - 20, top + TILE - 30)) == paper


def test_what_pillow_warns_of_is_not_told_again(tmp_path: Path) -> None:
    file = tmp_path / "red.jpg"
    Image.new("RGB", (300, 300), "red").save(file, exif=ODD_EXIF)
    page = drawn(sheet_of(np.zeros((1, *SHAPE), np.uint8), file, inverted=False), tmp_path)
    assert page.getpixel((GAP + 20, HEADER + GAP + 20)) == (254, 0, 0)


def test_a_sheet_is_drawn_from_pictures_in_memory() -> None:
    sheet = sheet_of(np.zeros((2, *SHAPE), np.uint8), Path("a.npy"), inverted=False)
    originals = [Image.new("RGB", (TILE, TILE), name) for name in ("red", "blue")]
    page = sheet.draw(originals, read_fonts())
    left, top = GAP + 20, HEADER + GAP + 20
    assert page.getpixel((left, top)) == (255, 0, 0)
    assert page.getpixel((left + TILE + GAP, top)) == (0, 0, 255)


def test_a_class_that_is_not_certain_does_not_look_so() -> None:
    original = Image.new("RGB", (TILE, TILE), "red")
    pages = []
    for probability in (1.0, 0.9996):
        sheet = sheet_of(np.zeros((1, *SHAPE), np.uint8), Path("a.npy"), inverted=False)
        sheet.cells[0] = replace(sheet.cells[0], probability=probability)
        pages.append(sheet.draw([original], read_fonts()))
    assert pages[0].tobytes() != pages[1].tobytes()
