"""The verb on a store of runs that were never trained: what it reads, asks for, prints, writes."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from sqlalchemy.orm import Session

from pipeline.system.errors import RequestError
from pipeline.tracking.client import connect, experiment
from pipeline.verbs.compare import command
from pipeline.verbs.compare.command import MOST_READ
from tests.commands import carried_out, inside, pipeline, unread

pytestmark = pytest.mark.slow

IMAGES = 300
LABELS = np.tile(np.arange(3, dtype=np.int32), IMAGES // 3)


class Store:
    """Makes runs as `run` and a sweep record them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = connect(None)
        self.experiment = experiment(self.client, "synthetic")
        self.sweep = self.client.create_run(
            self.experiment, tags={"sweep.folder": str(folder)}
        ).info.run_id
        self.client.set_terminated(self.sweep)

    def add(
        self,
        right: int,
        *,
        rate: str,
        seed: int = 0,
        status: str = "FINISHED",
        kept: float | None = None,
    ) -> str:
        run = self.client.create_run(self.experiment, run_name=f"{rate}-{seed}")
        self.client.log_batch(
            run.info.run_id,
            [Metric("val/accuracy", right / IMAGES, int(time.time() * 1000), 1)]
            + ([] if kept is None else [Metric("kept/val/accuracy", kept, 1, 1)]),
            [Param("optimizer.learning_rate", rate), Param("seed", str(seed))],
            [RunTag("data.fingerprint", "f" * 64), RunTag("mlflow.parentRunId", self.sweep)],
        )
        path = Path(run.info.artifact_uri.removeprefix("file://")) / "predictions.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        wrong = np.where(np.arange(IMAGES) < right, 0, 1)
        probabilities = np.eye(3, dtype=np.float32)[(LABELS + wrong) % 3]
        np.savez(
            path,
            test_labels=LABELS,
            test_probs=probabilities,
            val_labels=LABELS,
            val_probs=probabilities,
        )
        self.client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with inside(tmp_path_factory.mktemp("compare")) as folder:
        made = Store(folder)
        for seed in range(3):
            made.add(200 + seed, rate="0.1", seed=seed)
            made.add(250 + seed, rate="0.2", seed=seed)
        made.add(299, rate="0.3", status="FAILED")
        yield made


@pytest.fixture
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Runs with metrics of other names than the pipeline's own."""
    with inside(tmp_path_factory.mktemp("measured")) as folder:
        made = Store(folder)
        for number in range(1, 5):
            run = made.add(200, rate=f"0.{number}")
            made.client.log_metric(run, "test/brier", number / 10)
            made.client.log_metric(run, "test/fairness", number)
        yield made


def compared(folder: Path, *words: str) -> Any:
    asked = [f"compare.{word}" for word in words]
    return carried_out("compare", "dataset=synthetic", *asked, folder=folder)


def as_json(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> dict[str, Any]:
    compared(folder, "format=json", *words)
    return json.loads(capsys.readouterr().out)


def ids(store: Store, *names: str) -> list[str]:
    runs = store.client.search_runs([store.experiment])
    by_name = {run.info.run_name: run.info.run_id for run in runs}
    return [by_name[name] for name in names]


def test_the_best_finished_runs_fold_by_seed_and_the_sweeps_own_run_is_none_of_them(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, tmp_path)
    assert found["runs"] == 6
    assert [row["n"] for row in found["rows"]] == [3, 3]
    assert found["differing"] == ["optimizer.learning_rate"]
    best = found["rows"][0]
    assert best["differing"] == {"optimizer.learning_rate": "0.2"}
    assert best["metrics"]["val/accuracy"]["value"] == pytest.approx(251 / 300)
    assert best["metrics"]["val/accuracy"]["sd"] == pytest.approx(1 / 300)
    assert "is significant" in found["verdict"]


def test_a_metric_that_is_better_when_low_calls_the_lowest_run_the_best(
    measured: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, tmp_path, "metric=test/brier", "top=1")
    assert found["rows"][0]["metrics"]["test/brier"]["value"] == 0.1
    assert found["lower_is_better"] is True


@pytest.mark.parametrize("words", [(), ("sweep=latest",)])
def test_a_metric_whose_direction_is_not_known_is_not_ranked_without_one(
    measured: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(RequestError, match="metric=test/fairness: it is not known .* direction="):
        compared(tmp_path, "metric=test/fairness", *words)
    for direction, best in (("minimize", 1.0), ("maximize", 4.0)):
        found = as_json(capsys, tmp_path, "metric=test/fairness", f"direction={direction}", *words)
        assert found["rows"][0]["metrics"]["test/fairness"]["value"] == best


def test_a_direction_that_contradicts_the_metric_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="direction=minimize: higher values of val/accuracy"):
        compared(tmp_path, "direction=minimize")


def test_intervals_wider_than_the_resamples_reach_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="resamples=199: 99% intervals need resamples=200"):
        compared(tmp_path, "confidence=0.99", "resamples=199")
    compared(tmp_path, "confidence=0.99", "resamples=200")


def test_top_takes_so_many_of_the_best(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, tmp_path, "top=2")
    assert [row["name"] for row in found["rows"]] == ["0.2-2", "0.2-1"]


def test_two_named_runs_are_paired_on_their_test_images(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = ids(store, "0.1-0", "0.2-0")
    # In quotes: an id of digits and one e would be a number.
    found = as_json(capsys, tmp_path, f"runs=['{one[:12]}','{other}']")
    assert [row["run_ids"] for row in found["rows"]] == [[one], [other]]
    assert found["pair"]["test"]["only_first"] == 0
    assert found["pair"]["test"]["only_second"] == 50
    assert found["pair"]["split"] == "test"
    assert found["pair"]["is_noise"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "classes.png",
        "compare.html",
        "compare.png",
    ]


def test_a_sweep_gets_page_and_picture_into_its_own_run(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(tmp_path, "sweep=latest")
    printed = capsys.readouterr().out
    assert f"6 jobs of sweep {store.sweep} (1 did not finish)" in printed
    assert "The difference is significant: the first is better." in printed
    logged = [file.path for file in store.client.list_artifacts(store.sweep, "compare")]
    assert logged == ["compare/compare.html", "compare/compare.png"]


def denied(*_: Any, **__: Any) -> None:
    raise MlflowException("only READ", error_code=PERMISSION_DENIED)


def read_only(*_: Any, **__: Any) -> None:
    raise PermissionError(13, "Permission denied", "mlartifacts")


@pytest.mark.parametrize(
    ("refused", "said"), [(denied, "only READ"), (read_only, "Permission denied")]
)
def test_a_sweep_that_cannot_be_written_to_is_compared_all_the_same(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    refused: Any,
    said: str,
) -> None:
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refused)
    compared(tmp_path, "sweep=latest")
    assert f"6 jobs of sweep {store.sweep}" in capsys.readouterr().out
    assert f"not in the sweep's own run {store.sweep}: " in caplog.text
    assert said in caplog.text


def test_a_sweep_whose_artefacts_get_no_answer_is_compared_all_the_same(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    waiting, ended = queue.SimpleQueue[threading.Thread](), threading.Event()

    def silent(*_: Any, **__: Any) -> None:
        waiting.put(threading.current_thread())
        ended.wait()
        denied()  # so that the thread does not try again

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", silent)
    monkeypatch.setattr(command, "LOGGED_S", 0.2)
    try:
        compared(tmp_path, "sweep=latest")
    finally:
        ended.set()
    waiting.get(timeout=60).join()
    assert f"6 jobs of sweep {store.sweep}" in capsys.readouterr().out
    assert f"not in the sweep's own run {store.sweep}: no answer within 0.2 s" in caplog.text


def test_the_page_asks_nothing_of_the_network(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(tmp_path)
    page = (tmp_path / "compare.html").read_text()
    assert "learning_rate=0.2" in page
    assert "data:image/png;base64," in page
    assert "://" not in page
    assert (tmp_path / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_many_runs_take_one_search_and_no_request_for_any_of_them(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(MOST_READ + 1):
        store.add(100, rate=f"many{number}")
    asked_for: list[str] = []

    def noted(name: str, real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            asked_for.append(name)
            return real(*args, **more)

        return call

    for name in ("search_runs", "get_run", "get_metric_history", "list_artifacts"):
        real = getattr(mlflow.MlflowClient, name)
        monkeypatch.setattr(mlflow.MlflowClient, name, noted(name, real))
    monkeypatch.setattr(
        mlflow.artifacts,
        "download_artifacts",
        noted("download", mlflow.artifacts.download_artifacts),
    )
    found = as_json(capsys, tmp_path, "top=1000")
    assert found["runs"] == 6 + MOST_READ + 1
    assert asked_for == ["search_runs"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["runs=[abcd]"], ["two runs or more"]),
        (["runs=[ffff,eeee]"], ["runs=ffff: there is no such run"]),
        (["runs=[abc,eeee]"], ["runs=abc: there is no such run", "the first 4 characters of it"]),
        (["sweep=ffff"], ["sweep=ffff: there is no such sweep"]),
        (["metric=val/acuracy"], ["metric=val/acuracy", "mean val/accuracy? choose one of val/a"]),
        (["sweep=latest", "metric=val/acuracy"], ["none of the runs has it", "mean val/accuracy?"]),
    ],
)
def test_what_cannot_be_compared_is_said(
    store: Store, tmp_path: Path, words: Sequence[str], parts: Sequence[str]
) -> None:
    with pytest.raises(RequestError) as refused:
        compared(tmp_path, *words)
    for part in parts:
        assert part in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_search_leaves_what_it_read_alone_and_later_transactions_as_they_were(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    real = Session.commit

    def noted(session: Session) -> None:
        kept.append(session.expire_on_commit)
        real(session)

    monkeypatch.setattr(Session, "commit", noted)
    compared(tmp_path, "top=2")
    assert False in kept
    kept.clear()
    store.client.search_runs([store.experiment], max_results=1)
    assert kept
    assert all(kept)


def test_the_command_line_prints_one_json_document_and_nothing_else(store: Store) -> None:
    uri = f"tracking.uri=sqlite:///{store.folder}/mlflow.db"
    ended = pipeline("compare", "dataset=synthetic", uri, "top=3", "format=json", cwd=store.folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["runs"] == 3


def test_the_page_is_written_although_nobody_reads_the_table(store: Store, tmp_path: Path) -> None:
    uri = f"tracking.uri=sqlite:///{store.folder}/mlflow.db"
    ended = unread("compare", "dataset=synthetic", uri, "top=3", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (141, "")
    [page] = tmp_path.glob("outputs/*/*/compare.html")
    assert page.read_text().endswith("</html>")


def test_the_best_are_those_whose_kept_epoch_is_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.verbs.compare.command.MOST_READ", 0)
    with inside(tmp_path / "kept"):
        store = Store(tmp_path / "kept")
        store.add(290, rate="0.1", kept=0.5)
        store.add(200, rate="0.2", kept=0.6)
        found = as_json(capsys, tmp_path, "top=1")
    [best] = found["rows"]
    assert best["differing"] == {}
    assert best["metrics"]["val/accuracy"]["value"] == pytest.approx(0.6)


def test_a_run_of_before_there_was_kept_counts_by_its_last_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.verbs.compare.command.MOST_READ", 0)
    with inside(tmp_path / "old"):
        store = Store(tmp_path / "old")
        store.add(290, rate="0.1", kept=0.5)
        store.add(200, rate="0.2", kept=0.6)
        store.add(240, rate="0.3")
        one = as_json(capsys, tmp_path, "top=1")
        three = as_json(capsys, tmp_path, "top=3")
    assert [row["name"] for row in one["rows"]] == ["0.3-0"]
    assert [row["differing"]["optimizer.learning_rate"] for row in three["rows"]] == [
        "0.3",
        "0.2",
        "0.1",
    ]


def test_of_two_runs_each_package_that_differs_is_named(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ids(store, "0.1-0", "0.2-0")
    header = "# Python 3.11.7 on Linux\nkeras==3.15.1\n"
    texts = (f"{header}attrs==25.1\nrich==14.0\n", f"{header}attrs==26.1\nzstd==1.0\n")
    for run_id, text in zip(pair, texts, strict=True):
        store.client.log_text(run_id, text, "environment.txt")
    named = f"runs=[{','.join(pair)}]"
    expected = "attrs 25.1 → 26.1; rich 14.0 → none; zstd none → 1.0."
    assert (
        f"Installed packages also differ: {expected}" in (as_json(capsys, tmp_path, named)["notes"])
    )
    other = f"runs=[{','.join([pair[0], *ids(store, '0.1-1')])}]"  # which has no environment.txt
    assert "packages" not in " ".join(as_json(capsys, tmp_path, other)["notes"])
