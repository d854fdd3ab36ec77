from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import schema
from pipeline.config.builders import FORMER_MODULES
from pipeline.config.flat import NOT_PARAMS, config_sha256, flatten, shown_params
from pipeline.config.schema import Config, validate
from pipeline.system.errors import RequestError
from tests.commands import configured

# The config.yaml of a run of the version before the modules moved, and what that version recorded.
RECORDED = Path(__file__).with_name("recorded.yaml")
CHECKSUM = "402809b1cd2d5419f301da8897660bc05308d74efc1b745dcdcb6b491af4fe01"


def recorded() -> dict[str, Any]:
    return yaml.safe_load(RECORDED.read_text())


def test_a_configuration_of_an_earlier_version_names_the_builders_of_this_one() -> None:
    config = validate(recorded())
    assert config.dataset["_target_"] == "pipeline.data.datasets.synthetic"
    assert config.model["_target_"] == "pipeline.training.models.linear"
    assert config.augment["_target_"] == "pipeline.training.augment.flip_and_shift"
    assert validate(asdict(config)) == config


@pytest.mark.parametrize("former", FORMER_MODULES)
@pytest.mark.parametrize("name", ["keras", "os", "mlp.x", "", "_digits"])
def test_what_a_module_of_builders_never_offered_is_refused_by_its_former_name_too(
    former: str, name: str
) -> None:
    then = recorded()
    then["model"] = {"_target_": f"{former}.{name}"}
    with pytest.raises(RequestError, match=r"model\._target_: .* is not allowed; choose one of"):
        validate(then)


def test_the_checksum_is_the_one_that_the_earlier_version_recorded() -> None:
    metrics = "evaluate.metrics=[loss,accuracy,macro_f1,ece,per_class]"  # the default then
    now = configured("dataset=synthetic", "model=linear", "augment=flip_and_shift", metrics)
    assert config_sha256(validate(recorded())) == config_sha256(now) == CHECKSUM


def test_the_checksum_differs_with_whatever_a_result_depends_on() -> None:
    config = configured()
    assert config_sha256(replace(config, seed=1)) != config_sha256(config)
    other = replace(config, model={**config.model, "_target_": "pipeline.training.models.cnn"})
    assert config_sha256(other) != config_sha256(config)


def test_a_key_that_has_come_since_counts_where_it_changes_what_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured()
    before = config_sha256(config)
    monkeypatch.setattr("pipeline.config.flat.ADDED", {**schema.ADDED, "train.patience": None})
    parts = {key: value for key, value in asdict(config).items() if key not in NOT_PARAMS}
    assert config_sha256(config) != before
    config.train.patience = 3
    parts["train"]["patience"] = 3
    for name in schema.ADDED:  # all have the value of the earlier behaviour
        group, _, key = name.partition(".")
        if key in parts.get(group, {}):
            del parts[group][key]
    for key in ("batch_norm", "residual"):  # came since, and are off
        assert parts["model"].pop(key) is False
    assert parts["dataset"].pop("exclude") is None
    for group, module in zip(("dataset", "model"), ("datasets", "models"), strict=True):
        name = parts[group]["_target_"].rpartition(".")[2]
        parts[group]["_target_"] = f"pipeline.{module}.{name}"
    text = json.dumps(parts, sort_keys=True)
    assert config_sha256(config) == hashlib.sha256(text.encode()).hexdigest()


def test_a_configuration_recorded_without_a_key_that_has_come_since_is_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    then = recorded()
    del then["train"]["patience"]
    monkeypatch.setitem(schema.ADDED, "train.patience", 7)
    assert validate(then).train.patience == 7
    assert "patience" not in then["train"]


def test_a_leaf_recorded_without_a_key_that_has_come_since_is_what_it_was() -> None:
    then = asdict(configured())
    del then["model"]["batch_norm"], then["model"]["residual"]
    assert validate(then) == configured()
    other = configured("model.hidden=[8,8]", "model.residual=true")
    assert config_sha256(other) != config_sha256(configured("model.hidden=[8,8]"))


def test_a_configuration_recorded_with_a_key_that_has_gone_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    then = recorded()
    then["train"]["speed"] = "high"
    with pytest.raises(RequestError, match=r"train\.speed: no such parameter"):
        validate(then)
    monkeypatch.setattr(
        schema,
        "REMOVED",
        (
            *schema.REMOVED,
            "train.speed",
        ),
    )
    assert validate(then) == validate(recorded())


@pytest.mark.parametrize("key", ["seed", "train.xla", "tracking.tags", "sweep.job.parent"])
def test_a_recorded_configuration_that_lacks_a_key_is_refused(key: str) -> None:
    then = recorded()
    *groups, last = key.split(".")
    inside = then
    for group in groups:
        inside = inside[group]
    del inside[last]
    with pytest.raises(RequestError, match=rf"^{key}: needs a value$"):
        validate(then)


def test_what_another_verb_was_asked_for_need_not_be_recorded() -> None:
    then = recorded()
    del then["compare"], then["serve"]["port"]
    assert isinstance(validate(then), Config)


def test_parameters_are_shown_without_secrets_by_their_values_and_not_by_their_texts() -> None:
    secret = {
        "api_key": "12345678",
        "password": "2024.1",
        "db_pass": 1234,
        "options": {"key": "a,b"},
    }
    plain = {"api_token": None, "token_dim": 64, "classes": {"key": ["x"]}}
    config = replace(configured(), dataset={"_target_": "mine.pictures", **secret, **plain})
    shown, true = shown_params(config), flatten(config)
    assert [shown[f"dataset.{key}"] for key in secret] == ["***"] * 3 + ['{"key": "***"}']
    differing = {key for key in true if true[key] != shown[key]}
    assert differing == {f"dataset.{key}" for key in secret}
