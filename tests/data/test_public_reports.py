"""Folders as in public reports about other loaders, and what these wanted of a listing.

Only names matter here; what must be decoded to be known is tested where pictures are packed.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.listing import listed
from pipeline.system.errors import RequestError
from tests.data.test_listing import touched


def counted(folder: str, count: int, ending: str = "png") -> list[str]:
    return [f"{folder}/{number:03d}.{ending}" for number in range(count)]


LEFT_RIGHT = [*counted("left", 20), *counted("right", 20)]
ANGLES = ("0", "90", "180", "270")
ENDINGS = ("png", "PNG", "JPG", "JpEg", "jfif", "webp", "tif", "TIFF", "bmp", "avif", "pgm")
HIDDEN = (
    *(".ipynb_checkpoints/000.png", "skip/.ipynb_checkpoints/000.png", ".DS_Store", "README.txt"),
    *("skip/._000.png", "__MACOSX/skip/x.png", "__MACOSX/skip/._000.png", "@eaDir/x.txt"),
)
NAMES = ("100%", "a=b,c", "Cat", "cat", "T-shirt & top", "Ünïcode 猫")

# Per case: the files, then of each class the pictures, or the reason of a refusal; what is left
# out; a note.
CASES: dict[str, tuple[list[str], dict[str, int] | str, dict[str, int], str]] = {
    # keras#20006, tensorflow#38901: what is damaged is named when it is read, not dropped before
    "corrupted": (
        [*LEFT_RIGHT, "left/zero.jpg", "left/cut.jpg", "right/null.png"],
        {"left": 22, "right": 21},
        {},
        "",
    ),
    # tensorflow#46595, vision#109: folders of editors and systems are no classes
    "hidden": (
        [*counted("skip", 12), *counted("no_skip", 12), *HIDDEN],
        {"no_skip": 12, "skip": 12},
        {"hidden file": 4, "__MACOSX": 1, "@eaDir": 1, ".txt": 1},
        "",
    ),
    # vision#714, keras#19761: 10 comes after 9
    "numeric": (
        [name for number in range(12) for name in counted(str(number), 3)],
        {str(number): 3 for number in range(12)},
        {},
        "",
    ),
    # ultralytics#13936, timm#957: labels keep their meaning, and the missing class is named
    "missing class": (
        [name for angle in ANGLES for name in counted(f"train/{angle}", 3)]
        + [name for angle in ANGLES if angle != "180" for name in counted(f"test/{angle}", 2)],
        {"0": 5, "90": 5, "180": 3, "270": 5},
        {},
        "test has no pictures of 180",
    ),
    "extra class": (
        ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/zebra/1.png"],
        "zebra occurs in test, but not in train",
        {},
        "",
    ),
    # keras#17182, datasets#4514: endings in any case; what cannot be read is counted
    "endings": (
        [f"{side}/{end}.{end}" for side in ("left", "right") for end in ENDINGS]
        + ["left/photo.HEIC", "right/noending", "left/labels.csv"],
        {"left": 11, "right": 11},
        {".heic": 1, "without an ending": 1, ".csv": 1},
        "",
    ),
    # tensorflow#33550: nothing is dropped to balance
    "imbalanced": (
        [*counted("common", 190), *counted("rare", 10)],
        {"common": 190, "rare": 10},
        {},
        "",
    ),
    "one image in a class": ([*counted("a", 12), "b/1.png"], {"a": 12, "b": 1}, {}, ""),
    "nested": (
        [
            name
            for side in ("left", "right")
            for below in ("2024/jan", "2025")
            for name in counted(f"{side}/{below}", 5)
        ],
        {"left": 10, "right": 10},
        {},
        "",
    ),
    "flat": (["left_0.png", "right_0.png"], "2 pictures lie there without class folders", {}, ""),
    "one class": (counted("only", 8), "only/ is the only class folder", {}, ""),
    "nothing": ([], "no pictures there", {}, ""),
    "wrapped": (
        [*counted("dataset/left", 8), *counted("dataset/right", 8)],
        {"left": 8, "right": 8},
        {},
        "",
    ),
    "names": (
        [name for one in NAMES for name in counted(one, 8)],
        dict.fromkeys(NAMES, 8),
        {},
        "'Cat' and 'cat' are different classes; to unite them, write dataset.classes with "
        "{Cat: [Cat, cat]}",
    ),
}


@pytest.mark.parametrize(("files", "expected", "left_out", "note"), CASES.values(), ids=CASES)
def test_a_folder_gives_what_its_report_wanted(
    files: list[str], expected: Any, left_out: dict[str, int], note: str, tmp_path: Path
) -> None:
    if isinstance(expected, str):
        with pytest.raises(RequestError, match=expected):
            listed(touched(tmp_path, *files))
        return
    listing = listed(touched(tmp_path, *files))
    counts = Counter(listing.class_names[label] for label in listing.labels)
    assert [(name, counts[name]) for name in listing.class_names] == list(expected.items())
    assert dict(listing.left_out) == left_out
    assert listing.notes == ((note,) if note else ())
