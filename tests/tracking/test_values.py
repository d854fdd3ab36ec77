from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.values import Identity
from pipeline.tracking.values import by_split, champion_uri, code_label, of_kept_weights
from tests.verbs.compare.test_rows import RUN, run


def test_a_run_is_told_apart_by_settings_code_data_versions_and_hardware() -> None:
    assert run(tags={"trusted.my_models": "ab" * 32}).traits == {
        "model": "mlp",
        "optimizer.learning_rate": "0.1",
        "seed": "0",
        "code": "1234567",
        "data": "ffffffff",
        "trusted.my_models": "abababab",
        "version.keras": "3",
        "hardware.cpu": "EPYC",
        "hardware.host": "a",
        "status": "FINISHED",
    }


def test_a_parameter_that_mlflow_run_had_under_its_name_counts_with_its_true_value() -> None:
    params = {"seed": "0", "config.seed": "7"}
    assert replace(RUN, params=params).traits["seed"] == "7"


@pytest.mark.parametrize(
    ("tags", "state"),
    [
        ({}, "unknown"),
        ({"mlflow.source.git.commit": "1234567890"}, "1234567"),
        (
            {"mlflow.source.git.commit": "1234567890", "code.dirty": "true"},
            "1234567 + uncommitted changes",
        ),
        (
            {
                "mlflow.source.git.commit": "1" * 40,
                "code.dirty": "true",
                "code.patch_sha256": "ab" * 9,
            },
            "1111111 + patch abababab",
        ),
    ],
)
def test_the_code_is_its_commit_and_what_was_not_committed(
    tags: dict[str, str], state: str
) -> None:
    assert code_label(tags) == state


def test_the_data_of_a_run_is_identified_by_its_content_and_by_its_groups_if_recorded() -> None:
    content = {"data.fingerprint": "f" * 64}
    assert replace(RUN, tags=content).identity == Identity(fingerprint="f" * 64)
    grouped = replace(RUN, tags=content | {"data.groups": "a" * 64})
    assert grouped.identity == Identity(fingerprint="f" * 64, grouping="a" * 64)
    assert replace(RUN, tags={}).identity is None


@pytest.mark.parametrize(
    ("keep", "best", "another"), [("best", 3, True), ("best", 5, False), ("last", 3, False)]
)
def test_a_run_that_kept_an_earlier_epoch_is_known(keep: str, best: float, another: bool) -> None:
    params = {"train.keep": keep, "train.epochs": "5"}
    found = replace(RUN, params=params, logged={"train/best_epoch": best})
    assert found.kept_another_epoch is another
    said = replace(found, logged={**found.logged, "kept/val/loss": 0.5})
    assert said.kept_another_epoch is False


def test_what_the_kept_weights_have_stands_for_what_the_last_epoch_had() -> None:
    metrics = {"val/accuracy": 0.9, "kept/val/accuracy": 0.8, "train/loss": 0.3}
    assert of_kept_weights(metrics) == metrics | {"val/accuracy": 0.8}


def test_predictions_of_runs_that_stored_no_class_names_have_numbered_classes() -> None:
    labels, probabilities = np.zeros(2, np.int32), np.eye(2, dtype=np.float32)
    arrays = {"val_labels": labels, "val_probs": probabilities}
    assert by_split(arrays)["val"].class_names == ("class 0", "class 1")
    named = by_split(arrays | {"class_names": np.array(["cat", "dog"])})["val"]
    assert (named.class_names, named.predicted.tolist()) == (("cat", "dog"), [0, 1])
    assert by_split({}) == {}


def test_the_registered_model_of_a_data_set_in_a_subfolder_has_a_name_that_mlflow_takes() -> None:
    assert champion_uri("mine/birds") == "models:/mine--birds@champion"
