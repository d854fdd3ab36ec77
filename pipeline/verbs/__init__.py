"""What is done with data and recorded runs, a file or folder per verb.

A verb is declared as a `Verb` in its own module, whose import is cheap: no TensorFlow, MLflow or
matplotlib. `verbs` finds them all, and nothing lists them: the command line, its help, the groups
of the configuration and the Python API follow.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A word of the command line.

    `entry` and `show` are written `module:function` and imported when they are needed. The entry
    takes the checked `Config`, the checked `request` if the verb has one, and the folder for its
    log. `show` takes what the entry returns, and the request or None; it prints the value, and
    raises `PipelineError` if the work is to count as failed.
    """

    name: str
    help: str
    entry: str
    show: str = "pipeline.verbs:show"
    request: type | None = None
    """Dataclass of the keys that the verb has of its own: the group `name` of the configuration."""
    records: bool = False
    """Whether it makes a run, for which the store must have a place for artefacts."""
    keeps_log: bool = True
    """Whether it gets a folder for its log; without, it works where nothing can be written."""

    def carry_out(self, config: Config, request: Any, folder: Path) -> Any:
        """Does the work and returns its value."""
        given = (config,) if self.request is None else (config, request)
        return function(self.entry)(*given, folder)

    def print(self, value: Any, request: Any) -> None:
        """Prints what `carry_out` returned.

        Raises:
            PipelineError: the value is that of work that failed.
        """
        function(self.show)(value, request)


def show(value: Any, request: Any) -> None:
    """Prints the value as it describes itself."""
    print(value, flush=True)


def function(target: str) -> Any:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def verbs() -> dict[str, Verb]:
    """All verbs by name: `run`, the default, then the others from A to Z."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    declared = [value for module in modules for value in vars(module).values()]
    by_name = {value.name: value for value in declared if isinstance(value, Verb)}
    return {name: by_name[name] for name in sorted(by_name, key=lambda name: (name != "run", name))}


def requests() -> dict[str, type]:
    """The request of each verb that has one, by the verb's name."""
    return {name: verb.request for name, verb in verbs().items() if verb.request is not None}
