import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.guesses import is_list
from pipeline.config.rules import TypedPath
from pipeline.config.words import (
    HYDRA_FLAGS,
    addressed,
    annotation_of,
    as_typed,
    flags_apart,
    left_to_jobs,
    normalise,
    once,
    refuse_settings_of_a_run,
    require_our_sweeper,
)
from pipeline.system.errors import RequestError
from pipeline.verbs import requests
from tests.stress.matrix import stressed


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
        flags_apart(["model=mlp", flag, "5"])


@pytest.mark.parametrize(
    ("words", "flags", "settings"),
    [
        (["a=1", "-m", "seed=1,2"], ["--multirun"], ["a=1", "seed=1,2"]),
        (["a=1", "--config-dir", ".", "b=2"], ["--config-dir=."], ["a=1", "b=2"]),
        (["-cd", "x", "a=1", "-c", "job", "b=2"], ["--config-dir=x", "--cfg=job"], ["a=1", "b=2"]),
        (["a=1", "--info", "plugins", "b=2"], ["--info=plugins"], ["a=1", "b=2"]),
        (["--info", "b=2"], ["--info=all"], ["b=2"]),
    ],
)
def test_flags_may_stand_anywhere(words: list[str], flags: list[str], settings: list[str]) -> None:
    assert flags_apart(words) == (flags, settings)
    parsed = get_args_parser().parse_args([*flags, *settings])
    assert parsed.overrides == settings


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a=1", "--config-dir"], "--config-dir: a folder must follow"),
        (["--config-dir", "experiment=fast"], "--config-dir: a folder must follow"),
        (["-cn", "-m"], "-cn: a file's name must follow"),
        (["--cfg", "jb"], "--cfg: job, hydra or all must follow, as in --cfg job, not jb"),
        (["--multirun=3"], "--multirun=3: --multirun takes no value"),
        (["--info=all-of-it"], "--info=all-of-it: choose one of all, "),
        (["-x"], "-x: no such flag"),
        (["--batch-size", "64"], "as in train.batch_size=64"),
        (["--lr=0.1"], "as in optimizer.learning_rate=0.1"),
        (["--model", "mlp"], "as in model=mlp"),
    ],
)
def test_a_flag_is_told_in_a_line_what_it_lacks(words: list[str], told: str) -> None:
    with pytest.raises(RequestError, match=re.escape(told)) as refused:
        flags_apart(words)
    assert "\n" not in str(refused.value)


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("seed=0", "overrides=seed=3"), "seed=0 and seed=3: give seed once"),
        (("model=mlp", "overrides=train.epochs=1 model=cnn"), "model=mlp and model=cnn: give"),
        (("overrides=seed=1", "--seed", "2"), "seed=1 and seed=2: give seed once"),
        (("train.epochs=5", "overrides=++train.epochs=7"), "give train.epochs once"),
        (("overrides=seed=1 seed=2",), "give seed once"),
    ],
)
def test_a_parameter_that_overrides_contradicts_is_refused(
    words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        once(project(*words))


def test_a_parameter_that_overrides_repeats_is_taken_once() -> None:
    words = project("seed=3", "overrides=-m ~model.dropout seed=3 ~model.dropout", "--seed", "3")
    assert once(words) == ["seed=3", "-m", "~model.dropout"]


def test_values_of_flags_may_repeat() -> None:
    assert project("overrides=--cfg hydra --package hydra") == [
        "--cfg",
        "hydra",
        "--package",
        "hydra",
    ]


def test_an_undeclared_parameter_becomes_an_override() -> None:
    assert project("overrides=seed=1", "--train.epochs", "7", "--x", "-1") == [
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


@settings(max_examples=stressed(300, 40))
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
        addressed(list(words), verb, requests().get(verb))
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
    assert understood(f"images={text}") == {"predict.images": text}


TEXTS = [
    "李明",
    "a=b",
    "=5",
    "#5",
    "/tmp/dir é",
    "my exp (2)",
    "[urgent] fix",
    "12e4",
    "007",
    "true",
]
TEXTS += ["it's", '"so', "'tis", "a, b", "50 %", "C:\\dir\\", "${x", "~/data", "{a", "choice(a,b)"]


@pytest.mark.parametrize(
    "key",
    ["tracking.run_name", "data_dir", "+tracking.tags.owner", "dataset.folder", "hydra.run.dir"],
)
def test_a_text_of_the_configuration_is_taken_as_it_is_typed(key: str) -> None:
    for text in TEXTS:
        meant = text.replace("${", "\\${")  # which OmegaConf reads as the text
        assert understood(f"{key}={text}", verb="run") == {key: meant}


@given(st.text("ab 1é李'\"\\$ {}[](),=#:~%+-.*", min_size=1))
def test_any_text_is(text: str) -> None:
    [word] = addressed([f"tracking.run_name={text}"], "run", None)
    [override] = OverridesParser.create().parse_overrides([word])
    written = text[1:-1] if text[0] in "'\"" and text[-1] == text[0] else text
    if text.lower() != "null" and "${" not in text and "\\" not in text:
        assert override.value() in (text, written)


def test_null_quotes_references_and_what_a_sweep_tries_mean_what_they_mean_elsewhere() -> None:
    for value, meant in [
        ("null", None),
        ("'a b'", "a b"),
        ("${model.name}-x", "${model.name}-x"),
        ("${model.name} 李", "${model.name} 李"),
    ]:
        words = [f"tracking.run_name={value}"]
        assert understood(*words, verb="run") == {"tracking.run_name": meant}
    several = ["dataset.folder=a,b", "dataset.folder=choice(a,b)", "dataset.folder=glob(*)"]
    assert addressed(several, "run", None, multirun=True) == several
    assert addressed(["sweep.params.seed=0,1"], "run", None, multirun=True)[0][-3:] == "0,1"


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("größe,klein", ["größe", "klein"]),
        ("klein, groß (1, 2),null", ["klein", "groß (1, 2)", "null"]),
        ("李,", None),
        ("it's, größe", None),
    ],
)
def test_a_sweep_tries_several_texts_in_any_script(typed: str, values: list[str] | None) -> None:
    [word] = addressed([f"+tracking.tags.size={typed}"], "run", None, multirun=True)
    override = OverridesParser.create().parse_override(word)
    tried = override.sweep_string_iterator() if override.is_sweep_override() else ()
    assert [text.strip("'") for text in tried] == (values or [])
    [word] = addressed([f"+tracking.tags.size={typed}"], "run", None)
    assert OverridesParser.create().parse_override(word).value() == typed


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("[鳥,größe, it 李 ]", ["鳥", "größe", "it 李"]),
        ("{pet: [猫, 'a,猫', cat], car: 車}", {"pet": ["猫", "a,猫", "cat"], "car": "車"}),
        ("['猫',\"it's 猫\",3]", ["猫", "it's 猫", 3]),
    ],
)
def test_lists_and_mappings_have_texts_in_any_script(typed: str, value: object) -> None:
    [word] = addressed([f"dataset.classes={typed}"], "run", None)
    assert OverridesParser.create().parse_override(word).value() == value


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("12e4", "12e4"),
        ("[12e4, 0012]", ["12e4", "0012"]),
        ("['12e4']", ["12e4"]),
        ("[]", []),
        ("null", None),
    ],
)
def test_a_key_takes_one_text_or_several(typed: str, value: object) -> None:
    assert understood(f"train.teacher={typed}", verb="run") == {"train.teacher": value}
    swept = ["train.teacher=12e4,abcd", "train.teacher=[ab,cd],[ef]"]
    assert addressed(swept, "run", None, multirun=True) == swept


def test_what_is_no_text_is_left_to_hydra() -> None:
    words = ["seed=12e4", "train.scaling=a,b", "model.hidden=[1,2]", "dataset.folder=[a,b]"]
    words += ["model=mlp", "trusted_modules=[a]", "~model.dropout", "train.xla=null"]
    assert addressed(words, "run", None) == words


def test_keys_have_annotations_as_far_as_all_builders_agree() -> None:
    assert annotation_of("data_dir") == TypedPath
    assert annotation_of("dataset.folder") == str | None
    assert annotation_of("tracking.tags.anything") is str
    assert is_list(annotation_of("hydra.searchpath"))
    assert annotation_of("hydra.launcher.n_jobs") is None
    for unknown in ("train", "dataset.nothing", "sweep.sampler_options.x", "x.y", "seed.x"):
        assert annotation_of(unknown) is None


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
    assert understood("runs=[12e4, 0012]", verb="compare") == {"compare.runs": ["12e4", "0012"]}


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
        (["experiment=fast", "seed=0,1", "model.dropout=0.1"], ["model.dropout=0.1"]),
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


def test_the_defaults_of_a_project_may_sweep_groups_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["seed=0,1", "model.dropout=0.1"]
    monkeypatch.chdir(tmp_path)
    assert left_to_jobs(words) == words
    (tmp_path / "conf/project").mkdir(parents=True)
    (tmp_path / "conf/project/default.yaml").touch()
    assert [word for word in words if word not in left_to_jobs(words)] == words[1:]
