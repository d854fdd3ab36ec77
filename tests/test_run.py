from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
import yaml
from mlflow.entities import Run

from pipeline.config.schema import Config, validate
from pipeline.data.load import ingest, load_data
from pipeline.data.values import Predictions, Prepared, RawData, Split
from pipeline.run import complete, run
from pipeline.system.errors import RequestError
from pipeline.tracking.recording import reopen
from pipeline.verbs.evaluate import evaluate_recorded
from pipeline.verbs.train import train_without_test
from tests.commands import LEAN, ROOT, configured, inside, pipeline, results
from tests.stress.matrix import matrix

pytestmark = pytest.mark.slow

EPOCHS = 3
OVERRIDES = ("dataset=synthetic", "model=linear", f"train.epochs={EPOCHS}", "seed=5")
SPLIT_ARRAYS = ["val_labels", "val_probs", "test_labels", "test_probs"]
PLOTS = "accuracy confusion_matrix loss mistakes per_class_scores reliability weights"


@dataclass(frozen=True)
class Ended:
    """A run as a user would find it afterwards."""

    folder: Path
    said: dict[str, str]
    config: Config

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    @property
    def run(self) -> Run:
        return self.client.get_run(self.said["run_id"])

    def artifact(self, name: str) -> Path:
        return Path(self.run.info.artifact_uri.removeprefix("file://"), name)


def finished(
    folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str, story: object = run
) -> Ended:
    config = configured(*overrides)
    with inside(folder):
        print(story(config, folder / "outputs"))  # type: ignore[operator]
    return Ended(folder=folder, said=results(capsys.readouterr().out), config=config)


def recorded(folder: Path, *more: str) -> Ended:
    """A run of the command line."""
    done = pipeline(*OVERRIDES, *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Ended(folder=folder, said=results(done.stdout), config=configured(*OVERRIDES))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """One recorded run, read by most tests of this file and changed by none."""
    return recorded(tmp_path_factory.mktemp("run"))


def test_the_last_line_names_the_run_its_accuracies_and_its_model(ended: Ended) -> None:
    assert list(ended.said) == ["run_id", "val_accuracy", "test_accuracy", "model_uri"]
    metrics = ended.run.data.metrics
    assert ended.said["test_accuracy"] == f"{metrics['test/accuracy']:.4f}"
    assert ended.said["val_accuracy"] == f"{metrics['val/accuracy']:.4f}"
    assert ended.said["model_uri"] == ended.run.data.tags["model_uri"]


def test_the_run_is_finished_in_the_experiment_of_the_dataset(ended: Ended) -> None:
    experiment = ended.client.get_experiment(ended.run.info.experiment_id)
    assert (ended.run.info.status, experiment.name) == ("FINISHED", "synthetic")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert Path(experiment.artifact_location.removeprefix("file://")) == (
        ended.folder / "mlartifacts/synthetic"
    )


def test_every_leaf_that_results_depend_on_is_a_parameter_and_nothing_else(ended: Ended) -> None:
    leaves = {
        f"{group}.{key}"
        for group, values in asdict(ended.config).items()
        if isinstance(values, dict) and group not in ("tracking", "sweep", "choices", "ingest")
        for key in values
        if key != "_target_"
    }
    params = ended.run.data.params
    assert params.keys() == leaves | {"seed"}
    assert params["optimizer.learning_rate"] == "0.001"
    assert (params["seed"], params["train.epochs"]) == ("5", "3")
    assert params["train.patience"] == "null"
    assert params["dataset.image_shape"] == "[28, 28, 1]"


def test_the_choices_are_tags(ended: Ended) -> None:
    tags = ended.run.data.tags
    assert {key: tags[key] for key in asdict(ended.config.choices)} == {
        "dataset": "synthetic",
        "preprocess": "small",
        "augment": "none",
        "model": "linear",
        "optimizer": "adam",
        "schedule": "constant",
        "train": "default",
        "evaluate": "default",
    }


def test_code_versions_and_hardware_are_tags(ended: Ended) -> None:
    tags = ended.run.data.tags
    assert tags["version.mlflow"] == mlflow.__version__
    assert {"version.python", "version.tensorflow", "version.keras"} <= tags.keys()
    assert {"hardware.cpu", "hardware.cores", "hardware.host", "hardware.memory_gb"} <= tags.keys()
    assert tags["command"] == f"python -m pipeline {' '.join(OVERRIDES)}"
    assert (tags.get("code.dirty") == "true") == ended.artifact("code.patch").exists()


@pytest.mark.parametrize("metric", ["train/loss", "train/accuracy", "val/loss", "val/accuracy"])
def test_an_epoch_metric_has_one_value_for_each_epoch_from_1(metric: str, ended: Ended) -> None:
    history = ended.client.get_metric_history(ended.said["run_id"], metric)
    assert [value.step for value in history] == [1, 2, 3]


def test_the_metrics_of_the_contract_are_logged(ended: Ended) -> None:
    metrics = ended.run.data.metrics
    assert {
        *("test/loss", "test/accuracy", "test/macro_f1", "test/ece"),
        *(
            f"time/{stage}_s"
            for stage in ["ingest", "preprocess", "train", "evaluate", "save", "total"]
        ),
        "time/images_per_s",
    } <= metrics.keys()
    assert not [name for name in metrics if "class_0" in name]  # a table has those
    assert not [name for name in metrics if "/views/" in name]  # `evaluate.views` asks for those
    assert metrics["model/parameters"] == 28 * 28 * 10 + 10
    assert metrics["model/activations"] == 28 * 28 + 28 * 28 + 10  # scaling, flatten, output
    assert metrics["model/training_memory_mb"] > 0
    stages = sum(metrics[f"time/{stage}_s"] for stage in ["ingest", "preprocess", "train"])
    assert metrics["time/total_s"] >= stages


def test_the_artefacts_of_the_contract_are_there(ended: Ended) -> None:
    found = {p.relative_to(ended.artifact("")).as_posix() for p in ended.artifact("").rglob("*")}
    assert {f"plots/{name}.png" for name in PLOTS.split()} == {
        name for name in found if name.startswith("plots/")
    }
    assert {
        *("config.yaml", "model_summary.txt", "predictions.npz", "environment.txt"),
        *(
            "class_report.txt",
            "class_scores.csv",
            "data.txt",
            "tensorboard/train",
            "tensorboard/validation",
        ),
    } <= found
    for name in PLOTS.split():
        assert ended.artifact(f"plots/{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_environment_txt_names_every_library(ended: Ended) -> None:
    lines = ended.artifact("environment.txt").read_text().splitlines()
    assert lines[0].startswith("# Python 3.")
    assert f"mlflow=={mlflow.__version__}" in lines


def test_the_recorded_configuration_validates_and_is_the_one_that_ran(ended: Ended) -> None:
    recorded = validate(yaml.safe_load(ended.artifact("config.yaml").read_text()))
    assert recorded == ended.config


def test_the_dataset_is_an_input_with_a_digest_of_all_of_it(ended: Ended) -> None:
    [logged] = ended.run.inputs.dataset_inputs
    fingerprint = ended.run.data.tags["data.fingerprint"]
    raw = ingest(replace(ended.config, data_dir=str(ended.folder / "data")))
    assert fingerprint == raw.fingerprint
    assert (logged.dataset.name, logged.dataset.digest) == ("synthetic", fingerprint[:36])
    assert len(fingerprint) == hashlib.sha256().digest_size * 2
    assert fingerprint in logged.dataset.source
    source = mlflow.data.get_source(logged)
    assert source.to_dict()["tags"] == {"mlflow.source.name": "generated from dataset.seed"}


def test_the_model_is_named_and_has_the_figures_of_its_run(ended: Ended) -> None:
    model = ended.client.get_logged_model(ended.said["model_uri"].removeprefix("models:/"))
    assert (model.name, str(model.status)) == ("synthetic-linear", "READY")
    assert model.params["optimizer.learning_rate"] == "0.001"
    known = {metric.key: metric.value for metric in model.metrics}
    metrics = ended.run.data.metrics
    for name in ("test/accuracy", "test/loss", "kept/val/accuracy"):
        assert known[name] == metrics[name]
    history = ended.client.get_metric_history(ended.said["run_id"], "test/accuracy")
    assert len(history) == 1  # those of the model are no further points
    [output] = ended.run.outputs.model_outputs
    assert output.model_id == model.model_id


def test_a_run_is_described_with_its_figures_its_command_and_its_report(ended: Ended) -> None:
    note = ended.run.data.tags["mlflow.note.content"]
    accuracy = ended.run.data.metrics["test/accuracy"]
    for part in (
        "**linear on synthetic**: 7,850 parameters, 3 epochs, seed 5.",
        f"| test | &ensp;**{accuracy:.4f}** | ",
        ended.run.data.tags["command"],
        f"runs/{ended.run.info.run_id}/artifacts/report.html)",
    ):
        assert part in note, part


def test_metrics_are_logged_in_the_order_in_which_people_look_for_them(ended: Ended) -> None:
    shown = list(ended.run.data.metrics)  # as MLflow lists them
    assert shown[0] == "val/accuracy"
    groups = ["val/", "train/", "kept/", "test/", "model/", "time/"]
    places = [next(i for i, group in enumerate(groups) if name.startswith(group)) for name in shown]
    assert places == sorted(places)


def test_a_run_asks_for_no_history_of_what_it_has_logged_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        mlflow.MlflowClient, "get_metric_history", lambda *given: asked.append(str(given[-1]))
    )
    batches = []
    log_batch = mlflow.MlflowClient.log_batch

    def noted(*given: object, **more: object) -> None:
        batches.append(more)
        log_batch(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", noted)
    ended = finished(tmp_path, capsys, *OVERRIDES, *LEAN, "evaluate.report=true")
    assert ended.run.info.status == "FINISHED"
    assert asked == []
    page = ended.artifact("report.html").read_text("utf-8")
    assert f"epoch {EPOCHS}" in page
    assert len(batches) <= EPOCHS + 9
    first, last = batches[0], batches[-1]
    assert {"params", "tags"} <= first.keys()
    assert {"model/parameters", "time/total_s"} <= {one.key for one in last["metrics"]}  # type: ignore[attr-defined]


def test_the_logged_model_gives_the_stored_probabilities_from_raw_images(ended: Ended) -> None:
    stored = np.load(ended.artifact("predictions.npz"))
    prepared = load_data(replace(ended.config, data_dir=str(ended.folder / "data")))
    mlflow.set_tracking_uri(f"sqlite:///{ended.folder}/mlflow.db")
    uri = ended.said["model_uri"]
    as_keras, as_pyfunc = mlflow.tensorflow.load_model(uri), mlflow.pyfunc.load_model(uri)
    assert stored.files == ["class_names", *SPLIT_ARRAYS]
    for split in ("val", "test"):
        there = getattr(prepared, split)
        images = np.asarray(there.batch(0, len(there)))
        np.testing.assert_array_equal(stored[f"{split}_labels"], there.labels)
        probs = stored[f"{split}_probs"]
        np.testing.assert_allclose(as_keras.predict(images, verbose=0), probs, atol=1e-6)
        np.testing.assert_allclose(as_pyfunc.predict(images), probs, atol=1e-6)
    right = np.mean(stored["test_probs"].argmax(1) == stored["test_labels"])
    assert ended.said["test_accuracy"] == f"{right:.4f}"


def test_the_logged_model_has_signature_example_and_pinned_requirements(ended: Ended) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{ended.folder}/mlflow.db")
    uri = ended.said["model_uri"]
    info = mlflow.models.get_model_info(uri)
    [images], [probabilities] = info.signature.inputs.inputs, info.signature.outputs.inputs
    assert (images.type, images.shape) == (np.dtype("uint8"), (-1, 28, 28, 1))
    assert (probabilities.type, probabilities.shape) == (np.dtype("float32"), (-1, 10))
    assert info.metadata["class_names"] == [f"class_{number}" for number in range(10)]
    assert 0 <= info.metadata["dark_border"] <= 1
    pinned = Path(mlflow.pyfunc.get_model_dependencies(uri)).read_text().split()
    assert [line.partition("==")[0] for line in pinned] == [
        "mlflow",
        "tensorflow",
        "keras",
        "numpy",
    ]
    example = mlflow.pyfunc.load_model(uri).input_example
    assert (example.shape, example.dtype) == ((2, 28, 28, 1), np.dtype("uint8"))


def test_the_same_configuration_gives_the_same_bits_again(ended: Ended, tmp_path: Path) -> None:
    again = recorded(tmp_path, *LEAN)
    first, second = (
        np.load(one.artifact("predictions.npz"))["test_probs"] for one in (ended, again)
    )
    np.testing.assert_array_equal(first, second)


def test_training_only_leaves_the_test_images_to_evaluate_which_completes_that_very_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("dataset=digits", "model=linear", "train.epochs=1", *LEAN)
    trained = finished(tmp_path, capsys, *small, story=train_without_test)
    assert trained.said["test_accuracy"] == "nan"
    before = trained.run
    assert [name for name in before.data.metrics if name.startswith("test/")] == []
    assert np.load(trained.artifact("predictions.npz")).files == ["class_names", *SPLIT_ARRAYS[:2]]

    overrides = ("dataset=digits", "run_id=latest", "seed=9", "train.epochs=7")
    completed = finished(tmp_path, capsys, *overrides, story=evaluate_recorded)
    after = trained.run
    assert completed.said["run_id"] == trained.said["run_id"]
    assert completed.said["val_accuracy"] == trained.said["val_accuracy"]
    assert completed.said["test_accuracy"] == f"{after.data.metrics['test/accuracy']:.4f}"
    assert after.info.status == "FINISHED"
    assert after.info.end_time == before.info.end_time
    assert after.data.params == before.data.params
    assert after.data.metrics["train/loss"] == before.data.metrics["train/loss"]
    assert after.data.metrics["time/train_s"] == before.data.metrics["time/train_s"]
    assert np.load(trained.artifact("predictions.npz")).files[3:] == SPLIT_ARRAYS[2:]
    by_id = finished(tmp_path, capsys, f"run_id={trained.said['run_id']}", story=evaluate_recorded)
    assert by_id.said == completed.said


@pytest.mark.parametrize("run_id", ["latest", "0123456789abcdef0123456789abcdef", "../x", "null"])
def test_evaluate_refuses_a_run_that_is_not_there(run_id: str, tmp_path: Path) -> None:
    with inside(tmp_path), pytest.raises(RequestError, match="run_id"):
        evaluate_recorded(configured("dataset=digits", f"run_id={run_id}"), tmp_path / "outputs")


def test_evaluate_refuses_a_run_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("dataset=digits", "model=linear", "train.epochs=1", *LEAN, "tracking.log_model=false")
    bare = finished(tmp_path, capsys, *small)
    assert bare.said["model_uri"] == "None"
    with inside(tmp_path), pytest.raises(RequestError, match="has saved no model"):
        evaluate_recorded(configured(f"run_id={bare.said['run_id']}"), tmp_path / "outputs")
    with inside(tmp_path), pytest.raises(RequestError, match="no finished run"):
        evaluate_recorded(configured("dataset=digits", "run_id=latest"), tmp_path / "outputs")


def write_arrays(path: Path, *, seed: int) -> None:
    """Saves an npz file of a few random images of two classes."""
    random = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", 40), ("test", 10)):
        arrays[f"x_{split}"] = random.integers(0, 256, (count, 4, 4, 1), np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 2
    np.savez(path, allow_pickle=False, **arrays)


def test_evaluate_refuses_data_that_has_changed_since_the_run_and_leaves_the_run_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_arrays(tmp_path / "data.npz", seed=1)
    words = ("dataset=npz", f"dataset.path={tmp_path / 'data.npz'}", "model=linear")
    made = finished(tmp_path, capsys, *words, "train.epochs=1", *LEAN)
    before, predictions = made.run.data, made.artifact("predictions.npz").read_bytes()

    write_arrays(tmp_path / "data.npz", seed=2)
    with pytest.raises(RequestError, match=r"^dataset=npz: the data here \(\w+…\) is not what the"):
        finished(tmp_path, capsys, *words[:2], "run_id=latest", story=evaluate_recorded)
    assert (made.run.data.tags, made.run.data.metrics) == (before.tags, before.metrics)
    assert made.artifact("predictions.npz").read_bytes() == predictions

    write_arrays(tmp_path / "data.npz", seed=1)
    again = finished(tmp_path, capsys, *words[:2], "run_id=latest", story=evaluate_recorded)
    assert again.said == made.said


@matrix(39)
def test_a_class_registered_with_keras_leaves_no_pickle_beside_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Own(keras.layers.Layer):
        pass

    with keras.saving.custom_object_scope({"tests>Own": Own}):
        small = ("dataset=digits", "model=linear", "train.epochs=1", *LEAN)
        made = finished(tmp_path, capsys, *small)
        assert keras.saving.get_registered_object("tests>Own") is Own
    with inside(tmp_path):
        saved = Path(mlflow.artifacts.download_artifacts(made.said["model_uri"]))
    assert [path.name for path in saved.rglob("*pickle*")] == []


@matrix(9)
def test_a_completion_that_is_killed_as_it_ends_has_all_but_the_model_and_is_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = (*OVERRIDES, *LEAN, "evaluate.report=true", "tracking.log_model=false")
    bare = finished(tmp_path, capsys, *lean, story=train_without_test)
    folder = tmp_path / "outputs"
    model = keras.models.load_model(folder / "checkpoints" / "last.keras")
    set_tag = mlflow.MlflowClient.set_tag

    def killed(client: mlflow.MlflowClient, run_id: str, key: str, value: str) -> None:
        if key == "model_uri":
            raise KeyboardInterrupt
        set_tag(client, run_id, key, value)

    with inside(tmp_path):
        monkeypatch.setattr(mlflow.MlflowClient, "set_tag", killed)
        with pytest.raises(KeyboardInterrupt):
            recording = reopen(bare.said["run_id"], bare.config.tracking, folder)
            complete(bare.config, bare.config, model, recording)
        assert "test_probs" in np.load(bare.artifact("predictions.npz")).files
        assert bare.artifact("report.html").exists()
        monkeypatch.undo()
        recording = reopen(bare.said["run_id"], bare.config.tracking, folder)
        complete(bare.config, bare.config, model, recording)
        other = replace(bare.config, preprocess=replace(bare.config.preprocess, seed=99))
        with pytest.raises(RequestError, match="its validation images were divided in another way"):
            complete(other, bare.config, model, recording)
    [saved] = bare.client.search_logged_models([bare.run.info.experiment_id])
    assert saved.model_uri == bare.run.data.tags["model_uri"]


def test_without_validation_images_the_result_line_says_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_in = ("dataset=digits", "model=linear", "train.epochs=1", "train.tensorboard=false")
    words = (*all_in, "preprocess.validation_size=0", "evaluate.views=flip")
    ended = finished(tmp_path, capsys, *words)
    assert ended.said["val_accuracy"] == "nan"
    found = {name for name in ended.run.data.metrics if "/views/" in name}
    assert found == {"test/views/accuracy", "test/views/loss", "test/views/ece"}
    assert "val/loss" not in ended.run.data.metrics
    assert np.load(ended.artifact("predictions.npz")).files == ["class_names", *SPLIT_ARRAYS[2:]]


# What an image of a default run passes from the disk to the test accuracy, in data/, training/ and
# evaluation/.
PASSED = {
    *("data/load", "data/cache", "data/values"),
    *("training/train", "training/loop", "training/predictor"),
    *("evaluation/evaluate", "evaluation/metrics"),
}
# Functions that look at images on the side, or at other ones. Plots, page and model are left out.
ASIDE = {
    "check_data": "checks and describes the data set",
    "check_model": "tries the untrained model on noise",
    "slices": "measures by columns of a list of pictures",
}


def holds_images(value: object, depth: int = 2) -> bool:
    """Whether a value is, or contains, images or what a model predicts for them."""
    if isinstance(value, dict | list | tuple):
        parts = value.values() if isinstance(value, dict) else value
        return depth > 0 and any(holds_images(part, depth - 1) for part in parts)
    if isinstance(value, tf.Tensor):
        return bool(value.dtype == tf.uint8 and (value.shape.rank or 0) >= 4)
    if isinstance(value, np.ndarray):
        rows = value if value.dtype == np.float32 and value.ndim == 2 and value.size else None
        is_probabilities = rows is not None and np.allclose(rows.sum(axis=1), 1)
        return is_probabilities or (value.dtype == np.uint8 and value.ndim >= 4)
    return isinstance(value, Split | Predictions)


@contextmanager
def passed_files() -> Iterator[set[str]]:
    """Collects the files in which a function has images in a variable, or returns a data set."""
    rooms = tuple(f"{ROOT}/pipeline/{name}/" for name in ("data", "training", "evaluation"))
    found: set[str] = set()
    aside: list[FrameType] = []

    def watch(frame: FrameType, event: str, result: object) -> object:
        if event == "call":
            if frame.f_code.co_name in ASIDE:
                aside.append(frame)
            elif aside or not frame.f_code.co_filename.startswith(rooms):
                return None
            frame.f_trace_lines = False
        elif event == "return" and frame in aside:
            aside.remove(frame)
        elif event == "return":
            values = [*frame.f_locals.values(), result]
            if isinstance(result, RawData | Prepared) or any(map(holds_images, values)):
                path = Path(frame.f_code.co_filename)
                found.add(f"{path.parent.name}/{path.stem}")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield found
    finally:
        sys.settrace(before)


def test_an_image_of_a_default_run_passes_eight_files_from_the_disk_to_the_test_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.train.ENOUGH_STEPS", 0)  # as in a run of 20 epochs
    small = ("model.hidden=[8]", "train.epochs=1", "tracking.log_model=false", *LEAN)
    config = configured("dataset=digits", "model=mlp", *small)
    with inside(tmp_path):
        with passed_files() as cold:
            load_data(config)
        assert cold - PASSED == {"data/split", "data/datasets"}
        with passed_files() as warm:
            run(config, tmp_path / "outputs")
    assert warm == PASSED
