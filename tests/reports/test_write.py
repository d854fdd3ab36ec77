from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from pipeline.data.values import Predictions, Split
from pipeline.reports.write import bring_home, require_division, with_report
from pipeline.run import run
from pipeline.system.errors import RequestError
from pipeline.tracking.lifecycle import record
from pipeline.tracking.recording import Recording
from pipeline.verbs.evaluate import evaluate_recorded
from pipeline.verbs.train import train_without_test
from tests.commands import LEAN, carried_out, configured, inside

pytestmark = pytest.mark.slow

SMALL = ("dataset=digits", "model=linear", "train.epochs=2", "train.tensorboard=false")
SMALL += ("train.plots=[weights]",)


@dataclass(frozen=True)
class Trained:
    """A run whose test split was not evaluated, as `train` leaves it."""

    folder: Path
    run_id: str
    page: str

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def artifact(self, name: str) -> Path:
        uri = str(self.client.get_run(self.run_id).info.artifact_uri)
        return Path(uri.removeprefix("file://"), name)


def newest(folder: Path) -> mlflow.entities.Run:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    known = client.get_experiment_by_name("digits")
    return client.search_runs([known.experiment_id])[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("reported")
    with inside(folder):
        train_without_test(configured(*SMALL), folder / "outputs")
    made = Trained(folder=folder, run_id=newest(folder).info.run_id, page="")
    return Trained(
        folder=folder, run_id=made.run_id, page=made.artifact("report.html").read_text("utf-8")
    )


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page)


ALL = ["training", "classes", "confusion", "mistakes", "calibration", "weights"]
ALL += ["configuration", "lineage"]


def test_a_run_has_a_report_of_all_that_it_is_about_to_end_with(trained: Trained) -> None:
    assert sections(trained.page) == ALL
    found = trained.client.get_run(trained.run_id)
    assert found.info.run_name in trained.page
    assert found.data.tags["data.fingerprint"] in trained.page
    assert '<span class="status finished">' in trained.page
    assert "validation, epoch 2:" in trained.page
    assert "The test split was not evaluated" in trained.page
    assert found.data.metrics["time/report_s"] > 0


def test_evaluate_refreshes_the_report(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(trained.folder):
        # Settings of this command, not of the run.
        config = configured("dataset=digits", f"run_id={trained.run_id}", "evaluate.batch_size=77")
        evaluate_recorded(config, trained.folder / "evaluated")
    page = trained.artifact("report.html").read_text("utf-8")
    accuracy = trained.client.get_run(trained.run_id).data.metrics["test/accuracy"]
    assert f"{100 * accuracy:.2f}\N{NO-BREAK SPACE}%" in page
    assert sections(page) == ALL
    assert "was not evaluated" not in page
    assert "<dt>batch_size</dt><dd>1024</dd>" in page
    assert "<dd>77</dd>" not in page


def test_evaluate_without_a_report_leaves_the_link_to_the_one_that_there_is(
    trained: Trained,
) -> None:
    words = ("dataset=digits", f"run_id={trained.run_id}", "evaluate.report=false")
    with inside(trained.folder):
        evaluate_recorded(configured(*words), trained.folder / "bare")
    told = trained.client.get_run(trained.run_id).data.tags["mlflow.note.content"]
    assert trained.artifact("report.html").exists()
    assert re.search(r"\[report\.html\]\(.*report\.html\)", told)


def test_the_verb_builds_the_same_page_from_what_was_recorded(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(trained.folder):
        carried_out("report", "dataset=digits", "run_id=latest", folder=trained.folder / "again")
    written = trained.folder / "again" / "report.html"
    assert capsys.readouterr().out == f"{written}\n"
    again, recorded = written.read_text("utf-8"), trained.artifact("report.html").read_text("utf-8")

    def without_times(page: str) -> str:
        return re.sub(r'<p class="stages.*?</p>|<dt>duration.*?</dd>', "", page)

    assert without_times(again) == without_times(recorded)


def test_the_verb_explains_mistakes_and_shows_the_features_on_demand(trained: Trained) -> None:
    words = ("dataset=digits", f"run_id={trained.run_id}", "report.explain=true")
    with inside(trained.folder):
        carried_out("report", *words, folder=trained.folder / "explained")
    page = (trained.folder / "explained" / "report.html").read_text("utf-8")
    added = {"explained", "features"}
    assert [name for name in sections(page) if name not in added] == ALL
    assert added < {*sections(page)}
    assert page.count('<span class="map"') % 3 == 0
    assert page.count('<span class="map"') == 3 * min(12, page.count('<b class="bad">') // 2)
    points = re.findall(r'<circle (?:class="wrong" )?cx="([\d.]+)" cy="([\d.]+)" r="[57]"', page)
    assert 100 < len(points) <= 2000
    assert all(0 <= float(place) <= 1000 for point in points for place in point)


@pytest.mark.parametrize("run_id", ["null", "0123456789abcdef0123456789abcdef"])
def test_the_verb_refuses_a_run_that_is_not_there(run_id: str, trained: Trained) -> None:
    with inside(trained.folder), pytest.raises(RequestError, match="run_id"):
        carried_out("report", "dataset=digits", f"run_id={run_id}", folder=trained.folder / "none")


def test_a_run_whose_images_were_divided_in_another_way_is_refused() -> None:
    def labels(*values: int) -> Any:
        return SimpleNamespace(labels=np.array(values, np.int32))

    def asked(**stored: Any) -> None:
        run: Any = SimpleNamespace(label="mlp", has=lambda _: True, predictions=lambda: stored)
        require_division(run, here)

    here: Any = SimpleNamespace(splits={"val": labels(0, 1), "test": labels(1, 1, 0)})
    asked(val=labels(0, 1), test=labels(1, 1, 0))
    asked(test=labels(1, 1, 0))
    asked()
    with pytest.raises(RequestError, match="^run mlp: its validation images were divided in anoth"):
        asked(val=labels(0, 1, 1), test=labels(1, 1, 0))


def test_the_verb_refuses_other_data_than_the_run_had(trained: Trained) -> None:
    trained.client.set_tag(trained.run_id, "data.fingerprint", "f" * 64)
    with inside(trained.folder), pytest.raises(RequestError, match="not what the run used"):
        carried_out(
            "report", "dataset=digits", f"run_id={trained.run_id}", folder=trained.folder / "other"
        )


def test_a_run_that_wants_no_report_and_no_picture_of_weights_gets_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(tmp_path):
        run(configured(*SMALL, *LEAN), tmp_path / "outputs")
    assert not (tmp_path / "outputs" / "artifacts" / "report.html").exists()
    assert "time/report_s" not in newest(tmp_path).data.metrics


@pytest.mark.parametrize("wanted", [True, False])
def test_a_job_of_a_sweep_wants_no_report_of_itself(
    wanted: bool, trained: Trained, tmp_path: Path
) -> None:
    recording = Recording(id=trained.run_id, client=trained.client, folder=tmp_path)
    with with_report(recording, configured("dataset=digits"), wanted=wanted):
        pass
    assert (tmp_path / "artifacts" / "report.html").exists() is wanted


def test_the_report_of_a_run_that_fails_late_shows_its_predictions(
    trained: Trained, tmp_path: Path
) -> None:
    recording = Recording(id=trained.run_id, client=trained.client, folder=tmp_path)
    split = Split(images=np.zeros((2, 1, 1, 1), np.uint8), labels=np.array([0, 1], np.int32))
    sure = Predictions(
        split=split, probabilities=np.eye(2, dtype=np.float32), class_names=("zero", "one")
    )
    with (
        pytest.raises(ValueError, match="too late"),
        with_report(recording, configured("dataset=digits"), wanted=True),
    ):
        recording.save_predictions({"test": sure})
        raise ValueError("too late")
    page = (tmp_path / "artifacts" / "report.html").read_text("utf-8")
    assert {"classes", "confusion"} <= {*sections(page)}
    assert "ValueError: too late" in page


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(OSError("disk full"), "failed", "OSError: disk full"), (KeyboardInterrupt(), "killed", "C")],
)
def test_a_run_that_ends_badly_has_a_report_as_far_as_it_got(
    error: BaseException,
    status: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.data.values.Prepared.predictions", fail)
    with inside(tmp_path):
        with pytest.raises(type(error)):
            run(configured(*SMALL), tmp_path / "outputs")
        carried_out("report", "dataset=digits", "run_id=latest", folder=tmp_path / "again")
    ended = newest(tmp_path)
    assert ended.info.status == status.upper()
    recorded = Path(ended.info.artifact_uri.removeprefix("file://"), "report.html").read_text()
    for page in (recorded, (tmp_path / "again" / "report.html").read_text()):
        assert sections(page) == ["end", "training", "weights", "configuration", "lineage"]
        assert f'<span class="status {status}">' in page
        assert reason in page
        assert "after 2 epochs" in page


def test_a_report_that_fails_too_hides_neither_the_error_nor_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of the report")

    monkeypatch.setattr(sys.modules["pipeline.run"], "ingest", lambda *_, **__: {}["data"])
    monkeypatch.setattr("pipeline.reports.write.run_html", fail)
    with inside(tmp_path), pytest.raises(KeyError, match="data"):
        run(configured(*SMALL), tmp_path / "outputs")
    assert newest(tmp_path).data.tags["error"] == "KeyError: 'data'"


def test_a_store_that_failed_is_not_asked_again_for_a_report(
    trained: Trained, tmp_path: Path
) -> None:
    recording = Recording(id="of no run", client=trained.client, folder=tmp_path)
    with (
        pytest.raises(MlflowException, match="away"),
        with_report(recording, configured("dataset=digits"), wanted=True),
    ):
        raise MlflowException("the server is away")
    assert not (tmp_path / "artifacts").exists()


def test_the_verb_needs_no_model_and_takes_what_a_killed_run_left_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(tmp_path):
        without = ("tracking.log_model=false", "evaluate.report=false", "train.plots=[]")
        bare = configured(*SMALL, *without)
        run(bare, tmp_path / "outputs")
        found = newest(tmp_path)
        stored = Path(found.info.artifact_uri.removeprefix("file://"))
        assert not (stored / "report.html").exists()
        shutil.rmtree(stored)  # which only arrive when a run is closed
        carried_out("report", "dataset=digits", "run_id=latest", folder=tmp_path / "page")
        page = (tmp_path / "page" / "report.html").read_text()
        assert sections(page) == [name for name in ALL if name != "weights"]
        shutil.rmtree(tmp_path / "outputs")
        with pytest.raises(RequestError, match="the run has no config.yaml"):
            carried_out("report", "dataset=digits", "run_id=latest", folder=tmp_path / "page")


@pytest.mark.parametrize("words", [(), ("evaluate.report=false",)])
def test_what_a_killed_run_left_is_brought_home_with_a_report(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.data.values.Prepared.predictions", killed)
    with inside(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            run(configured(*SMALL, *words), tmp_path / "outputs")
        found = newest(tmp_path)
        stored = Path(found.info.artifact_uri.removeprefix("file://"))
        shutil.rmtree(stored)
        (tmp_path / "outputs" / "artifacts" / "report.html").unlink(missing_ok=True)
        bring_home(configured("dataset=digits"), found.info.run_id)
        assert (stored / "config.yaml").exists()
        assert (stored / "report.html").exists() is (not words)
        shutil.rmtree(stored)
        shutil.rmtree(tmp_path / "outputs")
        bring_home(configured("dataset=digits"), found.info.run_id)  # it was on another machine
        assert not stored.exists()


def test_the_verb_points_from_a_sweep_to_its_jobs(tmp_path: Path) -> None:
    with inside(tmp_path):
        with record(configured("dataset=digits"), tmp_path / "sweep", searched={}) as recording:
            pass
        words = ("dataset=digits", f"run_id={recording.id}")
        with pytest.raises(RequestError, match=f"is a sweep; `compare sweep={recording.id}`"):
            carried_out("report", *words, folder=tmp_path / "page")
