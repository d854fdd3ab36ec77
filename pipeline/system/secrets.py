"""Finds secrets, by the name of a key or their place in an address, and hides them.

A secret that was found once is remembered as long as the process lives and is replaced wherever it
would be written or shown: in files, tags, log lines, errors and on the terminal.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote, unquote_plus

import yaml

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times faster
_HIDDEN = "***"
SECRET_WORDS = frozenset(
    {
        *("password", "passwd", "pwd", "passphrase", "pass", "secret", "secrets", "token"),
        *("credential", "credentials", "apikey", "authorization", "auth", "signature", "sig"),
    }
)
# How a part of a key ends that joins several words, as PGPASSWORD and sslpassword do.
_PASSWORDS = ("password", "passwd", "pwd", "passphrase", "secret")
# Last words of keys whose values are secret even if they are numbers.
_OF_PASSWORDS = frozenset({"pass", "secrets", "credential", "credentials"})
# Values that a name such as AUTH_ENABLED, SECRET_NAME or POSTGRES_PASSWORD may have and that occur
# everywhere: replacing them would damage what is written, and tell them by what surrounds them.
_COMMON = frozenset(
    {
        *("false", "default", "enabled", "disabled", "required", "optional", "always", "never"),
        *("basic", "bearer", "mlflow"),
    }
)
_NUMBER = re.compile(r"[+-]?[\d.]{1,9}(e[+-]?\d{1,2})?", re.IGNORECASE)
_SHORTEST = 5  # characters; a shorter secret is hidden under its key, not wherever its text occurs
LIKE_A_TOKEN = 20  # characters of a user name in an address that nobody types by hand
_ADDRESS = re.compile(r"""[a-zA-Z][\w+.-]*://[^\s'"<>]+""")
# One that is the whole text, or the value of a key: its password may have a quote or a space.
_ALONE = re.compile(r"""(?:[\w.+~/@-]+=)?['"]?([a-zA-Z][\w+.-]*://(?:[^/@\s]*:.*@)?\S+?)['"]?""")
_PORT = re.compile(r"\d{2,5}/")
# Before `+driver`, schemes of SQLAlchemy, for which there is no port before an `@`.
_DATABASES = frozenset({"postgresql", "postgres", "mysql", "mariadb", "oracle", "mssql", "sqlite"})
_ODBC = "odbc_connect"  # in a query: settings of a connection, among them its password
# What surrounds the values in the text of a list, or of those that a sweep tries.
_AROUND = re.compile(
    r"(?:\btag\(log,|\b(?:choice|range|interval|shuffle|sort)\(|\b(?:start|stop|step)=|[\s,()\[\]])+"
)
_CLASSES = "classes"  # dataset.classes={key: [house_key, car_key]} names no secret
_WORD = re.compile(r"([\w.+~/@-]+)=(.+)", re.DOTALL)  # of a command line
_PAIR = re.compile(r"""([\w.-]+)['"]?\s*[:=]\s*['"]?([^\s,'"{}\[\]]+)""")


class _Patterns:
    """Where secrets are in an address, which `ends`, characters of a regex, end within a text."""

    def __init__(self, ends: str) -> None:
        self.user = re.compile(rf"(?<=://)[^/{ends}]*@")
        # A password with a slash, or a port and what follows it: `http://host:5000/team@work`.
        self.slashed = re.compile(rf"([\w+.-]*)(://[^:/@\[{ends}]*:)([^/@{ends}]*/[^{ends}]*)(?=@)")
        self.query = re.compile(rf"([?&;])([\w.-]+)=([^&;#{ends}]*)")


_IN_TEXT, _IN_ADDRESS = _Patterns(r"\s'\"<>"), _Patterns(r"\n")

known_secrets: set[str] = set()
"""What this process has learnt."""


def is_secret(key: str) -> bool:
    """Whether the value of a key is secret: `api_key`, `tracking.tags.apiToken`."""
    parts = _parts(key)
    known = SECRET_WORDS.intersection(parts) or any(part.endswith(_PASSWORDS) for part in parts)
    return bool(known) or parts[-1] == "key"


def _parts(key: str) -> list[str]:
    """The words of a key, in lower case."""
    return re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower())


def _is_password(key: str) -> bool:
    """Whether a key, or one that it is within, is that of a password, which may be a number."""
    last = [_parts(name)[-1] for name in key.split(".")]
    return any(word in _OF_PASSWORDS or word.endswith(_PASSWORDS) for word in last)


def _is_setting(key: str, value: Any) -> bool:
    """Whether a value is a setting, though its key sounds secret: `token_dim: 64`.

    Numbers are, unless the key is that of a password, or they are as long as a token.
    """
    if value is None or isinstance(value, bool):
        return True
    if _is_password(key):
        return False
    is_short = isinstance(value, int) and bool(_NUMBER.fullmatch(str(value)))
    return isinstance(value, float) or is_short


def _is_hidden(key: str, text: str) -> bool:
    """Whether the text of a key is secret, rather than a setting or a list of these: `32,64`."""
    return is_secret(key) and not all(
        _is_setting(key, _read(word)) for word in _AROUND.split(text) if word
    )


def _read(word: str) -> Any:
    """A number, null or truth value as Hydra reads it: `True`, `1_000`, `.5`; else the word."""
    plain = re.sub(r"(?<=\d)_(?=\d)", "", word.lower())
    try:
        return json.loads(re.sub(r"^([+-]?)\.(?=\d)", r"\g<1>0.", plain).removeprefix("+"))
    except ValueError:
        return word


def learn(value: Any, key: str = "") -> None:
    """Remembers every secret in a configuration, an environment or a command line."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            learn(inner, _below(key, name))
    elif isinstance(value, list | tuple):
        for inner in value:
            learn(inner, key)
    elif isinstance(value, str) and value:
        _learn_text(value, key)
    if known_secrets:
        _guard()


def learn_environment() -> None:
    """Remembers the secrets in this process' environment; paths, as in PWD, are not secret."""
    learn({name: value for name, value in os.environ.items() if not value.startswith("/")})


def _learn_text(text: str, key: str) -> None:
    if _is_hidden(key, text):
        _remember(text)
    word = _WORD.fullmatch(text)
    pairs = [*([word.groups()] if word else []), *_PAIR.findall(text)]
    for name, value in pairs:
        if _is_hidden(name, value):
            _remember(value)
    alone = _ALONE.fullmatch(text)
    for address in [alone[1]] if alone else _ADDRESS.findall(text):
        _learn_address(address)


def _learn_address(address: str) -> None:
    for _, name, value in _IN_ADDRESS.query.findall(address):
        if is_secret(name):
            _remember(value)
        elif name.lower() == _ODBC:
            for setting in unquote_plus(value).split(";"):
                _learn_text(setting, "")
    user, _, password = credentials(address).partition(":")
    if password != user:  # what a user is called is no secret
        _remember(password)
    if user and _is_token(address.partition("://")[0], user, password):
        _remember(user)


def credentials(address: str) -> str:
    """The user and the password in an address, as they are written: `me:secret`; empty if none."""
    slashed = filter(_has_password, _IN_ADDRESS.slashed.finditer(address))
    if found := next(slashed, None):
        return found[2].removeprefix("://") + found[3]
    user = _IN_ADDRESS.user.search(address)
    return user[0].removesuffix("@") if user else ""


def _has_password(slashed: re.Match[str]) -> bool:
    """Whether what such a pattern matches, with a slash in it, is a password."""
    scheme = slashed[1].partition("+")[0].lower()
    return scheme in _DATABASES or not _PORT.match(slashed[3])


def _is_token(scheme: str, user: str, password: str | None) -> bool:
    """Whether what stands for a user in an address is a token.

    Without a password, it is one on the web; elsewhere it is a user (`sftp://me@host`) or a
    container (`wasbs://pictures@account`).
    """
    if not password:
        return scheme.lower().endswith(("http", "https"))
    return password == "x-oauth-basic" or len(user) >= LIKE_A_TOKEN


def _remember(value: str) -> None:
    value = value.strip("'\" \t\r\n")  # that of a mounted file ends a line
    for text in (value, unquote(value)):
        if len(text) < _SHORTEST or text.lower() in _COMMON or _NUMBER.fullmatch(text):
            continue
        if text != _HIDDEN and not text.startswith("${"):
            known_secrets.add(text)


def hide(text: str) -> str:
    """Replaces known secrets, and those in addresses, in a text."""
    text = _hide_in_addresses(text)
    for secret in sorted(known_secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


def has_hidden(text: str) -> bool:
    """Whether secrets in a text have been replaced."""
    return _HIDDEN in text


def may_stand_for(shown: str, text: str) -> bool:
    """Whether a text may be the one of which `shown` hides the secrets."""
    return fnmatchcase(text, "*".join(map(escape, shown.split(_HIDDEN))))


def hide_in_place(place: str) -> str:
    """Hides the secrets that a path or an address itself names as such.

    Other text of a place is what it is called, even if a known secret has the same letters: who
    reads it back must find the place.
    """
    return _PAIR.sub(_hide_pair, _hide_in_addresses(place))


def _hide_in_addresses(text: str) -> str:
    if "://" not in text:
        return text
    found = _IN_ADDRESS if _ALONE.fullmatch(text) else _IN_TEXT
    text = found.user.sub(_hide_user, found.slashed.sub(_hide_slashed, text))
    return found.query.sub(_hide_query, text)


def _hide_slashed(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}{_HIDDEN}" if _has_password(found) else found[0]


def _hide_user(found: re.Match[str]) -> str:
    user, colon, password = found[0][:-1].partition(":")
    scheme = found.string[max(0, found.start() - len("https://")) : found.start() - len("://")]
    shown = _HIDDEN if _is_token(scheme, user, password) else user
    return f"{shown}{colon and ':' + _HIDDEN}@"


def _hide_query(found: re.Match[str]) -> str:
    is_hidden = is_secret(found[2]) or found[2].lower() == _ODBC
    return f"{found[1]}{found[2]}={_HIDDEN}" if is_hidden else found[0]


def hide_value(key: str, value: Any) -> Any:
    """Hides the secrets in the value of a key, also within mappings and lists.

    Short numbers, `null` and truth values are settings and stay; numbers as passwords do not.
    """
    if isinstance(value, Mapping):
        return {name: hide_value(_below(key, name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hide_value(key, inner) for inner in value]
    if isinstance(value, str):
        return _HIDDEN if value and is_secret(key) else hide_word(value)
    return _HIDDEN if is_secret(key) and not _is_setting(key, value) else value


def _below(key: str, name: Any) -> str:
    """The key of a value within that of `key`; the names of classes are no keys."""
    if key == _CLASSES:
        return key
    return key if is_secret(key) and not _is_password(str(name)) else str(name)


def hide_param(key: str, text: str) -> str:
    """Hides the secrets in the text of a parameter, as it is on a command line or in MLflow.

    Numbers, `null` and truth values are settings, as in `hide_value`, also in a list or in those
    that a sweep tries: `32,64`.
    """
    if not is_secret(key):
        return hide_word(text)
    return _HIDDEN if _is_hidden(key, text) else text


def hide_word(word: str) -> str:
    """Hides the secrets in one word of a command line, such as `+key=value`."""
    found = _WORD.fullmatch(word)
    if found and is_secret(found[1]):
        return f"{found[1]}={hide_param(found[1], found[2])}"
    return hide(_PAIR.sub(_hide_pair, word))


def _hide_pair(found: re.Match[str]) -> str:
    is_quoted = found.string[found.start(2) - 1] in "'\""  # text, also if it has only digits
    if not (is_secret(found[1]) if is_quoted else _is_hidden(found[1], found[2])):
        return found[0]
    return found[0][: found.start(2) - found.start()] + _HIDDEN


def hide_files(files: Iterable[Path]) -> None:
    """Rewrites YAML files that hold a secret; others stay as they are.

    Hydra writes these files before our code can inspect what it composed.
    """
    for file in files:
        if not file.is_file():
            continue
        document = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
        shown = hide_value("", document)
        if shown != document:
            text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
            file.write_text(text, encoding="utf-8")


class _Hiding:
    """A stream that hides known secrets in what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(hide(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _guard() -> None:
    """Passes stdout, stderr and the log through `hide`; does so once."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Hiding):
            setattr(sys, name, _Hiding(stream))
    made = logging.getLogRecordFactory()
    if getattr(made, "hides", False):
        return

    def record(*args: Any, **more: Any) -> logging.LogRecord:
        line = made(*args, **more)
        with suppress(Exception):  # a malformed call, which logging reports itself
            told = line.getMessage()
            if (shown := hide(told)) != told:  # some handlers read the arguments of a line
                line.msg, line.args = shown, None
        if line.exc_info:
            line.exc_text = hide(logging.Formatter().formatException(line.exc_info))
        return line

    record.hides = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
