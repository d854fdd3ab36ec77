from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.checks import findings_of
from pipeline.data.measures import measured
from pipeline.data.values import RawData, Split
from pipeline.reports import data_page
from pipeline.reports.data_page import data_html
from pipeline.reports.originals import read_originals
from pipeline.reports.page import clean
from pipeline.reports.template import template
from pipeline.training.batches import augmenter
from tests.commands import configured
from tests.pictures import class_folders, noise, put, read
from tests.reports.test_page import Page

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)<\u202e\x1b[31m\n&\udcff"


def page_of(raw: RawData, folder: Path, *words: str) -> str:
    measures = measured(raw, folder)
    config = configured("dataset=synthetic", *words)
    found = findings_of(raw, measures, config.ingest.checks)
    augment = augmenter(config, raw)
    return data_html(
        template("data.html"),
        raw,
        measures,
        read_originals(raw, folder),
        found,
        name="photos",
        augment=augment,
    )


def test_the_page_shows_classes_skipped_files_pairs_and_what_the_model_sees(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", colour=True, classes=("cat", HOSTILE))
    put(folder / "cat" / "twice.png", noise(1003, (12, 12, 3)))
    (folder / HOSTILE / "torn.png").write_bytes(b"torn")
    text = page_of(read(folder, tmp_path / "data"), tmp_path / "data")
    page = Page(text)
    shown = clean(HOSTILE)
    assert "alert(1)<" in shown
    assert not re.search("[\u202e\x1b\udcff]", text)
    assert page.all("script") == []
    rows = [row for _, row in page.all("tr")]
    assert any(row.startswith(shown) for row in rows)
    assert any("/torn.png" in row and "not an image" in row for row in rows)
    pairs = page.text("section", id="pairs")
    assert "One picture, equal or similar, under two classes 1 of 1 pairs" in pairs
    assert "cat/twice.png" in pairs
    assert page.text("section", id="seen").startswith("What the model sees 12 of ")
    assert "occur under two classes" in page.text("section", id="findings")
    assert not re.findall(r"(?:src|href)=.(?!#|data:)", text)
    text.encode("utf-8")


def test_originals_are_of_all_classes(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", classes=("ape", "bee", "cat"))
    seen = Page(page_of(read(folder, tmp_path / "data"), tmp_path / "data")).text(
        "section", id="seen"
    )
    assert all(f"{name}/0" in seen for name in ("ape", "bee", "cat"))


@pytest.mark.parametrize("augment", ["flip_and_shift", "flip_crop"])
def test_what_augmentation_makes_of_an_image_stands_below_it(augment: str, tmp_path: Path) -> None:
    raw = read(class_folders(tmp_path / "photos", colour=True), tmp_path / "data")
    text = page_of(raw, tmp_path / "data", f"augment={augment}")
    assert "below, what augmentation makes of it" in Page(text).text("section", id="seen")
    assert text.count('class="thumb version"') == 3 * text.count('class="thumb original"') > 0
    assert 'class="thumb version"' not in page_of(raw, tmp_path / "data")


def test_what_augmentation_makes_of_arrays_is_shown_without_originals(tmp_path: Path) -> None:
    split = Split(images=noise(1, (30, 8, 8, 1)), labels=np.arange(30, dtype=np.int32) % 2)
    raw = RawData(train=split, test=split, class_names=("a", "b"), source="a test")
    text = page_of(raw, tmp_path, "augment=flip_and_shift")
    assert "12 of 30 training images of 8×8×1; below" in Page(text).text("section", id="seen")
    assert text.count('class="thumb version"') == 3 * 12
    assert 'class="thumb original"' not in text
    assert Page(page_of(raw, tmp_path)).all("section", id="seen") == []


@pytest.mark.parametrize(("classes", "count", "shown"), [(2, 500, 120), (3000, 6000, 696)])
def test_the_page_stays_small_and_says_what_it_leaves_out(
    classes: int, count: int, shown: int, tmp_path: Path
) -> None:
    images = np.repeat(noise(1, (count // 2, 224 if classes == 2 else 4, 4, 3)), 2, axis=0)
    labels = (np.arange(count) % classes).astype(np.int32)
    names = tuple(f"{'n' * 400}{number}" for number in range(classes))
    split = Split(images=images, labels=labels)
    raw = RawData(train=split, test=split, class_names=names, source="a test")
    text = page_of(raw, tmp_path)
    assert text.count('class="thumb') == shown
    assert len(text) < 1_000_000
    page = Page(text)
    assert f"{data_page.PAIRS} of " in page.text("section", id="pairs")
    if classes > data_page.CLASSES:
        assert "Classes 1,000 of 3,000" in page.text("section", id="classes")


def test_grey_photos_are_not_inverted_as_scanned_digits_are(tmp_path: Path) -> None:
    raw = read(class_folders(tmp_path / "photos"), tmp_path / "data")
    assert 'body class="grey"' not in page_of(raw, tmp_path / "data")
    arrays = RawData(train=raw.train, test=raw.test, class_names=raw.class_names, source="a test")
    assert 'body class="grey"' not in page_of(arrays, tmp_path / "other")
    framed = np.pad(noise(1, (4, 6, 6, 1)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    digits = Split(images=framed, labels=np.array([0, 0, 1, 1], np.int32))
    drawn = RawData(train=digits, test=digits, class_names=raw.class_names, source="a test")
    assert 'body class="grey"' in page_of(drawn, tmp_path / "digits")


def test_values_that_differ_by_rounding_alone_have_a_histogram() -> None:
    values = np.float32(100) + np.arange(3, dtype=np.float32) * np.spacing(np.float32(100))
    found = data_page.histogram("contrast", values, "of 255")
    assert sum(found.bars) >= 1
