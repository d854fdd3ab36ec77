from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from docs import screenshots
from pipeline.tracking.ui import TRAINING, links
from tests.commands import DRAWN, ROOT, mlflow_server, pipeline, results
from tests.stress.matrix import only_stressed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(screenshots.CHROMIUM is None, reason="Chromium is not installed"),
]


@dataclass(frozen=True)
class Served:
    address: str
    run: mlflow.entities.Run


@dataclass(frozen=True)
class Shown(Served):
    page: screenshots.Page

    @property
    def run_page(self) -> str:
        info = self.run.info
        return screenshots.run_page(self.address, info.experiment_id, info.run_id)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A recorded run in a store served as `make ui` serves it."""
    folder = tmp_path_factory.mktemp("ui")
    ended = pipeline(*DRAWN, "tracking.run_name=my-first-run", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    database = folder / "mlflow.db"
    run = mlflow.MlflowClient(f"sqlite:///{database}").get_run(results(ended.stdout)["run_id"])
    with mlflow_server(database) as address:
        yield Served(address, run)


@pytest.fixture(scope="module")
def shown(served: Served) -> Iterator[Shown]:
    """The same in an empty page of a browser that knows MLflow's pages."""
    with screenshots.browser() as page:
        yield Shown(served.address, served.run, page)


# First, since Playwright allows one browser at a time and `shown` keeps its own open.
def test_a_new_browser_opens_the_links_of_make_ui_on_the_runs_with_their_accuracies(
    served: Served, tmp_path: Path
) -> None:
    [link] = links(served.address)
    assert link.runs.endswith(f"/#/experiments/{served.run.info.experiment_id}?{TRAINING}")
    with screenshots.fresh_browser(tmp_path) as page:
        page.goto(link.runs)
        page.get_by_text("my-first-run").first.wait_for()
        assert not page.get_by_text("Get started with").count()  # pages for language models
        page.goto(link.accuracies)
        for name in ("val/accuracy", "test/accuracy"):
            page.get_by_text(name, exact=True).first.wait_for()
            page.get_by_text(str(served.run.data.metrics[name])[:6]).first.wait_for()


def test_an_experiment_opens_on_its_training_runs(shown: Shown) -> None:
    screenshots.open_runs(shown.page, shown.address, shown.run.info.experiment_id)
    assert shown.page.get_by_text("my-first-run").first.is_visible()


def test_a_run_page_shows_its_name_a_metric_a_parameter_and_its_data(shown: Shown) -> None:
    screenshots.open_overview(shown.page, shown.run_page)
    assert shown.page.get_by_role("heading", name="my-first-run").is_visible()
    for text in (
        str(shown.run.data.metrics["test/accuracy"])[:6],
        "optimizer.learning_rate",
        shown.run.data.tags["data.fingerprint"][:36],
    ):
        assert shown.page.get_by_text(text).count() >= 1, text


def test_a_run_page_shows_a_plot_among_its_artefacts(shown: Shown) -> None:
    picture = screenshots.open_plot(shown.page, shown.run_page, "confusion_matrix")
    picture.evaluate("image => image.decode()")  # refuses what is no picture
    assert picture.evaluate("image => image.naturalWidth") > 500
    assert shown.page.get_by_text("confusion_matrix.png").first.is_visible()


def size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


@only_stressed  # the picture of a comparison is taken in the same way
def test_the_pictures_of_a_run_for_the_documentation_can_be_taken(
    shown: Shown, tmp_path: Path
) -> None:
    taken = screenshots.take(shown.page, shown.address, shown.run.info.run_id, tmp_path)
    assert tuple(path.stem for path in taken) == screenshots.PICTURES["run"]
    sizes = {path.stem: size(path) for path in taken}
    assert sizes["run"] == sizes["curves"] == tuple(screenshots.SIZE.values())
    assert sizes["report"][0] == screenshots.WIDTHS["report"]
    assert sizes["report"][1] > 1000  # the whole page


def test_the_picture_of_a_comparison_is_that_of_the_whole_page(
    shown: Shown, tmp_path: Path
) -> None:
    page = tmp_path / "compare.html"
    page.write_text("<body style='margin:0'><div style='height:3000px'></div></body>")
    picture = screenshots.take_page(shown.page, page, tmp_path / "compare.png")
    assert size(picture) == (screenshots.WIDTHS["compare"], 3000)
    assert shown.page.viewport_size == screenshots.SIZE


def test_the_top_of_a_contact_sheet_is_shown(tmp_path: Path) -> None:
    Image.new("RGB", (300, 2000)).save(tmp_path / "sheet.png")
    picture = screenshots.take_sheet(tmp_path / "sheet.png", tmp_path / "predict.png")
    assert size(picture) == (300, screenshots.SHEET_HEIGHT)


def test_every_picture_of_readme_and_docs_is_one_that_can_be_made_again() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    shown = {
        name
        for page in pages
        for name in re.findall(r"\(\S*?images/([\w-]+)\.png\)", page.read_text(encoding="utf-8"))
    }
    assert shown
    assert shown <= {name for names in screenshots.PICTURES.values() for name in names}
