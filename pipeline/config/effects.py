"""Refuses settings that a user types and that have no effect beside others.

Values from files and recorded configurations pass: a recipe may set more than a run needs. Rules
about one builder stand with that builder (`rules.idle`), rules about a verb with the verb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from pipeline.config.builders import GROUPS, MODULES, builder_of
from pipeline.config.named_runs import names_runs
from pipeline.config.rules import Idle, idle_of
from pipeline.config.schema import Checks, Config, has_no_validation
from pipeline.config.trusted import public_functions, trusted
from pipeline.config.words import key_of
from pipeline.system.errors import RequestError
from pipeline.system.secrets import hide_word


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When keys have no effect, and what to do about it.

    Those of RULES are about runs. A verb has rules of its own: for its keys, and for what it does
    not use of the configuration; they see its request under its name (`config.compare.top`).
    """

    keys: tuple[str, ...]
    when: Callable[[Any], bool]
    because: str
    mend: str
    nothing: tuple[Any, ...] = ()
    """Values that ask for nothing, and are therefore no mistake."""
    of_runs: bool = False
    """Whether functions of the Python API use the keys nevertheless."""

    def holds(self, key: str, config: Any) -> bool:
        """Whether the value of `key` in this configuration has no effect."""
        return self.when(config) and _value(config, key) not in self.nothing


def untested(config: Config) -> Config:
    """The configuration of the same run without its evaluation on the test split."""
    return replace(config, evaluate=replace(config.evaluate, test=False))


def with_request(config: Config, name: str, request: Any) -> Any:
    """A configuration with the request of the verb `name`, as the rules of that verb see it."""
    return SimpleNamespace(**vars(config) | ({} if request is None else {name: request}))


def refuse_without_effect(
    words: Sequence[str],
    configs: Sequence[Any],
    *,
    python: bool = False,
    rules: Sequence[Rule] | None = None,
) -> None:
    """Refuses the first typed setting that has no effect.

    `configs` are the checked configurations that the words lead to: one, or those of the jobs of a
    sweep, where a setting must have an effect in one of them at least. `python` is for a
    configuration that is not only used by a run; `rules` are RULES by default.

    Raises:
        RequestError: names the setting, why it has no effect, and what to do.
    """
    if not configs:
        return
    for word, rule in without_effect(words, configs, python=python, rules=rules):
        shown = hide_word(word)
        raise RequestError(f"{shown} has no effect {rule.because}; {rule.mend}")


def without_effect(
    words: Sequence[str],
    configs: Sequence[Any],
    *,
    python: bool = False,
    rules: Sequence[Rule] | None = None,
) -> Iterator[tuple[str, Rule]]:
    """The settings among `words` that have no effect in any of the configurations."""
    for word in words:
        for key in _keys(word):
            found = [_broken(key, config, rules, python=python) for config in configs]
            if found[0] and all(found):
                yield word, found[0]


def _broken(key: str, config: Any, rules: Sequence[Rule] | None, *, python: bool) -> Rule | None:
    """The first rule by which the value of `key` in this configuration has no effect."""
    known = (*RULES, *_of_builders(config, key)) if rules is None else rules
    applying = (one for one in known if key in one.keys and not (python and one.of_runs))
    return next((one for one in applying if one.holds(key, config)), None)


def _of_builders(config: Config, key: str) -> Iterator[Rule]:
    """What the builder of the leaf that has the key declares."""
    group = key.partition(".")[0]
    if group in GROUPS:
        for one in idle_of(builder_of(getattr(config, group))):
            yield _rule(group, one)


def _rule(group: str, one: Idle) -> Rule:
    return Rule(
        keys=tuple(f"{group}.{name}" if name else group for name in one.keys),
        when=lambda config: one.when(getattr(config, group)),
        because=one.because,
        mend=one.mend,
        nothing=one.nothing,
    )


def with_effect(words: Sequence[str], config: Config) -> list[str]:
    """The words without the settings that have no effect, and without the keys of such a choice."""
    idle = {word for word, _ in without_effect(words, [config])}
    groups = tuple(f"{key_of(word)}." for word in idle if "." not in key_of(word))
    return [word for word in words if word not in idle and not key_of(word).startswith(groups)]


def may_lack_effect(words: Sequence[str]) -> bool:
    """Whether there is a rule about any of the words, so that a configuration decides."""
    ruled = ruled_keys()
    own = GROUPS if trusted() else ()  # whose builders may declare any key
    keys = [key for word in words for key in _keys(word)]
    return any(key in ruled or key.partition(".")[0] in own for key in keys)


@cache
def ruled_keys() -> frozenset[str]:
    """The keys that a rule is about, those of our builders included."""
    builders = [
        _rule(group, one)
        for group, module in MODULES.items()
        for builder in public_functions(module).values()
        for one in idle_of(builder)
    ]
    return frozenset(key for rule in (*RULES, *builders) for key in rule.keys)


def _keys(word: str) -> Iterator[str]:
    """The keys that a word sets: `ingest.checks.blank={limit: 0.5}` sets that of the limit."""
    if word.startswith("~"):
        return
    if word.partition("=")[2].startswith("{"):
        one = OverridesParser.create().parse_overrides([word])[0]
        yield from _inside(key_of(word), one.value())
    else:
        yield key_of(word)


def _inside(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _inside(f"{key}.{name}", part)
    else:
        yield key


def _value(config: Any, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name)
    return value


def _has_no_files(config: Config) -> bool:
    """Whether a data set is made of images, and not of picture files that are to be packed."""
    returns = getattr(builder_of(config.dataset), "__annotations__", {}).get("return")
    return getattr(returns, "__name__", returns) == "RawData"


def _is_constant(config: Config) -> bool:
    """Whether a schedule of Keras keeps the learning rate as it is."""
    leaf = config.schedule
    name = str(leaf["_target_"]).removeprefix("keras.optimizers.schedules.")
    end = leaf.get("end_learning_rate")
    return (
        (name == "CosineDecay" and leaf.get("alpha") == 1)
        or (name == "ExponentialDecay" and leaf.get("decay_rate") == 1)
        or (name == "PolynomialDecay" and end == config.optimizer["learning_rate"])
    )


def _accepts_all(check: str) -> Callable[[Config], bool]:
    """A function that says whether the limit of a check of shares is that of all images."""
    return lambda config: getattr(config.ingest.checks, check).limit >= 1


def _ignored(check: str) -> Callable[[Config], bool]:
    return lambda config: getattr(config.ingest.checks, check).action == "ignore"


RULES = (
    Rule(
        keys=("evaluate.metrics", "evaluate.plots"),
        when=lambda config: not config.evaluate.test,
        because="where the test split is not used (train, evaluate.test=false or "
        "sweep.keep_models=0): it is about that split alone",
        mend="leave it out, or use the test split",
        nothing=([],),
        of_runs=True,  # pipeline.evaluate evaluates any split
    ),
    Rule(
        keys=("tracking.uri",),
        when=lambda config: config.tracking.offline and not names_runs(config),
        because="with tracking.offline=true, which contacts no store",
        mend="leave it out, and give it to sync later: python -m pipeline sync tracking.uri=…",
        nothing=(None,),
        of_runs=True,  # pipeline.find_runs asks that store
    ),
    *(
        Rule(
            keys=(f"ingest.checks.{one.name}.limit",),
            when=_ignored(one.name),
            because=f"with ingest.checks.{one.name}.action=ignore",
            mend="leave it out, or let the action be warn or refuse",
        )
        for one in fields(Checks)
    ),
    *(
        Rule(
            keys=(f"ingest.checks.{name}.limit",),
            when=_accepts_all(name),
            because="where it is 1 or more: no share is larger",
            mend=f"set it below 1, or ingest.checks.{name}.action=ignore",
        )
        for name in ("bad_files", "conflicts", "blank")
    ),
    Rule(
        keys=("ingest.checks.smallest_class.limit",),
        when=lambda config: config.ingest.checks.smallest_class.limit == 0,
        because="where it is 0: no class has fewer images",
        mend="set it above 0, or ingest.checks.smallest_class.action=ignore",
    ),
    Rule(
        keys=("ingest.checks.bad_files.action", "ingest.checks.bad_files.limit"),
        when=_has_no_files,
        because="on this data set, which is not made of picture files",
        mend="leave it out",
        nothing=("ignore",),
    ),
    Rule(
        keys=("evaluate.leakage",),
        when=_has_no_files,
        because="on this data set, whose images have no groups that a split could ignore",
        mend="leave it out",
        nothing=(False,),
    ),
    Rule(
        keys=("preprocess.seed",),
        when=lambda config: config.preprocess.validation_size == 0,
        because="with preprocess.validation_size=0: no validation images are drawn",
        mend="leave it out, or set preprocess.validation_size above 0",
    ),
    Rule(
        keys=("optimizer.nesterov",),
        when=lambda config: (
            config.optimizer["_target_"] == "keras.optimizers.SGD"
            and not config.optimizer.get("momentum")
        ),
        because="with optimizer.momentum=0",
        mend="leave it out, or set optimizer.momentum above 0",
        nothing=(False,),
    ),
    Rule(
        keys=("schedule",),
        when=_is_constant,
        because="with values that keep the learning rate as it is",
        mend="choose schedule=constant, or change them",
    ),
    Rule(
        keys=("schedule", "schedule.decay_rate"),
        when=lambda config: (
            str(config.schedule["_target_"]).startswith("keras.")
            and bool(config.schedule.get("staircase"))
        ),
        because="with schedule.staircase=true, whose first step comes after the last epoch",
        mend="leave it out, or set schedule.staircase=false",
    ),
    Rule(
        keys=("train.patience",),
        when=lambda config: (config.train.patience or 0) >= config.train.epochs,
        because="where it is not below train.epochs: the training ends first",
        mend="leave it out, or set it below train.epochs",
    ),
    Rule(
        keys=("train.monitor",),
        when=has_no_validation,
        because="with preprocess.validation_size=0: no images are validated",
        mend="leave it out, or set preprocess.validation_size above 0",
    ),
    Rule(
        keys=("evaluate.views", "evaluate.batch_size"),
        when=lambda config: not config.evaluate.test and has_no_validation(config),
        because="without the test split (train, evaluate.test=false) and with "
        "preprocess.validation_size=0: nothing is evaluated",
        mend="leave it out, or use one of the splits",
        nothing=(None,),
        of_runs=True,  # pipeline.evaluate evaluates any split
    ),
    Rule(
        keys=("train.teacher_weight", "train.teacher_temperature"),
        when=lambda config: config.train.teacher is None,
        because="without a teacher",
        mend="leave it out, or set train.teacher=<run id>",
    ),
    Rule(
        keys=("train.teacher", "train.teacher_temperature"),
        when=lambda config: config.train.teacher is not None and not config.train.teacher_weight,
        because="with train.teacher_weight=0",
        mend="leave it out, or set train.teacher_weight above 0",
    ),
    Rule(
        keys=("train.label_smoothing",),
        when=lambda config: config.train.teacher is not None and config.train.teacher_weight == 1,
        because="with train.teacher_weight=1, which learns from the teacher's answers alone",
        mend="leave it out, or set train.teacher_weight below 1",
        nothing=(0,),
    ),
)
