from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.config.rules import (
    Count,
    CountOrShare,
    Fraction,
    Positive,
    Seed,
    Slug,
    broken_rules,
    choose,
    ending_in,
    function_in,
    function_named,
    listed_in,
    one_of,
    short_name,
)
from pipeline.system.errors import RequestError

METRICS = "pipeline.evaluation.metrics"
A_METRIC = function_in(METRICS, "Predictions", "float", "dict[str, float]")


def checked(rule: Any, value: Any) -> Any:
    return TypeAdapter(rule).validate_python(value)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (Positive, 0),
        (Positive, float("inf")),
        (Fraction, 1),
        (Count, 0),
        (Seed, 2**32),
        (CountOrShare, -1),
        (CountOrShare, 1.5),
        (CountOrShare, float("nan")),
        (Slug, "../up"),
        (Slug, "a//b"),
        (Slug, ""),
        (Annotated[str, one_of("a", "b")], "c"),
        (Annotated[str, ending_in(".csv")], "table.txt"),
        (Annotated[str, listed_in(METRICS, "OBJECTIVES")], "val/nothing"),
        (Annotated[str, A_METRIC], "scale_of"),
        (Annotated[str, A_METRIC], "not_trusted.metric"),
    ],
)
def test_what_breaks_a_rule_is_refused(rule: Any, value: Any) -> None:
    with pytest.raises(ValidationError):
        checked(rule, value)


def test_what_keeps_a_rule_is_taken_and_converted() -> None:
    assert [checked(CountOrShare, value) for value in (0, 3.0, 0.25)] == [0, 3, 0.25]
    assert isinstance(checked(CountOrShare, 3.0), int)
    assert checked(Slug, "mine/birds-2") == "mine/birds-2"
    assert checked(Annotated[str, ending_in(".csv", ".json")], "A.CSV") == "A.CSV"
    assert checked(Annotated[str, A_METRIC], "accuracy") == "accuracy"
    assert checked(Annotated[str, listed_in(METRICS, "OBJECTIVES")], "val/loss") == "val/loss"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("Mlp", "did you mean mlp? choose one of mlp, cnn, none"),
        ("m_l_p", "did you mean mlp? choose one of mlp, cnn, none"),
        ("off", "did you mean none? choose one of mlp, cnn, none"),
        ("zebra", "choose one of mlp, cnn, none"),
        ("!", "choose one of mlp, cnn, none"),
    ],
)
def test_the_nearest_choice_is_suggested(given: str, hint: str) -> None:
    assert choose(given, ["mlp", "cnn", "none"]) == hint


def test_a_function_is_found_by_its_name_and_its_metrics_have_the_last_part_of_it() -> None:
    assert function_named(METRICS, "accuracy").__name__ == "accuracy"
    with pytest.raises(RequestError, match=r"has no function 'top2'; choose one of .*accuracy, "):
        function_named(METRICS, "top2")
    with pytest.raises(RequestError, match=r"add trusted_modules=\[mine\]"):
        function_named(METRICS, "mine.top2")
    assert (short_name("mine.top2"), short_name("accuracy")) == ("top2", "accuracy")


def test_each_refused_value_is_a_line_with_its_key_its_rule_and_what_was_given() -> None:
    class Settings(BaseModel, extra="forbid"):
        rate: Positive
        hidden: list[Count] | None = None
        kind: Annotated[str, one_of("a", "b")] = "a"

    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"hidden": [3, 0], "kind": "c", "size": 1})
    assert broken_rules(refused.value, "model").splitlines() == [
        "model.rate: Field required",
        "model.hidden.1: Input should be greater than or equal to 1 (got 0)",
        "model.kind: choose one of a, b (got 'c')",
        "model.size: no such parameter (got 1)",
    ]
