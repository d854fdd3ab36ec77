"""Refuses settings that are most likely mistakes, with what to type instead.

Hydra and OmegaConf refuse most of them too, but in terms of their grammar, and ignore the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import Any, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import OverrideParseException

from pipeline.config.guesses import (
    holds_settings,
    is_list,
    is_number,
    is_switch,
    is_whole,
    items_of,
    may_be_null,
    number_as_typed,
    range_of,
    settings_in,
    takes_one,
)
from pipeline.config.messages import unreadable
from pipeline.config.rules import TextOrTexts, choose, is_typed_path
from pipeline.config.schema import CHOSEN_GROUPS, Config
from pipeline.config.words import (
    annotation_for,
    foreign_sweeper,
    full_key,
    in_any_script,
    is_free,
    is_text,
    meant_by,
    quoted_word,
)
from pipeline.system.errors import RequestError

# Keys that Hydra sets itself, whatever value is given.
_FILLED_IN = (
    "choices",
    "hydra.runtime",
    "hydra.overrides",
    "hydra.job.override_dirname",
    "hydra.job.config_name",
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """The command that the words belong to."""

    verb: str
    requests: Mapping[str, type]
    """The dataclass of each verb's own keys."""
    files: Callable[[str], Sequence[str]]
    """Returns the names of a group's configuration files."""
    multirun: bool = False
    dry: bool = False
    """Whether it shows the configuration of a run, and checks it, instead of the work."""
    helps: bool = False
    """Whether it shows help or a part of the configuration, where nothing need have an effect."""
    ignored: Collection[str] = ()
    """Groups and keys that have no effect on the verb; `dataset.` are the keys of a group alone."""
    needs: str = ""
    """The setting that the verb cannot do without, although its default is null, as an example."""
    first: str = ""
    """The key of a first word that has none."""
    python: Collection[str] = ()
    """Of a call of `pipeline.compose`: the verbs whose keys a function of that name takes."""

    @property
    def request(self) -> type | None:
        """The dataclass of this verb's keys."""
        return self.requests.get(self.verb)


def refuse_mistakes(words: Sequence[str], command: Command, verbs: Collection[str] = ()) -> None:
    """Refuses the first word that is not a setting, has no effect, or has an invalid value.

    Raises:
        RequestError: says in one line what to type.
    """
    _require_settings(words, command, verbs)
    for word in words:
        _require_key(word, command)
    if not command.helps:
        for word in words:
            _require_effect(word, words, command)
            if command.python:
                _require_effect_in_python(word)
    if not command.multirun:
        _require_once(words, command)
    parser = OverridesParser.create()
    for word in words:
        _require_no_list(word, command)
        _require_value(word, command, parser)
    if not command.helps and not command.multirun:
        for word in words:
            _require_use(word, command)


def _require_settings(words: Sequence[str], command: Command, verbs: Collection[str]) -> None:
    """Refuses the first word that is not written `key=value`.

    Raises:
        RequestError: says what was probably meant.
    """
    for position, word in enumerate(words):
        if re.match(r"[+~]*=|[+~]+$|[+~]*[^=\s]+\s*:\s|[+~]*[^=\s]+\s+=|\s", word) or (
            "=" not in word and not word.startswith("~")
        ):
            if position == 0 and (meant := _for_the_verb(word, words, command)):
                raise RequestError(f"cannot read the override {word!r}: did you mean {meant}?")
            raise RequestError(_no_setting(position, words, verbs, command))


def _require_key(word: str, command: Command) -> None:
    """Refuses a key without a dot that neither the verb nor the configuration has.

    Raises:
        RequestError: offers the verb's own keys.
    """
    key = word.partition("=")[0]
    if command.request is None or not key.isidentifier():
        return
    own = [one.name for one in fields(command.request)]
    known = {*own, *(one.name for one in fields(Config)), *CHOSEN_GROUPS, *command.requests}
    if key not in known and key != "hydra" and meant_by(key) is None:
        raise RequestError(f"{key}: no such key; {choose(key, own)}")


def _for_the_verb(word: str, words: Sequence[str], command: Command) -> str | None:
    """The setting meant by a verb's first word without a key: `photos/` of predict."""
    keys = {one.name: one.type for one in fields(command.request)} if command.request else {}
    if keys.get(word) in (bool, "bool"):
        return f"{word}=true"
    key = command.first or command.needs.partition("=")[0]
    if not key or re.search(r"[=:\s]", word) or word in keys or meant_by(word):
        return None
    several = [one for one in words if "=" not in one] if key == "runs" else [word]
    return _written(key, ",".join(several))


def _no_setting(
    position: int, words: Sequence[str], verbs: Collection[str], command: Command
) -> str:
    word, before = words[position], words[position - 1] if position else ""
    following = words[position + 1] if position + 1 < len(words) else ""
    line = f"cannot read the override {word!r}"
    parts = [part for part in re.split(r"\s*[:=]\s*|\s+", word, maxsplit=1) if part]
    if word in verbs:
        return f"{line}: the verb comes first, as in python -m pipeline {word} …"
    key = meant_by(parts[0].lstrip("+~")) if parts else None
    if word.startswith("=") or (following.startswith("=") and "=" not in word):
        return f"{line}: {_apart(words, position)}"
    if key and len(parts) == 2:
        return f"{line}: settings are written key=value: {_written(key, parts[1])}"
    if key or word.endswith(":"):
        value = following if "=" not in following else ""
        name = key or word.rstrip(":")
        return f"{line}: settings are written key=value: {_written(name, value or '…')}"
    if before.endswith("="):
        return f"{line}: no spaces around =, as in {before}{word}"
    if "=" in before and (meant := _continued(before, words[position:], command)):
        return f"{line}: {meant}"
    return f"{line}: settings are written key=value, as in train.epochs=5"


def _apart(words: Sequence[str], position: int) -> str:
    """The setting meant by two or three words: `KEY VALUE` or `KEY = VALUE`."""
    start = position - words[position].startswith("=")
    if start < 0:
        return f"a key must stand before =, as in seed{words[0]}"
    name, _, value = " ".join(words[start : start + 3]).partition(" =")
    value = value.split()[0] if value.strip() else "VALUE"
    return f"no spaces around =, as in {name.rstrip('=')}={value}"


def _continued(setting: str, following: Sequence[str], command: Command) -> str | None:
    """The setting meant by one whose value the shell has divided at its spaces."""
    first, *others = following
    rest = [first, *takewhile(lambda word: "=" not in word and word[:1] != "~", others)]
    whole = " ".join([setting, *rest])
    if any(setting.count(one) > setting.count(other) for one, other in ("[]", "{}", "()")):
        return f"the shell divides words at spaces; write it in quotes: {quoted_word(whole)}"
    if _may_be_text(setting, command):
        name, _, value = whole.partition("=")
        return f"did you mean to quote {name}={_in_quotes(value)}?"
    if setting.endswith(",") or re.fullmatch(r"[-+]?\d[\d.e+-]*,?", first):
        several = ",".join(word.strip(",") for word in (setting, *rest))
        needs = "" if command.multirun else ", and need -m"
        return f"did you mean {several}? several values have no spaces between{needs}"
    return None


def _may_be_text(word: str, command: Command) -> bool:
    """Whether the value may be a text, as far as is known; that of a group names a file."""
    key = full_key(word, command.verb, command.request)
    hint = annotation_for(key, command.verb, command.request)
    return "." in key if hint is None else is_text(hint)


def _written(key: str, value: str) -> str:
    plain = re.fullmatch(r"[\w.,/+…-]+", value)
    return f"{key}={value if plain else _in_quotes(value)}"


def _in_quotes(text: str) -> str:
    return f"'{text}'" if "'" not in text else f'"{text}"'


def _require_effect(word: str, words: Sequence[str], command: Command) -> None:
    """Refuses settings that have no effect here.

    Raises:
        RequestError: says where they belong.
    """
    bare = word.lstrip("+~")
    key = full_key(bare, command.verb, command.request)
    group = re.split(r"[./@]", key)[0]
    if re.match(rf"({'|'.join(map(re.escape, _FILLED_IN))})[.=]", f"{key}="):
        meant = key.removeprefix("choices.")
        how = f"write {bare.removeprefix('choices.')}" if meant in CHOSEN_GROUPS else "leave it out"
        raise RequestError(f"{word}: Hydra fills it in; {how}")
    if key.startswith("hydra.sweeper.params") and not foreign_sweeper(words):
        meant = key.removeprefix("hydra.").replace("sweeper", "sweep", 1)
        add = "" if command.multirun else ", with -m"
        raise RequestError(f"{word}: what to try is written {meant}=…{add}, or as KEY=A,B with -m")
    if key.startswith("hydra.sweeper.params"):
        raise RequestError(f"{word}: what to try is written KEY=A,B, as in -m seed=0,1")
    if not command.multirun and (what := _of_sweeps(key)):
        what = what if "=" not in what else "it" if command.python else bare
        if command.python:
            how = "leave it out, for compose describes one run"
        elif command.dry:
            how = "leave it out; sweep.preview=true, with -m, shows the jobs of a sweep"
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
            how = how if group in command.python else f"the verb {group}"
            raise RequestError(f"{word} is not a setting of a run; it belongs to {how}")
        example = f"python -m pipeline {group} {setting}" if "." in bare else group
        raise RequestError(f"{word} has no effect on {command.verb}; it belongs to {example}")


def _require_effect_in_python(word: str) -> None:
    """Refuses settings that only a command heeds, for a call of `pipeline.compose`.

    Raises:
        RequestError: says what to do instead.
    """
    key = word.lstrip("+~").partition("=")[0]
    if key == "run_id":
        how = "give the run to the function, as in pipeline.find_run(…) or pipeline.promote(…)"
    elif key in ("hydra.run.dir", "hydra.output_subdir"):
        how = "give the folder to the function, as in pipeline.run(config, folder=…)"
    elif re.match(r"hydra[./]", key) and key != "hydra.searchpath":
        how = "leave it out: it is about a command of Hydra"
    else:
        return
    raise RequestError(f"{word} has no effect on pipeline.compose; {how}")


def _require_use(word: str, command: Command) -> None:
    """Refuses settings that the verb ignores.

    Raises:
        RequestError: says where they belong.
    """
    key = re.split(r"[/@=]", full_key(word.lstrip("+~"), command.verb, command.request))[0]
    if not any(_covers(part, key) for part in command.ignored):
        return
    no_effect = f"{word} has no effect on {command.verb}"
    if key == "run_id":
        example = "python -m pipeline evaluate run_id=latest"
        raise RequestError(f"{no_effect}; it names a recorded run, as in {example}")
    raise RequestError(
        f"{no_effect}; it belongs to a run, as in python -m pipeline {quoted_word(word)}"
    )


def _covers(part: str, key: str) -> bool:
    """Whether `group` or `group.key` is or holds the key; `group.` holds its keys alone."""
    if part.endswith("."):
        return key.startswith(part)
    return f"{key}.".startswith(f"{part}.")


def _of_sweeps(key: str) -> str | None:
    """The key, or `group=`, if it has an effect only in a multirun; else None."""
    key = key.partition("=")[0]
    if key == "hydra.mode" or re.match(r"(sweep|hydra\.(sweep|sweeper|launcher))\.", key):
        return key
    return f"{key}=" if key in ("sweep", "hydra/sweeper", "hydra/launcher") else None


def _require_once(words: Iterable[str], command: Command) -> None:
    """Refuses a key that is given twice; Hydra would use the later value.

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


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """A word `key=value`, split into its parts."""

    word: str
    name: str
    """The key as typed."""
    value: str
    key: str
    """The key as Hydra knows it."""
    hint: Any
    """Type and rule of the value; None if unknown."""
    of: Command

    @property
    def needed(self) -> str | None:
        """How to write the setting, if it must have a value."""
        if self.key == "dataset.path":  # null is for those that are downloaded
            return f"{self.name}=photos"
        key, _, example = self.of.needs.partition("=")
        return f"{self.name}={example}" if self.key in (key, f"{self.of.verb}.{key}") else None

    @property
    def takes_null(self) -> bool:
        return may_be_null(self.hint) and not self.needed

    @property
    def group(self) -> str:
        return self.key.partition("@")[0]

    @property
    def is_a_text(self) -> bool:
        return is_text(self.hint)

    @property
    def or_null(self) -> str:
        return f", or {self.name}=null" if self.takes_null else ""


def _require_no_list(word: str, command: Command) -> None:
    """Refuses a key within a list, whose items cannot be set one by one."""
    key = full_key(word.lstrip("+~"), command.verb, command.request)
    owner, _, part = key.rpartition(".")
    if word.startswith("~") and part.isdecimal():
        raise RequestError(f"{word}: no item of a list can be left out; write {owner}=[…]")
    if not part.isdecimal() and is_list(annotation_for(owner, command.verb, command.request)):
        raise RequestError(
            f"{word}: {owner} is a list, and list items cannot be set one by one; "
            f"write the whole list, {owner}=[…]"
        )


def _require_value(word: str, command: Command, parser: OverridesParser) -> None:
    """Refuses a value that its key cannot have, if the mistake is a frequent one.

    Raises:
        RequestError: says how to write it.
    """
    bare = word.lstrip("+~")
    name, equals, value = bare.partition("=")
    key = full_key(bare, command.verb, command.request)
    hint = annotation_for(key, command.verb, command.request)
    setting = _Setting(word=word, name=name, value=value, key=key, hint=hint, of=command)
    if equals:
        _require_one(setting)
        _require_something(setting, command)
        _refuse_tilde(setting)
    if setting.group in CHOSEN_GROUPS:
        _require_choice(setting, command)
    if not equals:
        return
    _require_null(setting)
    of_verb = command.request is not None and key.startswith(f"{command.verb}.")
    if is_free(hint) or (of_verb and (is_text(hint) or get_origin(hint) is list)):
        return  # taken as it is typed, or checked by its rule
    try:
        one = parser.parse_overrides([in_any_script(word)])[0]
    except OverrideParseException as error:
        raise RequestError(_how_it_is_written(setting) or unreadable(error)) from error
    if key.startswith("hydra"):
        _require_one_of_hydras(setting, one)
    _require_kind(setting, one)
    if one.is_sweep_override() and not command.multirun:
        raise RequestError(f"{word}: {_several(word, value, hint, command)}")


def _require_one_of_hydras(setting: _Setting, one: Override) -> None:
    if setting.key == "hydra.verbose" and not isinstance(one.value(), bool | str | list):
        how = f"write true, or names of loggers, as in {setting.name}=[pipeline]"
        raise RequestError(f"{setting.word}: {how}")
    if one.is_sweep_override():
        raise RequestError(
            f"{setting.word} cannot be searched: it is about the whole; give it one value"
        )


def _require_one(setting: _Setting) -> None:
    """Refuses a word with a second setting or a second =, unless the value may be a text."""
    word, name, value = setting.word, setting.name, setting.value
    if word.startswith("+") and "=" in word and (name in CHOSEN_GROUPS or "/" in name):
        raise RequestError(f"{word}: a file is chosen without +; write {name}={value}")
    if "@" in name:
        group = name.partition("@")[0]
        raise RequestError(f"{word}: a file has its place; write {group or 'model'}={value}")
    if not re.fullmatch(r"[\w./@:$-]*", name, re.ASCII) and re.match(r"\w", name):
        raise RequestError(f"{word}: a key has letters from a to z, digits, _ and - only")
    if name.endswith(":"):
        raise RequestError(f"{word}: one = is enough, as in {name.rstrip(':')}={value}")
    if ":" in name.partition("@")[0] or re.search(r"^[^\w]|[./]{2}|[./]$", name):
        dotted = re.sub(r"[^\w/@-]+", ".", name).strip(".")
        raise RequestError(f"{word}: a key is written with single dots, as in {dotted}={value}")
    if setting.is_a_text:
        return
    if value.startswith("="):
        raise RequestError(f"{word}: one = is enough, as in {name}={value.lstrip('= ')}")
    _require_tags(setting)
    if holds_settings(value):
        raise RequestError(f"{word}: settings are words of their own: {settings_in(word)}")


def _require_tags(setting: _Setting) -> None:
    """Refuses tags of a run that are not written as such."""
    word, (name, _, tag) = setting.word, setting.key.partition("tags.")
    if setting.key == "tracking.tags" and not setting.value.startswith(("{", "$")):
        raise RequestError(f"{word}: tags are written +tracking.tags.NAME=TEXT each")
    if name == "tracking." and "." in tag:
        raise RequestError(f"{word}: a name with a dot is written '+tracking.tags={{{tag}: TEXT}}'")


def _require_something(setting: _Setting, command: Command) -> None:
    """Refuses an empty value, as from a shell variable that is not set."""
    several = "," if is_list(setting.hint) else ""
    if setting.group in CHOSEN_GROUPS and re.search(r"^,.|,\s*,|.,$", setting.value):
        raise RequestError(
            f"{setting.word}: a value is missing beside a comma (is it a variable of the shell "
            "that is not set?)"
        )
    if setting.value.strip("'\" \t" + several) or setting.key.startswith("tracking.tags."):
        return
    example = f", as in {setting.needed}" if setting.needed else setting.or_null
    how = f"a value must follow{example} (is it a variable of the shell that is not set?)"
    if setting.group in CHOSEN_GROUPS:
        how = choose("", command.files(setting.group))
    elif is_list(setting.hint):
        how = f"an empty list is written {setting.name}=[]"
    raise RequestError(f"{setting.word} is empty: {how}")


def _refuse_tilde(setting: _Setting) -> None:
    """Refuses a folder named `~`, which bash makes of `hydra.run.dir=~/x`."""
    of_hydra = setting.key in ("hydra.run.dir", "hydra.sweep.dir")
    if setting.value.startswith("~/") and (of_hydra or is_typed_path(setting.hint)):
        meant = f"{setting.name}=$HOME{setting.value[1:]}"
        raise RequestError(f"{setting.word}: the shell leaves ~ as it is there; write {meant}")


def _require_choice(setting: _Setting, command: Command) -> None:
    word, group, value = setting.word, setting.group, setting.value.strip("'\" ")
    files = command.files(group)
    if value.endswith((".yaml", ".yml")):
        raise RequestError(f"{word}: write {group}={Path(value).stem}, without folder and ending")
    if group == "dataset" and re.match(r"\.{0,2}/|~|[A-Za-z]:[/\\]", value):
        path = _written("dataset.path", value)
        raise RequestError(f"{word}: no such choice; did you mean dataset=folder {path}?")
    if items := re.fullmatch(r"\[(.*)\]", value):
        raise RequestError(f"{word}: {group} takes one file; several are -m {group}={items[1]}")
    if value.startswith("{"):
        raise RequestError(f"{word}: settings of {group} are written {group}.KEY=VALUE each")
    if re.fullmatch(r"[-+]?[\d.]+|true|false", value.lower()):
        raise RequestError(f"{word}: no such choice; {choose(value, files)}")
    if word.startswith("~") or "null" in re.split(r"[\s,()]+", value.lower()):
        how = f"write {group}=none" if "none" in files else choose(value, files)
        raise RequestError(f"{word}: {group} cannot be left out; {how}")


def _require_null(setting: _Setting) -> None:
    """Refuses other words for null, and null for a key that needs a value."""
    word, value, hint = setting.word, setting.value.lower(), setting.hint
    if hint is None and "." not in setting.key and value == "null":  # of a group
        raise RequestError(f"{word}: {setting.key} cannot be null; leave the word out")
    if setting.key == "hydra":
        raise RequestError(f"{word}: settings of Hydra are written hydra.KEY=VALUE each")
    if setting.takes_null and value in ("none", "nil") and "none" not in str(hint):
        text = f", or \"'{setting.value}'\" for the text" if is_free(hint) else ""
        raise RequestError(f"{word}: write null for none, as in {setting.name}=null{text}")
    several = re.sub(r"(?i)(^|,)(none|nil)(?=,|$)", r"\1null", setting.value)
    if setting.takes_null and is_number(hint) and several != setting.value:
        raise RequestError(f"{word}: write null for none, as in {setting.name}={several}")
    if value == "null" and is_text(hint) and not may_be_null(hint):
        raise RequestError(f"{word}: it cannot be null; a text must follow")


def _how_it_is_written(setting: _Setting) -> str | None:
    """What to type for a value that Hydra cannot read."""
    if re.search(r"\w\(|\]\s*,\s*\[", setting.value):  # a function, or lists for several jobs
        return None
    if is_list(setting.hint) or setting.hint is TextOrTexts:
        return _a_list(setting)
    return _a_number(setting) if is_number(setting.hint) else None


def _require_kind(setting: _Setting, one: Override) -> None:
    if is_list(setting.hint):
        _require_list(setting, one)
    elif is_number(setting.hint):
        _require_number(setting, one)
    elif is_switch(setting.hint):
        _require_switch(setting, one)
    elif is_text(setting.hint) and not is_free(setting.hint):  # a free one may have brackets
        _require_text(setting, one)


def _require_text(setting: _Setting, one: Override) -> None:
    """Refuses a list or mapping for a text."""
    given = one.value()
    if isinstance(given, list | dict):
        first = next(iter(given), "TEXT")
        raise RequestError(f"{setting.word}: write one text, as in {setting.name}={first}")


def _require_switch(setting: _Setting, one: Override) -> None:
    """Refuses numbers that OmegaConf takes for true, such as a temperature."""
    given = one.value()
    several = given.list if isinstance(given, ChoiceSweep) else [given]
    if any(type(value) is int and value not in (0, 1) for value in several):
        raise RequestError(f"{setting.word}: write true or false{setting.or_null}")


def _require_number(setting: _Setting, one: Override) -> None:
    """Refuses a value that is not a number, or not a whole one."""
    given = one.value()
    if one.is_sweep_override() or (given is None and may_be_null(setting.hint)):
        return
    if isinstance(given, str) and re.search(r"\$\{.+\}", given):  # of another key, for example
        return
    number = given.replace("_", "") if isinstance(given, str) else given
    if isinstance(number, str):  # quoted, or with _ between digits
        number = next((kind(number) for kind in (int, float) if _reads(number, kind)), None)
    whole = isinstance(number, int) or (isinstance(number, float) and not is_whole(setting.hint))
    if isinstance(number, bool) or not whole:
        raise RequestError(_a_number(setting))


def _reads(text: str, kind: type) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return text.isascii()


def _a_number(setting: _Setting) -> str:
    name, value, hint = setting.name, setting.value, setting.hint
    kind = "a whole number" if is_whole(hint) else "a number"
    if several := range_of(value):
        word = quoted_word(f"{name}={several}")
        return f"{setting.word}: write {kind}; several values are -m {word}"
    shell = "; the shell fills in $… outside of '…' only" if value.startswith("$") else ""
    example = number_as_typed(value, hint)
    return f"{setting.word}: write {kind}, as in {name}={example}{setting.or_null}{shell}"


def _require_list(setting: _Setting, one: Override) -> None:
    """Refuses single values for a key that takes a list, in a sweep too."""
    given, null = one.value(), may_be_null(setting.hint)
    several = isinstance(given, ChoiceSweep)
    single = given.list if isinstance(given, ChoiceSweep) else [given]
    if any(item is None and null for item in single):
        return
    only = given[0] if isinstance(given, list) and len(given) == 1 else None
    if isinstance(only, str) and " " in only:  # among several, it may be the name of a class
        raise RequestError(_a_list(setting))
    if any(isinstance(item, list) for item in single) or "${" in setting.value:
        return
    if takes_one(setting.hint):  # or a number instead of the list
        if not several and not re.search(r"\d\s*[,;x\s]\s*\d", setting.value):
            _require_number(setting, one)
            return
        if several and all(isinstance(item, int) for item in single):
            return
    if not one.is_sweep_override() or several:
        raise RequestError(_a_list(setting))


def _a_list(setting: _Setting) -> str:
    items = items_of(setting.value)
    name = setting.name
    return f"{name}={setting.value}: a list is written [{items}], as in {name}=[{items}]"


def _several(word: str, value: str, hint: Any, command: Command) -> str:
    if command.python:
        return "several values make a sweep; compose describes one run, so give it one"
    if command.verb != "run":
        return f"several values make a sweep of runs; {command.verb} takes one"
    decimal = re.fullmatch(r"(-?\d+),(\d+)", value)
    point = ""
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", value) and is_number(hint):
        point = f"; a number is written without separators: {value.replace(',', '')}"
    elif decimal and is_number(hint) and not is_whole(hint):
        point = f"; a decimal is written {decimal[1]}.{decimal[2]}"
    elif hint is None and "." in word.partition("=")[0]:
        point = f"; a list is written [{items_of(value)}]"
    return f"several values need -m: python -m pipeline -m {quoted_word(word)}{point}"
