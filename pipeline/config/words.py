"""Reads the words of a command line: flags, keys and values, also as `mlflow run` composes them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from pipeline.config.builders import GROUPS, parameter_of
from pipeline.config.flat import as_param
from pipeline.config.rules import TextOrTexts, TypedPath
from pipeline.config.schema import Choices, Config
from pipeline.config.search_path import files_of
from pipeline.system.errors import RequestError
from pipeline.system.terminal import printable

LAUNCHED_BY_MLPROJECT = "--mlproject"

# Hydra's own flags (`python -m pipeline --hydra-help`); any other `--key` is a parameter that
# MLproject does not declare, which MLflow appends as `--key value`.
_ALONE = ("--multirun", "--run", "--cfg", "--info", "--shell-completion")
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


# The flags that take a value: what it is, and its choices, if not any value.
HYDRA_VALUES: dict[str, tuple[str, tuple[str, ...]]] = {
    "--cfg": ("job, hydra or all", ("job", "hydra", "all")),
    "--config-dir": ("a folder", ()),
    "--config-name": ("a file's name", ()),
    "--config-path": ("a folder", ()),
    "--experimental-rerun": ("a file", ()),
    "--package": ("a group", ()),
}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # of --info, or none
SHORT_FLAGS = {
    "-c": "--cfg",
    "-cd": "--config-dir",
    "-cn": "--config-name",
    "-cp": "--config-path",
    "-h": "--help",
    "-i": "--info",
    "-m": "--multirun",
    "-p": "--package",
    "-r": "--run",
    "-sc": "--shell-completion",
}
_DASHES = ("\u2010", "\u2011", "\u2013", "\u2014", "\u2212")
_SWEEP = "several values are tried with -m: python -m pipeline -m seed=0,1"
_FLAGS_MEANT = {
    **dict.fromkeys(("m", "multirun", "multi_run", "sweep", "grid", "search"), _SWEEP),
    **dict.fromkeys(
        ("dry_run", "n", "preview", "print_config"),
        "--cfg job shows a run's configuration, sweep.preview=true the jobs of a sweep",
    ),
    **dict.fromkeys(("v", "verbose", "debug"), "hydra.verbose=true logs more"),
    **dict.fromkeys(
        ("config", "config_file", "cfg_file", "conf"),
        "files of conf/ are chosen by "
        "name, as in experiment=fast; --config-dir FOLDER adds a folder of yours",
    ),
}

# How tab completion is set up.
COMPLETES = 'write eval "$(python -m pipeline -sc install=bash)"'

# Settings allowed for a recorded run: the run, the data set that names its experiment, the cache.
ABOUT_THE_RECORD = frozenset({"run_id", "dataset", "data_dir", "trusted_modules"})


SWEEPERS = ("grid", "search", "optuna")  # of this project
LEFT_TO_JOBS = "left to jobs"  # tags a value for a sweep's jobs, not for its own configuration
_MARK, _END = f"tag('{LEFT_TO_JOBS}',choice([", "]))"  # a list, since no choice may be null
_ITEM = re.compile(  # of a list or mapping, quoted or not; no key
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^][{}(),:'"]+(?=[],}])"""
)
_COMMA = re.compile(r",(?![^(\[{]*[)\]}])")  # within no brackets
_WITH_PARAMS = ("sweep", "experiment")  # groups whose files may have `sweep.params`
_NO_GROUPS = ("seed", "data_dir", "run_id")
_NOT_FOR_JOBS = ("hydra", "sweep", "tracking")


def require_utf8(words: Sequence[str]) -> None:
    """Refuses words and names of folders that are not UTF-8, which records and tables have to be.

    Raises:
        RequestError: names the first.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise RequestError(
                f"{printable(word)}: this is not in UTF-8, and cannot be recorded; rename the file "
                "or folder"
            ) from None


def require_our_sweeper(words: Sequence[str]) -> None:
    """Refuses settings of a sweep if another sweeper is chosen, whose runs do not form a sweep.

    Raises:
        RequestError: names the sweeper and the first such word.
    """
    about = [word for word in words if re.match(r"[+~]*sweep[.=]", word)]
    if about and (other := foreign_sweeper(words)):
        raise RequestError(
            f"{about[0]} has no effect with hydra/sweeper={other}, which makes ordinary runs; "
            f"choose one of {', '.join(SWEEPERS)}, or leave hydra/sweeper out"
        )


def foreign_sweeper(words: Sequence[str]) -> str | None:
    """The sweeper that the words choose, if it is not one of this project."""
    chosen = [word.partition("=")[2] for word in words if key_of(word) == "hydra/sweeper"]
    return chosen[-1] if chosen and chosen[-1] not in SWEEPERS else None


def left_to_jobs(words: Sequence[str]) -> list[str]:
    """The words of a multirun, with fixed values marked if their keys depend on a swept file.

    Hydra would refuse `optimizer=sgd,rmsprop optimizer.momentum=0.9`: it composes the sweep's own
    configuration without the swept values, and its `adam` has no momentum. So it gets
    `optimizer.momentum=tag('left to jobs',choice([0.9]))`, which it does not apply.
    """
    parser = OverridesParser.create()
    if not _tries_files(words, parser):
        return [*words]
    return [_left_to_jobs(word, parser) for word in words]


def _tries_files(words: Sequence[str], parser: OverridesParser) -> bool:
    """Whether groups are swept, on the command line or possibly by `params` of a file."""
    if files_of("project"):
        return True
    chosen = [word for word in words if "=" in word and "." not in key_of(word)]
    chosen = [word for word in chosen if key_of(word) not in _NO_GROUPS]
    parsed = [_parsed(word, parser) for word in chosen]
    return any(
        one and (one.is_sweep_override() or one.key_or_group in _WITH_PARAMS) for one in parsed
    )


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
    except HydraException:  # Hydra reports it itself
        return None


def normalise(words: list[str]) -> list[str]:
    """Hydra's arguments from those after the verb, typed by a person or composed by an MLproject.

    A command of an MLproject has `--mlproject`: `<verb> --mlproject key={key} …
    overrides={overrides}`. There, an empty `key=` stands for the configured value and is dropped;
    `overrides=a=1 b=2`, one word, becomes `a=1 b=2`; and `--key value` becomes `key=value`.

    Raises:
        RequestError: `overrides` cannot be split into words, or a `--key` comes without a value.
    """
    return [*_as_overrides(words[1:])] if words[:1] == [LAUNCHED_BY_MLPROJECT] else words


def once(words: Sequence[str]) -> list[str]:
    """The words of an MLproject without repetitions.

    MLflow records parameters before the command starts and cannot change them, so another value in
    `overrides` would leave a wrong one in the store.

    Raises:
        RequestError: two words give different values to a key.
    """
    found: dict[str, str] = {}
    for word in words:
        key = key_of(word) if "=" in word else word
        before = found.setdefault(key, word)
        if before.partition("=")[2] != word.partition("=")[2]:
            raise RequestError(f"{before} and {word}: give {key} once, with -P or in overrides")
    return [*found.values()]


def flags_apart(words: Sequence[str], request: type | None = None) -> tuple[list[str], list[str]]:
    """Separates Hydra's flags, each with its value, from the other words, in any order.

    Hydra's parser of arguments takes overrides in one place only, so flags go first.

    Raises:
        RequestError: Hydra has no such flag, or its value is missing or not allowed.
    """
    flags: list[str] = []
    settings: list[str] = []
    remaining = [*words]
    while remaining:
        word = remaining.pop(0)
        if word[:1] in _DASHES and "=" not in word:
            raise RequestError(f"{word}: a flag begins with -, as in -m, not with {word[0]}")
        if not word.startswith("-"):
            settings.append(word)
            continue
        written, equals, value = word.partition("=")
        flag = SHORT_FLAGS.get(written, written)
        if flag not in HYDRA_FLAGS:
            raise RequestError(_no_such_flag(word, remaining, request))
        if flag in HYDRA_VALUES:
            value = value if equals else remaining.pop(0) if remaining else ""
            flags.append(f"{flag}={_value_of_flag(written, value)}")
        elif flag == "--info":
            follows = not equals and remaining[:1] and remaining[0] in INFO
            value = remaining.pop(0) if follows else value
            if value and value not in INFO:
                raise RequestError(f"{word}: choose one of {', '.join(INFO)}")
            flags.append(f"{flag}={value or INFO[0]}")
        elif equals:
            apart = f"; write {written} {value}" if "=" in value else ""
            raise RequestError(f"{word}: {written} takes no value{apart}")
        else:
            flags.append(flag)
    _require_company(flags)
    return flags, settings


def _require_company(flags: Sequence[str]) -> None:
    """Refuses flags that have no effect without others, or after a verb.

    Raises:
        RequestError: says where they belong.
    """
    names = {flag.partition("=")[0] for flag in flags}
    if len(alone := [flag for flag in _ALONE if flag in names]) > 1:
        raise RequestError(f"{' and '.join(alone)}: give one of them")
    for flag in names & {"--resolve", "--package"}:
        if not names & {"--cfg", "--help"}:
            raise RequestError(
                f"{flag}: has an effect beside --cfg alone, as in --cfg job {flag} …"
            )
    if "--shell-completion" in names:
        raise RequestError(f"--shell-completion: {COMPLETES}")


def _value_of_flag(flag: str, value: str) -> str:
    """The value after a flag, if it can be one.

    Raises:
        RequestError: there is none, or it is another flag or a setting.
    """
    what, choices = HYDRA_VALUES[SHORT_FLAGS.get(flag, flag)]
    if what == "a file's name" and "/" in value and "=" not in value:
        group, _, name = value.rpartition("/")
        raise RequestError(f"{flag} {value}: files of groups are chosen as in {group}={name}")
    setting = re.match(r"[+~]*\w[\w./@]*=", value) is not None
    if not value or value.startswith("-") or setting or (choices and value not in choices):
        example = f"{flag} {choices[0]}" if choices else f"{flag} NAME"
        found = f", not {value}" if value else ""
        raise RequestError(f"{flag}: {what} must follow, as in {example}{found}")
    return value


def _no_such_flag(word: str, following: Sequence[str], request: type | None) -> str:
    if " " in word.strip():
        return f"{word}: no such flag; flags and settings are words of their own, not in quotes"
    written, equals, value = word.partition("=")
    name = written.lstrip("-").replace("-", "_")
    if name.lower() in _FLAGS_MEANT:
        return f"{word}: no such flag; {_FLAGS_MEANT[name.lower()]}"
    if request is not None and name in _hints(request):
        value = "true" if _hints(request)[name] is bool else "…"
        return f"{word}: no such flag; settings are written key=value, as in {name}={value}"
    if not equals and following and "=" not in following[0] and following[0][:1] != "-":
        value = following[0]
    meant = meant_by(written.lstrip("-"))
    example = f"{meant}={value}" if meant and value else "train.epochs=5"
    return f"{word}: no such flag; settings are written key=value, as in {example}"


def meant_by(name: str) -> str | None:
    """The key of the configuration that someone means by `batch-size`, or by `lr`."""
    name = name.replace("-", "_")
    if annotation_of(name) is not None or name in {one.name for one in fields(Choices)}:
        return name
    if name in ("lr", "learning_rate"):
        return "optimizer.learning_rate"
    groups = ("train", "evaluate", "preprocess", "tracking", "model", "optimizer", "dataset")
    inside = (f"{group}.{name}" for group in groups)
    return next((key for key in inside if annotation_of(key) is not None), None)


def annotation_of(key: str) -> Any:
    """The type and rule of a key, ours or Hydra's; None if it has several, or none is known."""
    first, *path = key.lstrip("+").split(".")
    if first in GROUPS:
        return parameter_of(first, path[0]) if len(path) == 1 else None
    hint: Any = HydraConf if first == "hydra" else Config
    for name in path if first == "hydra" else (first, *path):
        if isinstance(hint, type) and is_dataclass(hint):
            hint = _hints(hint).get(name)
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
        else:
            return None
    return None if is_dataclass(hint) or hint is Any else hint


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def addressed(
    words: Sequence[str], verb: str, request: type | None, *, multirun: bool = False
) -> list[str]:
    """The words of a verb with the full keys of its `request`, and with texts quoted.

    `runs=a,b` of compare becomes `compare.runs=['a','b']`. Values of text keys are taken as typed,
    so that a person may write any path or sentence, and the beginning of an id is not read as a
    number (`12e4`). Null, quoted values, `${…}` and, in a multirun, several values are not changed.
    """
    parser = OverridesParser.create()
    return [_addressed(word, verb, request, parser, multirun) for word in words]


def full_key(word: str, verb: str, request: type | None) -> str:
    """The full key of a word, as Hydra knows it: `top=3` of compare sets `compare.top`."""
    key = key_of(word)
    return f"{verb}.{key}" if request is not None and key in _hints(request) else key


def full_word(word: str, verb: str, request: type | None) -> str:
    """A word with its full key."""
    key = word.partition("=")[0]
    return word.replace(key, full_key(word, verb, request), 1) if key == key_of(word) else word


def annotation_for(key: str, verb: str, request: type | None) -> Any:
    """The type and rule of a full key, of the verb's own or of the configuration."""
    group, dot, name = key.partition(".")
    if dot and group == verb and request is not None:
        return _hints(request).get(name)
    return annotation_of(key)


def refuse_settings_of_a_run(words: Sequence[str], verb: str) -> None:
    """Refuses settings for a verb that takes its configuration from a recorded run.

    Raises:
        RequestError: names the first such word.
    """
    for word in words:
        key = key_of(word.lstrip("+~"))
        if key not in ABOUT_THE_RECORD and not key.startswith((f"{verb}.", "tracking.", "hydra")):
            raise RequestError(
                f"{word}: {verb} takes the configuration that the run has recorded; to change it, "
                "start a new run"
            )


def _addressed(
    word: str, verb: str, request: type | None, parser: OverridesParser, multirun: bool
) -> str:
    written, equals, value = word.partition("=")
    if not equals or word.startswith("~"):
        return word
    key = full_key(word, verb, request)
    of_verb = key.startswith(f"{verb}.") and request is not None
    pluses = "" if of_verb else written[: len(written) - len(written.lstrip("+"))]
    hint = annotation_for(key, verb, request)
    plain = re.sub(r"^\[([^][{}'\"$]*)\]$", r"\1", value)  # in [12e4] there is no number either
    is_list = value[:1] == "[" if hint is TextOrTexts else of_verb and get_origin(hint) is list
    if is_list:
        if not _is_hydras(plain):
            value = f"[{','.join(quoted(part.strip()) for part in plain.split(',') if part)}]"
    elif key.startswith("sweep.params.") or (hint is not None and _is_a_list(value, key, parser)):
        return word  # of jobs, and of a builder of the user's own
    elif hint is TextOrTexts or (is_text(hint) and (of_verb or is_free(hint))):
        value = _as_text(value, parser, multirun)
    return in_any_script(f"{pluses}{key}={value}")


def in_any_script(word: str) -> str:
    """A word with quotes around the items of a list or mapping that Hydra cannot read without."""
    name, equals, value = word.partition("=")
    return f"{name}{equals}{_ITEM.sub(_item, value)}" if value[:1] in ("[", "{") else word


def _item(found: re.Match[str]) -> str:
    text = found[0]
    return text if text.isascii() or text[0] in "'\"" else quoted(text.strip())


def _is_a_list(value: str, key: str, parser: OverridesParser) -> bool:
    """Whether a parameter of a group takes a list, whichever builder is chosen."""
    one = (
        _parsed(f"{key}={value}", parser)
        if value[:1] == "[" and key.partition(".")[0] in GROUPS
        else None
    )
    return one is not None and isinstance(one.value(), list)


def _as_text(value: str, parser: OverridesParser, multirun: bool) -> str:
    """A value for a text as it is typed; several of a sweep, where Hydra cannot read one."""
    if not value or value.lower() == "null":
        return value
    one = _parsed(f"text={value}", parser)
    several = one is not None and one.is_sweep_override()
    if several and multirun:
        return value
    parts = [part.strip() for part in _COMMA.split(value)]
    if one is None and multirun and all(parts) and not re.search("['\"]", value):
        return ",".join(_as_text(part, parser, False) for part in parts)
    as_it_is = one is not None and not several and (one.value() == value or "${" in value)
    if as_it_is or (one is not None and not several and value[0] in "'\""):
        return value
    # Only what could be a reference is one.
    return _as_quoted(value) if re.search(r"\$\{.+\}", value) else quoted(value)


def _is_hydras(value: str) -> bool:
    """Whether a list is already written in Hydra's syntax."""
    return value == "null" or value.startswith(("'", '"', "["))


def is_text(hint: Any) -> bool:
    """Whether an annotation is `str`, `str | None` or `Annotated[str, …]`."""
    return hint is str or (
        get_origin(hint) in (Annotated, Union, UnionType) and any(map(is_text, get_args(hint)))
    )


def is_free(hint: Any) -> bool:
    """Whether an annotation allows any text, because it has no rule or only that of a path."""
    return hint in (str, TypedPath) or (
        get_origin(hint) in (Union, UnionType)
        and all(one is NoneType or is_free(one) for one in get_args(hint))
    )


def quoted(text: str) -> str:
    """A text as a value in Hydra's grammar of overrides."""
    return _as_quoted(text).replace("${", "\\${")


def _as_quoted(text: str) -> str:
    # Backslashes are escapes only before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def quoted_word(word: str) -> str:
    """A word quoted for a shell, in double quotes if that is enough."""
    if re.fullmatch(r"[\w.,:/@%+=~-]+", word):
        return word
    return shlex.quote(word) if re.search(r'[$`"\\!]', word) else f'"{word}"'


def words_of(params: Mapping[str, Any]) -> dict[str, str]:
    """The words of a command line for `sweep.params`, by key.

    Raises:
        RequestError: a key has a list or a mapping of YAML; says how its values are written.
    """
    for key, values in params.items():
        if isinstance(values, list):
            text = json.dumps(",".join(map(as_param, values)), ensure_ascii=False)
            raise RequestError(
                f"sweep.params.{key}: values are one text, as on the command line: {key}: {text}"
            )
        if isinstance(values, dict):
            names = ", ".join(f"{key}.{name}" for name in values)
            raise RequestError(f"sweep.params.{key}: keys are written in full: {names}")
    return {key: f"{key}={values}" for key, values in params.items()}


def key_of(word: str) -> str:
    """The key of a setting, without the + that adds it."""
    return word.partition("=")[0].lstrip("+")


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
