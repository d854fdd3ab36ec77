"""Pictures of a run in the MLflow UI, taken in headless Chromium.

usage: python docs/screenshots.py [--sweep] <tracking address or database file> <run_id> <folder>

Writes overview.png, metrics.png and plots.png; with `--sweep` before these, of a sweep over
learning rate and dropout, sweep.png. For a database file (`mlflow.db`) it starts a
server as `make ui` does and stops it afterwards. Needs the `dev` dependencies and Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import requests
from playwright.sync_api import Locator, Page, sync_playwright

SIZE = {"width": 1400, "height": 900}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE_MS = 30_000
DRAWN_MS = 3_000  # charts go on drawing; the page polls, so its network is never idle
# What the UI would remember of a visitor: training rather than GenAI, the assistant closed.
REMEMBERED = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}


@contextmanager
def server(database: Path, *options: str) -> Iterator[str]:
    """The address of an MLflow server over a SQLite file, while the block runs.

    Without `options` it is as `make ui` starts it.
    """
    folder = database.resolve().parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{database.resolve()}"]
    as_ui = ("--no-serve-artifacts", "--default-artifact-root", str(folder / "mlartifacts"))
    command += options or as_ui
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _await(f"{address}/health", process)
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
        page.route(lambda url: not url.startswith("http://127.0.0.1"), lambda route: route.abort())
        try:
            yield page
        finally:
            chromium.close()


def open_runs(page: Page, address: str, experiment_id: str) -> None:
    """The table of an experiment's training runs."""
    page.goto(f"{address}/#/experiments/{experiment_id}/runs")
    page.get_by_text("Run Name").first.wait_for()


def open_overview(page: Page, run: str) -> None:
    """A run's first page: what it is, its parameters and metrics. `run` is its address."""
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
    """Adds columns to the table of runs, or takes away those that are there."""
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
    page.get_by_role("row").filter(has_text="0: ").first.wait_for()


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
    """Writes the three pictures into `folder` and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    run = run_page(address, experiment_of(address, run_id), run_id)
    pictures = [folder / f"{name}.png" for name in ("overview", "metrics", "plots")]
    open_overview(page, run)
    _shoot(page, pictures[0])
    open_metrics(page, run)
    page.get_by_placeholder("Search metric charts").fill("^(train|val)/(accuracy|loss)")
    _shoot(page, pictures[1])
    open_plot(page, run, "confusion_matrix")
    _shoot(page, pictures[2])
    return pictures


def take_sweep(page: Page, address: str, run_id: str, folder: Path) -> list[Path]:
    """Writes the picture of a sweep with its jobs into `folder` and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    open_runs(page, address, experiment_of(address, run_id))
    searched = ("optimizer.learning_rate", "model.dropout")
    toggle_columns(page, "Dataset", "Source", "Models", "val/accuracy", "test/accuracy", *searched)
    unfold_sweep(page)
    _shoot(page, folder / "sweep.png")
    return [folder / "sweep.png"]


def _shoot(page: Page, path: Path) -> None:
    page.wait_for_timeout(DRAWN_MS)
    page.screenshot(path=path)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.ConnectionError:
            if process.poll() is not None:
                raise RuntimeError("the MLflow server ended") from None
        time.sleep(0.1)
    raise RuntimeError("the MLflow server did not answer within a minute")


def main() -> None:
    """The command line."""
    words = [word for word in sys.argv[1:] if word != "--sweep"]
    shoot = take if len(words) == len(sys.argv[1:]) else take_sweep
    where, run_id, folder = words
    database = Path(where.removeprefix("sqlite:///"))
    served = nullcontext(where) if where.startswith("http") else server(database)
    with served as address, browser() as page:
        print(*shoot(page, address, run_id, Path(folder)), sep="\n")


if __name__ == "__main__":
    main()
