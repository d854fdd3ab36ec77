"""Makes the pictures in README.md and docs/, of the MLflow UI and our pages, in headless Chromium.

usage: python -m docs.screenshots <tracking address or database file> <folder> [--run ID]
       [--sweep ID] [--registry MODEL] [--compare compare.html] [--data data.html]
       [--sheet contact_sheet.png]

`--run` makes the pictures of a run: its pages in the UI, its report, its plots. `--sweep` makes
those of a sweep over learning rate, dropout and seeds; `--registry` those of a registered model,
its champion's version and the runs of its experiment. `--compare` is the page of a comparison,
`--data` that of a data set and `--sheet` a contact sheet of `predict`. `training-mlp.png` is drawn
by benchmarks/training.py. For a database file (`mlflow.db`) it starts a server as `make ui` does
and stops it afterwards. Needs the `dev` dependencies and Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import requests
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from pipeline.tracking.ui import links, server_command, server_environment, wait_for

SIZE = {"width": 1400, "height": 900}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE_MS = 30_000
DRAWN_MS = 3_000  # for charts to be drawn; the page polls, so its network is never idle
# By what they are taken of: pictures of the UI, of whole pages of ours, and copies of plots.
PICTURES = {
    "run": ("run", "curves", "report", "loss", "confusion_matrix", "mistakes", "weights"),
    "registry": ("runs", "comparison", "model", "version"),
    "sweep": ("sweep", "sweep_parallel_coordinates", "sweep_seeds"),
    "compare": ("compare",),
    "data": ("data",),
    "sheet": ("predict",),
    "benchmarks": ("training-mlp",),
}
WIDTHS = {"report": 1200, "compare": 1280}  # of the pages, in pixels
DATA_HEIGHTS = {"classes": 360, "seen": 420, "pairs": 320}  # of sections, in pixels
SHEET_HEIGHT = 590  # pixels of a contact sheet that are shown
# What the UI would remember of a visitor: training rather than GenAI, the assistant closed.
REMEMBERED = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}


@contextmanager
def server(database: Path, *options: str, port: int | None = None) -> Iterator[str]:
    """The address of an MLflow server over a SQLite file, while the block runs.

    Without `options` it is as `make ui` starts it; without `port` it takes a free one.
    """
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    command = server_command(database, host="127.0.0.1", port=port)
    if options:
        command = [*command[: command.index("--no-serve-artifacts")], *options]
    process = subprocess.Popen(
        command,
        cwd=database.resolve().parent,
        env=server_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        if not wait_for(address, process):
            raise RuntimeError("the MLflow server does not answer")
        yield address
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def browser() -> Iterator[Page]:
    """An empty page of headless Chromium."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page(viewport=SIZE, device_scale_factor=1)
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(f"Object.assign(localStorage, {json.dumps(REMEMBERED)})")
        page.route(
            lambda url: not url.startswith(("http://127.0.0.1", "file:")),
            lambda route: route.abort(),
        )
        try:
            yield page
        finally:
            chromium.close()


@contextmanager
def fresh_browser(profile: Path) -> Iterator[Page]:
    """A page of headless Chromium as a user sees it who has never opened MLflow."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, args=FLAGS, viewport=SIZE
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        try:
            yield page
        finally:
            context.close()


def open_runs(page: Page, address: str, experiment_id: str) -> None:
    """The table of an experiment's training runs."""
    page.goto(f"{address}/#/experiments/{experiment_id}/runs")
    page.get_by_text("Run Name").first.wait_for()


def open_overview(page: Page, run: str) -> None:
    """A run's overview: description, parameters and metrics. `run` is its address."""
    page.goto(run)
    page.get_by_text("About this run").wait_for()
    page.get_by_role("heading", name="Registered models").wait_for()


def open_metrics(page: Page, run: str) -> None:
    """A run's charts of its metrics over epochs."""
    page.goto(f"{run}/model-metrics")
    page.locator(".js-plotly-plot .legend, .js-plotly-plot .main-svg").first.wait_for()


def open_plot(page: Page, run: str, name: str) -> Locator:
    """One of a run's pictures (`confusion_matrix`) among its artefacts; returns the picture."""
    page.goto(f"{run}/artifacts/plots/{name}.png")
    picture = page.locator("img[src^='blob:'], img[src*='get-artifact']").first
    picture.wait_for()
    return picture


def toggle_columns(page: Page, *names: str) -> None:
    """Adds columns to the table of runs, or removes those that are there."""
    page.get_by_role("button", name="Columns").click()
    for name in names:
        page.get_by_placeholder("Search columns").fill(name)
        node = page.locator("[class*=tree-treenode]")
        node = node.filter(has=page.get_by_text(name, exact=True)).first
        node.locator("[class*=tree-checkbox]").first.click()
    page.keyboard.press("Escape")
    page.get_by_role("heading", name="Runs").click()


def unfold_sweep(page: Page) -> None:
    """Shows the jobs of the first sweep in the table of runs below it."""
    page.get_by_role("row").filter(has_text="sweep of").first.get_by_role("button").click()
    page.get_by_role("row").filter(has_text="seed=").first.wait_for()


def run_page(address: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's pages."""
    return f"{address}/#/experiments/{experiment_id}/runs/{run_id}"


def experiment_of(address: str, run_id: str) -> str:
    """The id of the experiment that a run belongs to."""
    answer = requests.get(
        f"{address}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=30
    )
    answer.raise_for_status()
    return str(answer.json()["run"]["info"]["experiment_id"])


def take(page: Page, address: str, run_id: str, folder: Path) -> list[Path]:
    """Writes the pictures of a run into `folder` and returns their paths."""
    run = run_page(address, experiment_of(address, run_id), run_id)
    overview, curves, report, *plots = (folder / f"{name}.png" for name in PICTURES["run"])
    folder.mkdir(parents=True, exist_ok=True)
    open_overview(page, run)
    _shoot(page, overview)
    open_metrics(page, run)
    page.get_by_placeholder("Search metric charts").fill("^(train|val)/(accuracy|loss)")
    _shoot(page, curves)
    for plot in plots:
        plot.write_bytes(artifact(address, run_id, f"plots/{plot.name}"))
    with TemporaryDirectory() as place:
        html = Path(place, "report.html")
        html.write_bytes(artifact(address, run_id, html.name))
        take_page(page, html, report)
    return [overview, curves, report, *plots]


def take_sweep(page: Page, address: str, run_id: str, folder: Path) -> list[Path]:
    """Writes the pictures of a sweep with its jobs into `folder` and returns their paths."""
    table, *plots = (folder / f"{name}.png" for name in PICTURES["sweep"])
    folder.mkdir(parents=True, exist_ok=True)
    open_runs(page, address, experiment_of(address, run_id))
    searched = ("optimizer.learning_rate", "model.dropout")
    toggle_columns(page, "Dataset", "Source", "Models", "val/accuracy", "test/accuracy", *searched)
    unfold_sweep(page)
    _shoot(page, table)
    for plot in plots:
        name = plot.name.removeprefix("sweep_")
        plot.write_bytes(artifact(address, run_id, f"plots/{name}"))
    return [table, *plots]


def take_registry(page: Page, address: str, model: str, folder: Path) -> list[Path]:
    """Writes the pictures of the champion's version, its model, and its experiment's runs."""
    runs, comparison, registered, version = (
        folder / f"{name}.png" for name in PICTURES["registry"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    answer = requests.get(
        f"{address}/api/2.0/mlflow/registered-models/alias",
        params={"name": model, "alias": "champion"},
        timeout=30,
    )
    answer.raise_for_status()
    champion = answer.json()["model_version"]
    experiment = experiment_of(address, champion["run_id"])
    [links_of_it] = [one for one in links(address) if f"/{experiment}?" in one.runs]
    page.goto(links_of_it.accuracies)
    page.get_by_text("Run Name").first.wait_for()
    _shoot(page, runs)
    compared = json.dumps(newest_runs(address, experiment, most=3), separators=(",", ":"))
    page.goto(f'{address}/#/compare-runs?runs={compared}&experiments=["{experiment}"]')
    page.get_by_text("Run details").first.wait_for()
    _shoot(page, comparison)
    for picture, place in ((registered, ""), (version, f"/versions/{champion['version']}")):
        page.goto(f"{address}/#/models/{model}{place}")
        page.get_by_text("Description").first.wait_for()
        _shoot(page, picture)
    return [runs, comparison, registered, version]


def newest_runs(address: str, experiment_id: str, *, most: int) -> list[str]:
    """The ids of the newest runs that have a test accuracy."""
    asked = {
        "experiment_ids": [experiment_id],
        "filter": "metrics.`test/accuracy` >= 0",
        "max_results": most,
    }
    answer = requests.post(f"{address}/api/2.0/mlflow/runs/search", json=asked, timeout=30)
    answer.raise_for_status()
    return [run["info"]["run_id"] for run in answer.json().get("runs", [])]


def take_page(page: Page, html: Path, picture: Path) -> Path:
    """Writes the picture of a whole report or comparison."""
    page.set_viewport_size({"width": WIDTHS[picture.stem], "height": SIZE["height"]})
    page.goto(html.resolve().as_uri())
    page.screenshot(path=picture, full_page=True)
    page.set_viewport_size(SIZE)
    return picture


def take_data(page: Page, html: Path, picture: Path) -> Path:
    """Writes the tops of three sections of a data set's page, one below the other."""
    page.set_viewport_size({"width": 1200, "height": 900})
    page.goto(html.resolve().as_uri())
    tops = []
    for name, height in DATA_HEIGHTS.items():
        with Image.open(io.BytesIO(page.locator(f"#{name}").screenshot())) as section:
            tops.append(section.convert("RGB").crop((0, 0, section.width, height)))
    whole = Image.new("RGB", (tops[0].width, sum(top.height + 10 for top in tops)), "#f5f6f8")
    place = 0
    for top in tops:
        whole.paste(top, (0, place))
        place += top.height + 10
    whole.quantize(200, dither=Image.Dither.NONE).save(picture, optimize=True)
    return picture


def take_sheet(sheet: Path, picture: Path) -> Path:
    """Writes the top of a contact sheet."""
    with Image.open(sheet) as whole:
        whole.crop((0, 0, whole.width, min(whole.height, SHEET_HEIGHT))).save(picture)
    return picture


def artifact(address: str, run_id: str, path: str) -> bytes:
    """The content of one of a run's artefacts, from the server."""
    answer = requests.get(
        f"{address}/get-artifact", params={"run_uuid": run_id, "path": path}, timeout=30
    )
    answer.raise_for_status()
    return answer.content


def _shoot(page: Page, path: Path) -> None:
    page.wait_for_timeout(DRAWN_MS)
    page.screenshot(path=path)
    with Image.open(path) as whole:  # a palette makes it a third as large
        whole.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(usage=__doc__.partition("usage: ")[2])
    parser.add_argument("where")
    parser.add_argument("folder", type=Path)
    wanted = {"run": str, "sweep": str, "registry": str}
    wanted |= dict.fromkeys(("compare", "data", "sheet"), Path)
    for name, kind in wanted.items():
        parser.add_argument(f"--{name}", type=kind)
    asked = parser.parse_args()
    database, folder = Path(asked.where.removeprefix("sqlite:///")), asked.folder
    served = nullcontext(asked.where) if asked.where.startswith("http") else server(database)
    taken: list[Path] = []
    with served as address, browser() as page:
        if asked.run:
            taken += take(page, address, asked.run, folder)
        if asked.sweep:
            taken += take_sweep(page, address, asked.sweep, folder)
        if asked.registry:
            taken += take_registry(page, address, asked.registry, folder)
        if asked.compare:
            taken.append(take_page(page, asked.compare, folder / "compare.png"))
        if asked.data:
            taken.append(take_data(page, asked.data, folder / "data.png"))
    if asked.sheet:
        taken.append(take_sheet(asked.sheet, folder / "predict.png"))
    print(*taken, sep="\n")


if __name__ == "__main__":
    main()
