"""The report as a reader's browser shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

from docs import screenshots
from pipeline.data.values import Predictions, Split
from pipeline.reports.explained import Explained, scatter
from pipeline.reports.page import run_html
from pipeline.reports.template import template
from tests.commands import configured
from tests.reports.test_page import HOSTILE, facts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(screenshots.CHROMIUM is None, reason="Chromium is not installed"),
]

PHONE = {"width": 390, "height": 844}


def some_predictions(names: tuple[str, ...], images: int) -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(names), images).astype(np.int32)
    probabilities = rng.random((images, len(names)), np.float32)
    probabilities[np.arange(images), labels] += 0.5
    pictures = rng.integers(0, 256, (images, 8, 8, 1), np.uint8)
    return Predictions(
        split=Split(images=pictures, labels=labels),
        probabilities=probabilities / probabilities.sum(axis=1, keepdims=True),
        class_names=names,
    )


def with_features(predictions: Predictions) -> Explained:
    """The plot of features alone."""
    images = np.arange(len(predictions.labels))
    features = np.random.default_rng(0).random((len(images), 5), np.float32)
    none = np.empty((0, 8, 8), np.float32)
    return Explained(
        images=images[:0],
        guesses=none,
        truths=none,
        method="occlusion",
        scatter=scatter(features, images, predictions),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports as files: of classes with hostile names, of a hundred, a long name, few images."""
    folder = tmp_path_factory.mktemp("report")
    config = configured("dataset=digits")
    many = tuple(f"a class of number {number}" for number in range(100))
    long = ("a" * 180, "b", "c")
    lone = ("rare", "Symphyotrichum novae-angliae", "никогда")
    texts = (("few", HOSTILE, 400), ("many", many, 400), ("long", long, 400), ("lone", lone, 4))
    for name, names, images in texts:
        found = some_predictions(names, images)
        explained = with_features(found) if name in ("long", "lone") else None
        text = run_html(template("report.html"), facts(), config, {"test": found}, explained)
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=screenshots.CHROMIUM, args=screenshots.FLAGS
        )
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport=PHONE)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, folder: Path) -> Iterator[Page]:
    """The report of few classes; whatever a test does there, nothing is fetched or complained."""
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: asked.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: asked.append(f"error: {error}"))
    address = (folder / "few.html").as_uri()
    page.goto(address)
    yield page
    assert [url for url in asked if not url.startswith("data:")] == [address]


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog")


def test_a_click_on_a_cell_shows_its_images_and_escape_closes_them(page: Page) -> None:
    cell = page.locator(".matrix button.wrong").first
    assert not dialog(page).is_visible()
    cell.click()
    assert dialog(page).is_visible()
    count = int(cell.inner_text())
    images = dialog(page).locator(".thumb")
    assert 1 < count <= 24
    assert images.count() == count
    assert dialog(page).get_by_role("heading").inner_text() == (
        f"{HOSTILE[0]} taken for {HOSTILE[1]}: {count} images"
    )
    box = images.first.bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (64, 64)
    assert "url(" in images.first.evaluate("e => getComputedStyle(e).backgroundImage")
    page.keyboard.press("Escape")
    assert not dialog(page).is_visible()
    assert cell.evaluate("e => e === document.activeElement")


def test_a_thumbnail_shows_the_pixels_of_its_image(page: Page) -> None:
    made = some_predictions(HOSTILE, 400)
    page.locator(".matrix button.wrong").first.click()
    item = dialog(page).locator("li").nth(1)
    number = int(item.locator(".muted").inner_text().removeprefix("no. "))
    assert (made.labels[number], made.predicted[number]) == (0, 1)
    at = item.locator(".thumb").evaluate(
        """async e => {
            const style = getComputedStyle(e), image = new Image();
            image.src = style.backgroundImage.slice(5, -2);
            await image.decode();
            const canvas = new OffscreenCanvas(image.width, image.height);
            const paper = canvas.getContext("2d");
            paper.drawImage(image, 0, 0);
            const [x, y] = style.backgroundPosition.split(" ").map(v => -parseFloat(v) / 8);
            return Array.from(paper.getImageData(x, y, 8, 8).data).filter((v, i) => i % 4 === 0);
        }"""
    )
    pixels = made.split.images[number, :, :, 0].ravel().astype(int)
    assert np.abs(pixels - at).mean() < 10  # of noise, which is packed as a photo is


def test_the_keyboard_alone_opens_a_cell_and_arrows_lead_to_its_neighbour(page: Page) -> None:
    cells = page.locator(".matrix button")
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    assert cells.nth(1).evaluate("e => e === document.activeElement")
    page.keyboard.press("ArrowDown")
    assert cells.nth(len(HOSTILE) + 1).evaluate("e => e === document.activeElement")
    page.keyboard.press("Enter")
    assert dialog(page).is_visible()
    dialog(page).get_by_role("button", name="Close").click()
    assert not dialog(page).is_visible()


def test_a_full_cell_says_that_it_shows_the_surest(page: Page) -> None:
    cell = page.locator(".matrix button.right").first
    cell.click()
    assert dialog(page).get_by_role("heading").inner_text().endswith("images, the 24 surest")
    assert dialog(page).locator(".thumb").count() == 24


def test_the_frequent_confusions_open_their_images_too(page: Page) -> None:
    page.locator(".pairs button").first.click()
    assert dialog(page).locator(".thumb").first.is_visible()


@pytest.mark.parametrize("name", ["few", "many", "long"])
def test_on_a_phone_the_matrix_scrolls_and_the_page_does_not(
    name: str, context: BrowserContext, folder: Path
) -> None:
    page = context.new_page()
    page.goto((folder / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    wide = page.evaluate("document.querySelector('.matrix').parentElement.scrollWidth")
    assert (wide > PHONE["width"]) == (name == "many")


def test_in_the_dark_the_page_is_dark_and_on_paper_it_is_not(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    ink = "getComputedStyle(document.body).color"
    assert page.evaluate(ink) == "rgb(232, 234, 239)"
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(ink) == "rgb(23, 26, 33)"
    assert not page.locator("nav").is_visible()
    for heading in page.locator("section > h2").all():
        assert heading.is_visible()


@pytest.mark.parametrize("name", ["few", "many", "long"])
def test_on_paper_nothing_is_wider_than_the_sheet(
    name: str, context: BrowserContext, folder: Path
) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 less its margins, at 96 dpi
    page.emulate_media(media="print")
    page.goto((folder / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 703


@pytest.mark.parametrize("name", ["long", "lone"])
def test_names_among_the_features_are_whole_and_hide_no_image_of_their_own(
    name: str, context: BrowserContext, folder: Path
) -> None:
    page = context.new_page()
    page.goto((folder / f"{name}.html").as_uri())
    plot = page.locator(".scatter").bounding_box()
    assert plot
    names = [box for text in page.locator(".scatter text").all() if (box := text.bounding_box())]
    assert names
    for box in names:
        assert plot["x"] <= box["x"]
        assert box["x"] + box["width"] <= plot["x"] + plot["width"]
        assert plot["y"] <= box["y"]
    if name == "lone":
        hidden = """texts => [...document.querySelectorAll(".scatter circle")].filter(circle => {
            const at = circle.getBoundingClientRect();
            const x = at.x + at.width / 2, y = at.y + at.height / 2;
            return texts.some(box => box.x < x && x < box.x + box.width
                && box.y < y && y < box.y + box.height);
        }).length"""
        assert page.evaluate(hidden, names) == 0


def test_without_javascript_all_but_the_cells_is_there(browser: Browser, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "few.html").as_uri())
    for section in ("training", "classes", "confusion", "mistakes", "calibration", "lineage"):
        assert page.locator(f"#{section}").is_visible()
    assert page.locator("#mistakes .thumb").count() == 24
    context.close()
