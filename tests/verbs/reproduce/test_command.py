from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from mlflow.entities import Run

from pipeline.config.schema import Config
from pipeline.config.sweep import JobSettings
from pipeline.data.values import Identity
from pipeline.run import run
from pipeline.sweeps.one_job import run_one
from pipeline.system.errors import PipelineError, RequestError
from pipeline.tracking import lineage
from pipeline.tracking.client import connect
from pipeline.tracking.delivery import send_journal
from pipeline.tracking.lifecycle import record
from pipeline.tracking.values import StoredPredictions
from pipeline.training import precision
from pipeline.training.train import train
from pipeline.verbs.reproduce.command import MetricPair, Verdict, paired, verdict_on
from tests.commands import LEAN, carried_out, configured, inside
from tests.stores import Switch, wait_briefly

SMALL = ("dataset=digits", "model=linear", "train.epochs=2", "seed=4", *LEAN)
NAN = float("nan")


def predictions(*probabilities: float, split: str = "val") -> dict[str, StoredPredictions]:
    names = tuple(map(str, range(len(probabilities))))
    rows = np.array([probabilities], np.float32)
    labels = np.zeros(1, np.int32)
    return {split: StoredPredictions(labels=labels, probabilities=rows, class_names=names)}


def pair(name: str, then: float, now: float) -> MetricPair:
    return MetricPair(name=name, then=then, now=now)


def test_equal_bits_are_identical_whatever_the_tolerance() -> None:
    one = predictions(0.25, 0.75)
    assert verdict_on(one, predictions(0.25, 0.75), [], tolerance=0) is Verdict.IDENTICAL
    assert verdict_on(one, predictions(0.25, 0.75 + 1e-7), [], tolerance=0) is Verdict.WITHIN


def test_a_split_that_only_one_of_them_was_evaluated_on_is_no_identity() -> None:
    more = predictions(0.5) | predictions(0.5, split="test")
    assert verdict_on(predictions(0.5), more, [], tolerance=0) is Verdict.WITHIN


@pytest.mark.parametrize(
    ("name", "now", "expected"),
    [
        ("test/accuracy", 0.81, Verdict.WITHIN),
        ("test/accuracy", 0.82, Verdict.NOT),
        ("train/loss", 0.78, Verdict.NOT),
        ("train/loss", NAN, Verdict.NOT),
        ("test/accuracy_shirt", 0.2, Verdict.WITHIN),  # of a tenth of the images: mostly noise
    ],
)
def test_accuracies_and_losses_of_whole_splits_decide(
    name: str, now: float, expected: Verdict
) -> None:
    pairs = [pair(name, 0.8, now)]
    assert verdict_on(predictions(0.1), predictions(0.2), pairs, tolerance=0.0101) is expected


def test_metrics_of_the_splits_are_paired_decisive_ones_first() -> None:
    then = {"test/ece": 0.1, "test/accuracy": 0.5, "train/loss": 2.0, "time/total_s": 9.0}
    pairs = paired(then, {"test/accuracy": 0.75, "val/loss": 1.0})
    assert [found.name for found in pairs] == [
        "train/loss",
        "val/loss",
        "test/accuracy",
        "test/ece",
    ]
    assert [found.difference for found in pairs][2] == 0.25
    assert np.isnan([found.difference for found in pairs][:2]).all()


def client(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


def newest(folder: Path) -> Run:
    found = client(folder)
    known = [experiment.experiment_id for experiment in found.search_experiments()]
    return found.search_runs(known, order_by=["attributes.start_time DESC"])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with one recorded run in its store."""
    made = tmp_path_factory.mktemp("reproduce")
    with inside(made):
        run(configured(*SMALL), made / "first")
        yield made


@pytest.fixture(scope="module")
def first(folder: Path) -> str:
    return newest(folder).info.run_id


@pytest.mark.slow
def test_a_rerun_is_bit_identical_and_linked_to_the_run(
    folder: Path, first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried_out("reproduce", "dataset=digits", "run_id=latest", folder=tmp_path)
    again = newest(folder)
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == (
        f"reproduces={first} run_id={again.info.run_id} verdict=bit-identical"
    )
    assert "Code, environment, data and hardware are unchanged." in out
    assert "test/accuracy" in out
    assert "test/precision_1" not in out  # nobody reads dozens of equal numbers
    assert "further metrics of the splits are equal" in out
    assert (tmp_path / "tensorflow.log").exists()
    assert again.info.run_id != first
    assert (again.data.tags["reproduces"], again.data.tags["reproduction"]) == (
        first,
        "bit-identical",
    )
    assert again.data.params == client(folder).get_run(first).data.params
    carried_out("reproduce", "dataset=digits", "run_id=latest", folder=tmp_path)
    assert newest(folder).data.tags["reproduces"] == first  # latest is never a rerun itself


@pytest.mark.slow
def test_a_rerun_computes_in_the_precision_that_auto_chose_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("dataset=digits", "model=cnn", "model.filters=[16]", "train.epochs=1", *LEAN)
    monkeypatch.setattr(precision, "processor_features", lambda: "")
    with inside(tmp_path):
        run(configured(*words, "train.precision=auto"), tmp_path / "first")
        assert newest(tmp_path).data.tags["precision.chosen"] == "float32"
        monkeypatch.setattr(precision, "processor_features", lambda: precision.MEASURED)
        carried_out("reproduce", "dataset=digits", "run_id=latest", folder=tmp_path / "log")
    again = newest(tmp_path).data
    assert again.params["train.precision"] == "float32"
    assert again.tags["reproduction"] == "bit-identical"


@pytest.mark.slow
def test_a_rerun_whose_store_went_away_is_judged_all_the_same_and_its_verdict_sent_with_it(
    folder: Path,
    first: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wait_briefly(monkeypatch)
    switch = Switch(monkeypatch)

    def and_gone(*given: Any, **named: Any) -> Any:
        fitted = train(*given, **named)
        switch.is_away = True
        return fitted

    monkeypatch.setattr(sys.modules["pipeline.run"], "train", and_gone)
    carried_out("reproduce", "dataset=digits", f"run_id={first}", folder=tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].endswith(" verdict=bit-identical")
    switch.is_away = False
    sent = send_journal(connect(None), tmp_path)
    again = newest(folder)
    assert (again.info.run_id, again.info.status) == (sent.run_id, "FINISHED")
    assert again.data.tags["reproduction"] == "bit-identical"


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", ["0", "10"])
def test_a_rerun_that_comes_out_otherwise_is_judged_by_the_tolerance(
    tolerance: str,
    folder: Path,
    first: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seeded = keras.utils.set_random_seed
    monkeypatch.setattr(keras.utils, "set_random_seed", lambda seed: seeded(seed + 1))
    monkeypatch.setattr(lineage, "code_state", lambda: lineage.Code(commit="fedcba", patch="+1\n"))
    words = ("dataset=digits", f"run_id={first}", f"reproduce.tolerance={tolerance}")
    if tolerance == "0":
        with pytest.raises(PipelineError, match=f"{first} was not reproduced: .* was .* and is"):
            carried_out("reproduce", *words, folder=tmp_path)
    else:
        carried_out("reproduce", *words, folder=tmp_path)
    tags, out = newest(folder).data.tags, capsys.readouterr().out
    assert tags["reproduction"] == ("not reproduced" if tolerance == "0" else "within tolerance")
    assert "commit was" in tags["reproduction.changed"]
    assert "fedcba" in out
    assert "git checkout" in out


@pytest.mark.slow
def test_a_rerun_goes_where_the_experiment_keeps_its_artefacts_whatever_that_is_called_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.verbs.reproduce import command as module

    repeated: list[Config] = []
    monkeypatch.setattr(module.RecordedRun, "predictions", lambda self: predictions(0.5))
    data = SimpleNamespace(identity=Identity(fingerprint="f"))
    monkeypatch.setattr(module, "ingest", lambda *_, **__: data)
    monkeypatch.setattr(
        module,
        "import_slow",
        lambda name: SimpleNamespace(run=lambda config, *_, **__: repeated.append(config) or 1 / 0),
    )
    words = (f"tracking.artifact_root={tmp_path}/kept", "tracking.experiment=first")
    with inside(tmp_path):
        with record(configured(*SMALL, *words), tmp_path / "run") as recording:
            pass
        run_id, store = recording.id, client(tmp_path)
        store.rename_experiment(store.get_experiment_by_name("first").experiment_id, "second")
        with pytest.raises(ZeroDivisionError):
            carried_out("reproduce", "dataset=digits", f"run_id={run_id}", folder=tmp_path)
    [again] = repeated
    assert (again.tracking.experiment, again.tracking.artifact_root) == ("second", None)


@pytest.mark.slow
def test_a_job_of_a_sweep_is_repeated_as_a_run_of_its_own_on_the_splits_it_was_evaluated_on(
    folder: Path, first: str, tmp_path: Path
) -> None:
    config = configured(*SMALL, "tracking.log_model=false")
    told = dict.fromkeys(vars(config.sweep.job)) | {"parent": first, "index": 3}
    job = JobSettings(**told | {"command": "python -m pipeline seed=4"})
    run_one(replace(config, sweep=replace(config.sweep, job=job)), tmp_path / "job")
    child = newest(folder)
    assert child.data.tags["mlflow.parentRunId"] == first
    carried_out(
        "reproduce", "dataset=digits", f"run_id={child.info.run_id}", folder=tmp_path / "again"
    )
    again = newest(folder).data
    assert "mlflow.parentRunId" not in again.tags
    assert (again.tags["reproduces"], again.tags["reproduction"]) == (
        child.info.run_id,
        "bit-identical",
    )
    assert "test/accuracy" not in again.metrics


@pytest.mark.slow
def test_each_package_whose_version_differs_is_named(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = lineage.environment()
    header, *lines = recorded.splitlines()
    kept = [line for line in lines if not line.startswith(("numpy==", "rich=="))]
    now = "\n".join([header, *kept, "numpy==9.9.9", "zebra==1.0"])
    monkeypatch.setattr(lineage, "environment", lambda: now)
    carried_out("reproduce", "dataset=digits", f"run_id={first}", folder=tmp_path)
    told = newest(Path.cwd()).data.tags["reproduction.changed"]
    numpy, rich = (version(name) for name in ("numpy", "rich"))
    assert told == (
        f"numpy was {numpy} and is 9.9.9; rich was {rich} and is none; zebra was none and is 1.0"
    )
    assert "environment" in capsys.readouterr().out


@pytest.mark.slow
def test_what_has_no_result_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused(reason: str, *words: str) -> None:
        with pytest.raises(RequestError, match=reason):
            carried_out("reproduce", "dataset=digits", *words, folder=tmp_path)

    refused("say which run")
    refused("no such run", "run_id=0123456789abcdef0123456789abcdef")
    refused("seed=3: reproduce takes the configuration", "run_id=latest", "seed=3")
    with pytest.raises(ZeroDivisionError), record(configured(*SMALL), tmp_path / "failed"):
        1 / 0  # noqa: B018
    failed = newest(folder).info.run_id
    refused(f"is FAILED .* resume run_id={failed}", f"run_id={failed}")
    with record(configured(*SMALL), tmp_path / "sweep", searched={"seed": "0,1"}):
        pass
    refused("is a sweep; reproduce one of its jobs", f"run_id={newest(folder).info.run_id}")
