from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from pipeline.config.compose import compose as compose_words
from pipeline.config.messages import error_line
from pipeline.config.schema import register, validate
from pipeline.system.errors import PipelineError, RequestError
from pipeline.verbs import requests

pytestmark = pytest.mark.slow

CONF = str(Path(__file__).parents[2] / "conf")
MODELS = ", ".join(sorted(path.stem for path in Path(CONF, "model").glob("*.yaml")))


def complaint(*overrides: str) -> str:
    """The explanation of what composing these overrides raises."""
    register(requests())
    with initialize_config_dir(CONF, version_base="1.3"), pytest.raises(Exception) as caught:
        compose("config", list(overrides))
    return error_line(caught.value)


def test_a_name_that_an_installed_plugin_has_too_is_told_with_ours() -> None:
    said = "'hydra/sweeper/optuna' is validated against ConfigStore schema with the same name.\nx"
    told = error_line(ConfigCompositionException(said))
    assert told.startswith("hydra/sweeper=optuna: a Hydra plugin that is installed here has that")
    assert "write hydra/sweeper=search" in told
    other = error_line(ConfigCompositionException(said.replace("sweeper/optuna", "launcher/x")))
    assert other.startswith("hydra/launcher=x: ")
    assert other.endswith("uninstall the plugin, or rename the file")


def test_our_own_errors_speak_for_themselves() -> None:
    assert error_line(PipelineError("first\nsecond")) == "first\nsecond"
    assert error_line(RequestError("model: no")) == "model: no"


def test_a_misspelt_choice_is_met_with_the_nearest_and_all_others() -> None:
    assert complaint("model=cnnn") == (
        f"model=cnnn: no such choice; did you mean cnn? choose one of {MODELS}"
    )


def test_a_choice_unlike_any_other_gets_no_guess() -> None:
    assert complaint("model=xyz") == f"model=xyz: no such choice; choose one of {MODELS}"


def test_a_missing_file_outside_the_groups_is_told_in_hydras_words() -> None:
    error = MissingConfigException("Cannot find primary config 'x'\nmore", missing_cfg_file="x")
    assert error_line(error) == "Cannot find primary config 'x'"


def test_a_misspelt_key_is_met_with_the_nearest_and_the_keys_beside_it() -> None:
    message = complaint("train.epoch=3")
    assert message.startswith("train.epoch: no such key; did you mean epochs? choose one of batch_")
    assert message.endswith("tensorboard, xla")


def test_a_misspelt_group_is_met_with_the_nearest() -> None:
    assert complaint("modle=cnn").startswith("modle: no such key; did you mean model? choose one")


def test_the_builder_of_a_choice_is_no_key_to_choose() -> None:
    assert complaint("model.foo=1") == (
        "model.foo: no such key; choose one of activation, batch_norm, dropout, hidden, residual"
    )
    assert complaint("schedule.foo=1") == (
        "schedule.foo: no such key; this choice of schedule has none"
    )


def test_a_key_for_an_empty_mapping_is_told_how_to_be_added() -> None:
    assert complaint("tracking.tags={owner: me}") == (
        "tracking.tags.owner: no such key yet; add it with +tracking.tags.owner=…"
    )


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (
            "train.epochs=many",
            "Value 'many' of type 'str' could not be converted to Integer; "
            "write a whole number, as in 5",
        ),
        (
            "train.epochs=1.5",
            "Value '1.5' of type 'float' could not be converted to Integer; "
            "write a whole number, as in 5",
        ),
        (
            "train.tensorboard=maybe",
            "Value 'maybe' is not a valid bool (type str); write true or false",
        ),
        (
            "train.patience=a",
            "Value 'a' of type 'str' could not be converted to Integer; "
            "write a whole number, as in 5, or null for none",
        ),
        ("seed=null", "field 'seed' is not Optional"),
        ("train.plots={a: 1}", "a list is written [a,b]"),
        ("ingest.checks=[a]", "its settings are written ingest.checks.KEY=VALUE"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(override: str, reason: str) -> None:
    assert complaint(override) == f"{override.partition('=')[0]}: {reason}"


def test_an_override_that_cannot_be_parsed_is_quoted() -> None:
    message = complaint("train.epochs=[1")
    assert message.startswith("cannot read the override 'train.epochs=[1': ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("model.dropout=choice(null,3)", "choice(…) takes no null; write model.dropout=null,3"),
        ("seed=rnage(1,3)", "there is no function rnage; available: bool, choice"),
        ("model.hidden=(64,32)", "a list is written model.hidden=[64,32]"),
        ("train.epochs=[1", "a bracket is left open or closed twice"),
        ('dataset.classes={"my cat": cat, dog: dog}', "have no quotes, as in {my cat: …}"),
        ("dataset.classes={dog: dog, größe: [鳥]}", "from a to z here; write größe in a file"),
        ('dataset.classes={"鳥": bird}', "from a to z here; write 鳥 in a file"),
        ("optimizer.learning_rate=1e-3,", "leave that out: optimizer.learning_rate=1e-3"),
        ("dataset.note=né", "'é' must be quoted; a text is written \"dataset.note='né'\""),
        ("dataset.note=a=b", "a text is written \"dataset.note='a=b'\""),
    ],
)
def test_an_override_that_cannot_be_read_is_told_its_cause_and_how_it_is_written(
    word: str, told: str
) -> None:
    message = complaint(word)
    assert message.startswith(f"cannot read the override {word!r}: ")
    assert told in message
    assert "Lexer" not in message
    assert "expecting" not in message


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("TRAIN.Epochs=5", "did you mean train.epochs?"),
        ("train__epochs=5", "did you mean train.epochs?"),
        ("train.batchSize=5", "did you mean batch_size?"),
        ("train.lr=0.1", "did you mean optimizer.learning_rate?"),
        ("lr=0.1", "did you mean optimizer.learning_rate?"),
        ("train.seed=1", "did you mean seed?"),
        ("training.epochs=5", "did you mean train.epochs?"),
        ("model.name=cnn", "did you mean model=NAME?"),
        ("tracking.name=x", "did you mean run_name?"),
        ("+train.epochs=5", "the key is there already; leave out the +"),
        ("~train.epochs", "it cannot be left out, only changed"),
        ("seed=${SEED}", "a variable of the environment is written ${oc.env:NAME}"),
        ("model=CNN", "did you mean cnn?"),
        ("dataset=FashionMNIST", "did you mean fashion_mnist?"),
    ],
)
def test_a_key_or_name_that_is_spelt_otherwise_is_met_with_ours(word: str, told: str) -> None:
    register(requests())
    with initialize_config_dir(CONF, version_base="1.3"), pytest.raises(Exception) as caught:
        _ = compose("config", [word]).seed
    assert told in error_line(caught.value)


@pytest.mark.parametrize("theirs", ["null", "???", "${nowhere}", "[1]", "{1: 2}", "{x: '${y}'}"])
def test_keys_are_named_in_a_configuration_of_another_application_too(
    theirs: str, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(f"db: {{driver: x}}\nmodel: {theirs}\n")
    with (
        initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises(ConfigCompositionException) as caught,
    ):
        compose("config", ["train.epochs=3"])
    assert error_line(caught.value) == "train: no such key; choose one of db, model"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("experiment/mine", "train: {epochs: 3}", "begin the file with # @package _global_"),
        ("experiment/of/mine", "", "begin the file with # @package _global_"),
        (
            "experiment/mine",
            "# @package _global_\ntrain: {epoch: 3}",
            "train.epoch: no such key; did you mean epochs? choose one of batch_size",
        ),
        ("train/mine", "epochs: many", "train.epochs: Value 'many' of type 'str' could not be"),
        (
            "experiment/mine",
            "# @package _global_\nmodle: 3",
            "modle: no such key; did you mean model? choose one of audit",
        ),
        ("experiment/mine", "# @package _global_\ntrain: [1]", "Merge error: list is not"),
    ],
)
def test_what_a_file_of_ones_own_sets_wrongly_is_told_with_its_name(
    name: str, text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "conf" / f"{name}.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(text + "\n")
    message = complaint(name.replace("/", "=", 1))
    assert message.startswith(f"{name}.yaml: {told}")
    assert "Trunk" not in message
    assert "defaults" not in message


@pytest.mark.parametrize("group", ["train", "sweep", "tracking"])
def test_a_file_that_leaves_keys_of_its_group_out_is_told_to_begin_with_the_defaults(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "mine.yaml").write_text("{}\n")
    register(requests())
    with pytest.raises(MissingMandatoryValue) as caught:
        validate(compose_words([f"{group}=mine"]))
    told = f"; let {group}/mine.yaml begin with 'defaults: [default]', which has all keys"
    assert error_line(caught.value).endswith(f": needs a value{told}")


def test_a_heading_of_a_library_is_followed_by_its_reason() -> None:
    assert error_line(
        ValueError("Exception encountered when calling Dense.call().\n\n\x1b[1mbad\n")
    ) == ("ValueError: Exception encountered when calling Dense.call(). bad")
    assert error_line(ValueError("2 validation errors for X\nseed\n more")).endswith("for X seed")
    assert error_line(ValueError("cannot load:\n  no such file\nmore")).endswith(": no such file")


def test_a_missing_value_is_asked_for() -> None:
    config = OmegaConf.create({"data_dir": "???"})
    with pytest.raises(Exception, match="data_dir") as caught:
        _ = config.data_dir
    assert error_line(caught.value) == "data_dir: needs a value"


def test_a_failure_of_the_system_names_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    with pytest.raises(OSError, match="gone") as caught:
        missing.read_bytes()
    assert error_line(caught.value) == (
        f"{missing}: No such file or directory; free it or choose another place"
    )


def test_anything_else_is_named_by_its_type_and_first_line() -> None:
    assert error_line(ValueError("one\ntwo")) == "ValueError: one"
    assert error_line(ValueError()) == "ValueError: no reason given"
    assert error_line(OSError("no file named")) == "OSError: no file named"
