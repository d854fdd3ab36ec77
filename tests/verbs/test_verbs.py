from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml

from pipeline.config.schema import Config
from pipeline.system.errors import RequestError
from pipeline.verbs import Verb, imported, requests, verbs
from tests.commands import CONF, ROOT, composed, configured, environment

VERBS = verbs()


def test_run_is_the_first_of_the_verbs_and_the_others_stand_in_alphabetical_order() -> None:
    first, *others = VERBS
    assert first == "run"
    assert others == sorted(others)
    assert {"train", "evaluate", "compare", "promote", "predict", "doctor"} <= set(others)


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
