from __future__ import annotations

import re
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pipeline.config.rules import (
    Count,
    CountOrShare,
    Fraction,
    Positive,
    Seed,
    Slug,
    TextOrTexts,
    broken_rules,
    choose,
    ending_in,
    function_in,
    function_named,
    listed_in,
    matching,
    one_of,
    short_name,
)
from pipeline.system.errors import RequestError

METRICS = "pipeline.evaluation.metrics"
RULES = (Positive, Fraction, Count, Seed, CountOrShare, Slug, Annotated[str, one_of("a", "b")])
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


@pytest.mark.parametrize(
    ("rule", "value", "said"),
    [
        (Count, "x", "key: must be a whole number (got 'x')"),
        (Count, 1.5, "key: must be a whole number (got 1.5)"),
        (Fraction, 1, "key: must be below 1 (got 1)"),
        (Fraction, -0.5, "key: must be at least 0 (got -0.5)"),
        (Positive, 0, "key: must be above 0 (got 0)"),
        (Positive, "inf", "key: must be a finite number (got 'inf')"),
        (Seed, 2**32, "key: must be below 4294967296 (got 4294967296)"),
        (bool, 7, "key: must be true or false (got 7)"),
        (str, 7, "key: must be a text (got 7)"),
        (Annotated[str, one_of("head", "all")], False, "key: choose one of head, all (got False)"),
        (Annotated[str, listed_in(METRICS, "OBJECTIVES")], 3, "key: choose one of val/accu"),
        (TextOrTexts, [1e4], "key: must be a text, or a list of texts; quote what looks like a n"),
        (list[int], 7, "key: must be a list (got 7)"),
        (list[int], ["a"], "key: 'a' must be a whole number"),
        (list[Annotated[str, one_of("a", "b")]], ["a", "B"], "key: no 'B'; did you mean b? choose"),
        (list[Annotated[str, ending_in(".csv")]], ["a.txt"], "key: 'a.txt' must end in .csv"),
        (dict[str, int], 7, "key: must be a mapping of keys to values (got 7)"),
        (CountOrShare, "x", "key: must be a number (got 'x')"),
        (CountOrShare, 1.5, "key: must be a whole number from 0, or a share between 0 and 1 (got"),
        (Count | tuple[Count, Count], "x", "key: must be a whole number or a list (got 'x')"),
        (Count | tuple[Count, Count], 0, "key: must be at least 1 (got 0)"),
        (Count | tuple[Count, Count], [3], "key: must hold 2 values (got [3])"),
        (Count | tuple[Count, Count], [3, 0], "key.1: must be at least 1 (got 0)"),
        (tuple[Count, Count, Count], [3], "key: must hold 3 values (got [3])"),
        (tuple[Count, Count], [1, 2, 3], "key: must hold at most 2 values (got [1, 2, 3])"),
        (Annotated[list[int], Field(min_length=1)], [], "key: must hold at least 1 value (got [])"),
        (
            Annotated[str, Field(max_length=2)],
            "abc",
            "key: must have at most 2 letters (got 'abc')",
        ),
        (Annotated[str, matching("[a-z]+", "a word")], "a\n", "key: must be a word (got 'a\\n')"),
        (Annotated[list[str], Field(max_length=1)] | None, 7, "key: must be a list (got 7)"),
    ],
)
def test_a_rule_is_said_in_our_words(rule: Any, value: Any, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        checked(rule, value)
    assert broken_rules(refused.value, "key").startswith(said)


TEXTS = st.text("1aB~ \n'\"é")  # none of which spells a word of pydantic


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXTS, st.lists))
def test_no_word_of_pydantic_reaches_a_user(value: Any) -> None:
    for rule in (*RULES, Count | tuple[Count, Count] | None, list[Count], dict[str, str]):
        try:
            checked(rule, value)
        except ValidationError as error:
            text = broken_rules(error, "key")
            assert text.startswith("key")
            assert not re.search(r"Input|should|valid|[Pp]ydantic|Field", text.partition("(got")[0])


def test_each_refused_value_is_a_line_with_its_key_its_rule_and_what_was_given() -> None:
    class Settings(BaseModel, extra="forbid"):
        rate: Positive
        hidden: list[Count] | None = None
        kind: Annotated[str, one_of("a", "b")] = "a"

    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"hidden": [3, 0], "kind": "c", "size": 1})
    assert broken_rules(refused.value, "model").splitlines() == [
        "model.rate: needs a value",
        "model.hidden.1: must be at least 1 (got 0)",
        "model.kind: choose one of a, b (got 'c')",
        "model.size: no such parameter (got 1)",
    ]
