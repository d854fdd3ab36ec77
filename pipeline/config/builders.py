"""The leaves of the configuration, each of which builds a data set, model, optimizer, ….

A leaf is flat: `_target_` names a builder, and every other key is one of its keyword-only
parameters, whose annotations are the rules for the values. Positional parameters of a builder are
passed at run time. If a parameter of our builders has a default, it was added after the first runs
were recorded, and the default is what those runs did.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from pipeline.config import trusted
from pipeline.config.rules import (
    TRAINABLE,
    Fraction,
    Negative,
    NonNegative,
    NonPositive,
    Positive,
    Share,
    broken_rules,
    check_of,
    named_in_errors,
)
from pipeline.config.trusted import public_functions
from pipeline.system.errors import RequestError, first_line, one_line

Leaf = dict[str, Any]

# The allow-list: only these, and trusted modules, build the leaves of a group.
BUILDERS = {
    "dataset": "pipeline.data.datasets",
    "model": "pipeline.training.models",
    "augment": "pipeline.training.augment",
}
KERAS_CLASSES = {
    "optimizer": (
        "keras.optimizers.",
        (
            *("Adam", "AdamW", "SGD", "RMSprop", "Nadam", "Adamax", "Adagrad", "Adadelta"),
            *("Adafactor", "Ftrl", "Lion"),
        ),
    ),
    "schedule": (
        "keras.optimizers.schedules.",
        ("CosineDecay", "ExponentialDecay", "PolynomialDecay", "InverseTimeDecay"),
    ),
}
# Ours in the same groups, whose parameters are annotated.
BUILDERS_BESIDE_KERAS = {
    "optimizer": "pipeline.training.optimizers",
    "schedule": "pipeline.training.schedules",
}
MODULES = BUILDERS | BUILDERS_BESIDE_KERAS
# Keras has no annotations, and reading its signatures would import TensorFlow.
KERAS_PARAMETERS: dict[str, Any] = {
    "learning_rate": Positive,
    "beta_1": Fraction,
    "beta_2": Fraction,
    "rho": Fraction,
    "momentum": Fraction,
    "nesterov": bool,
    "amsgrad": bool,
    "centered": bool,
    "epsilon": Positive,
    "epsilon_1": Positive,
    "epsilon_2": Positive,
    "beta_2_decay": Negative,
    "clip_threshold": Positive,
    "relative_step": bool,
    "initial_accumulator_value": NonNegative,
    "learning_rate_power": NonPositive,
    "beta": NonNegative,
    "l1_regularization_strength": NonNegative,
    "l2_regularization_strength": NonNegative,
    "l2_shrinkage_regularization_strength": NonNegative,
    "weight_decay": NonNegative | None,
    "clipnorm": Positive | None,
    "global_clipnorm": Positive | None,
    "alpha": Share,
    "decay_rate": Positive,
    "end_learning_rate": NonNegative,
    "power": Positive,
    "staircase": bool,
}
# Modules of builders by the names in config.yaml of runs of earlier versions.
FORMER_MODULES = {
    "pipeline.datasets": BUILDERS["dataset"],
    "pipeline.models": BUILDERS["model"],
    "pipeline.augment": BUILDERS["augment"],
}
# Number of positional parameters, which are passed at run time: images and classes, say.
POSITIONAL = {"dataset": 0, "model": 2, "augment": 1, "optimizer": 0, "schedule": 2}
AVERAGING = ("use_ema", "ema_momentum")  # an optimizer may take these as well, from `train.ema`
REQUIRED = {"optimizer": "learning_rate"}  # a key that every leaf of the group has
GROUPS = (*BUILDERS, *KERAS_CLASSES)
MAY_BE_NONE = ("augment", "schedule")


def check_leaf(group: str, leaf: Leaf) -> Leaf:
    """Checks a leaf of a group; returns it with values converted by the rules (`1` → `1.0`).

    Raises:
        RequestError: the target is not on the allow-list, or a parameter breaks its rule.
    """
    target = _renamed(leaf.get("_target_"), FORMER_MODULES)
    if target is None and group in MAY_BE_NONE:
        return {"_target_": None}
    given = {key: value for key, value in leaf.items() if key != "_target_"}
    if isinstance(target, str) and trusted.is_trusted(target):
        model = _model.__wrapped__(group, target)  # not cached: trust may be withdrawn
        # Hydra's ~key does not remove a null from the file whose target this one replaces.
        fields = model.model_fields
        given = {key: value for key, value in given.items() if value is not None or key in fields}
    else:
        model = _model(group, target if target is None else str(target))
    try:
        checked = model.model_validate(given)
        return {"_target_": target, **checked.model_dump(exclude_unset=group in KERAS_CLASSES)}
    except ValidationError as error:
        raise RequestError(broken_rules(error, group)) from error


def has_backbone(leaf: Leaf) -> bool:
    """Whether a checked model has a backbone whose weights may be given and frozen.

    It has the keys `weights`, a text or None, and `trainable`, one of `TRAINABLE`. In a model of
    the user's own, such keys with other values (`trainable=true`) mean what that model makes of
    them.
    """
    if not {"weights", "trainable"} <= leaf.keys():
        return False
    return leaf["trainable"] in TRAINABLE and isinstance(leaf["weights"], str | None)


def check_keys(group: str, leaf: Leaf, choice: str) -> None:
    """Runs the check of a checked leaf's builder on its keys, if it has one.

    Raises:
        RequestError: the builder could not work with them; names the `choice`, such as `vit`.
    """
    builder = builder_of(leaf)
    try:
        if builder is not None and (check := check_of(builder)):
            check(**{key: value for key, value in leaf.items() if key != "_target_"})
    except ValueError as error:
        raise RequestError(f"{group}={choice}: {first_line(str(error))}") from error


def unknown_keys(group: str, leaf: Leaf) -> list[str]:
    """The keys of a leaf that its builder does not have.

    Raises:
        RequestError: the target is not on the allow-list.
    """
    target = _renamed(leaf.get("_target_"), FORMER_MODULES)
    if target is None and group in MAY_BE_NONE:
        return []
    known = {"_target_", *_rules(group, target)}
    return [str(key) for key in leaf if key not in known]


@cache  # creating one takes longer than a hundred checks
def _model(group: str, target: str | None) -> type[BaseModel]:
    return create_model(group, __config__=ConfigDict(extra="forbid"), **_rules(group, target))


def first_name(target: Any) -> Any:
    """A target with the oldest name of its module, as used in checksums of recorded runs."""
    return _renamed(target, {module: former for former, module in FORMER_MODULES.items()})


def _renamed(target: Any, modules: Mapping[str, str]) -> Any:
    module, dot, name = str(target).rpartition(".")
    return f"{modules[module]}{dot}{name}" if module in modules else target


def _rules(group: str, target: Any) -> dict[str, Any]:
    """The parameters of a leaf with their types; checks its target against the allow-list."""
    if isinstance(target, str) and trusted.is_trusted(target):
        return _rules_of_trusted(group, target)
    module = MODULES[group]
    ours = {f"{module}.{name}": function for name, function in public_functions(module).items()}
    if target in ours:
        added, hints = leaf_defaults(ours[target]), leaf_parameters(ours[target])
        return {name: (hint, added.get(name, ...)) for name, hint in hints.items()}
    prefix, names = KERAS_CLASSES.get(group, ("", ()))
    allowed = [*(prefix + name for name in names), *ours]
    if target in allowed:
        # Keras' class decides which of these it takes; a leaf need not have them all.
        rules = {name: (hint, None) for name, hint in KERAS_PARAMETERS.items()}
        return rules | ({"learning_rate": (Positive, ...)} if group == "optimizer" else {})
    line = f"{group}._target_: {target!r} is not allowed; choose one of {', '.join(allowed)}"
    if _could_be_trusted(target):
        line = f"{group}._target_: {trusted.untrusted(target)}"
    raise RequestError(line)


def _could_be_trusted(target: Any) -> bool:
    """Whether a target may be a function of a user's module."""
    top, dot, _ = str(target).partition(".")
    known = {"pipeline", "keras", "tensorflow", *sys.stdlib_module_names}
    return bool(dot) and target.replace(".", "_").isidentifier() and top not in known


def _rules_of_trusted(group: str, target: str) -> dict[str, Any]:
    """The parameters of a trusted builder, whose signature must be like that of ours.

    Raises:
        RequestError: it takes other positional parameters, or a parameter has no annotation.
    """
    builder = trusted.checked_function(target)
    parameters = [
        one
        for one in inspect.signature(builder).parameters.values()
        if group != "optimizer" or one.name not in AVERAGING
    ]
    given, keys = parameters[: POSITIONAL[group]], parameters[POSITIONAL[group] :]
    fits = len(given) == POSITIONAL[group] and all(
        one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in given
    )
    if not fits or any(one.kind is not one.KEYWORD_ONLY for one in keys):
        ours = next(iter(public_functions(MODULES[group]).values()))
        raise RequestError(
            f"{group}._target_: {target}{inspect.signature(builder)} must take what "
            f"{MODULES[group]}.{ours.__name__} does: {POSITIONAL[group]} positional parameters, "
            "the keys of its file after a *"
        )
    if bare := [one.name for one in keys if one.annotation is one.empty]:
        raise RequestError(
            f"{group}._target_: {target} needs annotations, which are the rules for the keys: "
            f"{', '.join(bare)}"
        )
    if (required := REQUIRED.get(group)) and required not in {one.name for one in keys}:
        raise RequestError(f"{group}._target_: {target} needs the parameter {required} after a *")
    try:
        hints = leaf_parameters(builder)
        rules: dict[str, Any] = {one.name: (hints[one.name], ...) for one in keys}
        create_model(group, **rules)
    except Exception as error:
        raise RequestError(f"{group}._target_: {target}: {one_line(error)}") from error
    return rules


@cache
def parameter_of(group: str, name: str) -> Any:
    """The annotation of a parameter of a group's builders; None if it has none or several."""
    if group not in BUILDERS and name in KERAS_PARAMETERS:
        return KERAS_PARAMETERS[name]
    module = MODULES[group]
    ours = map(leaf_parameters, public_functions(module).values())
    found = [parameters[name] for parameters in ours if name in parameters]
    return found[0] if found and all(hint == found[0] for hint in found) else None


@cache  # evaluating the annotations of a builder takes longer than all checks of a leaf
def leaf_parameters(builder: Callable[..., Any]) -> Mapping[str, Any]:
    """The keyword-only parameters of a builder with their annotations: the keys of its leaf."""
    hints = get_type_hints(builder, include_extras=True)
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def leaf_defaults(builder: Callable[..., Any]) -> dict[str, Any]:
    """The keys of a leaf that the builder has a default for: what runs without the key did."""
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def added_to(group: str, leaf: Leaf) -> dict[str, Any]:
    """`leaf_defaults` of the builder of a checked leaf; empty for a builder that is not ours."""
    module, _, name = str(leaf["_target_"]).rpartition(".")
    if group not in BUILDERS or module != BUILDERS[group]:
        return {}
    return leaf_defaults(public_functions(module)[name])


def value_before(key: str) -> Any:
    """The value that stands for runs recorded without a key of a leaf (`model.residual`).

    Raises:
        KeyError: no builder of ours has a default for it.
    """
    group, _, name = key.partition(".")
    ours = public_functions(BUILDERS[group]).values()
    return {name: value for one in ours for name, value in leaf_defaults(one).items()}[name]


def takes_averaging(optimizer: Callable[..., Any]) -> bool:
    """Whether an optimizer's function takes what `train.ema` sets."""
    return inspect.signature(optimizer).parameters.keys() >= {*AVERAGING}


def builder_of(leaf: Leaf) -> Callable[..., Any] | None:
    """The function of ours or the user's that builds a checked leaf; None for a class of Keras."""
    target = leaf["_target_"]
    return None if target is None or target.startswith("keras.") else _located(target)


def build(leaf: Leaf, *runtime: Any, **more: Any) -> Any:
    """Calls the target of a checked leaf with run-time values and the leaf's parameters.

    Raises:
        RequestError: the target does not take one of the parameters.
        PipelineError: a target of the user's own failed.
        ValueError: the target cannot work with the parameters.
    """
    target = _located(leaf["_target_"])
    parameters = {key: value for key, value in leaf.items() if key != "_target_"}
    signature = inspect.signature(target)
    try:
        # Keras' optimizers accept any name in **kwargs and only fail later.
        if unknown := parameters.keys() - signature.parameters.keys():
            raise TypeError(f"takes no {', '.join(sorted(unknown))}")
        signature.bind(*runtime, **more, **parameters)
    except TypeError as error:
        raise RequestError(f"{leaf['_target_']}: {error}; see its file under conf/") from error
    with named_in_errors(leaf["_target_"], ValueError):
        return target(*runtime, **more, **parameters)


def _located(target: str) -> Callable[..., Any]:
    module, _, name = target.rpartition(".")
    if module.partition(".")[0] in ("pipeline", "keras"):
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found
    return trusted.trusted_function(target)
