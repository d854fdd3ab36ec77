"""Nothing that a configuration names is imported or called unless it is on a list."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from pipeline.config.allowed import LOGGING_CLASSES, check_composed, check_words
from pipeline.config.schema import register, validate
from pipeline.config.search_path import CONF
from pipeline.config.words import SHORT_FLAGS, flags_apart
from pipeline.system.errors import RequestError
from pipeline.verbs import requests
from tests.commands import QUICK, composed, pipeline
from tests.stress.matrix import matrix

pytestmark = pytest.mark.slow

COPY = "_target_: shutil.copyfile\nsrc: source\ndst: marker\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").write_text("x")
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('marker').touch()\n")
    register(requests(), of=())
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(*words: str, multirun: bool = False) -> str:
    with pytest.raises(RequestError) as caught:
        check_words(list(words), multirun=multirun)
    return str(caught.value)


@matrix(37)
def test_a_callback_of_hydras_is_not_carried_out(tmp_path: Path) -> None:
    words = [f"+hydra.callbacks.x.{word}" for word in COPY.replace(": ", "=").split("\n")[:-1]]
    done = pipeline(*QUICK, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("hydra.callbacks.x._target_: 'shutil.copyfile' is not allowed;")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "marker").exists()


FILES = {
    "hydra.callbacks.x._target_": "# @package _global_\nhydra:\n  callbacks:\n    x:\n      "
    + COPY.replace("\n", "\n      "),
    "hydra.callbacks.y._target_": "# @package hydra.callbacks.y\n" + COPY,
    "hydra.job_logging.filters.x.()": "# @package hydra.job_logging.filters.x\n(): evil.Filter\n",
    "hydra.hydra_logging.handlers.console.class": "# @package hydra.hydra_logging.handlers.console"
    "\nclass: evil.Handler\n",
    "hydra.job_logging.handlers.file.stream": "# @package hydra.job_logging.handlers.file\n"
    "stream: ext://evil.x\n",
    "hydra.launcher.x._target_": "# @package hydra.launcher.x\n" + COPY,
    "hydra.sweeper.deep.0.er._target_": "# @package hydra.sweeper\ndeep:\n- er:\n    "
    + COPY.replace("\n", "\n    "),
    "model.x._target_": "# @package model.x\n" + COPY,
    "hydra.job.env_set.PYTHONSTARTUP": "# @package hydra.job.env_set\nPYTHONSTARTUP: evil.py\n",
}


WAYS = {"chosen": "experiment=bad", "swept": "experiment=good,bad", "sweep": "sweep=tried"}


def refusal_of_file(tmp_path: Path, key: str, *, where: str, way: str) -> str:
    write(tmp_path, f"{where}/experiment/bad.yaml", FILES[key])
    write(tmp_path, f"{where}/experiment/good.yaml", "# @package _global_\nseed: 1\n")
    params = "defaults: [default]\nparams: {experiment: 'good,bad'}\n"
    write(tmp_path, f"{where}/sweep/tried.yaml", params)
    flags = [] if where == "conf" else [f"--config-dir={where}"]
    return refusal(*flags, WAYS[way], multirun=way != "chosen")


@pytest.mark.parametrize("key", FILES)
@matrix(37)
def test_nor_is_what_a_file_of_the_users_names(tmp_path: Path, key: str) -> None:
    said = refusal_of_file(tmp_path, key, where="conf", way="chosen")
    assert said.startswith(f"{key}: ")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["conf", "elsewhere"])
@matrix(37)
def test_nor_is_it_where_a_sweep_tries_the_file(tmp_path: Path, where: str, way: str) -> None:
    key = "hydra.job_logging.filters.x.()"
    said = refusal_of_file(tmp_path, key, where=where, way=way)
    assert said == f"{key}: 'evil.Filter' is not allowed; choose one of colorlog.ColoredFormatter"


@matrix(37)
def test_what_a_value_refers_to_is_what_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAME", "shutil.copyfile")
    said = refusal("+hydra.callbacks.x._target_=${oc.env:NAME}")
    assert said.startswith("hydra.callbacks.x._target_: 'shutil.copyfile' is not allowed")
    kept = "# @package model\nkept: {x: {_target_: shutil.copyfile}}\n"
    write(tmp_path, "conf/experiment/a.yaml", kept)
    said = refusal("experiment=a", "hydra.callbacks=${model.kept}")
    assert "hydra.callbacks.x._target_: 'shutil.copyfile' is not allowed" in said
    said = refusal("+hydra.callbacks.x._target_=${nowhere}")
    assert said.startswith("hydra.callbacks.x._target_: ${nowhere} cannot be resolved")


@pytest.mark.parametrize(
    "word", ["hydra.searchpath=[pkg://evil]", "hydra.searchpath=[pkg://evil.conf,'file:///tmp']"]
)
@matrix(37)
def test_a_package_to_search_is_not_imported(tmp_path: Path, word: str) -> None:
    done = pipeline(*QUICK, word, cwd=tmp_path, PYTHONPATH=f"{CONF.parent}:{tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith("hydra.searchpath: pkg://evil")
    assert not (tmp_path / "marker").exists()


@matrix(37)
def test_nor_is_one_that_the_primary_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path, "conf/config.yaml", "x: pkg\nhydra: {searchpath: ['${x}://evil']}\n")
    assert refusal("seed=1").startswith("hydra.searchpath: pkg://evil would be imported")
    write(tmp_path, "more/mine.yaml", "hydra: {searchpath: ['pkg://evil']}\n")
    said = refusal("--config-dir=more", "--config-name=mine", "seed=1")
    assert said.startswith("hydra.searchpath: pkg://evil would be imported")
    assert "evil" not in sys.modules


def test_the_primary_file_of_another_application_is_refused_with_where_ours_would_be(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, "conf/config.yaml", "defaults: [_self_, db: mysql]\nport: 80\n")
    write(tmp_path, "conf/db/mysql.yaml", "user: me\n")
    said = refusal("model=cnn")
    assert said.startswith(f"{file}: it is another application's")
    assert said.endswith(str(tmp_path / "conf/project/default.yaml"))
    file.write_text((CONF / "config.yaml").read_text())
    check_words(["model=cnn"], multirun=False)


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--config-path", "-cp"])
@pytest.mark.parametrize("joined", [True, False])
@matrix(39)
def test_a_flag_that_would_open_a_pickle_or_drop_our_files_is_refused(
    flag: str, joined: bool
) -> None:
    [word], _ = flags_apart([f"{flag}=x"] if joined else [flag, "x"])
    name = SHORT_FLAGS.get(flag, flag)
    assert refusal(word) == f"{name}: not here; --config-dir=… adds configuration files"


@pytest.mark.parametrize("name", ["project/default", "experiment/mine"])
def test_a_file_cannot_make_a_sweep_of_every_command(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"conf/{name}.yaml", "# @package _global_\nhydra: {mode: MULTIRUN}\n")
    words = ["experiment=mine"] if "mine" in name else []
    assert refusal(*words).startswith("hydra.mode in a file: leave it out")
    check_words([*words, "seed=0,1"], multirun=True)


def test_a_folder_of_files_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert refusal("--config-dir=nowhere") == f"--config-dir={tmp_path}/nowhere: no such folder"


@pytest.mark.parametrize(
    "words",
    [
        ["hydra.run.dir=/tmp/somewhere/else", "hydra.job.chdir=true", "hydra.verbose=true"],
        ["hydra/job_logging=none", "hydra.output_subdir=null"],
        ["hydra/job_logging=default", "hydra/hydra_logging=default"],
        ["hydra/launcher=basic", "hydra/sweeper=basic"],
        ["hydra/launcher=local", "hydra/sweeper=optuna", "hydra.launcher.n_jobs=2"],
        ["hydra.searchpath=[/tmp]"],
        ["+hydra.job.env_set.TF_NUM_INTRAOP_THREADS=1"],
        ["+hydra.callbacks.x._target_=hydra.experimental.callbacks.LogJobReturnCallback"],
        ["hydra.job_logging.handlers.console.stream=ext://sys.stdout"],
        ["hydra.job_logging.handlers.console.class=logging.NullHandler"],
        ["model._target_=pipeline.training.models.mlp"],
    ],
)
def test_what_people_set_is_let_pass(words: list[str]) -> None:
    check_words(words, multirun=False)
    check_words([*words, "seed=0,1"], multirun=True)


def test_values_that_only_some_of_the_files_have_do_not_hide_the_rest(tmp_path: Path) -> None:
    write(tmp_path, "conf/experiment/bad.yaml", FILES["hydra.callbacks.y._target_"])
    said = refusal("experiment=bad,none", "optimizer.momentum=0.9", multirun=True)
    assert said.startswith("hydra.callbacks.y._target_: 'shutil.copyfile' is not allowed")


def test_what_cannot_be_composed_at_all_is_not_let_pass(tmp_path: Path) -> None:
    with pytest.raises(HydraException):
        check_words(["experiment=nowhere", "hydra.verbose=true"], multirun=True)


def test_every_file_of_ours_is_allowed() -> None:
    groups = ("job_logging", "hydra_logging", "launcher", "sweeper")
    choices = [
        f"hydra/{group}={file.stem}"
        for group in groups
        for file in (CONF / "hydra" / group).glob("*.yaml")
    ]
    assert len(choices) >= 5
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for choice in choices:
            check_composed(compose("config", [choice], return_hydra_config=True))


@pytest.mark.parametrize("kind", [Launcher, Sweeper])
def test_every_plugin_that_is_installed_may_be_chosen(kind: type) -> None:
    key = kind.__name__.lower()
    for plugin in Plugins.instance().discover(kind):
        check_words([f"hydra.{key}._target_={plugin.__module__}.{plugin.__name__}"], multirun=False)
    said = refusal(f"hydra.{key}._target_=hydra_plugins.{key}")
    assert said.startswith(f"hydra.{key}._target_: 'hydra_plugins.{key}' is not allowed; choose")


@pytest.mark.parametrize("name", LOGGING_CLASSES)
def test_the_classes_for_logging_exist(name: str) -> None:
    module, _, last = name.rpartition(".")
    assert hasattr(__import__(module, fromlist=[last]), last)


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "..", "a/../../b", "a//b", ".", "a b", "a%20b", "x" * 101]
)
@pytest.mark.parametrize("group", ["dataset", "model"])
@matrix(43)
def test_a_choice_that_would_be_a_path_elsewhere_is_refused(group: str, name: str) -> None:
    with pytest.raises(
        RequestError, match=rf"choices\.{group}: names a folder: use only letters, digits"
    ):
        validate(composed(f"choices.{group}='{name}'"))


@pytest.mark.parametrize("name", ["mnist", "mine/birds", "v1.2", "größe", "鳥", "a+b-c_d"])
def test_a_choice_may_be_any_name_of_a_file(name: str) -> None:
    assert validate(composed(f"choices.dataset='{name}'")).choices.dataset == name
