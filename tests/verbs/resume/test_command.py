from __future__ import annotations

import random
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from mlflow.entities import Run

from pipeline.config import trusted
from pipeline.config.schema import Config
from pipeline.data.load import load_data
from pipeline.run import run
from pipeline.system.errors import PipelineError, Pruned, RequestError
from pipeline.tracking import lineage
from pipeline.tracking.lifecycle import record
from pipeline.training import models, precision
from pipeline.training.build import build_model
from tests.commands import LEAN, begun, carried_out, configured, environment, inside, pipeline
from tests.stress.matrix import matrix, only_stressed, stressed, tally
from tests.system.test_folders import HOLD

pytestmark = pytest.mark.slow

EPOCHS = 4
# One of everything that a run leaves behind, drawn once.
ONE_EACH = ("train.plots=[accuracy]", "evaluate.plots=[confusion_matrix]")
SMALL = ("dataset=digits", "model=mlp", "model.hidden=[8]", f"train.epochs={EPOCHS}", *ONE_EACH)
EPOCH_METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


def client(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


def the_run(folder: Path) -> Run:
    """The newest run of the store."""
    found = client(folder)
    known = [e.experiment_id for e in found.search_experiments()]
    return found.search_runs(known, order_by=["attributes.start_time DESC"])[0]


def history(folder: Path, name: str) -> list[tuple[int, float]]:
    found = client(folder).get_metric_history(the_run(folder).info.run_id, name)
    return [(metric.step, metric.value) for metric in found]


def artifact(folder: Path, name: str) -> Path:
    return Path(the_run(folder).info.artifact_uri.removeprefix("file://"), name)


def assert_alike(folder: Path, whole: Path) -> None:
    """A resumed run is finished, complete, and to the last bit what the uninterrupted one is."""
    resumed, expected = the_run(folder), the_run(whole)
    assert resumed.info.status == "FINISHED"
    assert {"error", "traceback"} & resumed.data.tags.keys() == set()
    for name in EPOCH_METRICS:
        assert history(folder, name) == history(whole, name), name
    for name in resumed.data.metrics:
        steps = [step for step, _ in history(folder, name)]
        assert len(steps) == len(set(steps)), name
    assert resumed.data.metrics.keys() == expected.data.metrics.keys()
    test = [name for name in expected.data.metrics if name.startswith("test/")]
    assert test
    for name in (*test, "train/best_epoch"):
        assert resumed.data.metrics[name] == expected.data.metrics[name], name
    with (
        np.load(artifact(folder, "predictions.npz")) as one,
        np.load(artifact(whole, "predictions.npz")) as other,
    ):
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
    assert artefacts(folder) == artefacts(whole)


def artefacts(folder: Path) -> set[str]:
    """Their names; a TensorBoard log's are made of time and process."""
    root = artifact(folder, "")
    names = {path.relative_to(root).as_posix() for path in root.rglob("*")}
    return {name for name in names if "events.out" not in name and name != "code.patch"}


class PowerCut(Exception):
    pass


def cut_in(epoch: int, error: type[BaseException] = PowerCut) -> Callable[[int, Any], None]:
    """Ends a run when an epoch is logged and not yet kept."""

    def listen(now: int, metrics: Any) -> None:
        if now == epoch:
            raise error("in the middle")

    return listen


def interrupted(
    folder: Path, *overrides: str, at: int = 3, error: type[BaseException] = PowerCut
) -> Run:
    with inside(folder), pytest.raises(error):
        run(configured(*SMALL, *overrides), folder / "outputs", cut_in(at, error))
    return the_run(folder)


def resumed(folder: Path, *words: str) -> None:
    with inside(folder):
        carried_out("resume", "dataset=digits", "run_id=latest", *words, folder=folder / "log")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with inside(folder):
        run(configured(*SMALL), folder / "outputs")
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run that failed in its third epoch; refused requests leave it as it is."""
    folder = tmp_path_factory.mktemp("stopped")
    before = interrupted(folder)
    yield folder
    after = the_run(folder)
    assert (after.info.status, after.data.tags) == (before.info.status, before.data.tags)


@matrix(12)
def test_a_failed_run_goes_on_in_the_same_run_as_if_nothing_had_been(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = interrupted(tmp_path)
    assert before.info.status == "FAILED"
    assert "PowerCut: in the middle" in before.data.tags["error"]
    assert [step for step, _ in history(tmp_path, "val/loss")] == [1, 2, 3]
    resumed(tmp_path)
    said = capsys.readouterr().err
    assert f"resuming {before.info.run_name} ({before.info.run_id}) after 2 of 4 epochs" in said
    assert_alike(tmp_path, whole)
    after = the_run(tmp_path)
    assert after.info.run_id == before.info.run_id
    assert after.info.start_time == before.info.start_time
    assert after.data.params == before.data.params
    assert after.data.tags["command"] == before.data.tags["command"]
    assert after.data.tags["resumed.after_epoch"] == "2"
    assert after.data.metrics["time/total_s"] > after.data.metrics["time/train_s"] > 0
    assert len(after.inputs.dataset_inputs) == 1


def test_a_run_keeps_the_precision_that_auto_chose_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("dataset=digits", "model=cnn", "model.filters=[16]", "train.epochs=2", *LEAN)
    monkeypatch.setattr(precision, "processor_features", lambda: precision.MEASURED)
    with inside(tmp_path), pytest.raises(PowerCut):
        run(configured(*words, "train.precision=auto"), tmp_path / "outputs", cut_in(2))
    monkeypatch.setattr(precision, "processor_features", lambda: "")  # of the machine that resumes
    resumed(tmp_path)
    assert the_run(tmp_path).data.tags["precision.chosen"] == "bfloat16"
    with zipfile.ZipFile(tmp_path / "outputs" / "checkpoints" / "last.keras") as checkpoint:
        assert b"mixed_bfloat16" in checkpoint.read("config.json")


@only_stressed  # training/test_train.py interrupts a training twice
@matrix(12)
def test_a_run_may_be_interrupted_again(whole: Path, tmp_path: Path) -> None:
    interrupted(tmp_path, at=2, error=KeyboardInterrupt)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(
            sys.modules["pipeline.evaluation.evaluate"],
            "draw_training",
            lambda *_: cut_in(0)(0, {}),
        )
        resumed(tmp_path)
    assert the_run(tmp_path).info.status == "FAILED"
    resumed(tmp_path)
    assert_alike(tmp_path, whole)
    assert the_run(tmp_path).data.tags["resumed.after_epoch"] == "1, 4"


@pytest.mark.parametrize("died_in", [pytest.param("evaluate", marks=only_stressed), "save_model"])
def test_a_run_that_died_after_training_is_only_evaluated_and_saved(
    died_in: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {
        "evaluate": "pipeline.evaluation.evaluate",
        "save_model": "pipeline.tracking.recording",
    }
    place = sys.modules[modules[died_in]]
    with monkeypatch.context() as patch, inside(tmp_path), pytest.raises(PowerCut):
        patch.setattr(place, died_in, lambda *_, **__: cut_in(0)(0, {}))
        run(configured(*SMALL), tmp_path / "outputs")
    saved = [(tmp_path / "outputs/checkpoints/last.keras").stat().st_mtime_ns]
    resumed(tmp_path)
    saved.append((tmp_path / "outputs/checkpoints/last.keras").stat().st_mtime_ns)
    assert saved[0] == saved[1]
    assert_alike(tmp_path, whole)
    ended = the_run(tmp_path)
    models = client(tmp_path).search_logged_models([ended.info.experiment_id])
    assert [model.model_uri for model in models] == [ended.data.tags["model_uri"]]


def refused(folder: Path, reason: str, *words: str) -> None:
    with pytest.raises(RequestError, match=reason):
        resumed(folder, *words)


def test_a_finished_run_has_nothing_left_to_do(whole: Path) -> None:
    refused(whole, "experiment digits has no run that can be resumed")
    refused(whole, "is finished: there is nothing left", f"run_id={the_run(whole).info.run_id}")


def test_what_is_no_run_is_refused(stopped: Path) -> None:
    refused(
        stopped,
        "there is no such run in sqlite:///.*mlflow.db; .*tracking.uri",
        "run_id=0123456789abcdef0123456789abcdef",
    )
    refused(stopped, "say which run", "run_id=null")


def test_the_configuration_cannot_be_changed_on_the_way(stopped: Path) -> None:
    refused(stopped, "train.epochs=9: resume takes the configuration", "train.epochs=9")
    refused(stopped, "model=cnn: resume takes the configuration", "model=cnn")


def test_a_run_whose_teacher_is_gone_is_refused(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(config: Config) -> None:
        raise RequestError("train.teacher=abcd was deleted")

    monkeypatch.setattr("pipeline.verbs.resume.command.require_named_runs", gone)
    tags = the_run(stopped).data.tags
    refused(stopped, "train.teacher=abcd was deleted")
    assert the_run(stopped).data.tags == tags


def test_another_code_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        lineage, "code_state", lambda: lineage.Code(commit="fedcba", patch="+new\n")
    )
    refused(stopped, r"commit was .* and is fedcba; uncommitted changes .*\n.*force=true")


def test_another_library_is_refused_and_a_tool_is_not(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = lineage.environment()
    changed = re.sub(r"(?m)^(keras|pytest)==.*$", r"\1==0.1", now)
    monkeypatch.setattr(lineage, "environment", lambda: changed)
    refused(stopped, r"longer be the same run: keras was [\d.]+ and is 0.1\n")


@matrix(12)
def test_other_data_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.verbs.resume import command as module

    raw = module.ingest(configured("dataset=digits", f"data_dir={stopped}/data"))
    other = replace(raw, class_names=tuple("ABCDEFGHIJ"))
    monkeypatch.setattr(module, "ingest", lambda *_, **__: other)
    refused(stopped, "longer be the same run: data was")
    # Pictures may be the same, but in other groups.
    known, now = (replace(raw.identity, grouping=one * 64) for one in "ab")
    monkeypatch.setattr("pipeline.tracking.origin.identity_in", lambda _: known)
    monkeypatch.setattr(module, "ingest", lambda *_, **__: SimpleNamespace(identity=now))
    refused(stopped, "longer be the same run: the grouping of the pictures was a")


def test_other_pretrained_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(images: Any, classes: int, **_: Any) -> Any:
        x = keras.layers.Dense(4, name="features")(keras.layers.Flatten(name="flat")(images))
        return keras.layers.Dense(classes, activation="softmax", name="probabilities")(x)

    monkeypatch.setattr(models, "efficientnet_lite", wraps(models.efficientnet_lite)(network))
    words, file = ("dataset=digits", "model=efficientnet_lite0", *LEAN), tmp_path / "donor.keras"
    with inside(tmp_path):
        donor = configured(*words, "model.weights=null", "model.trainable=all")
        model = build_model(donor, load_data(donor))
        model.save(file)
        config = configured(*words, f"model.weights={file}", "train.epochs=2")
        with pytest.raises(PowerCut):
            run(config, tmp_path / "outputs", cut_in(2))
        model.get_layer("features").set_weights([np.zeros((64, 4)), np.zeros(4)])
        model.save(file)
    refused(tmp_path, "no longer be the same run: model.weights was .* and is")


def test_a_configuration_that_was_edited_is_refused(stopped: Path) -> None:
    path = stopped / "outputs/artifacts/config.yaml"
    text = path.read_text()
    path.write_text(text.replace(f"epochs: {EPOCHS}", "epochs: 9"))
    refused(stopped, f"train.epochs is 9, but the run had {EPOCHS}")
    path.write_text(text)


@pytest.fixture
def own_model() -> Iterator[str]:
    """The name of a module that a test makes and trusts, which is forgotten after it."""
    yield "nets"
    trusted.trust([])
    sys.modules.pop("nets", None)


def test_a_configuration_with_hidden_and_unset_secrets_is_the_one_that_was_recorded(
    own_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.verbs.resume import command as module

    values = {"api_token": None, "token_dim": 64, "password": 1234, "api_key": "not for others"}
    keys = ", ".join(f"{key}: object" for key in values)
    (tmp_path / f"{own_model}.py").write_text(f"def net(images, classes, *, {keys}): ...\n")
    monkeypatch.chdir(tmp_path)
    trust = f"trusted_modules=[{own_model}]"
    config = configured("dataset=digits", "model=linear", trust)
    config = replace(config, model={"_target_": f"{own_model}.net", **values})
    with inside(tmp_path), pytest.raises(PipelineError), record(config, tmp_path / "outputs"):
        raise PipelineError("no")
    monkeypatch.setattr(module, "newest_progress", lambda folder: None)
    monkeypatch.setattr(module, "ingest", lambda *_, **__: 1 / 0)  # the configuration was accepted
    params = the_run(tmp_path).data.params
    assert [params[f"model.{key}"] for key in values] == ["null", "64", "***", "***"]
    path = tmp_path / "outputs/artifacts/config.yaml"
    for password in ("'***'", "1234"):  # as recorded, and as in the user's own copy
        path.write_text(path.read_text().replace("password: '***'", f"password: {password}"))
        with pytest.raises(ZeroDivisionError):
            resumed(tmp_path, trust)


def test_a_run_at_which_a_process_is_at_work_is_refused(stopped: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(stopped / "outputs")],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        refused(stopped, "another process is at work there")
        other.kill()


def test_a_run_whose_folder_is_gone_or_anothers_is_refused(stopped: Path) -> None:
    folder = stopped / "outputs"
    folder.rename(stopped / "elsewhere")
    refused(stopped, "there is no such folder here")
    (stopped / "elsewhere").rename(folder)
    owner = (folder / "run_id").read_text()
    (folder / "run_id").write_text("another")
    refused(stopped, "is now that of another")
    (folder / "run_id").unlink()  # as if it had been killed before it wrote that
    refused(stopped, "was stopped as it began")
    (folder / "run_id").write_text(owner)


def test_a_run_without_a_checkpoint_a_sweep_and_a_pruned_job_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, at=1)
    refused(tmp_path, "there is no checkpoint; the run ended during its first epoch")
    interrupted(tmp_path, at=2, error=Pruned)
    pruned = the_run(tmp_path).info.run_id
    refused(tmp_path, "was ended by its sweep: in the middle", f"run_id={pruned}")
    searched = {"seed": "0,1"}
    with (
        inside(tmp_path),
        pytest.raises(PipelineError),
        record(configured(*SMALL), tmp_path / "sweep", searched=searched),
    ):
        raise PipelineError("no")
    refused(tmp_path, "is a sweep", f"run_id={the_run(tmp_path).info.run_id}")


def test_a_changed_code_may_be_let_pass_and_the_run_says_so(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, *LEAN)
    monkeypatch.setattr(lineage, "code_state", lambda: lineage.Code(commit="fedcba", patch=""))
    resumed(tmp_path, "resume.force=true")
    assert history(tmp_path, "val/loss") == history(whole, "val/loss")
    assert "and is fedcba" in the_run(tmp_path).data.tags["resumed.changed"]


LONG_EPOCHS = 30
LONG = (*SMALL[:3], f"train.epochs={LONG_EPOCHS}", *LEAN)


@matrix(9, 12)
def test_a_run_that_is_killed_at_any_moment_and_resumed_is_the_uninterrupted_run(
    tmp_path: Path,
) -> None:
    whole, moment, kills = tmp_path / "whole", random.Random(0), stressed(4, 2)
    whole.mkdir()
    assert pipeline(*LONG, cwd=whole).returncode == 0
    for number in range(stressed(10, 1)):
        broken, words = tmp_path / f"broken{number}", list(LONG)
        broken.mkdir()
        tally(kills)
        for _ in range(kills):
            with begun(*words, cwd=broken) as process:
                while "epoch " not in process.err.read_text():
                    assert process.poll() is None, process.err.read_text()
                    time.sleep(0.01)
                time.sleep(moment.uniform(0.0, 0.3))
            assert the_run(broken).info.status == "RUNNING"
            words = ["resume", "run_id=latest", "dataset=digits"]
        ended = pipeline(*words, cwd=broken)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith(f"run_id={the_run(broken).info.run_id} ")
        steps = [step for step, _ in history(broken, "val/loss")]
        assert steps == list(range(1, LONG_EPOCHS + 1))
        assert_alike(broken, whole)
