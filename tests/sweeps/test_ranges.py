from __future__ import annotations

import random
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from pipeline.sweeps.ranges import low_high_step, numbers
from pipeline.system.errors import RequestError


def override(value: str) -> Override:
    [parsed] = OverridesParser.create().parse_overrides([f"x={value}"])
    return parsed


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("range(0.1,0.4,0.1)", [0.1, 0.2, 0.3]),
        ("range(4)", [0, 1, 2, 3]),
        ("range(5,0,-2)", [5, 3, 1]),
        ("sort(range(5,0,-2))", [1, 3, 5]),
        ("sort(range(1,4),reverse=true)", [3, 2, 1]),
        ("float(range(1,3))", [1.0, 2.0]),
        ("int(range(1.0,3.0))", [1, 2]),
        ("range(stop=3,start=1)", [1, 2]),
        ("range(3,3)", []),
    ],
)
def test_a_range_has_its_exact_numbers_all_of_one_kind(value: str, expected: list[Any]) -> None:
    found = numbers(override(value))
    assert found == expected
    assert [type(one) for one in found] == [type(one) for one in expected]


def test_a_shuffled_range_has_the_same_numbers() -> None:
    random.seed(0)
    found = numbers(override("shuffle(range(0,20))"))
    assert found != sorted(found)
    assert sorted(found) == list(range(20))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("range(0.1,0.5,0.1)", (0.1, 0.4, 0.1)),
        ("range(0.7,0.1,-0.2)", (0.3, 0.7, 0.2)),
        ("range(2,3)", (2, 2, 1)),
    ],
)
def test_a_space_goes_from_its_lowest_to_its_highest_number_by_a_positive_step(
    value: str, expected: tuple[Any, Any, Any]
) -> None:
    assert low_high_step(override(value)) == expected


def test_a_space_without_a_number_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^x=range\(3,3\): has no value to try$"):
        low_high_step(override("range(3,3)"))
