"""Rules for values of the configuration, as pydantic annotations."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo

from pipeline.config import trusted
from pipeline.config.guesses import letters_of
from pipeline.config.trusted import public_functions
from pipeline.system.errors import PipelineError, RequestError, one_line

_Problem = Mapping[str, Any]  # an entry of `ValidationError.errors()`
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Negative = Annotated[float, Field(lt=0, allow_inf_nan=False)]
NonPositive = Annotated[float, Field(le=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
WholeNumber = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

TRAINABLE = ("head", "top", "all")  # what may be trained of a model with a backbone


def _count_or_share(value: int | float) -> int | float:
    if not math.isfinite(value) or value < 0 or (value > 1 and value != int(value)):
        raise ValueError("must be a whole number from 0, or a share between 0 and 1")
    return int(value) if value == int(value) else value


CountOrShare = Annotated[int | float, AfterValidator(_count_or_share)]


RECORDED = "recorded"  # the context in which what an earlier version has recorded is checked


def _as_typed(value: str, info: ValidationInfo) -> str:
    if value.startswith("~/") and info.context != RECORDED:
        raise ValueError(f"the shell leaves ~ as it is there; write $HOME{value[1:]}")
    return value


_AS_TYPED = AfterValidator(_as_typed)
TypedPath = Annotated[str, _AS_TYPED]
"""A path that is used as typed: none in a folder named `~`, as the shell leaves `output=~/x`.

Keys that name something to read (`dataset.path`) are plain texts: there `~` is the home folder."""


def is_typed_path(hint: Any) -> bool:
    """Whether an annotation is `TypedPath`, with other rules or without."""
    return _AS_TYPED in getattr(hint, "__metadata__", ()) or any(map(is_typed_path, get_args(hint)))


Builder = TypeVar("Builder", bound=Callable[..., Any])
_CHECK = "check"


def checked_by(check: Callable[..., object]) -> Callable[[Builder], Builder]:
    """Decorates a builder with a check of its keys, for what their annotations cannot say.

    `check` takes the keys as keyword arguments, and raises `ValueError` or `RequestError` if the
    builder could not work with them. It runs before the builder, and alone before anything slow is
    imported: it may look whether a file exists, but not read all of it.
    """

    def mark(builder: Builder) -> Builder:
        @wraps(builder)
        def checked(*runtime: Any, **keys: Any) -> Any:
            check(**keys)
            return builder(*runtime, **keys)

        setattr(checked, _CHECK, check)
        return checked  # type: ignore[return-value]

    return mark


def averages(optimizer: Builder) -> Builder:
    """Declares that an optimizer averages weights in place of a schedule and `train.ema`."""
    optimizer.averages = True  # type: ignore[attr-defined]
    return optimizer


def rotates(*keys: str) -> Callable[[Builder], Builder]:
    """Declares that an augmentation rotates or shifts images where one of these keys is set.

    XLA lacks the operation by which TensorFlow does so.
    """

    def declare(augmentation: Builder) -> Builder:
        augmentation.rotates = keys  # type: ignore[attr-defined]
        return augmentation

    return declare


def keys_that_rotate(augmentation: Callable[..., Any] | None) -> tuple[str, ...]:
    """The keys of an augmentation by which it rotates or shifts images."""
    return getattr(augmentation, "rotates", ())


@dataclass(frozen=True, kw_only=True)
class Idle:
    """When parameters of a builder have no effect beside others, and what to do about it.

    An empty name among the `keys` stands for the choice of the builder itself. `nothing` are values
    that ask for nothing, and are therefore no mistake.
    """

    keys: tuple[str, ...]
    when: Callable[[dict[str, Any]], bool]
    because: str
    mend: str
    nothing: tuple[Any, ...] = ()


def idle(
    *keys: str,
    when: Callable[[dict[str, Any]], bool],
    because: str,
    mend: str,
    nothing: tuple[Any, ...] = (),
) -> Callable[[Builder], Builder]:
    """Declares that typing these parameters of a builder is a mistake `when` its leaf says so."""
    rule = Idle(keys=keys or ("",), when=when, because=because, mend=mend, nothing=nothing)

    def declare(builder: Builder) -> Builder:
        builder.idle = (rule, *idle_of(builder))  # type: ignore[attr-defined]
        return builder

    return declare


def idle_of(builder: Callable[..., Any] | None) -> tuple[Idle, ...]:
    """What a builder declares of its parameters, in order."""
    return getattr(builder, "idle", ())


def without_validation(builder: Builder) -> Builder:
    """Declares that a data set never has a validation split of its own."""
    builder.own_validation = False  # type: ignore[attr-defined]
    return builder


def may_have_validation(builder: Callable[..., Any] | None) -> bool:
    """Whether a data set may have a validation split of its own."""
    return getattr(builder, "own_validation", True)


def check_of(builder: Callable[..., Any]) -> Callable[..., object] | None:
    """The check that a builder was decorated with, if any."""
    found: Callable[..., object] | None = getattr(builder, _CHECK, None)
    return found


def _slug(value: str) -> str:
    if not all(re.fullmatch(r"\w[\w.+-]{0,99}", part) for part in value.split("/")):
        raise ValueError("names a folder: use only letters, digits and . _ + -, / between parts")
    return value


# Tags by which the pipeline finds a run and what belongs to it (`tracking/values.py`).
_OWN_TAGS = re.compile(
    r"(dataset|preprocess|augment|model|optimizer|schedule|train|evaluate|command|error|traceback"
    r"|model_uri|folder|local_id|teacher|heartbeat|reproduces|reproduction|cache/.*"
    r"|(best|code|data|hardware|heartbeat|precision|resumed|sweep|trusted|version|weights)\..*)"
)


def _name_of_users(tag: str, info: ValidationInfo) -> str:
    if info.context != RECORDED and _OWN_TAGS.fullmatch(tag):
        raise ValueError(f"the pipeline has a tag {tag} of its own; choose another name")
    return tag


def _one_or_several(value: Any) -> str | list[str] | None:
    several = [] if value is None else [value] if isinstance(value, str) else value
    is_list = isinstance(several, list) and (several or value is None)
    if not is_list or not all(isinstance(one, str) and one for one in several):
        raise ValueError("must be a text, or a list of texts; quote what looks like a number")
    return value


# `str | list[str] | None`, of which OmegaConf knows no union.
TextOrTexts = Annotated[Any, AfterValidator(_one_or_several)]
TagName = Annotated[str, AfterValidator(_name_of_users)]  # of a tag of the user's own
Slug = Annotated[str, AfterValidator(_slug)]  # a file of a group, `mnist` or `mine/birds`


def one_of(*choices: str) -> BeforeValidator:
    """A rule for a name: it is one of `choices`, which are told to whoever gives no text either."""
    return BeforeValidator(lambda value: _chosen(value, choices))


def _chosen(value: Any, choices: Iterable[str]) -> Any:
    if value not in [*choices]:
        raise ValueError(choose(str(value), choices))
    return value


_NONE = ("none", "null", "nil", "no", "off", "false", "0", "")


def choose(given: str, options: Iterable[str]) -> str:
    """Suggests what could have been meant: the nearest option first, then all."""
    names = [*options]
    by_letters = {letters_of(name): name for name in reversed(names)}
    near = difflib.get_close_matches(letters_of(given), by_letters, n=1, cutoff=0.7)
    close = by_letters[near[0]] if near and letters_of(given) else None
    if given.lower() in _NONE and "none" in names:
        close = "none"
    hint = f"did you mean {close}? " if close else ""
    return f"{hint}choose one of {', '.join(names)}"


def listed_in(module: str, name: str) -> BeforeValidator:
    """A rule for a name: it is in the list `name` of `module`."""
    return BeforeValidator(
        lambda value: _chosen(value, getattr(importlib.import_module(module), name))
    )


def ending_in(*endings: str) -> AfterValidator:
    """A rule for a file's name: it ends in one of `endings`, in upper or lower case."""

    def check(value: str) -> str:
        if not value.lower().endswith(endings):
            raise ValueError(f"must end in {' or '.join(endings)}")
        return value

    return AfterValidator(check)


def matching(pattern: str, what: str) -> AfterValidator:
    """A rule for a text: the whole of it matches a regular expression, which `what` says."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {what}")
        return value

    return AfterValidator(check)


def function_in(module: str, takes: str, *gives: str) -> AfterValidator:
    """A rule for a name: a public function of `module` from `takes` to one of `gives`.

    A function of a trusted module, such as `my_metrics.top2`, is also allowed.
    """

    def fits(function: Callable[..., Any]) -> bool:
        types = [_written(hint) for hint in function.__annotations__.values()]
        parameters = inspect.signature(function).parameters.values()
        needed = [one for one in parameters if one.default is one.empty]
        return len(types) > 1 and len(needed) == 1 and types[0] == takes and types[-1] in gives

    def check(value: str) -> str:
        ours = public_functions(module)
        if "." not in value:
            return _chosen(value, [name for name, function in ours.items() if fits(function)])
        try:
            if not fits(trusted.checked_function(value)):
                signature = f"(x: {takes}) -> {' or '.join(gives)}"
                raise ValueError(f"must be annotated {signature}, and take nothing else")
        except RequestError as error:
            raise ValueError(str(error)) from error
        return value

    return AfterValidator(check)


def _written(hint: Any) -> str:
    """An annotation as written in a source file, without modules."""
    text = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
    return str(hint) if text == "dict" else text.rpartition(".")[2] if "[" not in text else text


def function_named(module: str, name: str) -> Callable[..., Any]:
    """The function of `module` with that name, or a trusted one for a dotted name.

    Raises:
        RequestError: there is no such function.
    """
    if "." in name:
        return trusted.trusted_function(name)
    known = public_functions(module)
    if name not in known:
        raise RequestError(f"{module} has no function {name!r}; choose one of {', '.join(known)}")
    return known[name]


@contextmanager
def named_in_errors(function: str, *passing: type[Exception]) -> Iterator[None]:
    """Names a function of the user's own in its errors; `passing` ones and those of others stay.

    Raises:
        PipelineError: the function failed.
    """
    try:
        yield
    except Exception as error:
        if not trusted.is_trusted(function) or isinstance(error, (PipelineError, *passing)):
            raise
        raise PipelineError(f"{function}: {one_line(error)}") from error


def short_name(name: str) -> str:
    """The name of a function's metrics or plot: `top2` for `my_metrics.top2`."""
    return name.rpartition(".")[2]


# What pydantic found, by the type of its error; words for which go on from "must be" are below.
_LIMITS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
}
_LENGTHS = {
    "too_short": "must hold at least {min_length}",
    "too_long": "must hold at most {max_length}",
    "string_too_short": "must have at least {min_length} letters",
    "string_too_long": "must have at most {max_length} letters",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    **dict.fromkeys(("list", "tuple", "set"), "a list"),
    **dict.fromkeys(("dict", "mapping", "dataclass", "model"), "a mapping of keys to values"),
}


def broken_rules(error: ValidationError, prefix: str = "") -> str:
    """One line per refused value: its key, the rule, and the given value."""
    problems = [(_path(problem), problem) for problem in error.errors()]
    apt = [place for place, problem in problems if not _kind_of(problem)]
    lines: dict[tuple[str, str], list[str]] = {}
    for place, problem in problems:
        # Of several types (`int | tuple[int, int]`) the one that the value was meant to have.
        if _kind_of(problem) and any(other[: len(place)] == place for other in apt):
            continue
        rule, given, key = _rule(problem), f" (got {problem['input']!r})", place
        if problem["type"] == "missing" and not _misses_item(problem):
            given = ""
        elif key and isinstance(key[-1], int) and isinstance(problem["input"], str):
            rule = _with_item(problem["input"], rule)  # better named by itself than by its place
            given, key = "", key[:-1]
        name = ".".join([*filter(None, [prefix]), *map(str, key)])
        lines.setdefault((name, given), []).append(rule)
    return "\n".join(f"{key}: {_joined(rules)}{given}" for (key, given), rules in lines.items())


def _path(problem: _Problem) -> tuple[int | str, ...]:
    """The keys and positions that lead to a value; a list's own if it has too few items."""
    place = tuple(part for part in problem["loc"] if not _is_of_a_union(part))
    return place[:-1] if _misses_item(problem) else place


def _misses_item(problem: _Problem) -> bool:
    return problem["type"] == "missing" and isinstance(problem["loc"][-1], int)


def _kind_of(problem: _Problem) -> str | None:
    """What a value of the wrong type must be; None for a value of the right type."""
    found = re.fullmatch(r"([a-z]+)_(type|parsing|parsing_size|from_float)", problem["type"])
    return _KINDS.get(found[1]) if found else None


def _rule(problem: _Problem) -> str:
    """The rule that a value breaks, in our words."""
    kind, type_of_error = _kind_of(problem), problem["type"]
    limits = {
        name: f"{int(one) if isinstance(one, float) and one == int(one) else one}"
        for name, one in problem.get("ctx", {}).items()
        if isinstance(one, int | float)
    }
    if kind or type_of_error in _LIMITS:
        return "must be " + (kind or _LIMITS[type_of_error].format(**limits))
    if type_of_error in _LENGTHS:
        return _LENGTHS[type_of_error].format(**limits)
    if _misses_item(problem):
        return f"must hold {int(problem['loc'][-1]) + 1}"
    if type_of_error == "missing":
        return "needs a value"
    if type_of_error in ("extra_forbidden", "unexpected_keyword_argument"):
        return "no such parameter"
    rule = problem["msg"].removeprefix("Value error, ")
    return re.sub(r"^(Input|Value) should ", "must ", rule)


def _with_item(item: str, rule: str) -> str:
    if rule.startswith("must "):
        return f"{item!r} {rule}"
    if rule.startswith(("choose ", "did you mean ")):
        return f"no {item!r}; {rule}"
    return rule if item in rule else f"{item!r}: {rule}"


def _joined(rules: Sequence[str]) -> str:
    """Rules of which one must be kept, as of a key with several types."""
    *_, last = rules
    if last.startswith("must hold "):  # of a list; pydantic tells of each missing item
        return f"{last} {'value' if last.endswith(' 1') else 'values'}"
    ends = [*dict.fromkeys(rule.removeprefix("must be ") for rule in rules)]
    if "a number" in ends and "a whole number" in ends:
        ends.remove("a whole number")
    if all(rule.startswith("must be ") for rule in rules):
        return f"must be {' or '.join(ends)}"
    return " or ".join(dict.fromkeys(rules))


def _is_of_a_union(part: int | str) -> bool:
    """Whether a part of an error's location names one of several types (`list[str]`), not a key."""
    return isinstance(part, str) and bool(
        re.search(r"\[.*\]$|^constrained-|^(int|float|str)$", part)
    )
