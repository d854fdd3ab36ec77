import shlex
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.words import (
    HYDRA_FLAGS,
    addressed,
    as_typed,
    left_to_jobs,
    normalise,
    refuse_settings_of_a_run,
    require_our_sweeper,
)
from pipeline.system.errors import RequestError
from pipeline.verbs import requests


def project(*words: str) -> list[str]:
    """What normalise makes of these words after MLproject's flag."""
    return normalise(["--mlproject", *words])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["model=cnn", "train.epochs="],
        ["overrides=a=1 b=2", "--cfg", "job"],
        ["--config-dir=/somewhere", "-m", "seed=0,1"],
    ],
)
def test_a_command_line_not_composed_by_mlproject_is_left_alone(argv: list[str]) -> None:
    assert normalise(argv) == argv


@pytest.mark.parametrize("flag", ["--epochs", "--epochs=5", "--mlproject"])
def test_a_flag_that_hydra_does_not_have_is_refused_with_the_right_way(flag: str) -> None:
    with pytest.raises(RequestError, match=f"^{flag}: no such flag; .* train.epochs=5$"):
        normalise(["model=mlp", flag, "5"])


def test_an_empty_parameter_means_as_the_configuration_says() -> None:
    assert project("dataset=", "model=cnn", "seed=", "overrides=") == ["model=cnn"]


def test_overrides_arrive_as_one_word_and_leave_as_several() -> None:
    assert project("overrides=train.epochs=2 'model.name=a b' -m") == [
        "train.epochs=2",
        "model.name=a b",
        "-m",
    ]


def test_an_empty_value_inside_overrides_is_meant_and_stays() -> None:
    assert project("seed=", "overrides=tracking.experiment=") == ["tracking.experiment="]


def test_overrides_are_split_but_never_evaluated() -> None:
    assert project("overrides=a=$(id) b=`id` c=$HOME d=*;e") == [
        "a=$(id)",
        "b=`id`",
        "c=$HOME",
        "d=*;e",
    ]


@pytest.mark.parametrize("overrides", ["a='1", 'a="1 b=2', "a=1\\"])
def test_an_unbalanced_quote_is_a_bad_request_that_names_overrides(overrides: str) -> None:
    with pytest.raises(RequestError, match=r"^overrides: no "):
        project(f"overrides={overrides}")


def test_of_two_values_for_one_key_the_later_one_stays_in_its_place() -> None:
    assert project("model=mlp", "seed=0", "overrides=model=cnn train.epochs=1") == [
        "seed=0",
        "model=cnn",
        "train.epochs=1",
    ]


def test_values_of_flags_may_repeat() -> None:
    assert project("overrides=--cfg hydra --package hydra") == [
        "--cfg",
        "hydra",
        "--package",
        "hydra",
    ]


def test_an_undeclared_parameter_becomes_an_override_and_wins() -> None:
    assert project("train.epochs=3", "overrides=seed=1", "--train.epochs", "7", "--x", "-1") == [
        "seed=1",
        "train.epochs=7",
        "x=-1",
    ]


def test_an_undeclared_parameter_without_a_value_is_a_bad_request_that_names_it() -> None:
    with pytest.raises(RequestError, match=r"^--train\.epochs: "):
        project("--train.epochs")


def test_a_flag_of_hydra_is_no_undeclared_parameter() -> None:
    assert project("--multirun", "seed=0,1") == ["--multirun", "seed=0,1"]


def test_every_long_flag_of_hydra_is_known() -> None:
    options = {o for action in get_args_parser()._actions for o in action.option_strings}
    assert {option for option in options if option.startswith("--")} == HYDRA_FLAGS


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.text(min_size=1)))
def test_whatever_a_shell_can_quote_survives_the_trip_through_overrides(
    wanted: dict[str, str],
) -> None:
    wanted.pop("overrides", None)
    words = [f"{key}={value}" for key, value in wanted.items()]
    assert project(f"overrides={shlex.join(words)}") == words


def understood(*words: str, verb: str = "predict") -> dict[str, Any]:
    """What Hydra makes of the words of a verb."""
    overrides = OverridesParser.create().parse_overrides(
        addressed(list(words), verb, requests()[verb])
    )
    return {override.get_key_element(): override.value() for override in overrides}


def test_a_verb_takes_its_own_keys_without_the_name_of_their_group() -> None:
    words = ("runs=ab12,cd34", "sweep=latest", "compare.top=3", "dataset=digits", "run_id=5")
    assert understood(*words, verb="compare") == {
        "compare.runs": ["ab12", "cd34"],
        "compare.sweep": "latest",
        "compare.top": 3,
        "dataset": "digits",
        "run_id": "5",
    }


@pytest.mark.parametrize("beginning", ["12e4", "0123", "7151", "1234e567"])
def test_the_beginning_of_an_id_is_never_a_number(beginning: str) -> None:
    for verb in ("resume", "evaluate"):  # with keys of its own, and without any
        [word] = addressed([f"run_id={beginning}"], verb, requests().get(verb))
        [override] = OverridesParser.create().parse_overrides([word])
        assert override.value() == beginning
    assert addressed(["run_id=null"], "evaluate", None) == ["run_id=null"]


@pytest.mark.parametrize(
    "text", ["a (1)/*.png", "it's; better, isn't it?", "C:\\photos", "[1].png", "a=b", "{x}", "10"]
)
def test_a_text_needs_no_quotes_of_hydras(text: str) -> None:
    written = text if not text.startswith("[") else f"./{text}"
    assert understood(f"images={written}") == {"predict.images": written}


def test_a_text_with_a_rule_and_one_that_may_be_null_need_none_either() -> None:
    words = ("reason=a demo, no more", "force=true", "alpha=null")
    assert understood(*words, verb="promote") == {
        "promote.reason": "a demo, no more",
        "promote.force": True,
        "promote.alpha": None,
    }


def test_null_and_what_is_quoted_already_stay() -> None:
    assert understood("images=null", "output='a b.csv'") == {
        "predict.images": None,
        "predict.output": "a b.csv",
    }
    assert understood("runs=[a,b]", verb="compare") == {"compare.runs": ["a", "b"]}


def test_other_verbs_words_are_left_alone() -> None:
    assert addressed(["sweep=tpe", "seed=0,1"], "run", None) == ["sweep=tpe", "seed=0,1"]


@pytest.mark.parametrize(
    "word",
    ["run_id=latest", "dataset=digits", "data_dir=d", "tracking.uri=x", "resume.force=true"],
)
def test_a_verb_on_a_recorded_run_may_be_told_which_and_where(word: str) -> None:
    refuse_settings_of_a_run([word, f"+{word}"], "resume")


@pytest.mark.parametrize(
    "word", ["train.epochs=9", "model=cnn", "+seed=1", "~augment", "resumed=1"]
)
def test_a_verb_on_a_recorded_run_takes_no_other_configuration(word: str) -> None:
    with pytest.raises(RequestError) as refusal:
        refuse_settings_of_a_run(["run_id=latest", word], "resume")
    assert str(refusal.value).startswith(f"{word}: resume takes the configuration")


@pytest.mark.parametrize("word", ["sweep.preview=true", "sweep=lr_grid", "+sweep.keep_models=1"])
def test_settings_of_a_sweep_are_refused_with_a_sweeper_that_makes_ordinary_runs(word: str) -> None:
    with pytest.raises(RequestError, match="no effect with hydra/sweeper=basic") as refused:
        require_our_sweeper(["-m", "hydra/sweeper=basic", "seed=0,1", word])
    assert str(refused.value).startswith(word)
    require_our_sweeper(["-m", "hydra/sweeper=basic", "seed=0,1"])
    require_our_sweeper(["-m", "hydra/sweeper=search", "seed=0,1", word])


@pytest.mark.parametrize(
    ("words", "marked"),
    [
        (["optimizer=sgd,adam", "optimizer.momentum=0.9"], ["optimizer.momentum=0.9"]),
        (["+experiment=a,b", "model.hidden=[8, 4]"], ["model.hidden=[8, 4]"]),
        (["sweep=lr_grid", "model.dropout='0.1'"], ["model.dropout='0.1'"]),
        (["seed=0,1", "optimizer.momentum=0.9"], []),
        (["optimizer=sgd,adam", "tracking.run_name=a,b", "hydra.sweep.dir=x", "sweep.seed=1"], []),
        (["optimizer=sgd,adam", "-m", "~model.dropout", "model.dropout=", "seed=3"], []),
    ],
)
def test_fixed_keys_of_what_a_sweep_tries_are_left_to_its_jobs(
    words: list[str], marked: list[str]
) -> None:
    left = left_to_jobs(words)
    assert [word for word in words if word not in left] == marked
    assert [as_typed(word) for word in left] == words
