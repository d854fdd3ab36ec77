"""Evaluates Hydra's `range(…)` in exact decimals.

Hydra 1.3 adds binary fractions, so that `range(0.1,0.4,0.1)` has an element 0.30000000000000004 and
wrongly includes its end; and it sorts a range by its ends, so that `sort(range(1.3,0,-0.5))` has
different elements.
"""

from __future__ import annotations

import random
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from hydra.core.override_parser.types import Override, RangeSweep

from pipeline.system.errors import RequestError

_MOST = 100_000  # numbers in a range
_DIGITS = 15  # decimal digits that a double always represents
_AROUND = ("int", "float", "sort", "shuffle", "tag", "reverse")
_NAMES = ("start", "stop", "step")


def numbers(override: Override) -> list[Any]:
    """The numbers of an override whose value is a range, in order: all int, or all float.

    `int(…)`, `float(…)`, `sort(…)`, `shuffle(…)` and `tag(…)` around the range are applied.

    Raises:
        RequestError: the range cannot be read, its step is 0, `int` would change its numbers, or
            they have more digits than a number of the configuration holds.
    """
    found, whole = _exact(override)
    text = re.sub(r"\s", "", override.get_value_string())
    if re.search(r"\bsort\(", text):
        found = sorted(found, reverse=bool(re.search(r"\breverse=true\b", text, re.IGNORECASE)))
    if isinstance(value := override.value(), RangeSweep) and value.shuffle:
        random.shuffle(found)
    return [_plain(number, whole=whole) for number in found]


def low_high_step(override: Override) -> tuple[Any, Any, Any]:
    """The smallest and largest number of a range and its positive step: all int, or all float.

    Raises:
        RequestError: as `numbers`, or it has no number.
    """
    found, whole = _exact(override)
    if not found:
        raise RequestError(f"{override.input_line}: has no value to try")
    step = abs(found[1] - found[0]) if len(found) > 1 else Decimal(1)
    low, high = min(found), max(found)
    return _plain(low, whole=whole), _plain(high, whole=whole), _plain(step, whole=whole)


def _exact(override: Override) -> tuple[list[Decimal], bool]:
    """The numbers in the order of the range itself, and whether they are integers."""
    text, line = re.sub(r"\s", "", override.get_value_string()), override.input_line
    inside = re.search(r"(?<!\w)range\(([^()]*)\)", text)
    around = re.sub(r"(?<!\w)range\([^()]*\)", "", text)
    functions = re.findall(r"(\w+)\(", around)
    if not inside or not set(functions) <= set(_AROUND) or functions.count("sort") > 1:
        raise RequestError(f"{line}: write the numbers of the range plainly, or list its values")
    ends = _ends(inside[1], line)
    places = max(max(0, -int(number.as_tuple().exponent)) for number in ends)
    scaled = [int(number.scaleb(places)) for number in ends]
    if scaled[2] == 0:
        raise RequestError(f"{line}: the step of a range must not be 0")
    every = range(*scaled)
    if every[_MOST:]:
        raise RequestError(f"{line}: a range may have at most {_MOST:,} numbers")
    found = [Decimal(number).scaleb(-places) for number in every]
    if "int" in functions and any(number % 1 for number in found):
        raise RequestError(f"{line}: int() would change the numbers of the range; list its values")
    if any(len(number.normalize().as_tuple().digits) > _DIGITS for number in found):
        raise RequestError(f"{line}: more than {_DIGITS} digits; list its values")
    whole = all(re.fullmatch(r"(\w+=)?[+-]?[\d_]+", part) for part in inside[1].split(","))
    return found, "int" in functions or (whole and "float" not in functions)


def _ends(text: str, line: str | None) -> tuple[Decimal, Decimal, Decimal]:
    """Start, stop and step from the arguments of `range`, which may be named."""
    given: dict[str, Decimal] = {}
    for position, part in enumerate(text.split(",")):
        name, _, number = part.rpartition("=")
        try:
            given[name or _NAMES[position]] = Decimal(number)
        except InvalidOperation:
            raise RequestError(f"{line}: {number} is not a valid number in a range") from None
    if "stop" not in given:
        given |= {"start": Decimal(0), "stop": given["start"]}
    start, stop, step = given.get("start", Decimal(0)), given["stop"], given.get("step", Decimal(1))
    if not all(number.is_finite() for number in (start, stop, step)):
        raise RequestError(f"{line}: the ends and the step of a range must be finite")
    return start, stop, step


def _plain(number: Decimal, *, whole: bool) -> Any:
    return int(number) if whole else float(number)
