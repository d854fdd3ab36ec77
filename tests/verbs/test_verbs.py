from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from pipeline import verbs as package
from pipeline.config.schema import Config, validate, validate_request
from pipeline.config.words import full_word
from pipeline.system import secrets
from pipeline.system.errors import RequestError
from pipeline.system.secrets import hide
from pipeline.verbs import Verb, imported, requests, verbs
from pipeline.verbs.promote import Promote
from tests.commands import CONF, ROOT, composed, configured, environment

VERBS = verbs()


def test_run_is_the_first_of_the_verbs_and_the_others_stand_in_alphabetical_order() -> None:
    first, *others = VERBS
    assert first == "run"
    assert others == sorted(others)
    assert {"train", "evaluate", "compare", "promote", "predict", "doctor"} <= set(others)


def test_each_verb_has_a_file_or_folder_of_its_name() -> None:
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    declared = {
        name: [
            value.name
            for value in vars(importlib.import_module(f"pipeline.verbs.{name}")).values()
            if isinstance(value, Verb)
        ]
        for name in names
    }
    assert declared == {name: [name] for name in VERBS}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_what_carries_a_verb_out_and_what_shows_its_value_exist(verb: Verb) -> None:
    assert callable(imported(verb.entry))
    assert callable(imported(verb.show))


@pytest.mark.slow
def test_to_list_the_verbs_takes_no_slow_library() -> None:
    listed = (
        "import sys; from pipeline.verbs import verbs; verbs();"
        "print([n for n in ('keras', 'tensorflow', 'mlflow', 'matplotlib') if n in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", listed], env=environment(), capture_output=True, text=True, cwd=ROOT
    )
    assert ended.stdout == "[]\n", ended.stderr


def test_a_verb_without_the_run_that_it_needs_is_refused_before_it_imports_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("pipeline.verbs.import_slow", loaded.append)
    needing = [verb for verb in VERBS.values() if verb.needs.startswith("run_id=")]
    assert {verb.name for verb in needing} == {
        *("evaluate", "promote", "report", "reproduce", "resume")
    }
    for verb in needing:
        with pytest.raises(RequestError, match=f"which run to {verb.name}, run_id=<id> or run_id="):
            verb.load(configured())
    assert loaded == []
    VERBS["train"].load(configured())
    assert loaded == ["pipeline.run"]  # quietly, as a whole, before the entry imports it


IDLE = {
    "compare sweep=latest runs=[ab,cd]": "beside compare.runs, which are compared",
    "compare top=3 runs=[ab,cd]": "all of whose runs are compared",
    "compare top=3 sweep=latest": "all of whose runs are compared",
    "promote margin=0.1 alpha=null": "with promote.alpha=null",
    "promote challenger=true force=true reason=x": "by which no gate refuses the run",
    "predict dataset=mnist model_uri=models:/m-1": "beside predict.model_uri",
    "serve dataset=mnist model_uri=models:/m-1": "beside serve.model_uri",
    "serve follow=true model_uri=models:/digits/3": "names no alias",
    "ingest seed=3 augment=none": "without an augmentation to show",
    "ingest model=cnn": "whose images have one size",
    "reproduce tracking.experiment=x run_id=abcd": "repeated in its own experiment",
}
USED = (
    *("compare runs=[ab,cd]", "compare top=3", "promote margin=0.1", "promote challenger=true"),
    *("predict dataset=mnist", "serve follow=true model_uri=models:/digits@champion"),
    *("serve follow=true", "ingest seed=3 augment=flip_crop", "ingest model=cnn dataset=folder"),
    *("run tracking.run_name=x", "train tracking.experiment=x"),
    "reproduce tracking.experiment=x run_id=latest",
)


def require_effects(line: str) -> None:
    name, *given = line.split()
    verb = verbs()[name]
    words = [full_word(word, name, verb.request) for word in given]
    whole = composed(*words, verb=name)
    request = verb.request and validate_request(whole, name, verb.request)
    verb.require_effects(words, validate(whole), request)


@pytest.mark.parametrize(("line", "because"), IDLE.items())
def test_a_setting_without_effect_on_a_verb_is_refused_with_the_reason(
    line: str, because: str
) -> None:
    name, first = line.split()[:2]
    word = full_word(first, name, verbs()[name].request)
    with pytest.raises(RequestError, match=f"^{re.escape(word)} has no effect .*{because}.*; "):
        require_effects(line)


@pytest.mark.parametrize("line", USED)
def test_a_setting_with_an_effect_on_a_verb_is_not_refused(line: str) -> None:
    require_effects(line)


@pytest.mark.parametrize("key", ["experiment", "run_name", "artifact_root"])
def test_a_run_that_mlflow_has_opened_keeps_its_name_and_experiment(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123abcd")
    with pytest.raises(
        RequestError, match=rf"^tracking.{key}=x has no effect on the run that MLFL"
    ):
        require_effects(f"run tracking.{key}=x")
    require_effects("run tracking.log_model=false seed=3")


def test_only_verbs_that_may_open_an_experiment_take_a_place_for_its_artefacts() -> None:
    key = "tracking.artifact_root"
    takes = {verb.name for verb in VERBS.values() if not {key, "tracking"} & verb.ignores}
    assert takes == {"run", "train", "sync"}


def test_each_rule_of_a_verb_has_a_case() -> None:
    ruled = {
        (verb.name, key) for verb in verbs().values() for one in verb.rules for key in one.keys
    }
    tried = {
        (name, full_word(first, name, verbs()[name].request).partition("=")[0])
        for name, first in (line.split()[:2] for line in IDLE)
    }
    assert {pair for pair in ruled if pair[0] not in ("run", "train")} == tried


def test_the_keys_of_a_verb_are_a_group_of_the_configuration_with_one_file() -> None:
    whole = composed()
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert folders >= requests().keys()
    for name, request in requests().items():
        assert set(whole[name]) == {one.name for one in fields(request)}
    assert requests().keys().isdisjoint(one.name for one in fields(Config))


def test_every_verb_is_an_entry_point_of_the_ml_project_and_calls_itself() -> None:
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    assert entry_points.keys() == {"main" if name == "run" else name for name in VERBS}
    for name in VERBS:
        command = entry_points["main" if name == "run" else name]["command"]
        assert command.startswith(f"python -m pipeline {name} --mlproject ")


def test_the_readme_has_a_row_for_every_verb_that_begins_with_its_help() -> None:
    readme = (ROOT / "README.md").read_text()
    [table] = re.findall(r"^\| verb \|.*\n\|.*\n((?:\|.*\n)+)", readme, flags=re.MULTILINE)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, flags=re.MULTILINE))
    assert rows.keys() == VERBS.keys()
    other = {name: row for name, row in rows.items() if not starts_with_help(name, row)}
    assert other == {}


def starts_with_help(verb: str, row: str) -> bool:
    plain, said = row.replace("`", ""), VERBS[verb].help
    return plain.startswith(said) and not plain.removeprefix(said)[:1].isalnum()


@pytest.mark.slow
def test_the_verbs_are_known_before_numpy_is_imported() -> None:
    """Every command imports all of their modules, help and refusals included."""
    script = "import sys; from pipeline.verbs import verbs; verbs(); print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_verb_hides_what_its_environment_its_configuration_and_its_request_keep_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(secrets, "known_secrets", set())
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "from-outside")
    config = configured("dataset=digits", "+tracking.tags.token=from-words")
    request = Promote(reason="see https://me:from-reason@host")
    verb = replace(VERBS["promote"], entry=f"{__name__}:shown")
    assert verb.carry_out(config, request, tmp_path) == "***, ***, ***"


def shown(config: Config, request: Promote, folder: Path) -> str:
    """What a verb shows that tells all its secrets."""
    return hide("from-outside, from-words, from-reason")
