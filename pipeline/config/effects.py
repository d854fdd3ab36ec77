"""Settings that have no effect beside others: they are refused where a user typed them.

Values from files and recorded configurations are not: a recipe may set more than a run needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from pipeline.config.builders import BUILDERS, BUILDERS_BESIDE_KERAS, Leaf
from pipeline.config.schema import Checks, Config
from pipeline.config.words import key_of
from pipeline.system.errors import RequestError
from pipeline.system.secrets import hide_word


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When keys have no effect, and what to do about it."""

    keys: tuple[str, ...]
    when: Callable[[Config], bool]
    because: str
    mend: str
    nothing: tuple[Any, ...] = ()
    """Values that ask for nothing, and are therefore no mistake."""
    of_runs: bool = False
    """Whether functions of the Python API use the keys nevertheless."""

    def holds(self, key: str, config: Config) -> bool:
        """Whether the value of `key` in this configuration has no effect."""
        return self.when(config) and _value(config, key) not in self.nothing


def untested(config: Config) -> Config:
    """The configuration of the same run without its evaluation on the test split."""
    return replace(config, evaluate=replace(config.evaluate, test=False))


def refuse_without_effect(
    words: Sequence[str], configs: Sequence[Config], *, python: bool = False
) -> None:
    """Refuses the first typed setting that has no effect.

    `configs` are the checked configurations that the words lead to: one, or those of the jobs of a
    sweep, where a setting must have an effect in one of them at least. `python` is for a
    configuration that is not only used by a run.

    Raises:
        RequestError: names the setting, why it has no effect, and what to do.
    """
    if not configs:
        return
    for word, rule in without_effect(words, configs, python=python):
        shown = hide_word(word)
        raise RequestError(f"{shown} has no effect {rule.because}; {rule.mend}")


def without_effect(
    words: Sequence[str], configs: Sequence[Config], *, python: bool = False
) -> Iterator[tuple[str, Rule]]:
    """The settings among `words` that have no effect in any of the configurations."""
    for word in words:
        for key in _keys(word):
            for rule in RULES:
                applies = key in rule.keys and not (python and rule.of_runs)
                if applies and all(rule.holds(key, config) for config in configs):
                    yield word, rule


def may_lack_effect(words: Sequence[str]) -> bool:
    """Whether there is a rule about any of the words, so that a configuration decides."""
    ruled = {key for rule in RULES for key in rule.keys}
    return any(key in ruled for word in words for key in _keys(word))


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


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name)
    return value


def _is(leaf: Leaf, builder: str) -> bool:
    """Whether a leaf is built by this function of ours: `augment.combined`."""
    group, _, name = builder.partition(".")
    return bool(leaf["_target_"] == f"{(BUILDERS | BUILDERS_BESIDE_KERAS)[group]}.{name}")


def _is_off(leaf: Leaf) -> bool:
    """Whether an augmentation changes nothing."""
    if _is(leaf, "augment.combined"):
        drawn = leaf["rand_augment"] and leaf["magnitude"]
        others = (leaf[key] for key in ("crop", "colour", "erasing", "cutout", "mixup", "cutmix"))
        return leaf["flip"] == "none" and not drawn and not any(others)
    both = ("horizontal_flip", "shift")
    return _is(leaf, "augment.flip_and_shift") and not any(leaf[key] for key in both)


def _needs_no_store(config: Config) -> bool:
    weights = config.model.get("weights")  # a run's, perhaps
    return config.train.teacher is None and weights in (None, "imagenet")


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
        when=lambda config: config.tracking.offline and _needs_no_store(config),
        because="with tracking.offline=true, which contacts no store",
        mend="leave it out, and give it to sync later: python -m pipeline sync tracking.uri=…",
        nothing=(None,),
        of_runs=True,  # pipeline.find_runs asks that store
    ),
    Rule(
        keys=("dataset.max_bad",),
        when=lambda config: (
            _is(config.dataset, "dataset.folder") and config.dataset["on_bad"] == "refuse"
        ),
        because="with dataset.on_bad=refuse, which accepts no bad file",
        mend="leave it out, or set dataset.on_bad=skip",
        nothing=(0,),
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
    Rule(
        keys=("preprocess.seed",),
        when=lambda config: config.preprocess.validation_size == 0,
        because="with preprocess.validation_size=0: no validation images are drawn",
        mend="leave it out, or set preprocess.validation_size above 0",
    ),
    Rule(
        keys=("augment",),
        when=lambda config: _is_off(config.augment),
        because="with all of its changes off",
        mend="turn one on, or choose augment=none",
    ),
    Rule(
        keys=("augment.magnitude",),
        when=lambda config: (
            _is(config.augment, "augment.combined") and not config.augment["rand_augment"]
        ),
        because="with augment.rand_augment=0, whose operations it is about",
        mend="leave it out, or set augment.rand_augment above 0",
    ),
    Rule(
        keys=("augment.rand_augment",),
        when=lambda config: (
            _is(config.augment, "augment.combined") and not config.augment["magnitude"]
        ),
        because="with augment.magnitude=0, at which its operations change nothing",
        mend="leave it out, or set augment.magnitude above 0",
        nothing=(0,),
    ),
    Rule(
        keys=("model.activation", "model.dropout", "model.batch_norm"),
        when=lambda config: _is(config.model, "model.mlp") and not config.model["hidden"],
        because="with model.hidden=[]: it is about hidden layers",
        mend="leave it out, or give the model hidden layers",
        nothing=(0.0, False),
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
        keys=("schedule.start",),
        when=lambda config: (
            (_is(config.schedule, "schedule.one_cycle") or _is(config.schedule, "schedule.warmup"))
            and not config.schedule["warmup"]
        ),
        because="with schedule.warmup=0: the rate does not rise",
        mend="leave it out, or set schedule.warmup above 0",
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
)
