"""Rules that values of the configuration are checked against, as pydantic annotations."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _slug(value: str) -> str:
    if not all(re.fullmatch(r"\w[\w.+-]{0,99}", part) for part in value.split("/")):
        raise ValueError("names a folder: letters, digits and . _ + - alone, / between")
    return value


Slug = Annotated[str, AfterValidator(_slug)]  # a file of a group, `mnist` or `mine/birds`


def one_of(*choices: str) -> AfterValidator:
    """A rule for a name: it is one of `choices`."""
    return AfterValidator(lambda value: _chosen(value, choices))


def _chosen(value: str, choices: Iterable[str]) -> str:
    if value not in choices:
        raise ValueError(f"choose one of {', '.join(choices)}")
    return value


def listed_in(module: str, name: str) -> AfterValidator:
    """A rule for a name: it is one of those that `module` lists under `name`."""
    return AfterValidator(
        lambda value: _chosen(value, getattr(importlib.import_module(module), name))
    )


def ending_in(*endings: str) -> AfterValidator:
    """A rule for a file's name: it ends in one of `endings`, in whatever case."""

    def check(value: str) -> str:
        if not value.lower().endswith(endings):
            raise ValueError(f"must end in {' or '.join(endings)}")
        return value

    return AfterValidator(check)


def function_in(module: str, takes: str, *gives: str) -> AfterValidator:
    """A rule for a name: a public function of `module` from `takes` to one of `gives`."""

    def check(value: str) -> str:
        fitting = [
            name
            for name, function in public_functions(module).items()
            if (types := list(function.__annotations__.values()))[0] == takes and types[-1] in gives
        ]
        return _chosen(value, fitting)

    return AfterValidator(check)


def public_functions(module: str) -> dict[str, Callable[..., Any]]:
    """The functions that `module` itself defines under a public name."""
    # Not inspect.getmembers, whose isinstance would make a lazily imported Keras load.
    return {
        name: value
        for name, value in vars(importlib.import_module(module)).items()
        if type(value) is FunctionType and value.__module__ == module and name[0] != "_"
    }


def broken_rules(error: ValidationError, prefix: str = "") -> str:
    """A line for each value that was refused: its key, the rule, and what was given."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in (*filter(None, [prefix]), *problem["loc"]))
        rule = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            rule = "no such parameter"
        given = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
        lines.append(f"{key}: {rule}{given}")
    return "\n".join(dict.fromkeys(lines))
