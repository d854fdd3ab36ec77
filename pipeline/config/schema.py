"""The typed trunk of the configuration, and the check of the whole configuration.

Wrong values are refused here, before TensorFlow is imported: OmegaConf checks the keys and types of
the trunk, pydantic its ranges, and `builders.py` the leaves (data set, model, optimizer, …).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Annotated, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.config.builders import (
    AVERAGING,
    GROUPS,
    Leaf,
    builder_of,
    check_leaf,
    has_backbone,
    takes_averaging,
    unknown_keys,
)
from pipeline.config.rules import (
    RECORDED,
    Count,
    CountOrShare,
    Fraction,
    PositiveFraction,
    Seed,
    Share,
    Slug,
    TagName,
    TextOrTexts,
    TypedPath,
    broken_rules,
    function_in,
    keys_that_rotate,
    listed_in,
    may_have_validation,
    one_of,
    short_name,
)
from pipeline.config.sweep import Sweep
from pipeline.config.trusted import is_trusted, trust
from pipeline.system.errors import RequestError, joined

Metric = Annotated[
    str, function_in("pipeline.evaluation.metrics", "Predictions", "float", "dict[str, float]")
]
Plot = Annotated[str, function_in("pipeline.evaluation.plots", "Predictions", "Figure")]
TrainingPlot = Annotated[str, function_in("pipeline.evaluation.plots", "Fitted", "Figure")]
Monitor = Annotated[str, listed_in("pipeline.evaluation.metrics", "MONITORS")]


@dataclass
class Preprocess:
    """Settings of dividing the images of a data set into splits."""

    validation_size: CountOrShare = MISSING
    """Images taken from the training split for validation, or their share; 0 trains on all."""
    seed: Seed = MISSING
    """Seed of the split alone, so that runs that differ in `seed` share validation images."""
    limit: Count | None = MISSING
    """Most images of training, and of validation; null takes all. Does not limit the test split."""


@dataclass
class Train:
    """Settings of the training."""

    epochs: Count = MISSING
    """Passes over the training images."""
    batch_size: Count = MISSING
    """Images in one gradient step."""
    scaling: Annotated[str, one_of("unit", "standard", "whitened")] = MISSING
    """First layer of the model: `unit` maps 0–255 to 0–1, `standard` to mean 0 and sd 1; `whitened`
    does that and decorrelates patches of 3 × 3 pixels, by a convolution that is not trained."""
    precision: Annotated[str, one_of("float32", "bfloat16", "float16", "auto")] = MISSING
    """Precision of the network's computations in training; weights and saved model are float32."""
    label_smoothing: Fraction = MISSING
    """Share of each target that is spread over all classes; not in validation."""
    class_weight: Annotated[str, one_of("balanced")] | None = MISSING
    """Weight of an image in the loss of training; `balanced`: each class has the same total."""
    ema: PositiveFraction | None = MISSING
    """Decay of the moving average of the weights that is evaluated and kept; null keeps none."""
    teacher: TextOrTexts = MISSING
    """Run whose model this one learns from as well (knowledge distillation), by its id; of a list
    of runs, the mean of their probabilities."""
    teacher_weight: Share = MISSING
    """Share of the teacher in the loss; the rest is that of the true classes."""
    teacher_temperature: Annotated[float, Field(gt=0, le=1000)] = MISSING
    """Temperature at which the probabilities of both are compared; above 1 evens them out. At
    much more than 1,000, rounding errors, times the temperature's square, exceed the loss."""
    keep: Annotated[str, one_of("last", "best")] = MISSING
    """Which epoch's weights are evaluated and saved."""
    monitor: Monitor = MISSING
    """Metric that determines the best epoch and early stopping."""
    patience: Count | None = MISSING
    """Epochs without a better `monitor` after which training stops; null never stops."""
    deterministic: bool = MISSING
    """Ask TensorFlow for kernels that give the same bits every time."""
    xla: bool | None = MISSING
    """Compile the training steps with XLA; null does so if that is known to be faster."""
    stream: bool | None = MISSING
    """Read the images part by part while training; null does so if they take more than half of the
    memory or, on a GPU, more than 4 GB."""
    tensorboard: bool = MISSING
    """Write a TensorBoard log, which becomes an artefact of the run."""
    plots: list[TrainingPlot] = MISSING
    """Functions of `evaluation/plots.py` that draw the training, logged as `plots/<name>.png`."""


@dataclass
class Evaluate:
    """Settings of the evaluation: metrics and plots."""

    test: bool = MISSING
    """Evaluate on the test split; off while choosing between models."""
    metrics: list[Metric] = MISSING
    """Functions of `evaluation/metrics.py`, logged as `test/<name>`."""
    plots: list[Plot] = MISSING
    """Functions of `evaluation/plots.py` that draw predictions, logged as `plots/<name>.png`."""
    views: Annotated[str, one_of("flip", "flip_and_shift")] | None = MISSING
    """Test-time augmentation, whose metrics (`test/views/…`) are recorded beside the plain ones."""
    temperature: bool = MISSING
    """Find a temperature on the validation split; also records `test/tempered/…` metrics."""
    batch_size: Count = MISSING
    """Images predicted at once; changes speed and memory only."""
    leakage: bool = MISSING
    """Train once more on a split that ignores groups, and log the accuracy that it would claim;
    only for picture files, since other images have no groups."""
    report: bool = MISSING
    """Write `report.html`, a page about the whole run."""


@dataclass
class Tracking:
    """Settings of recording the run."""

    uri: str | None = MISSING
    """MLflow tracking server or store; null takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""
    experiment: str | None = MISSING
    """MLflow experiment; null takes MLflow's variables, else the data set's name."""
    run_name: str | None = MISSING
    """Name of the run; null lets MLflow make one up."""
    tags: dict[TagName, str] = MISSING
    """Your own tags for the run."""
    log_model: bool = MISSING
    """Save the trained model with the run."""
    artifact_root: TypedPath | None = MISSING
    """Folder or address below which a new experiment keeps its artefacts; null leaves that to the
    server, or puts them beside the file of an SQLite store. Other databases need it."""
    offline: bool = MISSING
    """Record the run in its folder alone; the verb `sync` sends it to the store later."""


@dataclass
class Check:
    """A property of a data set that is measured before training, and a limit for it."""

    action: Annotated[str, one_of("refuse", "warn", "ignore")] = MISSING
    """What to do beyond the limit."""
    limit: Annotated[float, Field(ge=0)] = MISSING
    """Value that is still accepted, in the unit of the check: images, a ratio, or a share (0–1)."""


@dataclass
class Checks:
    """The checks of a data set before training."""

    smallest_class: Check = field(default_factory=Check)
    """Fewest training images of any class."""
    imbalance: Check = field(default_factory=Check)
    """Most training images of the largest class per image of the smallest."""
    bad_files: Check = field(default_factory=Check)
    """Largest share of picture files that cannot be read."""
    conflicts: Check = field(default_factory=Check)
    """Largest share of images that occur under another class as well."""
    blank: Check = field(default_factory=Check)
    """Largest share of images that are of one colour."""


@dataclass
class Ingest:
    """Checks of a data set when it is loaded."""

    checks: Checks = field(default_factory=Checks)


@dataclass
class Choices:
    """Which file of each group was chosen; filled in by Hydra."""

    dataset: Slug = MISSING
    preprocess: Slug = MISSING
    augment: Slug = MISSING
    model: Slug = MISSING
    optimizer: Slug = MISSING
    schedule: Slug = MISSING
    train: Slug = MISSING
    evaluate: Slug = MISSING


CHOSEN_GROUPS = frozenset(one.name for one in fields(Choices))


@dataclass
class Config:
    """The configuration of one run."""

    # Hydra lets `+key=value` add any key; pydantic applies this to nested dataclasses too.
    __pydantic_config__ = ConfigDict(extra="forbid")

    dataset: Leaf = field(default_factory=dict)
    ingest: Ingest = field(default_factory=Ingest)
    preprocess: Preprocess = field(default_factory=Preprocess)
    augment: Leaf = field(default_factory=dict)
    model: Leaf = field(default_factory=dict)
    optimizer: Leaf = field(default_factory=dict)
    schedule: Leaf = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    tracking: Tracking = field(default_factory=Tracking)
    sweep: Sweep = field(default_factory=Sweep)
    seed: Seed = MISSING
    """Seed of the initial weights, the order of images, dropout and augmentation."""
    data_dir: TypedPath = MISSING
    """Folder of the data cache."""
    trusted_modules: list[str] = MISSING
    """Your own modules whose builders, metrics and plots may be named, besides those of
    PIPELINE_TRUSTED_MODULES."""
    run_id: str | None = MISSING
    """The run that a verb acts on, by its id or the first characters of its id (at least 4);
    `latest` is the newest run that the verb can act on."""
    choices: Choices = field(default_factory=Choices)


# Keys added after the first runs were recorded, dotted, each with the value that reproduces the
# earlier behaviour. A configuration recorded without the key is read with this value, and checksums
# leave out keys with this value, so that they match the recorded ones.
ADDED: dict[str, Any] = {
    "trusted_modules": [],
    "preprocess.limit": None,
    "train.precision": "float32",
    "train.label_smoothing": 0.0,
    "train.class_weight": None,
    "train.ema": None,
    "train.teacher": None,
    "train.teacher_weight": 0.5,
    "train.teacher_temperature": 2.0,
    "evaluate.views": None,
    "evaluate.temperature": False,
    "train.stream": None,
    "optimizer.global_clipnorm": None,
    "evaluate.leakage": False,
    "tracking.offline": False,
    "tracking.artifact_root": None,
} | {f"sweep.job.{key}": None for key in ("name", "experiment", "completes", "study", "storage")}
ADDED |= {f"ingest.checks.{one.name}": {"action": "ignore", "limit": 0.0} for one in fields(Checks)}
# Keys in recorded configurations that are no longer used.
REMOVED = (  # requests of verbs are not part of a run
    *("compare", "promote", "rollback", "history", "predict", "serve", "doctor", "reproduce"),
    *("resume", "drift", "audit", "report", "sweep.job.keep"),
)


TRUNK = "trunk"  # what `conf/config.yaml` begins with: the types and ranges of all keys
PROVIDER = "pipeline"  # the trunk's, in Hydra's store
_registered: dict[str, type] = {}


def register(groups: Mapping[str, type], *, of: Collection[str] | None = None) -> None:
    """Registers the trunk with Hydra, as the base of `conf/config.yaml`.

    Each dataclass of `groups` becomes the schema of the group of that name. Its file `default` is
    read for the groups in `of` alone, all by default: reading them takes a third of composing.
    """
    store, read = ConfigStore.instance(), {*(groups if of is None else of)}
    defaults: list[Any] = ["_self_"]
    defaults += [{name: "default" if name in read else None} for name in groups]
    if f"{TRUNK}.yaml" in store.repo and _registered == dict(groups):
        store.repo[f"{TRUNK}.yaml"].node.defaults = defaults  # a tenth of the time of another trunk
        return
    _registered.clear()
    _registered.update(groups)
    # Hydra copies the store for each group of --help, although it copies what it loads anyway.
    store.__deepcopy__ = lambda memo: store  # type: ignore[attr-defined]
    trunk = make_dataclass(
        "Trunk",
        [
            *((name, kind, field(default_factory=kind)) for name, kind in groups.items()),
            ("defaults", list[Any], field(default_factory=lambda: defaults)),
        ],
        bases=(Config,),
    )
    store.store(name=TRUNK, node=trunk, provider=PROVIDER)


def validate(composed: DictConfig | Mapping[str, Any]) -> Config:
    """Checks a composed or recorded configuration and returns it as `Config`.

    It may have been recorded by an earlier version. Keys of Hydra and of verbs are left out. The
    modules named in a composed configuration are trusted from now on; those of a recorded one are
    not.

    Raises:
        RequestError: values are refused or missing; the message names each key and its rule.
    """
    plain: Any
    if isinstance(composed, DictConfig):
        trunk = OmegaConf.get_type(composed)
        of_verbs = _names(trunk) - _names(Config) if is_dataclass(trunk) else set()
        own = (str(key) for key in composed if key not in {"hydra", *of_verbs})
        plain = {key: _plain(composed[key]) for key in own}
        _require_whole(plain)
        plain["trusted_modules"] = trust(plain["trusted_modules"])
        config: Config = checked(Config, plain)
        _refuse_keys_of_another_choice(config)
    else:
        config = checked(Config, _of_this_version(composed), context=RECORDED)
    for group in GROUPS:
        setattr(config, group, check_leaf(group, getattr(config, group)))
    if config.dataset.get("size", 0) is None and has_backbone(config.model):
        config.dataset["size"] = config.model.get("size")
    _check_together(config)
    return config


def validate_request(composed: DictConfig, name: str, kind: type) -> Any:
    """Checks and returns the request of the verb `name`: its group of the composed configuration.

    Raises:
        RequestError: naming each key whose value is refused, with the rule.
    """
    return checked(kind, _plain(composed[name]), name)


def checked(kind: type, values: Any, prefix: str = "", *, context: str | None = None) -> Any:
    """Checks each value by its rule and returns an instance of the dataclass `kind`.

    In the context RECORDED, paths and names of tags are taken that earlier versions took.

    Raises:
        RequestError: naming each key whose value is refused, with the rule.
    """
    try:
        return _adapter(kind).validate_python(values, context=context)
    except ValidationError as error:
        raise RequestError(broken_rules(error, prefix)) from error


@cache  # creating one takes longer than a hundred checks
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _of_this_version(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a recorded configuration to the keys of this version.

    Raises:
        RequestError: a key is missing that every version has recorded.
    """
    now = copy.deepcopy(dict(recorded))
    for name, value in ADDED.items():
        inside, key = _place(now, name)
        inside.setdefault(key, copy.deepcopy(value))
    for name in REMOVED:
        inside, key = _place(now, name)
        inside.pop(key, None)
    _require_whole(now)
    return now


def _require_whole(config: Mapping[str, Any]) -> None:
    if missing := list(_missing(Config, config)):
        raise RequestError("\n".join(f"{key}: needs a value" for key in missing))


def _place(config: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    *groups, key = name.split(".")
    for group in groups:
        config = config.setdefault(group, {})
    return config, key


def _missing(schema: type[Any], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for one in fields(schema):
        if one.name not in values:
            yield f"{prefix}{one.name}"
        elif is_dataclass(one.default_factory) and isinstance(values[one.name], Mapping):
            inside: Any = one.default_factory
            yield from _missing(inside, values[one.name], f"{prefix}{one.name}.")


def _plain(composed: Any) -> Any:
    if not OmegaConf.is_config(composed):
        return composed
    return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)


def _names(kind: Any) -> set[str]:
    return {one.name for one in fields(kind)}


def _refuse_keys_of_another_choice(config: Config) -> None:
    """Refuses keys that a recipe sets for its own choice, such as a model, if another is chosen."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    recipe = hydra.runtime.choices.get("experiment")
    typed = {word.lstrip("+").partition("=")[0] for word in hydra.overrides.task}
    for group in GROUPS if recipe else ():
        keys = [f"{group}.{key}" for key in unknown_keys(group, getattr(config, group))]
        if unknown := [key for key in keys if key not in typed]:
            raise RequestError(
                f"experiment={recipe} sets {joined(unknown)}, which "
                f"{group}={getattr(config.choices, group)} does not have; to leave them out, add "
                f"{' '.join(f'~{key}' for key in unknown)}"
            )


def _check_together(config: Config) -> None:
    for key, names in (
        ("evaluate.metrics", config.evaluate.metrics),
        ("evaluate.plots", config.evaluate.plots),
        ("train.plots", config.train.plots),
    ):
        known = Counter(map(short_name, names))
        if twice := [name for name, count in known.items() if count > 1]:
            raise RequestError(f"{key}: two are named {twice[0]}; leave one out, or rename yours")
    _check_backbone(config)
    _check_teacher(config)
    _check_clipping(config.optimizer)
    if has_no_validation(config):
        require_validation(config)
    _check_xla(config)
    _check_averages(config)


def _check_xla(config: Config) -> None:
    keys = keys_that_rotate(builder_of(config.augment)) if config.train.xla else ()
    if used := [key for key in keys if config.augment[key]]:
        raise RequestError(
            f"train.xla=true: XLA can neither rotate nor shift images, as augment.{used[0]} does; "
            "leave one of the two out"
        )


def has_no_validation(config: Config) -> bool:
    """Whether no image is validated; false if the data set may have its own validation split."""
    own = may_have_validation(builder_of(config.dataset))
    return config.preprocess.validation_size == 0 and not own


def require_validation(config: Config) -> None:
    """Refuses settings that need validation images; called where there are none.

    Raises:
        RequestError: names these settings.
    """
    needing = [
        name
        for name, needs in (
            ("train.patience", config.train.patience is not None),
            ("train.keep=best", config.train.keep == "best"),
            ("evaluate.temperature", config.evaluate.temperature),
        )
        if needs
    ]
    if needing:
        raise RequestError(
            f"preprocess.validation_size=0 leaves no validation images for "
            f"{joined(needing)}; set it above 0 or drop these"
        )


def _check_averages(config: Config) -> None:
    optimizer = builder_of(config.optimizer)
    beside = {
        "schedule": config.schedule["_target_"] is not None,
        "train.ema": config.train.ema is not None,
    }
    taken = [key for key, given in beside.items() if given]
    if taken and getattr(optimizer, "averages", False):
        raise RequestError(
            f"optimizer={config.choices.optimizer} averages weights in place of "
            f"{' and '.join(taken)}; leave that out, or choose optimizer=adamw"
        )
    if optimizer and beside["train.ema"] and not takes_averaging(optimizer):
        raise RequestError(
            f"train.ema: {config.optimizer['_target_']} does not take {joined(AVERAGING)}; add "
            "these parameters, or leave train.ema out"
        )


def _check_teacher(config: Config) -> None:
    if config.train.teacher is not None and config.evaluate.leakage:
        raise RequestError(
            "evaluate.leakage=true trains on other splits, whose test images train.teacher has "
            "seen; leave one of the two out"
        )


def _check_clipping(leaf: Leaf) -> None:
    both = ("clipnorm", "global_clipnorm")
    is_keras = not is_trusted(str(leaf["_target_"]))  # ours are Keras' too
    if is_keras and all(leaf.get(key) is not None for key in both):
        raise RequestError(
            "optimizer.clipnorm and optimizer.global_clipnorm: an optimizer of Keras takes one of "
            "them only; leave one out, or set it to null"
        )


def _check_backbone(config: Config) -> None:
    """Refuses settings of a pretrained model that cannot work or would have no effect."""
    leaf = config.model
    if not has_backbone(leaf):
        return
    if leaf["weights"] is None and leaf["trainable"] != "all":
        raise RequestError(
            f"model.trainable={leaf['trainable']} freezes weights that were never trained; "
            "set model.weights, or model.trainable=all"
        )
    if leaf["weights"] is not None and config.train.scaling != "unit":
        raise RequestError(
            f"train.scaling={config.train.scaling}: model.weights={leaf['weights']} were trained "
            "with a scaling of their own, which follows unit; leave train.scaling=unit"
        )
    if leaf["weights"] is None or leaf["trainable"] == "head":
        for key, value in (("backbone_rate", None), ("unfreeze_epochs", 0)):
            if leaf.get(key, value) != value:
                raise RequestError(
                    f"model.{key} has no effect where the backbone is not trained or starts from "
                    f"scratch; set model.trainable=top or all and model.weights, or leave it "
                    f"{'null' if value is None else value}"
                )
    if (wait := leaf.get("unfreeze_epochs", 0)) >= config.train.epochs:
        raise RequestError(
            f"model.unfreeze_epochs={wait} leaves the backbone frozen in all "
            f"{config.train.epochs} epochs; set it below train.epochs, or model.trainable=head"
        )
