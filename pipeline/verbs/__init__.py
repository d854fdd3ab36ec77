"""The verbs: what can be done with data and recorded runs, one file or folder per verb.

Each verb is declared as a `Verb` in its own module, whose import is cheap: no TensorFlow, MLflow or
matplotlib. `verbs` discovers them, so there is no list to maintain: the command line, its help and
the groups of the configuration are derived from the declarations. `pipeline/api.py` writes the
functions of some of them for Python.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.effects import Rule, refuse_without_effect, untested, with_request
from pipeline.config.schema import Config
from pipeline.libraries import import_slow
from pipeline.system.errors import RequestError
from pipeline.system.secrets import learn, learn_environment

if TYPE_CHECKING:
    from pipeline.data.own_pictures import Pictures

# What only a training uses; what a recorded run has decided; what only a run uses. A name stands
# for a group with its keys, or for one key; `dataset.` for the keys of a group without its choice.
OF_TRAINING = frozenset({"model", "optimizer", "schedule", "augment", "train", "seed"})
NAMING = frozenset(f"tracking.{key}" for key in ("run_name", "tags", "log_model", "artifact_root"))
DECIDED = OF_TRAINING | NAMING | {"preprocess", "ingest", "dataset."}
OF_RUNS = DECIDED | {"evaluate"}


def by_model_uri(verb: str) -> Rule:
    """The rule of a verb whose key `model_uri` names the model, so that `dataset` has no effect."""
    return Rule(
        keys=("dataset",),
        when=lambda config: getattr(config, verb).model_uri is not None,
        because=f"beside {verb}.model_uri, which names the model",
        mend="leave one of the two out",
    )


@dataclass(frozen=True, kw_only=True)
class Verb:
    """The declaration of a verb, such as `run` or `compare`.

    `entry` and `show` have the form `module:function` and are imported when needed. The entry takes
    the checked `Config`, the checked `request` if the verb has one, and the folder for its log.
    `show` takes the result of the entry and the request (or None); it prints the result, and raises
    `PipelineError` if the work counts as failed.
    """

    name: str
    help: str
    entry: str
    show: str = "pipeline.verbs:show"
    request: type | None = None
    """Dataclass of the verb's own keys, which form the group `name` of the configuration."""
    check: str = ""
    """`module:function` that takes the checked `Config`, and refuses what cannot work as far as
    that is known before anything slow is imported and anything recorded. It returns the pictures
    that it has listed, if any, which the entry takes as `pictures`."""
    uses: str = ""
    """The module of slow imports that the entry makes when it is called; default: its own."""
    needs: str = ""
    """The setting that it cannot do without, as an example: `run_id=latest` or `images=photos`."""
    first: str = ""
    """The key of a first word that has none; default: that of `needs`."""
    of_record: bool = False
    """Whether a recorded run decides its configuration, so that settings of a run are refused."""
    records: bool = False
    """Whether it creates a run, so that the store must have a place for artefacts."""
    ignores: frozenset[str] = frozenset()
    """Groups and keys of the configuration that have no effect on it; setting them is refused."""
    rules: Sequence[Rule] = ()
    """When settings have no effect on it that otherwise have."""
    keeps_log: bool = True
    """Whether it gets a folder for its log; without one, it also works in read-only folders."""

    def load(self, config: Config) -> None:
        """Imports what the verb needs, if `config` names the run that it works on.

        Raises:
            RequestError: `run_id` is missing.
        """
        if self.needs.startswith("run_id="):
            self.run_id(config)
        import_slow(self.uses or self.entry.partition(":")[0])

    def require_effects(self, words: Sequence[str], config: Config, request: Any) -> None:
        """Refuses typed settings that have no effect on this verb with this configuration.

        Raises:
            RequestError: names the first one.
        """
        decided = untested(config) if "evaluate.test" in self.ignores else config
        refuse_without_effect(words, [decided])
        if self.rules:
            whole = with_request(decided, self.name, request)
            refuse_without_effect(words, [whole], rules=self.rules)

    def require_possible(self, config: Config) -> Pictures | None:
        """Refuses what `check` knows not to work; returns the pictures that it has listed.

        Raises:
            RequestError: says why.
        """
        listed: Pictures | None = imported(self.check)(config) if self.check else None
        return listed

    def run_id(self, config: Config) -> str:
        """The run that the configuration names, for a verb that works on one.

        Raises:
            RequestError: it names none.
        """
        if config.run_id is None:
            raise RequestError(f"run_id: say which run to {self.name}, run_id=<id> or {self.needs}")
        return config.run_id

    def carry_out(
        self, config: Config, request: Any, folder: Path, pictures: Pictures | None = None
    ) -> Any:
        """Does the work and returns its result; `pictures` are what `require_possible` returned.

        What it records, from the command line or from Python, has none of the secrets given to it.
        """
        given = (config,) if self.request is None else (config, request)
        learn_environment()
        learn([asdict(one) for one in given])
        listed = {} if pictures is None else {"pictures": pictures}
        return imported(self.entry)(*given, folder, **listed)

    def print(self, value: Any, request: Any) -> None:
        """Prints what `carry_out` returned.

        Raises:
            PipelineError: the result is a failure.
        """
        imported(self.show)(value, request)


def show(value: Any, request: Any) -> None:
    """Prints the result as text."""
    print(value, flush=True)


def imported(target: str) -> Any:
    """Imports the function named by `module:function`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def verbs() -> dict[str, Verb]:
    """All verbs by name: first `run`, the default, then the others in alphabetical order."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    declared = [value for module in modules for value in vars(module).values()]
    by_name = {value.name: value for value in declared if isinstance(value, Verb)}
    return {name: by_name[name] for name in sorted(by_name, key=lambda name: (name != "run", name))}


def requests() -> dict[str, type]:
    """The request of each verb that has one, by the verb's name."""
    return {name: verb.request for name, verb in verbs().items() if verb.request is not None}
