from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hydra_plugins.pipeline_sweeps import LocalLauncher
from pipeline.config.named_runs import teacher_runs
from pipeline.config.search_path import searching
from pipeline.config.trusted import trust
from pipeline.sweeps.plan import Plan, plan_again, plan_sweep
from pipeline.system.errors import RequestError
from tests.sweeps.test_jobs import multirun

pytestmark = pytest.mark.slow

ELSEWHERE = SimpleNamespace(n_jobs=2)
SEARCH = "hydra/sweeper=search"
UNTRUSTED = "model: {_target_: models_of_one_job.tiny}"
MINE = f"trusted_modules: [models_of_one_job]\n{UNTRUSTED}"


def planned(line: str, launcher: Any = None) -> Plan:
    adaptive = SEARCH in line
    launcher = launcher or LocalLauncher(n_jobs=1, threads=1)
    return plan_sweep(multirun(*line.split(), adaptive=adaptive), launcher, adaptive=adaptive)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seed=0,1 dataset=folder", "^dataset.path is missing"),
        ("dataset=folder dataset.path=/nowhere,/nor/here", "^dataset.path=/nowhere: no such file"),
        ("seed=0,1 dataset=digits dataset.exclude=/nowhere.csv", "^dataset.exclude=/nowhere.csv: "),
        ("seed=0,1 dataset=digits model.residual=true", "^model=mlp: residual needs two equal"),
        ("dataset=digits model=vit model.heads=5,7", "^model=vit: heads=5 does not divide"),
        (
            "seed=0,1 dataset=digits model=efficientnet_lite0 model.weights=/nowhere.keras",
            "^model.weights=/nowhere.keras: there is no such file",
        ),
        (f"{SEARCH} seed=0,1 dataset=digits model.residual=true", "^model=mlp: residual needs"),
        (f"{SEARCH} seed=0,1 dataset=npz", "^dataset.path is missing"),
    ],
)
def test_a_sweep_without_its_data_or_a_model_that_can_be_built_is_refused(
    line: str, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        planned(line)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            "model=cnn model.dense=interval(64,256)",
            r"^job 2 \(dense=160.5\): model.dense: must be a whole number .*; an interval of whole "
            r"numbers is written \"model.dense=int\(interval\(64,256\)\)\"$",
        ),
        (
            "model=cnn model.dense=tag(log,interval(64,256)) model.dropout=interval(0,0.9)",
            r"whole numbers is written \"model.dense=int\(tag\(log,interval\(64,256\)\)\)\"$",
        ),
        (
            "train.epochs=interval(1,5)",
            r"train.epochs: .*whole numbers is written \"train.epochs=int\(interval\(1,5\)\)\"$",
        ),
        ("model=cnn model.dense=range(64.0,256.5,0.5)", r"must be a whole number \(got 64.5\)$"),
        ("model.dropout=interval(0.5,1.5)", r"model.dropout: must be below 1 \(got 1.5\)$"),
    ],
)
def test_an_interval_of_real_numbers_is_refused_where_only_whole_ones_work(
    space: str, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        planned(f"{SEARCH} dataset=digits {space}")


@pytest.mark.parametrize(
    "line",
    [
        "dataset=digits model.residual=true,false",
        "dataset=digits model=cnn model.dense=0,64 model.activation=gelu",
        f"{SEARCH} dataset=digits model=vit model.heads=5,7",  # the corners are not all it may try
    ],
)
def test_a_single_job_that_cannot_work_may_fail(line: str) -> None:
    assert len(planned(line).jobs) == (0 if SEARCH in line else 2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module of the user's own, which is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models_of_one_job.py").write_text("def tiny(images, classes): ...\n")
    yield tmp_path
    trust([])
    sys.modules.pop("models_of_one_job", None)


def test_jobs_may_trust_different_modules(here: Path) -> None:
    for name, lines in (("plain", ""), ("mine", MINE)):
        path = here / f"conf/experiment/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{lines}\n")
    line = "experiment=mine,plain dataset=digits model=linear"
    assert len(planned(line).jobs) == 2
    (here / "conf/experiment/plain.yaml").write_text(f"# @package _global_\n{UNTRUSTED}\n")
    with pytest.raises(RequestError, match=r"job 1 .* if you trust the module models_of_one_job"):
        planned(line)


def test_what_runs_elsewhere_may_find_its_files_there() -> None:
    line = "dataset=folder dataset.path=/data/of/the/cluster seed=0,1"
    assert len(planned(line, ELSEWHERE).jobs) == 2


def test_the_jobs_of_a_sweep_to_resume_are_those_of_its_folder(tmp_path: Path) -> None:
    first = planned("seed=0,1 dataset=digits")
    first.manifest.save(tmp_path)
    asked = multirun("seed=0,1", "dataset=digits", "sweep.resume=abcd", adaptive=False)
    known = plan_sweep(asked, ELSEWHERE, adaptive=False)
    assert known.jobs == []
    again = plan_again(asked, tmp_path, adaptive=False)
    assert again.jobs == first.jobs
    again.manifest.require_same(tmp_path)


@pytest.mark.parametrize(
    ("pruner", "option"),
    [("median", "n_warmup_steps"), ("asha", "min_resource"), ("hyperband", "min_resource")],
)
def test_a_pruner_that_no_epoch_lets_prune_is_refused(pruner: str, option: str) -> None:
    line = f"{SEARCH} dataset=digits sweep.pruner={pruner} +sweep.pruner_options.{option}=6"
    said = rf"^sweep.pruner_options.{option}=6 leaves sweep.pruner={pruner} without effect in 5 ep"
    with pytest.raises(RequestError, match=said):
        planned(f"{line} seed=0,1 train.epochs=5")
    with pytest.raises(RequestError, match="without effect in 6 epochs; lower it, or train longer"):
        planned(f"{line} train.epochs=5,6")  # after the last epoch no trial is pruned
    planned(f"{line} train.epochs=5,7")


def test_the_pruner_of_a_file_may_be_left_without_effect_unless_it_would_fail(
    tmp_path: Path,
) -> None:
    planned(f"{SEARCH} sweep=network dataset=digits optimizer=adamw train.epochs=1")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/mine.yaml").write_text(
        "defaults: [default]\npruner: hyperband\npruner_options: {min_resource: 3}\n"
    )
    with (
        searching(tmp_path),
        pytest.raises(RequestError, match=r"min_resource=3 leaves .* in 2 ep"),
    ):
        planned(f"{SEARCH} sweep=mine dataset=digits train.epochs=2 seed=0,1")


@pytest.mark.parametrize("search", ["", f"{SEARCH} "])
@pytest.mark.parametrize("key", ["evaluate.leakage", "evaluate.report"])
def test_what_is_only_for_kept_jobs_is_refused_where_none_is_kept(key: str, search: str) -> None:
    line = f"{search}seed=0,1 dataset=folder sweep.keep_models=0 {key}"
    with pytest.raises(RequestError, match=rf"^{key}=true has no effect with sweep.keep_models=0"):
        planned(f"{line}=true")
    with pytest.raises(RequestError, match=r"^dataset.path is missing"):  # nothing else is wrong
        planned(f"{line}=false")


@pytest.mark.parametrize("search", ["", f"{SEARCH} "])
def test_each_run_that_jobs_name_is_known_before_any_of_them_trains(search: str) -> None:
    line = f"{search}seed=0,1 dataset=digits"
    plan = planned(f"{line} train.teacher=[abcd,abce],abcf,null")
    assert [teacher_runs(one) for one in plan.naming] == [("abcd", "abce"), ("abcf",)]
    assert not planned(line).naming


def test_settings_of_the_sweep_itself_are_checked_first() -> None:
    with pytest.raises(RequestError, match=r"^hydra.job.chdir=true: .* leave it out"):
        planned("seed=0,1 dataset=digits hydra.job.chdir=true")
    with pytest.raises(RequestError, match=r"^hydra.launcher.n_jobs=0: must be a whole number, 1"):
        planned("seed=0,1 dataset=digits", LocalLauncher(n_jobs=0, threads=1))
    with pytest.raises(RequestError, match=r"does not say how many jobs it runs at once"):
        planned(f"{SEARCH} seed=0,1 dataset=digits", SimpleNamespace())
