"""The page of a comparison as a reader's browser shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from docs import screenshots
from pipeline.verbs.compare.command import page_template
from pipeline.verbs.compare.plots import draw_comparison
from pipeline.verbs.compare.render import page
from tests.verbs.compare.test_comparison import answers, compared, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(screenshots.CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two runs with long names, compared image by image."""
    names = ("magnificent-hippopotamus-1", "wise-shark-32")
    runs = [run(name, rate=rate) for name, rate in zip(names, "12", strict=True)]
    found = compared(runs, **dict(zip(names, (answers(300), answers(200)), strict=True)))
    assert found.pair is not None
    path = tmp_path / "compare.html"
    path.write_text(page(page_template(), found, draw_comparison(found)), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_screen_and_shows_each_class_change_without_scrolling(
    file: Path, width: int
) -> None:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=screenshots.CHROMIUM, args=screenshots.FLAGS
        )
        shown = chromium.new_page(viewport={"width": width, "height": 844})
        shown.goto(file.as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") == width
        header = shown.get_by_role("columnheader", name="Δ accuracy").bounding_box()
        assert header is not None
        assert header["x"] + header["width"] <= width
        for picture in shown.locator("img").all():
            box = picture.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= width
        chromium.close()
