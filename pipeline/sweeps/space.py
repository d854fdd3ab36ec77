"""The space of an adaptive search: converts Hydra's overrides to Optuna's distributions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import product
from typing import Any

import lazy_loader
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from pipeline.sweeps.jobs import LOG, swept_values
from pipeline.sweeps.ranges import low_high_step
from pipeline.system.errors import RequestError, first_line

optuna: Any = lazy_loader.load("optuna")


def distributions(searched: Sequence[Override]) -> dict[str, Any]:
    """Optuna's distributions, by key.

    Raises:
        RequestError: a key has no value to try, or invalid bounds.
    """
    return {override.get_key_element(): distribution(override) for override in searched}


def distribution(override: Override) -> Any:
    """Optuna's distribution for a searched key: choices are texts, ranges are numbers."""
    space = override.value()
    if isinstance(space, IntervalSweep):
        kind = optuna.distributions.FloatDistribution
        if isinstance(space.start, int) and isinstance(space.end, int):
            kind = optuna.distributions.IntDistribution
        return _checked(override, kind, space.start, space.end, log=LOG in space.tags)
    if isinstance(space, RangeSweep):
        low, high, step = low_high_step(override)
        kind = optuna.distributions.FloatDistribution
        if isinstance(low, int):
            kind = optuna.distributions.IntDistribution
        return _checked(override, kind, low, high, step=step, log=LOG in space.tags)
    if isinstance(space, ChoiceSweep):
        space.shuffle = False  # a study has its choices in one order, also when it is resumed
    return optuna.distributions.CategoricalDistribution(swept_values(override))


def size(space: Any) -> float:
    """The number of values of a distribution; infinite for an interval of real numbers."""
    if isinstance(space, optuna.distributions.CategoricalDistribution):
        return len(space.choices)
    return math.inf if space.step is None else round((space.high - space.low) / space.step) + 1


def corners(spaces: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Parameters at the ends of the space, in which each choice and each bound occurs.

    A number that is not whole occurs too if there is one: keys of whole numbers take 64.0.
    """
    ends = {key: [*values, *_broken(spaces[key])] for key, values in _ends(spaces).items()}
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, values in ends.items():
        yield from (first | {key: value} for value in values[1:])


def all_corners(spaces: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Parameters at the ends of the space: every combination of its choices and bounds."""
    ends = _ends(spaces)
    return (dict(zip(ends, values, strict=True)) for values in product(*ends.values()))


def _ends(spaces: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        key: [
            text_of(end)
            for end in getattr(space, "choices", None) or sorted({space.low, space.high})
        ]
        for key, space in spaces.items()
    }


def _broken(space: Any) -> list[str]:
    """A number between whole bounds that is not whole, if the space has one."""
    if not isinstance(space, optuna.distributions.FloatDistribution) or space.single():
        return []
    if not (space.low.is_integer() and space.high.is_integer()):
        return []
    middle = (space.low + space.high) / 2
    between = middle + 0.5 * middle.is_integer() if space.step is None else space.low + space.step
    return [] if between.is_integer() else [text_of(between, space)]


def whole_numbers(override: Override) -> str | None:
    """An interval of real numbers as one of whole numbers, as on a command line; else None."""
    space = override.value()
    if not isinstance(space, IntervalSweep) or isinstance(space.start, int):
        return None
    key, _, text = str(override.input_line).partition("=")
    return f"{key}=int({text})"


def text_of(value: Any, space: Any = None) -> str:
    """A value as written on a command line; a value of a range as its exact decimal."""
    if isinstance(value, float) and (step := getattr(space, "step", None)):
        low, step = Decimal(repr(space.low)), Decimal(repr(step))
        value = float(low + round((Decimal(value) - low) / step) * step)
    return value if isinstance(value, str) else repr(value)


def _checked(override: Override, kind: Any, *bounds: Any, **options: Any) -> Any:
    if not all(map(math.isfinite, bounds)):
        raise RequestError(f"{override.input_line}: the ends of an interval must be finite")
    try:
        return kind(*bounds, **options)
    except ValueError as error:
        raise RequestError(f"{override.input_line}: {first_line(str(error))}") from error
