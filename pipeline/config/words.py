"""The command line that `mlflow run` composes, turned into the one a person would type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from pipeline.system.errors import RequestError

LAUNCHED_BY_MLPROJECT = "--mlproject"

# Hydra's own flags (`python -m pipeline --hydra-help`); any other `--key` is a parameter that
# MLproject does not declare, which MLflow appends as `--key value`.
HYDRA_FLAGS = frozenset(
    {
        "--cfg",
        "--config-dir",
        "--config-name",
        "--config-path",
        "--experimental-rerun",
        "--help",
        "--hydra-help",
        "--info",
        "--multirun",
        "--package",
        "--resolve",
        "--run",
        "--shell-completion",
        "--version",
    }
)


# What may be said of a recorded run: which it is, in which data set's experiment, with which cache.
ABOUT_THE_RECORD = frozenset({"run_id", "dataset", "data_dir", "trusted_modules"})


SWEEPERS = ("grid", "search", "optuna")  # of this project
LEFT_TO_JOBS = "left to jobs"  # tag of a value that a sweep's jobs get, not its own configuration
_MARK, _END = f"tag('{LEFT_TO_JOBS}',choice(", "))"
_NO_GROUPS = ("seed", "data_dir", "run_id")
_NOT_FOR_JOBS = ("hydra", "sweep", "tracking")


def require_our_sweeper(words: Sequence[str]) -> None:
    """Refuses settings of a sweep for another sweeper, which makes runs that know of no sweep.

    Raises:
        RequestError: names the sweeper and the first such word.
    """
    chosen = [word.partition("=")[2] for word in words if _key(word) == "hydra/sweeper"]
    about = [word for word in words if re.match(r"[+~]*sweep[.=]", word)]
    if about and chosen and chosen[-1] not in SWEEPERS:
        raise RequestError(
            f"{about[0]} has no effect with hydra/sweeper={chosen[-1]}, which makes ordinary runs; "
            f"choose one of {', '.join(SWEEPERS)}, or leave hydra/sweeper out"
        )


def left_to_jobs(words: Sequence[str]) -> list[str]:
    """The words of a multirun, fixed values marked as such where a swept file decides on the key.

    `optimizer=sgd,rmsprop optimizer.momentum=0.9` would be refused by Hydra, which composes the
    configuration of the whole without any of the swept values: `adam` has no momentum. So it gets
    `optimizer.momentum=tag('left to jobs',choice(0.9))`, which it leaves alone.
    """
    parser = OverridesParser.create()
    if not _tries_files(words, parser):
        return [*words]
    return [_left_to_jobs(word, parser) for word in words]


def _tries_files(words: Sequence[str], parser: OverridesParser) -> bool:
    """Whether groups are swept, on the command line or maybe in a file of `conf/sweep`."""
    chosen = [word for word in words if "=" in word and "." not in _key(word)]
    chosen = [word for word in chosen if _key(word).lstrip("+") not in _NO_GROUPS]
    parsed = [_parsed(word, parser) for word in chosen]
    return any(one and (one.is_sweep_override() or one.key_or_group == "sweep") for one in parsed)


def _left_to_jobs(word: str, parser: OverridesParser) -> str:
    key, _, value = word.partition("=")
    group, dot, _ = key.lstrip("+").partition(".")
    if not (value and dot) or word.startswith(("-", "~")) or group in _NOT_FOR_JOBS:
        return word
    one = _parsed(word, parser)
    if one is None or one.is_sweep_override():
        return word
    marked = f"{key}={_MARK}{value}{_END}"
    return marked if _parsed(marked, parser) else word


def as_typed(word: str) -> str:
    """A word that `left_to_jobs` has marked, without the mark."""
    return word.replace(f"={_MARK}", "=", 1).removesuffix(_END) if f"={_MARK}" in word else word


def _parsed(word: str, parser: OverridesParser) -> Override | None:
    try:
        return parser.parse_overrides([word])[0]
    except HydraException:  # which Hydra says itself
        return None


def normalise(words: list[str]) -> list[str]:
    """Hydra's arguments from those after the verb, which a person or an MLproject composed.

    An MLproject command says so itself: `<verb> --mlproject key={key} … overrides={overrides}`.
    In it, an empty `key=` means "as the configuration says" and goes; `overrides=a=1 b=2`, one
    word, becomes `a=1 b=2`; `--key value` becomes `key=value`; and of two values for the same key
    the later one stays, for Hydra refuses two choices from one group.

    Raises:
        RequestError: `overrides` cannot be split into words, a `--key` comes without a value, or a
            person wrote a `--flag` that Hydra does not have.
    """
    if words[:1] != [LAUNCHED_BY_MLPROJECT]:
        _refuse_unknown_flags(words)
        return words
    words = list(_as_overrides(words[1:]))
    latest = {_key(word): position for position, word in enumerate(words)}
    return [
        word
        for position, word in enumerate(words)
        if "=" not in word or latest[_key(word)] == position
    ]


def addressed(words: list[str], verb: str, request: type | None) -> list[str]:
    """The words of a verb with the keys of its `request` as Hydra knows them.

    `runs=a,b` of compare becomes `compare.runs=['a','b']`. What is to be a text is quoted, so that
    a person may write any path or sentence, and the beginning of an id is no number (`12e4`); null,
    and what is quoted already, stays.
    """
    words = [_quoted_value(word) if _key(word) == "run_id" else word for word in words]
    if request is None:
        return words
    hints = get_type_hints(request, include_extras=True)
    own = {field.name: hints[field.name] for field in fields(request)}
    known = own | {f"{verb}.{name}": hint for name, hint in own.items()}
    return [_addressed(word, verb, known) for word in words]


def refuse_settings_of_a_run(words: Sequence[str], verb: str) -> None:
    """A verb that takes its configuration from a recorded run cannot be given another.

    Raises:
        RequestError: naming the first of such words.
    """
    for word in words:
        key = _key(word).lstrip("+~")
        if key not in ABOUT_THE_RECORD and not key.startswith((f"{verb}.", "tracking.", "hydra")):
            raise RequestError(
                f"{word}: {verb} takes the configuration that the run has recorded; to change it, "
                "start a new run"
            )


def _addressed(word: str, verb: str, known: dict[str, Any]) -> str:
    key, equals, value = word.partition("=")
    if key not in known or not equals:
        return word
    hint = known[key]
    if get_origin(hint) is list and not _is_hydras(value):
        value = f"[{','.join(quoted(part.strip()) for part in value.split(',') if part)}]"
    elif _is_text(hint):
        value = _as_text(value)
    return f"{verb}.{key.removeprefix(f'{verb}.')}={value}"


def _quoted_value(word: str) -> str:
    key, equals, value = word.partition("=")
    return f"{key}{equals}{_as_text(value)}" if value else word


def _as_text(value: str) -> str:
    return value if _is_hydras(value) else quoted(value)


def _is_hydras(value: str) -> bool:
    """Whether a value is written as Hydra takes it already."""
    return value == "null" or value.startswith(("'", '"', "["))


def _is_text(hint: Any) -> bool:
    """Whether `str`, `str | None` or `Annotated[str, …]`."""
    return hint is str or any(map(_is_text, get_args(hint)))


def quoted(text: str) -> str:
    """A text as a value in Hydra's grammar of overrides."""
    # Backslashes count as escapes before a quote alone.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return "'" + escaped.replace("${", "\\${") + "'"


def _refuse_unknown_flags(words: list[str]) -> None:
    for word in words:
        if word.startswith("--") and _key(word) not in HYDRA_FLAGS:
            raise RequestError(
                f"{word}: no such flag; settings are written key=value, as in train.epochs=5"
            )


def _key(word: str) -> str:
    return word.partition("=")[0]


def _as_overrides(words: list[str]) -> Iterator[str]:
    remaining = iter(words)
    for word in remaining:
        key, equals, value = word.partition("=")
        if word.startswith("--") and word not in HYDRA_FLAGS:
            key, equals, value = word.removeprefix("--"), "=", _next(remaining, after=word)
        if key == "overrides":
            yield from _split(value)
        elif value or not equals:
            yield f"{key}{equals}{value}"


def _next(remaining: Iterator[str], *, after: str) -> str:
    for value in remaining:
        return value
    raise RequestError(f"{after}: a value must follow, as in {after} 1")


def _split(overrides: str) -> list[str]:
    try:
        return shlex.split(overrides)
    except ValueError as error:
        raise RequestError(
            f"overrides: {str(error).lower()} in {overrides!r}; write them as on a command line, "
            "every quote closed"
        ) from None
