from __future__ import annotations

import pytest

from pipeline.system.errors import counted, first_of, joined, some_of


@pytest.mark.parametrize(
    ("names", "told"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), ([*"abc"], "a, b and c")]
)
def test_names_are_joined_as_in_a_sentence(names: list[str], told: str) -> None:
    assert joined(names) == told


def test_of_many_things_the_first_are_named_and_the_others_counted() -> None:
    asked: list[int] = []

    def name(number: int) -> str:
        asked.append(number)
        return f"#{number}"

    assert first_of(range(5_000), 2, name) == "#0, #1 and 4,998 more"
    assert asked == [0, 1]  # naming may read a file
    assert first_of({"a": 1, "b": 2}, 2, separator="; ") == "a; b"


def test_a_count_has_the_words_for_one_or_for_many() -> None:
    counts = (1, 0, 1000)
    told = [counted(count, "row is", "rows are") for count in counts]
    assert told == ["1 row is", "0 rows are", "1,000 rows are"]


def test_many_names_are_shortened_to_the_first_and_the_number_of_all() -> None:
    assert some_of(["a", "b"], 2) == "a, b"
    assert some_of([*"abc"] * 1000, 2) == "a, b, … (3,000)"
