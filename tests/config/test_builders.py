from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.builders import (
    FORMER_MODULES,
    added_to,
    build,
    check_leaf,
    first_name,
    has_backbone,
    leaf_defaults,
    leaf_parameters,
    parameter_of,
    unknown_keys,
    value_before,
)
from pipeline.config.rules import Positive
from pipeline.system.errors import RequestError

SYNTHETIC: dict[str, Any] = {
    "_target_": "pipeline.data.datasets.synthetic",
    "train_size": 12,
    "test_size": 10,
    "classes": 3,
    "image_shape": [4, 4, 1],
    "noise": 1,
    "seed": 0,
}
ADAM = {"_target_": "keras.optimizers.Adam", "learning_rate": 1}


def test_a_leaf_is_checked_and_its_values_converted() -> None:
    checked = check_leaf("dataset", SYNTHETIC)
    assert checked["noise"] == 1.0
    assert isinstance(checked["noise"], float)
    assert checked["image_shape"] == (4, 4, 1)
    assert check_leaf("optimizer", ADAM) == ADAM  # without the keys of other optimizers
    assert check_leaf("augment", {"_target_": None, "shift": 1}) == {"_target_": None}


@pytest.mark.parametrize(
    ("group", "leaf", "said"),
    [
        ("dataset", SYNTHETIC | {"noise": -1}, "dataset.noise: must be at least 0"),
        ("dataset", SYNTHETIC | {"nois": 1}, "dataset.nois: no such parameter"),
        ("dataset", {"_target_": "os.system"}, r"dataset._target_: 'os.system' is not allowed"),
        ("dataset", {"_target_": None}, "dataset._target_: None is not allowed"),
        ("model", {"_target_": "mine.net"}, r"add trusted_modules=\[mine\]"),
        ("optimizer", {"_target_": "keras.optimizers.Adam"}, "learning_rate: needs a value"),
        ("optimizer", {"_target_": "keras.optimizers.Muon"}, "'keras.optimizers.Muon' is not all"),
    ],
)
def test_a_leaf_that_breaks_a_rule_or_names_another_target_is_refused(
    group: str, leaf: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        check_leaf(group, leaf)


def test_a_target_of_an_earlier_version_is_the_same_builder() -> None:
    former = SYNTHETIC | {"_target_": "pipeline.datasets.synthetic"}
    assert check_leaf("dataset", former) == check_leaf("dataset", SYNTHETIC)
    for module, now in FORMER_MODULES.items():
        assert first_name(f"{now}.x") == f"{module}.x"
    assert first_name("keras.optimizers.Adam") == "keras.optimizers.Adam"


def test_unknown_keys_are_those_that_the_builder_does_not_have() -> None:
    assert unknown_keys("dataset", SYNTHETIC | {"size": 1, "nois": 2}) == ["size", "nois"]
    assert unknown_keys("schedule", {"_target_": None, "alpha": 1}) == []
    assert unknown_keys("optimizer", ADAM | {"momentum": 0.9}) == []  # Keras' class decides


def test_a_parameter_has_the_annotation_on_which_all_builders_of_a_group_agree() -> None:
    assert parameter_of("optimizer", "learning_rate") is Positive
    assert parameter_of("dataset", "noise") is not None
    assert parameter_of("dataset", "nothing") is None


def builder(images: int, added: int = 7, *, size: int, kind: str = "old") -> tuple[Any, ...]:
    return images, added, size, kind


def test_keyword_only_parameters_are_the_keys_and_defaults_stand_for_runs_without_them() -> None:
    assert leaf_parameters(builder) == {"size": int, "kind": str}
    assert leaf_defaults(builder) == {"added": 7, "kind": "old"}


def test_what_runs_without_a_key_did_is_the_default_of_our_builders() -> None:
    leaf = {"_target_": "pipeline.training.models.cnn"}
    assert added_to("model", leaf) == {"batch_norm": False, "convolutions": 1}
    assert (value_before("model.convolutions"), value_before("model.residual")) == (1, False)
    assert added_to("optimizer", ADAM) == {}
    with pytest.raises(KeyError):
        value_before("dataset.noise")


def test_a_leaf_is_built_with_its_parameters_and_refused_those_it_does_not_take() -> None:
    raw = build(check_leaf("dataset", SYNTHETIC))
    assert raw.train.images.shape == (12, 4, 4, 1)
    with pytest.raises(RequestError, match=r"synthetic: takes no sise; see its file under conf/"):
        build(SYNTHETIC | {"sise": 1})
    with pytest.raises(RequestError, match=r"missing a required argument: 'train_size'"):
        build({"_target_": SYNTHETIC["_target_"]})


@pytest.mark.parametrize(
    ("keys", "has"),
    [
        ({"weights": None, "trainable": "all"}, True),
        ({"weights": "imagenet", "trainable": "head"}, True),
        ({"weights": None, "trainable": True}, False),
        ({"weights": True, "trainable": "all"}, False),
        ({"weights": "x", "trainable": "half"}, False),
        ({"weights": "x"}, False),
        ({"trainable": "head"}, False),
    ],
)
def test_a_model_has_a_backbone_by_what_its_keys_say(keys: dict[str, Any], has: bool) -> None:
    assert has_backbone({"_target_": "my_models.mine", **keys}) is has
