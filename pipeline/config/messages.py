"""Turns what Hydra, OmegaConf and the system complain about into a line that helps."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from pipeline.system.errors import PipelineError, first_line, one_line

NOT_OFFERED = ("hydra", "choices", "run_id")  # nobody who mistypes a key means these
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException) -> str:
    """One or two lines: what is wrong, by key or file, and how to mend it."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: {first_line(error.message)}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; free it or choose another place"
    if isinstance(error, OSError) and error.errno in FULL:  # such an error names no file
        return f"writing failed: {error.strerror}; free some space or choose another place"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return _bad_key(cause)
    return one_line(error)


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    options = error.options or ()
    if not group or not options:
        return first_line(str(error))
    return f"{group}={choice}: no such choice; {choose(choice, options)}"


def _bad_key(error: OmegaConfBaseException) -> str:
    key = error.full_key or str(error.key or "")
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        parent = error.parent_node
        known = [name for name in _keys(parent) if name not in NOT_OFFERED]
        if isinstance(parent, DictConfig) and not known:
            return f"{key}: no such key yet; add it with +{key}=…"
        prefix, _, last = key.rpartition(".")
        if not prefix and (elsewhere := [name for name in known if last in _keys(parent[name])]):
            return f"{key}: no such key; did you mean {elsewhere[0]}.{key}?"
        return f"{key}: no such key; {choose(last, known)}" + (f" of {prefix}" if prefix else "")
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: needs a value"
    return f"{key}: {first_line(error.msg or str(error))}"


def _keys(node: Any) -> list[str]:
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def choose(given: str, options: Iterable[str]) -> str:
    """What else could have been meant, the nearest first."""
    names = sorted(options)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}choose one of {', '.join(names)}"
