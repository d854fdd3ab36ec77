"""Turns errors of Hydra, OmegaConf and the system into a line that says what to do."""

from __future__ import annotations

import errno
import re
from dataclasses import fields
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from pipeline.config.builders import GROUPS
from pipeline.config.guesses import is_list, key_among, may_be_null
from pipeline.config.rules import choose
from pipeline.config.schema import CHOSEN_GROUPS, Config
from pipeline.config.words import annotation_of, quoted, quoted_word
from pipeline.system.errors import PipelineError, first_line, one_line

# Never meant by a mistyped key.
NOT_OFFERED = ("hydra", "choices", "defaults", "run_id", "_target_")
_WAYS = {  # OmegaConf's description of a value: how such values are written
    "is not a valid bool": "; write true or false",
    "could not be converted to Integer": "; write a whole number, as in 5",
    "could not be converted to Float": "; write a number, as in 0.001",
}
_TAKEN = re.compile(r"'([\w/]+)/(\w+)' is validated against ConfigStore schema with the same name")
_IN_FILE = re.compile(r"In '([^']+)': \w+ raised while composing config:")
_KEY_IN_ANY_SCRIPT = re.compile(r"""[{,]\s*(['"]?)([^][{}'",:]*[^\x00-\x7f][^][{}'",:]*)\1\s*:""")
_ASKED = re.compile(r"Could not (?:override|append to|delete from) .*?'([^']+)'")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def error_line(error: BaseException) -> str:
    """One or two lines: what is wrong, by key or file, and how to fix it."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        return unreadable(error)
    if taken := _TAKEN.search(str(error)):
        return _taken(*taken.groups())
    if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL):
        return _of_system(error)
    reason = error.__context__
    if (file := _IN_FILE.match(str(error))) and isinstance(reason, OmegaConfBaseException):
        return _in_file(file[1], reason)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if there := re.search(r"An item is already at '([^']+)'", str(error)):
        return f"+{there[1]}=…: the key is there already; leave out the +"
    asked = _ASKED.search(str(error))
    if isinstance(cause, OmegaConfBaseException):
        if "does not support deletion" in str(cause):
            return f"~{asked[1] if asked else cause.full_key}: it cannot be left out, only changed"
        return _bad_key(cause, asked[1] if asked else "")
    return _other(error)


def _other(error: BaseException) -> str:
    if named := re.match(r"invalid literal for int\(\) with base 10: ('.*')", str(error)):
        return f"{named[1]}: list items cannot be set one by one; write the whole list, KEY=[…]"
    if header := re.match(r"Expected header format: KEY VALUE, got '(.*)'", str(error)):
        line = "a line of a configuration file that begins with # @ names its package"
        return f"# {header[1]}: {line}, as in # @package _global_"
    return first_line(str(error)) if isinstance(error, HydraException) else one_line(error)


def _of_system(error: OSError) -> str:
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}; free it or choose another place"
    return f"writing failed: {error.strerror}; free some space or choose another place"


def _in_file(name: str, error: OmegaConfBaseException) -> str:
    """The message if a configuration file sets what the configuration does not have."""
    group = name.partition("/")[0]  # below which the file's keys are, unless it says otherwise
    if isinstance(error, ConfigKeyError) and error.full_key == group:
        return f"{name}.yaml: begin the file with # @package _global_, as it sets keys of any group"
    return f"{name}.yaml: {_bad_key(error)}"


def _taken(group: str, name: str) -> str:
    """The message if an installed plugin has a configuration file of the same name as ours."""
    line = f"{group}={name}: a Hydra plugin that is installed here has that name too"
    if (group, name) == ("hydra/sweeper", "optuna"):
        return f"{line} (hydra-optuna-sweeper); write hydra/sweeper=search, which means ours"
    return f"{line}; uninstall the plugin, or rename the file"


def unreadable(error: OverrideParseException) -> str:
    """Why Hydra cannot read a word, and how to write it."""
    word, message = error.override, error.message
    line, (key, _, value) = f"cannot read the override {word!r}", word.partition("=")
    if "NoneType" in message and "choice(" in value:
        several = re.fullmatch(r"choice\((.*)\)", value)
        items = several[1] if several else "null,…"
        return f"{line}: choice(…) takes no null; write {key}={items} and add -m"
    if unknown := re.search(r"Unknown function '(\w+)'\s*(Available: *[\w,]+)?", message):
        known = (unknown[2] or "").lower().replace(",", ", ")
        return f"{line}: there is no function {unknown[1]}; {known}; {_quote(key, value)}"
    if re.fullmatch(r"\([^()]*\)", value):
        return f"{line}: a list is written {key}=[{value[1:-1]}]"
    if any(value.count(one) != value.count(other) for one, other in ("[]", "{}", "()")):
        return f"{line}: a bracket is left open or closed twice; {_quote(key, value)}"
    if (named := _KEY_IN_ANY_SCRIPT.search(value)) and value.startswith("{"):
        name = named[2].strip()
        return f"{line}: a key in {{…}} has letters from a to z here; write {name} in a file"
    if quotes := re.search(r"[{,]\s*(['\"])([^'\"]*)\1\s*:", value):
        return f"{line}: keys in {{…}} have no quotes, as in {{{quotes[2]}: …}}"
    if value.endswith(","):
        return f"{line}: it ends in a comma; leave that out: {key}={value.rstrip(', ')}"
    if message.startswith("LexerNoViable") and (place := _place(message, word)) is not None:
        return f"{line}: {word[place]!r} must be quoted; {_quote(key, value)}"
    said = " ".join(one.strip() for one in message.splitlines() if _says_something(one))
    said = re.sub(r" expecting .*$|^\w+Error while evaluating '.*?': |, got NoneType", "", said)
    return f"{line}: {said or 'it is not written key=value'}; {_quote(key, value)}"


def _place(message: str, word: str) -> int | None:
    """The position in a word of the character at which Hydra's parser stops."""
    lines = message.splitlines()
    place = lines[1].find("^") - len("LexerNoViableAltException: ") if len(lines) > 1 else -1
    return place if 0 <= place < len(word) else None


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(("Error parsing override", "See https"))


def _quote(key: str, value: str) -> str:
    return f"a text is written {quoted_word(f'{key}={quoted(value)}')}"


def _missing_choice(error: MissingConfigException) -> str:
    file, options = error.missing_cfg_file or "", error.options or ()
    group, _, choice = file.rpartition("/")
    if file.partition("/")[0] in CHOSEN_GROUPS:
        group, _, choice = file.partition("/")
    if not group or not options:
        return first_line(str(error))
    how = choose(choice, sorted(options))
    if group == "dataset" and how.startswith("choose"):
        how += f"; a folder of pictures is dataset=folder dataset.path={choice}"
    return f"{group}={choice}: no such choice; {how}"


def _bad_key(error: OmegaConfBaseException, asked: str = "") -> str:
    key = error.full_key or str(error.key or "")
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        parent = error.parent_node
        known = [name for name in _plain(parent) if name not in NOT_OFFERED]
        prefix, _, last = key.rpartition(".")
        if isinstance(parent, DictConfig) and not known:
            if "_target_" in parent:
                return f"{key}: no such key; this choice of {prefix} has none"
            return f"{key}: no such key yet; add it with +{key}=…"
        if (meant := _key_meant(asked or key, parent)) is None:
            return f"{key}: no such key; {choose(last, sorted(known))}"
        if meant.rpartition(".")[0] == prefix and not meant.endswith("=NAME"):
            options = ", ".join(sorted(known))
            return (
                f"{key}: no such key; did you mean {meant.rpartition('.')[2]}? "
                f"choose one of {options}"
            )
        return f"{key}: no such key; did you mean {meant}?"
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: needs a value{_of_default(error, key)}"
    if "Cannot merge" in str(error.msg):  # a list with a mapping
        of_list = is_list(annotation_of(key))
        return f"{key}: " + (
            "a list is written [a,b]" if of_list else f"its settings are written {key}.KEY=VALUE"
        )
    how = next((way for said, way in _WAYS.items() if said in str(error.msg)), "")
    null = ", or null for none" if how and may_be_null(annotation_of(key)) else ""
    if isinstance(error, InterpolationKeyError):
        how = "; a variable of the environment is written ${oc.env:NAME}"
    said = f"{first_line(error.msg or str(error))}{how}{null}"
    return f"{key}: {said}" if key else said


def _of_default(error: OmegaConfBaseException, key: str) -> str:
    """Says where a chosen file gets the keys that it lacks; empty if its group has no defaults."""
    root, group = error.parent_node and error.parent_node._get_root(), key.partition(".")[0]
    file = root and OmegaConf.select(root, f"hydra.runtime.choices.{group}")
    if file in (None, "default") or group in GROUPS:  # a leaf sets what its builder takes
        return ""
    return f"; let {group}/{file}.yaml begin with 'defaults: [default]', which has all keys"


def _key_meant(key: str, node: Any) -> str | None:
    """The key of the whole configuration that a nonexistent one probably means."""
    whole = _plain(node._get_root()) if isinstance(node, DictConfig) else {}
    known = {"": [name for name in whole if name not in NOT_OFFERED]}
    ours = [one.name for one in fields(Config) if one.name not in NOT_OFFERED]
    order = sorted(ours, key=lambda name: name not in CHOSEN_GROUPS)
    known |= {name: [*map(str, whole[name])] for name in order if isinstance(whole.get(name), dict)}
    return key_among(key, {name: keys for name, keys in known.items() if keys})


def _plain(node: Any) -> dict[str, Any]:
    """A mapping as Python's own; empty for anything else, such as null or a reference."""
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else None
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}
