"""Settings that cannot be meant as they are typed, each refused with what to type instead.

Hydra and OmegaConf refuse most of them too, in the words of a grammar, and ignore the rest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import OverrideParseException

from pipeline.config import search
from pipeline.config.messages import choose, unreadable
from pipeline.config.schema import Choices
from pipeline.config.words import (
    HYDRA_TEXTS,
    SWEEPERS,
    annotation_for,
    annotation_of,
    full_key,
    is_free,
    is_text,
    key_of,
    meant_by,
    quoted_word,
)
from pipeline.system.errors import RequestError

_GROUPS = frozenset(one.name for one in fields(Choices))
NAMES_NO_RUN = ("run", "ingest", "preprocess", "train")  # the verbs that begin a run of their own


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the words of a command line are for."""

    verb: str
    requests: Mapping[str, type]
    """The keys that each verb has of its own, as a dataclass."""
    multirun: bool = False
    shows: bool = False
    """Whether it shows the configuration and carries nothing out."""
    ignored: Collection[str] = ()
    """Groups and keys that have no effect on the verb."""
    python: bool = False
    """Whether it is a call of `pipeline.compose`."""
    folders: Sequence[Path] = ()
    """Where files of the user's own are searched, besides those of the current folder."""

    @property
    def request(self) -> type | None:
        """The keys of the verb itself."""
        return self.requests.get(self.verb)


def refuse_mistakes(words: Sequence[str], command: Command, verbs: Collection[str] = ()) -> None:
    """Refuses the first word that is no setting, has no effect, or has a value it cannot have.

    Raises:
        RequestError: a line that says what to type.
    """
    _require_settings(words, verbs)
    if not command.shows:
        for word in words:
            _require_effect(word, words, command)
    if not command.multirun:
        _require_once(words, command)
    parser = OverridesParser.create()
    for word in words:
        _require_value(word, command, parser)
    if not command.shows:
        for word in words:
            _require_use(word, command)


def _require_settings(words: Sequence[str], verbs: Collection[str]) -> None:
    """Refuses the first word that is not written `key=value`.

    Raises:
        RequestError: what was probably meant.
    """
    for position, word in enumerate(words):
        if re.match(r"=|[+~]*[^=\s]+\s*:\s|[+~]*[^=\s]+\s+=|\s", word) or (
            "=" not in word and not word.startswith("~")
        ):
            raise RequestError(_no_setting(position, words, verbs))


def _no_setting(position: int, words: Sequence[str], verbs: Collection[str]) -> str:
    word, before = words[position], words[position - 1] if position else ""
    following = words[position + 1] if position + 1 < len(words) else ""
    line = f"cannot read the override {word!r}"
    parts = [part for part in re.split(r"\s*[:=]\s*|\s+", word, maxsplit=1) if part]
    if word in verbs:
        return f"{line}: the verb comes first, as in python -m pipeline {word} …"
    key = meant_by(parts[0].lstrip("+~")) if parts else None
    if word.startswith("=") or (following.startswith("=") and "=" not in word):
        start = position - word.startswith("=")  # of KEY = VALUE, in two words or three
        name, _, value = " ".join(words[max(start, 0) : start + 3]).partition(" =")
        value = value.split()[0] if value.strip() else ""
        return f"{line}: no spaces around =, as in {name.rstrip('=')}={value or 'VALUE'}"
    if key and len(parts) == 2:
        return f"{line}: settings are written key=value: {_written(key, parts[1])}"
    if key or word.endswith(":"):
        value = following if "=" not in following else ""
        name = key or word.rstrip(":")
        return f"{line}: settings are written key=value: {_written(name, value or '…')}"
    if before.endswith("="):
        return f"{line}: no spaces around =, as in {before}{word}"
    if "=" in before and _may_be_text(before):
        rest = [word]
        for one in words[position + 1 :]:
            if "=" in one or one.startswith("~"):
                break
            rest.append(one)
        name, _, value = before.partition("=")
        return f"{line}: did you mean to quote {name}={_in_quotes(' '.join([value, *rest]))}?"
    if "=" in before and (before.endswith(",") or re.fullmatch(r"[-+]?\d[\d.e+-]*,?", word)):
        several = f"{before.rstrip(',')},{word}"
        return f"{line}: did you mean {several}? several values have no spaces between, and need -m"
    return f"{line}: settings are written key=value, as in train.epochs=5"


def _may_be_text(word: str) -> bool:
    """Whether a text may be the value, as far as that is known."""
    hint = annotation_of(key_of(word))
    return hint is None or is_text(hint)


def _written(key: str, value: str) -> str:
    plain = re.fullmatch(r"[\w.,/+…-]+", value)
    return f"{key}={value if plain else _in_quotes(value)}"


def _in_quotes(text: str) -> str:
    return f"'{text}'" if "'" not in text else f'"{text}"'


def _require_effect(word: str, words: Sequence[str], command: Command) -> None:
    """Refuses what nothing heeds where it stands.

    Raises:
        RequestError: where it belongs.
    """
    bare = word.lstrip("+~")
    key = full_key(bare, command.verb, command.request)
    group = re.split(r"[./@]", key)[0]
    if key.startswith("hydra.sweeper.params") and _our_sweeper(words):
        meant = key.removeprefix("hydra.").replace("sweeper", "sweep", 1)
        add = "" if command.multirun else ", with -m"
        raise RequestError(f"{word}: what to try is written {meant}=…{add}, or as KEY=A,B with -m")
    if key.startswith("hydra.sweeper.params"):
        raise RequestError(f"{word}: what to try is written KEY=A,B, as in -m seed=0,1")
    if not command.multirun and (what := _of_sweeps(key)):
        what = what if "=" not in what else bare
        if command.python:
            how = "start it on the command line: python -m pipeline -m …"
        elif command.verb == "run":
            how = "add -m"
        else:
            how = f"leave it out, for {command.verb} makes none"
        raise RequestError(f"{word}: only a sweep has {what}; {how}")
    if group in command.requests and group != command.verb and not command.multirun:
        setting = bare.removeprefix(f"{group}.")
        if command.python:
            name, _, value = setting.partition("=")
            how = f"pipeline.{group}(…, {name}={value})" if "." in bare else f"pipeline.{group}"
            raise RequestError(f"{word}: no setting of a run; it belongs to {how}")
        example = f"python -m pipeline {group} {setting}" if "." in bare else group
        raise RequestError(f"{word} has no effect on {command.verb}; it belongs to {example}")
    if (
        key == "run_id"
        and command.verb in NAMES_NO_RUN
        and not (command.python or command.multirun)
    ):
        raise RequestError(
            f"{word} has no effect on {command.verb}, which makes a new run; it names a recorded "
            "one, as in python -m pipeline evaluate run_id=latest"
        )


def _require_use(word: str, command: Command) -> None:
    """Refuses what the verb ignores.

    Raises:
        RequestError: where it belongs.
    """
    group = re.split(r"[./@=]", full_key(word.lstrip("+~"), command.verb, command.request))[0]
    if group in command.ignored:
        raise RequestError(
            f"{word} has no effect on {command.verb}; it belongs to a run, as in "
            f"python -m pipeline {quoted_word(word)}"
        )


def _our_sweeper(words: Iterable[str]) -> bool:
    chosen = [word.partition("=")[2] for word in words if key_of(word) == "hydra/sweeper"]
    return not chosen or chosen[-1] in SWEEPERS


def _of_sweeps(key: str) -> str | None:
    """What only a multirun heeds, of which a key is part."""
    key = key.partition("=")[0]
    if key == "hydra.mode" or re.match(r"(sweep|hydra\.(sweep|sweeper|launcher))\.", key):
        return key
    return f"{key}=" if key in ("sweep", "hydra/sweeper", "hydra/launcher") else None


def _require_once(words: Iterable[str], command: Command) -> None:
    """Refuses a key that is given twice, of which Hydra heeds the later value.

    Raises:
        RequestError: names both.
    """
    seen: dict[str, str] = {}
    for word in words:
        if not word.startswith("~"):
            key = full_key(word.lstrip("+"), command.verb, command.request)
            if key in seen:
                raise RequestError(f"{seen[key]} and {word}: give {key} once")
            seen[key] = word


def _require_value(word: str, command: Command, parser: OverridesParser) -> None:
    """Refuses a value that its key cannot have, for a mistake that is often made.

    Raises:
        RequestError: how it is written.
    """
    bare = word.lstrip("+~")
    key, _, value = bare.partition("=")
    key = full_key(bare, command.verb, command.request)
    group = key.partition("@")[0]
    if group in _GROUPS:
        _require_choice(word, group, value, command.folders)
    hint = annotation_for(key, command.verb, command.request)
    optional = NoneType in get_args(hint)
    if optional and value.lower() in ("none", "nil") and "none" not in str(hint):
        text = f", or \"'{value}'\" for the text" if is_free(hint) else ""
        raise RequestError(
            f"{word}: write null for none, as in {bare.partition('=')[0]}=null{text}"
        )
    of_verb = command.request is not None and key.startswith(f"{command.verb}.")
    if (
        is_free(hint)
        or key in HYDRA_TEXTS
        or (of_verb and (is_text(hint) or get_origin(hint) is list))
    ):
        return  # taken as it is typed, or checked by its rule
    try:
        one = parser.parse_overrides([word])[0]
    except OverrideParseException as error:
        raise RequestError(unreadable(error)) from error
    _require_list(bare, value, hint, one)
    if group in _GROUPS and isinstance(one.value(), int | float | dict):
        raise RequestError(
            f"{word}: no such choice; {choose(value, search.files_of(group, command.folders))}"
        )
    if one.is_sweep_override() and not command.multirun:
        raise RequestError(f"{word}: {_several(word, value, hint, command)}")


def _require_choice(word: str, group: str, value: str, folders: Sequence[Path]) -> None:
    if not word.startswith("~") and "null" not in re.split(r"[\s,()]+", value.lower()):
        return
    files = search.files_of(group, folders)
    how = f"write {group}=none" if "none" in files else choose(value, files)
    raise RequestError(f"{word}: {group} cannot be left out; {how}")


def _require_list(bare: str, value: str, hint: Any, one: Override) -> None:
    """Refuses single values for a key that takes a list, in a sweep too."""
    kinds = [get_origin(part) for part in (hint, *get_args(hint))]
    if not (kinds[0] in (list, tuple) or (NoneType in get_args(hint) and list in kinds)):
        return
    given = one.value()
    several = isinstance(given, ChoiceSweep)
    single = given.list if isinstance(given, ChoiceSweep) else [given]
    if not value or any(isinstance(item, list | dict) or item is None for item in single):
        return
    if any("${" in str(item) for item in single) or (one.is_sweep_override() and not several):
        return
    items = value.strip("()").removeprefix("choice(") if several else value.strip("()'\" ")
    items = items if "," in items else re.sub(r"[\s;]+", ",", items)
    raise RequestError(f"{bare}: a list is written [{items}], as in {key_of(bare)}=[{items}]")


def _several(word: str, value: str, hint: Any, command: Command) -> str:
    if command.python:
        return "several values make a sweep: python -m pipeline -m …; compose takes one"
    if command.verb != "run":
        return f"several values make a sweep of runs; {command.verb} takes one"
    decimal = re.fullmatch(r"(-?\d+),(\d+)", value)
    point = (
        f"; a decimal is written {decimal[1]}.{decimal[2]}" if decimal and _is_float(hint) else ""
    )
    return f"several values need -m: python -m pipeline -m {quoted_word(word)}{point}"


def _is_float(hint: Any) -> bool:
    return hint is float or any(map(_is_float, get_args(hint)))
