"""The files under conf/ hold what the code expects of them. They are discovered, not listed."""

from __future__ import annotations

import importlib
import inspect
import re
from itertools import zip_longest
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline.config.builders import (
    BUILDERS,
    BUILDERS_BESIDE_KERAS,
    KERAS_CLASSES,
    KERAS_PARAMETERS,
    build,
    leaf_parameters,
)
from pipeline.config.rules import public_functions
from pipeline.config.schema import validate
from pipeline.verbs import requests
from tests.commands import CONF, composed

pytestmark = pytest.mark.slow

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
# Choices of groups that set keys of others stand alone; of the rest, one of each group is composed
# at once, which takes as long as one alone.
SETTINGS = {"evaluate", "ingest", "preprocess", "tracking", "train"}  # groups without builders
ALONE = ("experiment", "optimizer", "sweep")
COMPOSED = [[choice] for choice in CHOICES if choice[0] in ALONE] + [
    [choice for choice in row if choice]
    for row in zip_longest(
        *([choice for choice in CHOICES if choice[0] == one] for one in GROUPS if one not in ALONE)
    )
]
# What a run gives a builder besides the parameters of its file.
AT_RUN_TIME: dict[str, dict[str, Any]] = {
    "optimizer": {},
    "schedule": {"initial_learning_rate": 0.5, "decay_steps": 10},
}


def leaves(*groups: str) -> list[Any]:
    """Group, name and content of each file in the groups whose target is not null."""
    found = []
    for group, name in CHOICES:
        if group not in groups:
            continue
        leaf = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
        if leaf["_target_"] is not None:
            leaf.pop("defaults", None)  # Hydra's own, which it takes out
            found.append(pytest.param(group, leaf, id=f"{group}-{name}"))
    return found


OURS = BUILDERS | BUILDERS_BESIDE_KERAS


def of_keras() -> list[Any]:
    """The leaves that name a class of Keras."""
    return [one for one in leaves(*OURS) if one.values[1]["_target_"].startswith("keras.")]


def of_ours() -> list[Any]:
    """The leaves that name a function of ours."""
    return [one for one in leaves(*OURS) if one.values[1]["_target_"].startswith("pipeline.")]


def the_class(leaf: dict[str, Any]) -> Any:
    module, _, name = leaf["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_files_of_every_group_are_found() -> None:
    assert {"dataset", "model", "augment", "optimizer", "schedule", "train"} <= set(GROUPS)
    assert ("model", "mlp") in CHOICES


@pytest.mark.parametrize("choices", COMPOSED, ids=lambda row: " ".join(map("=".join, row[:3])))
def test_every_choice_composes_and_is_valid(choices: list[tuple[str, str]]) -> None:
    config = validate(composed(*map("=".join, choices)))
    for group, name in choices:
        assert getattr(config.choices, group, name) == name


def test_every_choice_is_composed() -> None:
    assert sorted(choice for row in COMPOSED for choice in row) == CHOICES


def test_what_is_composed_without_overrides_leaves_no_value_missing() -> None:
    assert OmegaConf.missing_keys(composed()) == set()


@pytest.mark.parametrize(("group", "leaf"), of_ours())
def test_a_leaf_has_exactly_the_keyword_only_parameters_of_its_function(
    group: str, leaf: dict[str, Any]
) -> None:
    module, _, name = leaf.pop("_target_").rpartition(".")
    assert module == OURS[group]
    assert leaf.keys() == leaf_parameters(public_functions(module)[name]).keys()


@pytest.mark.parametrize("group", OURS)
def test_every_public_function_of_a_builder_module_has_a_file(group: str) -> None:
    targets = {one.values[1]["_target_"] for one in of_ours() if one.values[0] == group}
    assert targets == {f"{OURS[group]}.{name}" for name in public_functions(OURS[group])}


@pytest.mark.parametrize(("group", "leaf"), of_keras())
def test_a_keras_leaf_names_an_allowed_class_and_parameters_that_have_a_rule(
    group: str, leaf: dict[str, Any]
) -> None:
    prefix, names = KERAS_CLASSES[group]
    target = leaf.pop("_target_")
    assert target.startswith(prefix)
    assert target.removeprefix(prefix) in names
    assert leaf.keys() <= KERAS_PARAMETERS.keys()


@pytest.mark.parametrize(("group", "leaf"), of_keras())
def test_a_keras_class_takes_every_parameter_of_its_file_by_name(
    group: str, leaf: dict[str, Any]
) -> None:
    parameters = inspect.signature(the_class(leaf)).parameters
    assert leaf.keys() - {"_target_"} <= parameters.keys()


@pytest.mark.parametrize(("group", "leaf"), of_keras())
def test_a_built_keras_object_is_configured_as_its_file_says(
    group: str, leaf: dict[str, Any]
) -> None:
    built = build(leaf, **AT_RUN_TIME[group])
    assert type(built) is the_class(leaf)
    configured = built.get_config()
    for key in leaf.keys() - {"_target_"}:
        if isinstance(leaf[key], float):
            assert configured[key] == pytest.approx(leaf[key], rel=1e-6), key
        else:
            assert configured[key] == leaf[key], key


@pytest.mark.parametrize("group", KERAS_CLASSES)
def test_every_class_on_the_allow_list_exists_in_keras(group: str) -> None:
    prefix, names = KERAS_CLASSES[group]
    for name in names:
        assert inspect.isclass(the_class({"_target_": prefix + name}))


def test_every_rule_for_a_keras_parameter_belongs_to_a_class_on_the_allow_list() -> None:
    known: set[str] = set()
    for prefix, names in KERAS_CLASSES.values():
        for name in names:
            known |= inspect.signature(the_class({"_target_": prefix + name})).parameters.keys()
    assert KERAS_PARAMETERS.keys() <= known


def test_small_data_sets_choose_small_splits_unless_told_otherwise() -> None:
    assert composed("dataset=digits").preprocess.validation_size == 150
    assert composed("dataset=digits", "preprocess=default").preprocess.validation_size == 5000
    assert composed().preprocess.validation_size == 5000


def rows_of_readme(first: str) -> str:
    """The rows of the table in the README whose header begins with this cell."""
    readme = (CONF.parent / "README.md").read_text(encoding="utf-8")
    [rows] = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", readme, flags=re.MULTILINE)
    return str(rows)


def test_the_readme_has_each_data_set_in_its_table() -> None:
    named = re.findall(r"^\| (`.+?) \|", rows_of_readme("`dataset=`"), flags=re.MULTILINE)
    found = [name for cell in named for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(found) == [name for group, name in CHOICES if group == "dataset"]


def test_the_readme_says_where_to_add_something_to_each_group_and_names_files_that_exist() -> None:
    rows = rows_of_readme("add a")
    groups = set(re.findall(r"`conf/([\w/]+)/x.yaml`", rows))
    assert groups - {"x", "hydra/launcher"} == {*GROUPS} - {*requests()} - SETTINGS
    assert (CONF / "hydra" / "launcher").is_dir()
    files = re.findall(r"`(pipeline/[\w/]+\.py)`", rows)
    assert "pipeline/data/datasets.py" in files
    missing = [file for file in files if not (CONF.parent / file).exists()]
    assert missing == ["pipeline/verbs/x.py"]
