from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline.config.builders import BUILDERS, KERAS_PARAMETERS, build, leaf_parameters
from pipeline.config.rules import public_functions
from pipeline.config.schema import validate
from pipeline.system.errors import RequestError
from tests.commands import ROOT, configured

MODELS = BUILDERS["model"]


def refusal(*overrides: str) -> str:
    with pytest.raises(RequestError) as caught:
        configured(*overrides)
    return str(caught.value)


def test_the_defaults_are_the_classic_network_on_fashion_mnist() -> None:
    config = configured()
    assert config.dataset == {
        "_target_": "pipeline.data.datasets.fashion_mnist",
        "folder": None,
        "download": True,
        "exclude": None,
    }
    assert config.model["hidden"] == [256, 128]
    assert (config.train.epochs, config.train.batch_size, config.seed) == (20, 128, 0)
    assert config.choices.optimizer == "adam"
    assert config.augment == config.schedule == {"_target_": None}


def test_leaf_values_become_what_the_signature_says() -> None:
    assert configured("dataset=synthetic").dataset["image_shape"] == (28, 28, 1)
    dropout = configured("model.dropout=0").model["dropout"]
    assert dropout == 0.0
    assert isinstance(dropout, float)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=0", "train.epochs: must be at least 1 (got 0)"),
        ("train.batch_size=-1", "train.batch_size: must be at least 1"),
        ("train.patience=0", "train.patience: must be at least 1 (got 0)"),
        ("seed=-1", "seed: must be at least 0 (got -1)"),
        ("data_dir='~/data'", "data_dir: the shell leaves ~ as it is there; write $HOME/data"),
        ("seed=4294967296", "seed: must be below 4294967296"),
        ("preprocess.seed=-1", "preprocess.seed: must be at least 0"),
        (
            "preprocess.validation_size=-1",
            "preprocess.validation_size: must be a whole number from 0",
        ),
        ("evaluate.batch_size=0", "evaluate.batch_size: must be at least 1"),
        (
            "train.scaling=pixel",
            "train.scaling: choose one of unit, standard, whitened (got 'pixel')",
        ),
        ("train.keep=first", "train.keep: choose one of last, best (got 'first')"),
        (
            "train.monitor=loss",
            "train.monitor: did you mean val/loss? choose one of val/loss, val/accuracy",
        ),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: must be above 0"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate: must be a finite number"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: must be "),
        ("optimizer.beta_1=1", "optimizer.beta_1: must be below 1 (got 1)"),
        ("model.dropout=1", "model.dropout: must be below 1 (got 1)"),
        ("model.dropout=-0.1", "model.dropout: must be at least 0"),
        ("model.hidden=[0]", "model.hidden.0: must be at least 1 (got 0)"),
        ("model.activation=rleu", "model.activation: did you mean relu? choose one of relu, gelu"),
        ("dataset=synthetic dataset.noise=256", "dataset.noise: must be at most 255"),
        ("dataset=digits dataset.test_fraction=1", "dataset.test_fraction: must be at most 0.9"),
        ("augment=flip_and_shift augment.shift=2", "augment.shift: must be at most 1"),
        ("schedule=cosine schedule.alpha=1.5", "schedule.alpha: must be at most 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key_and_the_rule(
    override: str, message: str
) -> None:
    assert refusal(*override.split()).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden=3", "model.hidden=3: a list is written [3]"),
        ("model.hidden=[wide]", "model.hidden: 'wide' must be a whole number"),
        ("model.dropout=much", "model.dropout=much: write a number, as in model.dropout=0.001"),
        ("model=cnn model.dense=2.5", "model.dense=2.5: write a whole number, as in model.dense=5"),
        ("optimizer=sgd optimizer.nesterov=maybe", "optimizer.nesterov: must be true or false"),
        (
            "dataset=synthetic dataset.image_shape=[28,28]",
            "dataset.image_shape: must hold 3 values (got [28, 28])",
        ),
        ("dataset.download=maybe", "dataset.download: must be true or false"),
    ],
)
def test_a_leaf_value_of_the_wrong_type_is_refused(override: str, message: str) -> None:
    assert refusal(*override.split()).startswith(message)


@pytest.mark.parametrize(
    "override",
    ["+model.widht=3", "+dataset.foldr=3", "+optimizer.lr=3", "+train.epoch=3", "+sed=3"],
)
def test_a_key_that_nothing_reads_is_refused_even_when_added_on_purpose(override: str) -> None:
    key = override[1:].partition("=")[0]
    assert refusal(override) == f"{key}: no such parameter (got 3)"


def test_keys_that_a_recipe_sets_for_another_model_are_named_with_what_leaves_them_out() -> None:
    said = refusal("experiment=tiny", "model=mlp")
    without = said.partition("to leave them out, add ")[2]
    assert without == "~model.filters ~model.convolutions ~model.dense"
    keys = "model.filters, model.convolutions and model.dense"
    assert f"experiment=tiny sets {keys}, which model=mlp does not" in said
    config = configured("experiment=tiny", "model=mlp", *without.split())
    assert (config.model["hidden"], config.train.ema) == ([256, 128], 0.998)
    assert refusal("experiment=tiny", "+model.foo=3") == "model.foo: no such parameter (got 3)"


def test_a_parameter_taken_out_of_a_leaf_is_missed() -> None:
    assert refusal("~model.dropout") == "model.dropout: needs a value"


def test_all_refused_keys_are_named_at_once() -> None:
    assert [
        line.partition(":")[0] for line in refusal("seed=-1", "train.epochs=0").split("\n")
    ] == [
        "train.epochs",
        "seed",
    ]


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("model", "os.system"),
        ("model", "pipeline.training.models.keras"),
        ("model", "pipeline.training.models._probabilities"),
        ("model", "pipeline.data.datasets.digits"),
        ("dataset", "pipeline.data.datasets.find"),
        ("augment", "builtins.eval"),
        ("optimizer", "keras.optimizers.LossScaleOptimizer"),
        ("optimizer", "keras.optimizers.schedules.CosineDecay"),
        ("schedule", "keras.callbacks.LambdaCallback"),
    ],
)
def test_a_target_off_the_allow_list_is_refused(group: str, target: str) -> None:
    message = refusal(f"{group}._target_={target}")
    assert message.startswith(f"{group}._target_: '{target}' is not allowed; choose one of ")


def test_the_refusal_of_a_target_lists_what_is_allowed() -> None:
    names = ", ".join(f"pipeline.training.models.{name}" for name in public_functions(MODELS))
    assert names.startswith("pipeline.training.models.linear, pipeline.training.models.mlp, ")
    assert refusal("model._target_=os.system").endswith(f"choose one of {names}")


@pytest.mark.parametrize("group", ["dataset", "model", "optimizer"])
def test_a_group_that_a_run_cannot_do_without_needs_a_target(group: str) -> None:
    assert refusal(f"{group}._target_=null").startswith(f"{group}._target_: None is not allowed")


@pytest.mark.parametrize("choice", ["augment=flip_and_shift", "schedule=cosine"])
def test_augmentation_and_schedule_are_turned_off_by_a_null_target(choice: str) -> None:
    group = choice.partition("=")[0]
    config = configured(choice, f"{group}._target_=null")
    assert getattr(config, group) == {"_target_": None}


@pytest.mark.parametrize("override", ["train.patience=2", "train.keep=best"])
def test_without_validation_images_nothing_can_depend_on_them(override: str) -> None:
    name = "train.patience" if "patience" in override else override
    message = refusal("preprocess.validation_size=0", override)
    assert message.startswith(
        f"preprocess.validation_size=0 leaves no validation images for {name}; set it above 0"
    )
    assert configured("preprocess.validation_size=1", override).preprocess.validation_size == 1
    assert configured("preprocess.validation_size=0").train.keep == "last"
    # This data set may have a validation split of its own.
    own = ("dataset=npz", "dataset.path=a.npz", "preprocess.validation_size=0")
    assert configured(*own, override).preprocess.validation_size == 0


@pytest.mark.parametrize(
    ("key", "own", "other"),
    [
        ("evaluate.metrics", "ece", "metric_name"),
        ("evaluate.plots", "mistakes", "loss"),
        ("train.plots", "loss", "mistakes"),
    ],
)
def test_metrics_and_plots_are_chosen_among_those_that_fit(key: str, own: str, other: str) -> None:
    section, _, name = key.partition(".")
    assert getattr(getattr(configured(f"{key}=[{own}]"), section), name) == [own]
    message = refusal(f"{key}=[{own},{other}]")
    assert message.startswith(f"{key}: no '{other}'; choose one of ")
    assert own in message


def test_a_recorded_configuration_is_valid_again_and_the_same() -> None:
    config = configured("dataset=synthetic", "schedule=cosine", "augment=flip_and_shift")
    assert validate(asdict(config)) == config


def test_tags_of_a_user_may_have_any_other_name_and_recorded_ones_any() -> None:
    tags = configured("+tracking.tags={mlflow.user: me, models: x, note: y}").tracking.tags
    assert tags == {"mlflow.user": "me", "models": "x", "note": "y"}
    recorded = asdict(configured("dataset=synthetic"))
    recorded["tracking"]["tags"] = {"model": "x"}
    assert validate(recorded).tracking.tags == {"model": "x"}


def test_a_recorded_path_is_read_as_it_was_though_a_new_run_is_refused_it() -> None:
    recorded = asdict(configured("dataset=synthetic")) | {"data_dir": "~/data"}
    recorded["tracking"] |= {"artifact_root": "~/kept"}
    recorded["sweep"] |= {"storage": "~/a.journal"}
    found = validate(recorded)
    places = found.data_dir, found.tracking.artifact_root, found.sweep.storage
    assert places == ("~/data", "~/kept", "~/a.journal")


def test_the_keys_of_a_leaf_are_the_keyword_only_parameters_of_its_builder() -> None:
    def builder(images: Any, classes: int, *, width: int, name: str) -> None: ...

    assert leaf_parameters(builder) == {"width": int, "name": str}


def test_public_functions_are_the_modules_own() -> None:
    assert {"linear", "mlp", "cnn"} <= set(public_functions("pipeline.training.models"))
    assert set(public_functions("pipeline.training.augment")) == {"flip_and_shift", "combined"}


def test_a_builder_gets_run_time_values_and_its_own_parameters() -> None:
    target = f"{BUILDERS['dataset']}.synthetic"
    raw = build(configured("dataset=synthetic", "dataset.train_size=12").dataset)
    assert len(raw.train) == 12
    with pytest.raises(RequestError, match=rf"^{target}: takes no width; see its file"):
        build({"_target_": target, "width": 3})
    with pytest.raises(RequestError, match=rf"^{target}: missing a required argument"):
        build({"_target_": target})


def test_a_parameter_of_another_optimizer_is_a_bad_request() -> None:
    config = configured("+optimizer.momentum=0.9")
    with pytest.raises(RequestError, match=r"^keras.optimizers.Adam: takes no momentum; see"):
        build(config.optimizer)


def test_a_keras_parameter_may_be_left_to_its_default() -> None:
    config = configured("~optimizer.beta_1")
    assert "beta_1" not in config.optimizer
    assert "beta_1" in KERAS_PARAMETERS


@pytest.mark.slow
def test_checking_a_configuration_imports_none_of_the_slow_libraries() -> None:
    script = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.commands import configured
configured("augment=flip_and_shift", "model=cnn", "schedule=cosine", "dataset=synthetic")
print([name for name in ("keras", "tensorflow", "sklearn", "matplotlib", "mlflow")
       if name in sys.modules and type(sys.modules[name]).__name__ == "module"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


@pytest.mark.parametrize(
    ("key", "chosen"),
    [
        ("augment.rand_augment", ("augment=combined", "augment.rand_augment=1")),
        ("augment.shift", ("augment=flip_and_shift",)),
    ],
)
def test_what_xla_cannot_compile_is_refused_with_it(key: str, chosen: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=rf"train.xla=true: .*{key}"):
        configured(*chosen, "train.xla=true")
    assert configured(*chosen).train.xla is None
    assert configured("augment=flip_and_shift", "augment.shift=0", "train.xla=true").train.xla


def test_a_composed_configuration_without_our_keys_is_refused_with_those_that_are_missing() -> None:
    with pytest.raises(RequestError) as refused:
        validate(OmegaConf.create({"db": {"user": "me"}, "seed": 0}))
    lines = str(refused.value).splitlines()
    assert {"dataset: needs a value", "trusted_modules: needs a value"} <= set(lines)
