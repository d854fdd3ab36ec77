"""The typed trunk of the configuration, and the check of everything that hangs on it.

A wrong value is refused here, before TensorFlow is imported: OmegaConf holds the keys and types of
the trunk, pydantic its ranges and the leaves, whose rules are the annotations of the functions
that take them. A leaf is flat: `_target_` names a builder, every other key is one of its
keyword-only parameters. Positional parameters of a builder are given to it at run time.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Annotated, Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from pipeline.errors import RequestError

Leaf = dict[str, Any]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

# The allow-list: a leaf of a group is built by one of these and by nothing else.
BUILDERS = {
    "dataset": "pipeline.datasets",
    "model": "pipeline.models",
    "augment": "pipeline.augment",
}
KERAS_CLASSES = {
    "optimizer": (
        "keras.optimizers.",
        ("Adam", "AdamW", "SGD", "RMSprop", "Nadam", "Adamax", "Adagrad", "Lion"),
    ),
    "schedule": (
        "keras.optimizers.schedules.",
        ("CosineDecay", "ExponentialDecay", "PolynomialDecay", "InverseTimeDecay"),
    ),
}
# Keras annotates nothing, and reading its signatures would import TensorFlow.
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
    "weight_decay": NonNegative | None,
    "clipnorm": Positive | None,
    "alpha": Annotated[float, Field(ge=0, le=1)],
    "decay_rate": Positive,
    "end_learning_rate": NonNegative,
    "power": Positive,
    "staircase": bool,
}


def one_of(*choices: str) -> AfterValidator:
    """A rule for a name: it is one of `choices`."""

    return AfterValidator(lambda value: _chosen(value, choices))


def _chosen(value: str, choices: Iterable[str]) -> str:
    if value not in choices:
        raise ValueError(f"choose one of {', '.join(choices)}")
    return value


def function_in(module: str, takes: str, *gives: str) -> AfterValidator:
    """A rule for a name: a public function of `module` from `takes` to one of `gives`."""

    def check(value: str) -> str:
        fitting = [
            name
            for name, function in public_functions(module).items()
            if (types := list(function.__annotations__.values()))[0] == takes
            and types[-1] in gives
        ]
        return _chosen(value, fitting)

    return AfterValidator(check)


def public_functions(module: str) -> dict[str, Callable[..., Any]]:
    """The functions that `module` itself defines under a public name."""
    # Not inspect.getmembers, whose isinstance would make a lazily imported Keras load.
    return {
        name: value
        for name, value in vars(importlib.import_module(module)).items()
        if type(value) is FunctionType and value.__module__ == module and name[0] != "_"
    }


Metric = Annotated[
    str, function_in("pipeline.metrics", "Predictions", "float", "dict[str, float]")
]
Plot = Annotated[str, function_in("pipeline.plots", "Predictions", "Figure")]
TrainingPlot = Annotated[str, function_in("pipeline.plots", "Fitted", "Figure")]
Monitor = Annotated[str, one_of("val/loss", "val/accuracy")]


@dataclass
class Preprocess:
    """How raw images become the splits that a model sees."""

    validation_size: Annotated[int, Field(ge=0)] = MISSING
    """Images taken from the training split for validation; 0 trains on all of them."""
    seed: Seed = MISSING
    """Seed of the split alone, so that runs that differ in `seed` share validation images."""


@dataclass
class Train:
    """How the model is fitted."""

    epochs: Count = MISSING
    """Passes over the training images."""
    batch_size: Count = MISSING
    """Images in one gradient step."""
    scaling: Annotated[str, one_of("unit", "standard")] = MISSING
    """First layer of the model: `unit` maps 0–255 to 0–1, `standard` to mean 0 and sd 1."""
    keep: Annotated[str, one_of("last", "best")] = MISSING
    """Which epoch's weights are evaluated and saved."""
    monitor: Monitor = MISSING
    """What tells the best epoch and what early stopping watches."""
    patience: Count | None = MISSING
    """Epochs without a better `monitor` after which training stops; null never stops."""
    deterministic: bool = MISSING
    """Ask TensorFlow for kernels that give the same bits every time."""
    tensorboard: bool = MISSING
    """Write a TensorBoard log, which becomes an artefact of the run."""
    plots: list[TrainingPlot] = MISSING
    """Functions of `pipeline/plots.py` that draw the training, logged as `plots/<name>.png`."""


@dataclass
class Evaluate:
    """What is measured and drawn."""

    test: bool = MISSING
    """Evaluate on the test split; off while choosing between models."""
    metrics: list[Metric] = MISSING
    """Functions of `pipeline/metrics.py`, logged as `test/<name>`."""
    plots: list[Plot] = MISSING
    """Functions of `pipeline/plots.py` that draw predictions, logged as `plots/<name>.png`."""
    batch_size: Count = MISSING
    """Images predicted at once; changes speed and memory only."""


@dataclass
class Tracking:
    """Where and how the run is recorded."""

    uri: str | None = MISSING
    """MLflow tracking server or store; null takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""
    experiment: str | None = MISSING
    """MLflow experiment; null takes the dataset's name."""
    run_name: str | None = MISSING
    """Name of the run; null lets MLflow make one up."""
    tags: dict[str, str] = MISSING
    """Your own tags for the run."""
    log_model: bool = MISSING
    """Save the trained model with the run."""


@dataclass
class Choices:
    """Which file of each group was chosen; filled in by Hydra."""

    dataset: str = MISSING
    preprocess: str = MISSING
    augment: str = MISSING
    model: str = MISSING
    optimizer: str = MISSING
    schedule: str = MISSING
    train: str = MISSING
    evaluate: str = MISSING


@dataclass
class Config:
    """All that one run depends on."""

    dataset: Leaf = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    augment: Leaf = field(default_factory=dict)
    model: Leaf = field(default_factory=dict)
    optimizer: Leaf = field(default_factory=dict)
    schedule: Leaf = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    tracking: Tracking = field(default_factory=Tracking)
    seed: Seed = MISSING
    """Seed of the initial weights, the order of images, dropout and augmentation."""
    data_dir: str = MISSING
    """Folder of the data cache."""
    run_id: str | None = MISSING
    """The MLflow run that `evaluate` evaluates; `latest` is the newest finished one."""
    choices: Choices = field(default_factory=Choices)


def register() -> None:
    """Makes the trunk known to Hydra, for `conf/config.yaml` to build upon."""
    ConfigStore.instance().store(name="trunk", node=Config)


def validate(composed: DictConfig | Mapping[str, Any]) -> Config:
    """The composed configuration as a checked `Config`.

    Raises:
        RequestError: naming each key whose value is refused, with the rule.
    """
    plain: Any = composed
    if isinstance(composed, DictConfig):
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    try:
        config = TypeAdapter(Config).validate_python(plain)
    except ValidationError as error:
        raise RequestError(_explain(error)) from error
    for group in (*BUILDERS, *KERAS_CLASSES):
        setattr(config, group, _checked_leaf(group, getattr(config, group)))
    _check_together(config)
    return config


def _checked_leaf(group: str, leaf: Leaf) -> Leaf:
    target = leaf.get("_target_")
    if target is None and group in ("augment", "schedule"):
        return {"_target_": None}
    rules = _rules(group, target)
    model = create_model(group, __config__=ConfigDict(extra="forbid"), **rules)
    given = {key: value for key, value in leaf.items() if key != "_target_"}
    try:
        return {"_target_": target, **model.model_validate(given).model_dump(exclude_unset=True)}
    except ValidationError as error:
        raise RequestError(_explain(error, group)) from error


def _rules(group: str, target: Any) -> dict[str, Any]:
    """The parameters a leaf must have, each with its type, after a look at the allow-list."""
    if group in BUILDERS:
        functions = public_functions(BUILDERS[group])
        allowed = {f"{BUILDERS[group]}.{name}": function for name, function in functions.items()}
        if target in allowed:
            return {name: (hint, ...) for name, hint in leaf_parameters(allowed[target]).items()}
    else:
        prefix, names = KERAS_CLASSES[group]
        allowed = dict.fromkeys(prefix + name for name in names)  # type: ignore[assignment]
        if target in allowed:
            # Keras knows which of these its class takes; a leaf need not name them all.
            return {name: (hint, None) for name, hint in KERAS_PARAMETERS.items()}
    raise RequestError(
        f"{group}._target_: {target!r} is not allowed; choose one of {', '.join(allowed)}"
    )


def leaf_parameters(builder: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a builder with their annotations: the keys of its leaf."""
    hints = get_type_hints(builder, include_extras=True)
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def build(leaf: Leaf, *runtime: Any, **more: Any) -> Any:
    """Calls a checked leaf's target with run-time values and the leaf's own parameters.

    Raises:
        RequestError: the target does not take one of the parameters.
    """
    module, _, name = leaf["_target_"].rpartition(".")
    parameters = {key: value for key, value in leaf.items() if key != "_target_"}
    target = getattr(importlib.import_module(module), name)
    try:
        inspect.signature(target).bind(*runtime, **more, **parameters)
    except TypeError as error:
        raise RequestError(f"{leaf['_target_']}: {error}; see its file under conf/") from error
    return target(*runtime, **more, **parameters)


def _check_together(config: Config) -> None:
    needs_validation = [
        name
        for name, needed in (
            ("train.patience", config.train.patience is not None),
            ("train.keep=best", config.train.keep == "best"),
        )
        if needed
    ]
    if config.preprocess.validation_size == 0 and needs_validation:
        raise RequestError(
            f"preprocess.validation_size=0 leaves nothing to watch for "
            f"{' and '.join(needs_validation)}; set it above 0 or drop these"
        )


def _explain(error: ValidationError, prefix: str = "") -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in (*filter(None, [prefix]), *problem["loc"]))
        rule = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            rule = "no such parameter"
        given = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
        lines.append(f"{key}: {rule}{given}")
    return "\n".join(dict.fromkeys(lines))
