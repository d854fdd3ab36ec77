"""A store that the version before (7d77097) recorded, read by this one.

`store_of_7d77097.zip` has its database as SQL and its artefacts without plots and reports: of
`dataset=synthetic model=linear train.epochs=1` a finished run called `plain`, a failed one on
`dataset=mnist`, a sweep over `seed=0,1` with one model kept (left out), and a forced promotion.
`{FOLDER}` stands for where it lay.
"""

from __future__ import annotations

import json
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.system.errors import RequestError
from pipeline.tracking.runs import find_run, find_runs, find_sweep, find_trained
from pipeline.tracking.values import Query, RecordedRun, Status
from tests.commands import carried_out, configured, inside

pytestmark = pytest.mark.slow

PLAIN = "f6a45f82a07d464e9758b819ccb028b3"
ASKED = ("dataset=synthetic", "model=linear", "train.epochs=1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store as it lay, in another folder than then."""
    folder = tmp_path_factory.mktemp("version before")
    with zipfile.ZipFile(Path(__file__).with_name("store_of_7d77097.zip")) as packed:
        packed.extractall(folder)
    for path in folder.rglob("*"):
        if path.name in ("mlflow.sql", "MLmodel", "manifest.json"):
            text = path.read_text("utf-8").replace("file://{FOLDER}", folder.as_uri())
            path.write_text(text.replace("{FOLDER}", str(folder)), "utf-8")
    connection = sqlite3.connect(folder / "mlflow.db")
    connection.executescript((folder / "mlflow.sql").read_text("utf-8"))
    connection.close()
    with inside(folder):
        yield folder


def asked(*words: str) -> Any:
    return configured(*ASKED, *words)


def test_runs_are_found_with_all_that_was_known_of_them(store: Path) -> None:
    config = asked()
    runs = find_runs(Query(experiment="synthetic", order=("started",)), config.tracking)
    states = [(run.status, run.is_sweep, run.index, run.model_uri is not None) for run in runs]
    assert states == [
        (Status.FINISHED, False, None, True),
        (Status.FAILED, False, None, False),
        (Status.FINISHED, True, None, False),
        (Status.FINISHED, False, 0, True),
        (Status.FINISHED, False, 1, False),
    ]
    plain, failed, sweep, first, second = runs
    assert (plain.id, plain.name, plain.experiment) == (PLAIN, "plain", "synthetic")
    assert plain.metrics["val/accuracy"] == pytest.approx(0.3667, abs=1e-4)
    assert plain.metrics["test/accuracy"] == pytest.approx(0.355)
    assert plain.sizes == {"train": 450, "val": 150, "test": 200}
    assert plain.traits["optimizer.learning_rate"] == "0.001"
    assert plain.traits["code"].startswith("7d77097")
    assert str(failed.error).startswith("pipeline.errors.RequestError: dataset.folder")
    assert {first.parent, second.parent} == {sweep.id}
    assert sweep.sweep_folder == store / "multirun" / "2026-11-28" / "15-40-20-224311"


def test_the_newest_and_the_best_are_found_and_a_model_is_loaded(store: Path) -> None:
    latest = find_trained("latest", asked())
    assert latest.index == 0
    best = find_trained("best", asked(), metric="val/accuracy")
    assert best.id == PLAIN  # of equals the oldest
    assert find_run(PLAIN[:6], asked()).config.choices.model == "linear"
    assert find_sweep("latest", asked()).is_sweep
    images = np.zeros((2, 28, 28, 1), np.uint8)
    probabilities = np.asarray(best.load_model()(images))
    assert probabilities.shape == (2, 10)
    assert probabilities.sum(axis=1) == pytest.approx(1)


def test_predictions_and_texts_are_read_and_what_is_missing_is_named(store: Path) -> None:
    plain, failed = find_run(PLAIN, asked()), _failed()
    stored = plain.predictions()
    assert [*stored] == ["val", "test"]
    assert stored["test"].probabilities.shape == (200, 10)
    assert plain.has("class_report.txt")  # though its folder is not there any more
    assert not failed.has("predictions.npz")
    with pytest.raises(RequestError, match=f"run_id={failed.id}: the run has no predictions.npz"):
        failed.predictions()
    with pytest.raises(RequestError, match=f"run_id={failed.id} .FAILED. has saved no model"):
        failed.load_model()


def _failed() -> RecordedRun:
    [found] = find_runs(Query(status=(Status.FAILED,)), asked().tracking)
    return found


def test_compare_reads_the_experiment_the_sweep_and_two_runs(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for words in ([], ["compare.sweep=latest"], ["compare.runs=[f6a45f,0431899]"]):
        carried_out("compare", *ASKED, "compare.format=json", *words, folder=tmp_path)
        found.append(json.loads(capsys.readouterr().out))
    best, sweep, two = found
    assert (best["runs"], sweep["runs"], two["runs"]) == (3, 2, 2)
    [row] = best["rows"]
    assert row["n"] == 2  # the first job repeats the plain run
    assert two["pair"]["split"] == "validation"


@pytest.mark.parametrize(("run_id", "says"), [(PLAIN, "plain"), ("b82db56e", "failed")])
def test_reports_are_made_again(
    run_id: str, says: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried_out("report", *ASKED, f"run_id={run_id}", folder=tmp_path)
    assert says in (tmp_path / "report.html").read_text("utf-8")


def test_a_run_is_evaluated_again(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"run_id={PLAIN}", "evaluate.report=false")
    carried_out("evaluate", *ASKED, *words, folder=tmp_path)
    assert "val_accuracy=0.3667 test_accuracy=0.3550" in capsys.readouterr().out


def test_the_champion_predicts(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", np.zeros((3, 28, 28), np.uint8))
    words = (f"predict.images={tmp_path}/images.npy", f"predict.output={tmp_path}/found.csv")
    carried_out("predict", *ASKED, *words, folder=tmp_path)
    assert "images=3 skipped=0" in capsys.readouterr().out


def test_the_ledger_is_shown_and_the_champion_stays(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried_out("history", *ASKED, "history.format=json", folder=tmp_path)
    [line] = json.loads(capsys.readouterr().out)["entries"]
    assert (line["decision"], line["run_id"], line["reason"]) == ("forced", PLAIN, "a small store")
    carried_out("promote", *ASKED, "run_id=best", folder=tmp_path)
    assert f"run {PLAIN} is the champion already" in capsys.readouterr().out
    with pytest.raises(RequestError, match="there is nothing to go back to"):
        carried_out("rollback", *ASKED, folder=tmp_path)
