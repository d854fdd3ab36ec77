"""Guesses what an invalid value or key was probably meant to be."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_QUOTES = "'\"“”„`\u2018\u2019\u00b4"
_SIGNS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"))
_TIMES = {"k": 1e3, "m": 1e6, "%": 0.01}
_OTHER_NAMES = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay", "dir": "data_dir"}
_LEAVES = ("dataset", "model", "augment", "optimizer", "schedule")
_NAMES = ("name", "type", "kind", "class")  # keys by which other tools choose the file of a group


def is_number(hint: Any) -> bool:
    """Whether an annotation allows a number but no text, list or mapping."""
    kinds = _kinds(hint)
    return bool(kinds & {int, float}) and not kinds & {str, list, tuple, dict}


def is_whole(hint: Any) -> bool:
    """Whether an annotation allows no numbers but integers."""
    return float not in _kinds(hint)


def is_list(hint: Any) -> bool:
    """Whether an annotation allows a list but neither text nor a mapping."""
    kinds = _kinds(hint)
    return bool(kinds & {list, tuple}) and not kinds & {str, dict}


def is_switch(hint: Any) -> bool:
    """Whether an annotation allows true and false alone, possibly beside null."""
    return _kinds(hint) - {NoneType} == {bool}


def takes_one(hint: Any) -> bool:
    """Whether an annotation allows a number, possibly among others."""
    return bool(_kinds(hint) & {int, float})


def may_be_null(hint: Any) -> bool:
    """Whether an annotation allows null."""
    return NoneType in _kinds(hint)


def _kinds(hint: Any) -> set[Any]:
    origin = get_origin(hint)
    if origin in (Annotated, Union, UnionType):
        return set().union(*map(_kinds, get_args(hint)))
    return {origin or hint} if isinstance(origin or hint, type) else set()


def number_of(text: str) -> float | None:
    """The number that someone means by `5k`, `1 000`, `15%`, `1/2`, `10^-3`, `0,1` or `30s`."""
    plain = unicodedata.normalize("NFKC", text).translate(_SIGNS).strip(f"{_QUOTES}{{}}()[]=,; \t")
    plain = re.sub(r"(?<=\d)[ _'\u2019](?=\d{3}\b)", "", plain.lower())
    if re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+", plain):
        plain = plain.replace(",", "")
    plain = re.sub(r"^([-+]?\d+),(\d+)", r"\1.\2", plain)
    if two := re.fullmatch(rf"({_NUMBER})\s*(/|\^|\*\*|\*)\s*({_NUMBER})", plain):
        return _of_two(float(two[1]), two[2], float(two[3]))
    if with_unit := re.fullmatch(rf"({_NUMBER})\s*([^\W\d]*|%)", plain):
        return float(with_unit[1]) * _TIMES.get(with_unit[2], 1)
    return None


def _of_two(first: float, sign: str, second: float) -> float | None:
    try:
        if sign == "/":
            return first / second
        return first * second if sign == "*" else math.pow(first, second)
    except (ArithmeticError, ValueError):
        return None


def number_as_typed(text: str, hint: Any) -> str:
    """The same number as it is written for a key, or an example."""
    number = number_of(text)
    if is_whole(hint):
        whole = number is not None and abs(number) < 2**53 and number == int(number)
        return str(int(number)) if whole and number is not None else "5"
    return f"{number:.10g}" if number is not None else "0.001"


def range_of(text: str) -> str | None:
    """`range(1,6)` for `1..5`, `1:5`, `1-5` or `1 to 5`."""
    ends = re.fullmatch(r"(\d+)\s*(?:\.{2,3}|:|-|\u2013|to)\s*(\d+)", text)
    return f"range({ends[1]},{int(ends[2]) + 1})" if ends else None


def items_of(text: str) -> str:
    """The items of the list meant by `64 32`, `64;32`, `{64,32}`, `{a: 64}`, `64x32` or `none`."""
    plain = text.removeprefix("choice(").strip(f"{_QUOTES}()[]{{}} ,;\t")
    plain = re.sub(r"\w+:", "", plain) if text.startswith("{") else plain
    if plain.lower() in ("none", "null", "no", "off", "false", "nil"):
        return ""
    several = r"[\s,;x]+" if re.fullmatch(r"[\d\s,;x]+", plain) else r"[\s,;]+"
    return ",".join(part for part in re.split(several, plain) if part)


def key_among(key: str, known: Mapping[str, Iterable[str]]) -> str | None:
    """The key that someone means by one that does not exist.

    `known` has the keys of each group, and under `""` those without a group. `TRAIN.Epochs`,
    `train__epochs`, `train.lr`, `train.seed`, `epochs` and `model.name` are understood.
    """
    dotted = [f"{group}.{name}" if group else name for group in known for name in known[group]]
    as_letters = {letters_of(name): name for name in reversed(dotted)}
    if found := as_letters.get(letters_of(key)):
        return found
    first, _, last = key.rpartition(".")
    if first in _LEAVES and first in known and last.lower() in _NAMES:
        return f"{first}=NAME"
    wanted = letters_of(_OTHER_NAMES.get(last.lower(), last))
    if first in known and (same := [name for name in known[first] if letters_of(name) == wanted]):
        return f"{first}.{same[0]}"
    if same := [name for name in known.get("", ()) if letters_of(name) == wanted]:
        return same[0]
    elsewhere = [name for name in dotted if letters_of(name.rpartition(".")[2]) == wanted]
    if elsewhere:
        return elsewhere[0]
    longer = [name for name in known.get(first, ()) if letters_of(name).endswith(wanted)]
    return f"{first}.{longer[0]}".lstrip(".") if longer else None


def letters_of(name: str) -> str:
    """The letters and digits of a name, by which spellings are compared: `trainepochs`."""
    return re.sub(r"[\W_]", "", name).casefold()


def holds_settings(value: str) -> bool:
    """Whether a value contains further settings: `5 seed=3`."""
    return bool(re.search(r"[\s,;&]+[+~]*[^\W\d][\w./@]*=[^=]", value))


def settings_in(word: str) -> str:
    """Splits a word that holds several settings into these."""
    return re.sub(r"[\s,;&]+(?=[+~]*[^\W\d][\w./@]*=)", " ", word)
