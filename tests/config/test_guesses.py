from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field

from pipeline.config.guesses import (
    holds_settings,
    is_list,
    is_number,
    is_whole,
    items_of,
    key_among,
    may_be_null,
    number_as_typed,
    number_of,
    range_of,
    settings_in,
    takes_one,
)

COUNT = Annotated[int, Field(ge=1)]
RATE = Annotated[float, Field(gt=0)]
KNOWN = {
    "": ["seed", "data_dir"],
    "train": ["epochs", "batch_size"],
    "model": ["_target_", "dropout"],
    "optimizer": ["learning_rate", "weight_decay"],
}


@pytest.mark.parametrize(
    ("hint", "number", "whole", "many", "one", "null"),
    [
        (COUNT, True, True, False, True, False),
        (RATE | None, True, False, False, True, True),
        (list[int], False, True, True, False, False),
        (str | None, False, True, False, False, True),
        (int | list[int], False, True, True, True, False),
        (Annotated[int | float | None, "a rule"], True, False, False, True, True),
        (dict[str, int], False, True, False, False, False),
        (None, False, True, False, False, False),
    ],
)
def test_an_annotation_is_known_by_the_kinds_of_values_it_allows(
    hint: Any, number: bool, whole: bool, many: bool, one: bool, null: bool
) -> None:
    found = (is_number(hint), is_whole(hint), is_list(hint), takes_one(hint), may_be_null(hint))
    assert found == (number, whole, many, one, null)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5k", 5000),
        ("1 000", 1000),
        ("1,000,000", 1e6),
        ("1'000", 1000),
        ("15%", 0.15),
        ("1/2", 0.5),
        ("10^-3", 0.001),
        ("2**3", 8),
        ("2*3", 6),
        ("0,1", 0.1),
        ("30s", 30),
        ("'.5'", 0.5),
        ("\u22121e\u22123", -0.001),
        ("(7)", 7),
        ("1/0", None),
        ("10^999", None),
        ("many", None),
        ("1 2", None),
        ("", None),
    ],
)
def test_a_number_is_understood_however_it_is_written(text: str, number: float | None) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("text", "hint", "typed"),
    [
        ("5k", COUNT, "5000"),
        ("2.0", COUNT, "2"),
        ("2.5", COUNT, "5"),
        ("1e300", COUNT, "5"),
        ("10^-3", RATE, "0.001"),
        ("fast", RATE, "0.001"),
    ],
)
def test_a_number_is_suggested_as_the_key_takes_it(text: str, hint: Any, typed: str) -> None:
    assert number_as_typed(text, hint) == typed


@pytest.mark.parametrize(
    ("text", "found"),
    [("1..5", "range(1,6)"), ("1:5", "range(1,6)"), ("1 to 5", "range(1,6)"), ("1-x", None)],
)
def test_a_range_is_recognised(text: str, found: str | None) -> None:
    assert range_of(text) == found


@pytest.mark.parametrize(
    ("text", "items"),
    [
        *((text, "64,32") for text in ("64 32", "64;32", "{64,32}", "64x32", "choice(64, 32)")),
        ("a; b", "a,b"),
        ("xs x", "xs,x"),
        ("none", ""),
        ("[]", ""),
    ],
)
def test_the_items_of_a_list_are_found_however_they_are_divided(text: str, items: str) -> None:
    assert items_of(text) == items


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("TRAIN.Epochs", "train.epochs"),
        ("train__epochs", "train.epochs"),
        ("epochs", "train.epochs"),
        ("lr", "optimizer.learning_rate"),
        ("train.lr", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("train.seed", "seed"),
        ("model.name", "model=NAME"),
        ("optimizer.decay", "optimizer.weight_decay"),
        ("nothing", None),
    ],
)
def test_a_key_that_does_not_exist_leads_to_the_one_that_is_meant(
    key: str, meant: str | None
) -> None:
    assert key_among(key, KNOWN) == meant


@pytest.mark.parametrize(
    ("value", "several", "parted"),
    [
        ("5 seed=3", True, "5 seed=3"),
        ("5,seed=3", True, "5 seed=3"),
        ("a; +model.x=1", True, "a +model.x=1"),
        ("a==b", False, "a==b"),
        ("5 == 3", False, "5 == 3"),
        ("a,b", False, "a,b"),
    ],
)
def test_settings_inside_a_value_are_found_and_parted(
    value: str, several: bool, parted: str
) -> None:
    assert holds_settings(value) is several
    assert settings_in(value) == parted
