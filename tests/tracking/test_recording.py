from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras  # noqa: F401  (before mlflow.tensorflow asks for it half way through its own import)
import mlflow
import numpy as np
import pytest

from pipeline.config.schema import Config
from pipeline.data.values import Predictions, Split
from pipeline.system.errors import RequestError
from pipeline.tracking.client import connect
from pipeline.tracking.journal import has_journal
from pipeline.tracking.lifecycle import record
from pipeline.tracking.recording import add_tags, reopen
from pipeline.tracking.values import LONGEST_PARAM, LONGEST_TAG
from tests.commands import (
    DRAWN,
    inside,
    mlflow_server,
    pipeline,
    results,
)
from tests.tracking.test_lifecycle import artefacts, names, recorded

pytestmark = pytest.mark.slow


def test_a_run_goes_to_the_experiment_of_its_dataset(config: Config, tmp_path: Path) -> None:
    with record(config, tmp_path) as recording:
        pass
    made = recording.client.get_experiment_by_name("digits")
    assert recorded(recording).info.experiment_id == made.experiment_id


def test_a_parameter_too_long_for_mlflow_is_cut_with_a_note(config: Config, tmp_path: Path) -> None:
    hidden = {"_target_": "pipeline.training.models.mlp", "hidden": [1] * LONGEST_PARAM}
    with record(replace(config, model=hidden), tmp_path) as recording:
        pass
    params = recorded(recording).data.params
    assert len(params["model.hidden"]) == LONGEST_PARAM
    assert params["model.hidden"].endswith("… (18,000 characters; see the artefacts)")
    assert "model._target_" not in params


def test_a_parameter_is_as_hidden_as_the_configuration(config: Config, tmp_path: Path) -> None:
    values = {"api_key": "12345678", "password": 12.5, "token_dim": 64}
    own = replace(config, model={"_target_": "mine.net", **values})
    with record(own, tmp_path, searched={"+model.token_rate": "0.5,0.7"}) as recording:
        recording.log_params({"config.password": "12.5", "config.token_dim": "64"})
    params = recorded(recording).data.params
    assert [params[f"model.{key}"] for key in values] == ["***", "***", "64"]
    assert params["model.token_rate"] == "0.5,0.7"
    assert (params["config.password"], params["config.token_dim"]) == ("***", "64")


def test_a_tag_too_long_for_mlflow_is_cut_with_a_note(config: Config, tmp_path: Path) -> None:
    with record(config, tmp_path) as recording:
        recording.log_tags({"long": "x" * (LONGEST_TAG + 1), "fits": "y" * LONGEST_TAG})
    tags = recorded(recording).data.tags
    assert len(tags["long"]) == LONGEST_TAG
    assert tags["long"].endswith("x… (8,001 characters; see the artefacts)")
    assert tags["fits"] == "y" * LONGEST_TAG


def test_tags_go_to_the_store_if_another_process_has_just_sent_the_journal(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with record(config, tmp_path) as recording:
        pass
    monkeypatch.setattr("pipeline.tracking.recording.has_journal", lambda _: True)
    add_tags(recording.id, config.tracking, tmp_path, {"verdict": "equal"})
    assert recorded(recording).data.tags["verdict"] == "equal"
    assert not has_journal(tmp_path)


def predictions(*labels: int) -> Predictions:
    pixels = np.zeros((len(labels), 1, 1, 1), np.uint8)
    return Predictions(
        split=Split(images=pixels, labels=np.array(labels, np.int32)),
        probabilities=np.tile(np.array([0.25, 0.75], np.float32), (len(labels), 1)),
        class_names=("T-shirt/top", "bag"),
    )


def test_labels_and_probabilities_of_each_split_are_stored_under_its_name(
    config: Config, tmp_path: Path
) -> None:
    made = {"val": predictions(1, 0), "test": predictions(0)}
    with record(config, tmp_path) as recording:
        recording.save_predictions(made)
    assert recording.predictions == made
    with np.load(artefacts(recording) / "predictions.npz") as arrays:
        assert [*arrays] == ["class_names", "val_labels", "val_probs", "test_labels", "test_probs"]
        assert arrays["class_names"].tolist() == ["T-shirt/top", "bag"]
        assert arrays["class_names"].dtype.kind == "U", "texts that load without pickle"
        np.testing.assert_array_equal(arrays["val_labels"], [1, 0])
        np.testing.assert_array_equal(arrays["test_probs"], [[0.25, 0.75]])
        assert (arrays["val_labels"].dtype, arrays["val_probs"].dtype) == (np.int32, np.float32)


def test_a_run_through_a_server_is_recorded_whole(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    server = mlflow_server(tmp_path / "mlflow.db", "--artifacts-destination", "served")
    with inside(elsewhere), server as address:
        ended = pipeline(
            *DRAWN,
            "evaluate.plots=[confusion_matrix]",
            "train.plots=[]",
            f"tracking.uri={address}",
            cwd=elsewhere,
        )
        assert ended.returncode == 0, ended.stderr
        said = results(ended.stdout)
        client = connect(address)
        run = client.get_run(said["run_id"])
        assert run.info.status == "FINISHED"
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        assert said["test_accuracy"] == f"{run.data.metrics['test/accuracy']:.4f}"
        names = {artifact.path for artifact in client.list_artifacts(said["run_id"])}
        assert {"config.yaml", "plots", "predictions.npz", "tensorboard"} <= names
        model = mlflow.tensorflow.load_model(said["model_uri"])
        assert model.input_shape == (None, 28, 28, 1)
    assert {p.name for p in elsewhere.iterdir()} == {"data", "outputs"}


def test_what_is_added_to_a_run_brings_nothing_of_the_run_whose_folder_it_is(
    config: Config, tmp_path: Path
) -> None:
    with record(config, tmp_path / "one") as one:
        one.save_text("class_report.txt", "of the first")
    with record(config, tmp_path / "two") as two:
        pass
    recording = reopen(two.id, config.tracking, tmp_path / "one")
    assert recording.written("class_report.txt") is None
    with pytest.raises(RequestError, match=f"is the folder of run {one.id}"):
        recording.save_text("data.txt", "of the second")
    recording.upload()
    assert "class_report.txt" not in names(two.id, config)
