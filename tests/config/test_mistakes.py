from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import __main__ as module
from pipeline.api import compose
from pipeline.system.errors import RequestError

EFFECT = {
    "seed=1 sweep.preview=true": "sweep.preview=true: only a sweep has sweep.preview; add -m",
    "sweep=lr_grid": "only a sweep has sweep=lr_grid; add -m",
    "hydra/sweeper=optuna": "only a sweep has hydra/sweeper=optuna; add -m",
    "hydra/launcher=ray": "add -m",
    "+hydra.launcher.n_jobs=2": "only a sweep has hydra.launcher.n_jobs; add -m",
    "hydra.sweep.subdir=x": "add -m",
    "hydra.mode=MULTIRUN": "add -m",
    "predict sweep.seed=1": "leave it out, for predict makes none",
    "seed=1 seed=2": "seed=1 and seed=2: give seed once",
    "model=mlp train.epochs=2 ++train.epochs=3": "train.epochs=2 and ++train.epochs=3: give",
    "predict images=a predict.images=b": "give predict.images once",
    "run compare.top=5": "no effect on run; it belongs to python -m pipeline compare top=5",
    "predict promote.force=true": "it belongs to python -m pipeline promote force=true",
    "choices.model=cnn": "choices.model=cnn: Hydra fills it in; write model=cnn",
    "+choices.x=1": "Hydra fills it in; leave it out",
    "hydra.runtime.choices.model=cnn": "Hydra fills it in; leave it out",
    "hydra.overrides.task=[seed=1]": "Hydra fills it in; leave it out",
    "run_id=latest": "as in python -m pipeline evaluate run_id=latest",
    "history train.epochs=5": "no effect on history; it belongs to a run, as in python -m pipeline "
    "train.epochs=5",
    "rollback seed=3": "no effect on rollback",
    "compare optimizer=sgd": "no effect on compare",
    "doctor seed=3": "no effect on doctor",
    "doctor model=cnn": "no effect on doctor",
    "predict images=x model=cnn": "no effect on predict",
    "serve +model.depth=3": "no effect on serve",
    "evaluate run_id=latest preprocess=small": "no effect on evaluate",
    "report run_id=latest evaluate.test=false": "no effect on report",
    "promote run_id=best augment=none": "no effect on promote",
    "ingest schedule=cosine": "no effect on ingest",
    "ingest preprocess.validation_size=100": "no effect on ingest",
    "preprocess ingest.checks.blank.action=refuse": "no effect on preprocess",
    "preprocess model.dropout=0.1": "no effect on preprocess",
    "serve run_id=latest": "run_id=latest has no effect on serve; it names a recorded run, as in",
    "compare run_id=0123": "no effect on compare; it names a recorded run",
    "doctor run_id=latest": "no effect on doctor",
    "train evaluate.test=true": "no effect on train; it belongs to a run, as in",
    "evaluate run_id=latest evaluate.leakage=true": "no effect on evaluate",
    "evaluate run_id=latest ingest.checks.blank=0.1": "no effect on evaluate",
    "promote run_id=best evaluate.metrics=[ece]": "no effect on promote",
    "resume run_id=latest tracking.run_name=again": "no effect on resume",
    "reproduce run_id=latest tracking.tags.team=x": "no effect on reproduce",
    "report run_id=latest +tracking.tags={team:x}": "no effect on report",
    "compare dataset=folder dataset.path=photos": "dataset.path=photos has no effect on compare",
    "predict images=x data_dir=/data": "no effect on predict",
    "drift path=x model=cnn": "no effect on drift",
    "ingest tracking.uri=sqlite:///x.db": "no effect on ingest",
    "sync dataset=digits": "no effect on sync",
    "--cfg job sweep.seed=3": "only a sweep has sweep.seed; leave it out; sweep.preview",
    "--cfg job sweep.timeout_s=3": "only a sweep has sweep.timeout_s",
    "--cfg all hydra.launcher.n_jobs=2": "only a sweep has hydra.launcher.n_jobs",
    "--cfg job run_id=latest": "as in python -m pipeline evaluate run_id=latest",
    "--cfg job compare.top=3": "no effect on run; it belongs to python -m pipeline compare top=3",
    "predict images=x model=cnn --cfg job": "model=cnn has no effect on predict",
    "-m hydra/sweeper=basic hydra.sweeper.params.x=1": "what to try is written KEY=A,B, as in",
    "-m hydra/sweeper=basic hydra.sweeper.params.x=1,2": "what to try is written KEY=A,B",
}
VALUES = {
    "seed=0,1": "several values need -m: python -m pipeline -m seed=0,1",
    "model=mlp,cnn": "several values need -m",
    "seed=choice(0,1)": 'several values need -m: python -m pipeline -m "seed=choice(0,1)"',
    "optimizer.learning_rate=0,01": "a decimal is written 0.01",
    "evaluate run_id=latest seed=0,1": "evaluate takes one",
    "compare top=3,4": "compare takes one",
    "model.hidden=64,32": "a list is written [64,32], as in model.hidden=[64,32]",
    "-m model.hidden=64,32": "a list is written [64,32], as in model.hidden=[64,32]",
    "model.hidden=64": "as in model.hidden=[64]",
    "hydra.searchpath.x=3": "hydra.searchpath is a list, and list items cannot be set one by one",
    "hydra.job.env_copy=HOME": "as in hydra.job.env_copy=[HOME]",
    "model.hidden.first=64": "model.hidden is a list, and list items cannot be set one by one",
    "~model.hidden.0": "no item of a list can be left out; write model.hidden=[…]",
    "-m +train.plots._target_=a,b": "train.plots is a list",
    "evaluate.metrics=accuracy,brier": "as in evaluate.metrics=[accuracy,brier]",
    "model.dropout=choice(null,3)": "write model.dropout=null,3 and add -m",
    "augment=null": "augment cannot be left out; write augment=none",
    "-m augment=null,none": "write augment=none",
    "~augment": "write augment=none",
    "model=null": "choose one of cnn, ",
    "tracking=null": "tracking cannot be null; leave the word out",
    "-m sweep=null seed=0,1": "sweep cannot be null",
    "experiment=null": "experiment cannot be null",
    "hydra/help=null": "hydra/help cannot be null",
    "model=3": "choose one of cnn, ",
    "train.patience=None": "write null for none, as in train.patience=null",
    "optimizer.weight_decay=None": "as in optimizer.weight_decay=null",
    "tracking.run_name=None": "as in tracking.run_name=null",
    "promote alpha=none": "as in alpha=null",
    "hydra.sweeper.params.seed=3": "what to try is written sweep.params.seed=…, with -m",
    "-m hydra.sweeper.params.seed=3": "what to try is written sweep.params.seed=…",
}
EMPTY = "is empty: a value must follow"
VALUES |= {
    **dict.fromkeys(("data_dir=", "tracking.uri=", "tracking.run_name=", "seed="), EMPTY),
    **dict.fromkeys(("predict model_uri= images=x", "predict run_id= images=x"), EMPTY),
    "predict images=": "a value must follow, as in images=photos (",
    "drift path=": "a value must follow, as in path=photos (",
    "evaluate run_id=": "a value must follow, as in run_id=latest (",
    "promote run_id=": "a value must follow, as in run_id=best (",
    "dataset=folder dataset.path=": "a value must follow, as in dataset.path=photos (",
    "rollback to=": "a value must follow, or to=null (",
    "drift path=''": EMPTY,
    "compare runs=": "an empty list is written runs=[]",
    "compare runs=,": "an empty list is written runs=[]",
    "hydra.run.dir=~/runs": "the shell leaves ~ as it is there; write hydra.run.dir=$HOME/runs",
    "tracking.artifact_root=~/kept": "write tracking.artifact_root=$HOME/kept",
    "data_dir=~/data": "write data_dir=$HOME/data",
    "predict images=~/x output=~/x.csv": "write output=$HOME/x.csv",
    "audit exclude=~/x.csv": "write exclude=$HOME/x.csv",
    "+tracking.tags.größe=3": "a key has letters from a to z, digits, _ and - only",
    "model=[mlp,cnn]": "model takes one file; several are -m model=mlp,cnn",
    "-m model=[mlp,cnn]": "several are -m model=mlp,cnn",
    "tracking.tags=x": "tags are written +tracking.tags.NAME=TEXT each",
    "+tracking.tags.team.name=x": "is written '+tracking.tags={team.name: TEXT}'",
    "tracking.tags=null": "tags are written +tracking.tags.NAME=TEXT each",
    "-m train.patience=None,3": "write null for none, as in train.patience=null,3",
    "-m model=,mlp": "a value is missing beside a comma (is it a variable of the shell",
    "-m model=mlp,": "a value is missing beside a comma",
    "dataset=": "is empty: choose one of",
    "train.epochs=5k": "as in train.epochs=5000",
    "train.epochs=1_0x": "as in train.epochs=",
    "train.epochs=5.0": "write a whole number, as in train.epochs=5",
    "train.epochs=1,000": "a number is written without separators: 1000",
    "train.epochs=1:5": 'several values are -m "train.epochs=range(1,6)"',
    "train.epochs=true": "write a whole number",
    "evaluate.temperature=2": "evaluate.temperature=2: write true or false",
    "train.xla=-1": "write true or false, or train.xla=null",
    "promote run_id=latest force=5": "write true or false",
    "-m evaluate.temperature=1,2": "write true or false",
    "train.epochs=1e400": "write a whole number, as in train.epochs=5",
    "train.patience=no": "as in train.patience=5, or train.patience=null",
    "optimizer.learning_rate=true": "write a number, as in",
    "optimizer.learning_rate=1/1000": "as in optimizer.learning_rate=0.001",
    "optimizer.learning_rate=10^-3": "as in optimizer.learning_rate=0.001",
    "optimizer.learning_rate=1e\u20113": "as in optimizer.learning_rate=0.001",
    "optimizer.learning_rate=1e-3,": "as in optimizer.learning_rate=0.001",
    "preprocess.validation_size=15%": "as in preprocess.validation_size=0.15",
    "promote run_id=best alpha=5%": "as in alpha=0.05, or alpha=null",
    "serve port=8,080": "serve takes one",
    "seed=\u201c3\u201d": "as in seed=3",
    "seed=$SEED": "the shell fills in $",
    "model.hidden=64x32": "as in model.hidden=[64,32]",
    "model.hidden=64;32": "as in model.hidden=[64,32]",
    "model.hidden=[64,32,]": "as in model.hidden=[64,32]",
    "train.teacher=[12e4,abcd,]": "as in train.teacher=[12e4,abcd]",
    "train.teacher=[12e4,abcd": "as in train.teacher=[12e4,abcd]",
    "model.hidden={a:64,b:32}": "as in model.hidden=[64,32]",
    "train.class_weight={balanced:1}": "write one text, as in train.class_weight=balanced",
    "model.hidden={64,32}": "as in model.hidden=[64,32]",
    "model.hidden=null": "as in model.hidden=[]",
    "evaluate.plots=none": "as in evaluate.plots=[]",
    "dataset=folder dataset.size=96x96": "as in dataset.size=[96,96]",
    "dataset=folder dataset.size=96px": "as in dataset.size=96",
    "dataset=folder dataset.classes=cat,dog": "a list is written [cat,dog]",
    "dataset=mnist.yaml": "write dataset=mnist, without folder and ending",
    "dataset=conf/dataset/mnist.yaml": "write dataset=mnist",
    "dataset=./photos": "did you mean dataset=folder dataset.path=./photos?",
    "dataset=C:\\photos": "did you mean dataset=folder dataset.path='C:\\photos'?",
    "train={epochs:5}": "settings of train are written train.KEY=VALUE",
    "augment=False": "did you mean none?",
    "-m seed=0,1 hydra.launcher.n_jobs=1,2": "cannot be searched",
    "+tracking.tags.note=null": "it cannot be null",
}
WORDS = {
    "predict outptu=x.csv images=a": "outptu: no such key; did you mean output? choose one of",
    "promote min_accuracy=0.9": "min_accuracy: no such key; did you mean min_test_accuracy?",
    "serve prot=80": "prot: no such key; did you mean port? choose one of",
    "train.epochs==5": "one = is enough, as in train.epochs=5",
    "train.epochs:=5": "one = is enough, as in train.epochs=5",
    "train:epochs=5": "a key is written with single dots, as in train.epochs=5",
    "train..epochs=5": "as in train.epochs=5",
    "!model=cnn": "as in model=cnn",
    "train.epochs=5;seed=3": "settings are words of their own: train.epochs=5 seed=3",
    "model=cnn,seed=3": "settings are words of their own: model=cnn seed=3",
    "model@x=mlp": "a file has its place; write model=mlp",
    "+model@train=mlp": "write model=mlp",
    "hydra/launcher@x=basic": "write hydra/launcher=basic",
    "hydra.verbose=3": "as in hydra.verbose=[pipeline]",
    "-cn sweep/lr_grid": "chosen as in sweep=lr_grid",
    "seed=1 --resolve": "--resolve: has an effect beside --cfg alone, as in --cfg job --resolve",
    "seed=1 --package model": "beside --cfg alone",
    "-m seed=0,1 --cfg job": "--multirun and --cfg: give one of them",
    "--info --cfg job": "--cfg and --info: give one of them",
    "+model=mlp": "a file is chosen without +; write model=mlp",
    "-m +hydra/launcher=ray seed=0,1": "write hydra/launcher=ray",
    "-sc": 'write eval "$(python -m pipeline -sc install=bash)"',
    "-sc query=zsh": "install=bash",
    "seed=1 -sc query=bash": "install=bash",
    "~=3": "settings are written key=value",
    "hydra=3": "written hydra.KEY=VALUE each",
    "=5": "a key must stand before =, as in seed=5",
    "--sweep seed=1,2": "several values are tried with -m",
    "-M seed=1,2": "several values are tried with -m",
    "-m=seed=0,1": "write -m seed=0,1",
    "\u2013m seed=0,1": "a flag begins with -",
    "multirun seed=0,1": "did you mean --multirun?",
    "help": "did you mean --help?",
    "--dry-run": "--cfg job shows",
    "--config conf/x.yaml": "as in experiment=fast",
    "doctor --fix": "as in fix=true",
    "doctor fix": "did you mean fix=true?",
    "predict photos/": "did you mean images=photos/?",
    "promote best": "did you mean run_id=best?",
    "compare ab12 cd34": "did you mean runs=ab12,cd34?",
    "evalute run_id=latest": "did you mean evaluate?",
    "tracking.run_name=my first run seed=3": "to quote tracking.run_name='my first run'?",
    "promote reason=the demo": "did you mean to quote reason='the demo'?",
    "model mlp": "settings are written key=value: model=mlp",
    "seed=1 epochs 5": "settings are written key=value: train.epochs=5",
    "train.epochs: 5": "settings are written key=value: train.epochs=5",
    "--seed 3": "settings are written key=value, as in seed=3",
    "seed=1 2": "did you mean seed=1,2? several values have no spaces between, and need -m",
    "-m seed=1 2": "did you mean seed=1,2? several values have no spaces between\n",
    "-m seed=1, 2, 3 model=mlp": "did you mean seed=1,2,3?",
    "-m model=mlp, cnn": "did you mean model=mlp,cnn? several values have no spaces between\n",
    "-m seed=1,2 experiment=fast, tiny": "did you mean experiment=fast,tiny?",
    "-m hydra/launcher=a, b": "did you mean hydra/launcher=a,b?",
    "model.hidden=[64, 32]": 'spaces; write it in quotes: "model.hidden=[64, 32]"\n',
    "evaluate.metrics=[accuracy, ece] seed=3": 'in quotes: "evaluate.metrics=[accuracy, ece]"\n',
    "dataset.classes={a: [b, c], d: e}": 'in quotes: "dataset.classes={a: [b, c], d: e}"\n',
    "compare runs=[ab12, cd34]": 'in quotes: "runs=[ab12, cd34]"\n',
    "seed=1, 2": "did you mean seed=1,2?",
    "seed =3": "no spaces around =, as in seed=3",
    "seed= 3": "no spaces around =, as in seed=3",
    "seed = 3": "no spaces around =, as in seed=3",
    "dataset=digits evaluate": "the verb comes first, as in python -m pipeline evaluate",
    "seed=1 foo": "as in train.epochs=5",
}


def answer(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, list[str]]:
    """The exit code and complaint for a command line, and what it would have Hydra do."""
    monkeypatch.setattr("hydra.main", lambda **_: lambda task: lambda: None)
    monkeypatch.setattr(sys, "argv", ["pipeline", *words])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # main() sets it
    code = module.main()
    return code, capfd.readouterr().err, sys.argv[1:]


@pytest.mark.parametrize("line", [*EFFECT, *VALUES, *WORDS])
def test_a_mistake_is_refused_in_a_line_with_what_to_type_instead(
    line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = answer(line.split(" "), monkeypatch, capfd)
    assert code == 2
    assert (EFFECT | VALUES | WORDS)[line] in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("word", ["model mlp", "model: mlp", " seed=1"])
def test_so_is_one_within_a_word(
    word: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = answer([word], monkeypatch, capfd)
    assert (code, len(said.splitlines())) == (2, 1)
    assert "settings are written key=value" in said


@pytest.mark.parametrize(
    ("line", "handed"),
    [
        ("seed=0 -m model=mlp,cnn", "--multirun seed=0 model=mlp,cnn"),
        ("-m run seed=0,1", "--multirun seed=0,1"),
        ("-m sweep=lr_grid sweep.preview=true", "--multirun sweep=lr_grid sweep.preview=true"),
        ("-m seed=0,1 seed=7", "--multirun seed=0,1 seed=7"),  # which the sweep refuses
        ("--cfg hydra sweep=lr_grid compare.top=3", "--cfg=hydra sweep=lr_grid compare.top=3"),
        (
            "--cfg job --package sweep sweep=lr_grid",
            "--cfg=job --package=sweep sweep=lr_grid",
        ),
        ("--help run_id=latest sweep.seed=3", "--help run_id=latest sweep.seed=3"),
        ("-m model.hidden=[64],[32]", "--multirun model.hidden=[64],[32]"),
        ("train.patience=null schedule=constant", "train.patience=null schedule=constant"),
        ("train.tensorboard=True train.xla=FALSE", "train.tensorboard=True train.xla=FALSE"),
        ("run --mlproject seed=3 overrides=++seed=3", "seed=3"),
        (
            "-m dataset=folder dataset.path=a dataset.seed=0,1 preprocess.seed=${dataset.seed}",
            "--multirun dataset=folder dataset.path=a dataset.seed=0,1 "
            "preprocess.seed=${dataset.seed}",
        ),
    ],
)
def test_what_is_no_mistake_is_handed_to_hydra(
    line: str, handed: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert answer(line.split(" "), monkeypatch, capfd) == (0, "", handed.split(" "))


def test_flags_within_the_overrides_of_an_mlproject_are_heeded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--mlproject", "dataset=digits", "overrides=-m seed=1,2"]
    handed = ["--multirun", "dataset=digits", "seed=1,2"]
    assert answer(words, monkeypatch, capfd) == (0, "", handed)
    words = ["predict", "--mlproject", "images=x", "overrides=predict.images=x --cfg job"]
    assert answer(words, monkeypatch, capfd)[2][0] == "--cfg=job"
    assert sys.argv[-1] == "predict.images=x"


def test_a_parameter_of_an_mlproject_that_overrides_contradict_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--mlproject", "images=x", "overrides=predict.images=y"]
    assert "give predict.images once" in answer(words, monkeypatch, capfd)[1]


def test_a_file_of_ones_own_is_among_the_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "none.yaml").touch()
    words = ["model=null", "--config-dir", str(tmp_path)]
    assert "write model=none" in answer(words, monkeypatch, capfd)[1]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("seed=0,1", "several values make a sweep"),
        (
            "sweep.preview=true",
            "only a sweep has sweep.preview; leave it out, for compose describes",
        ),
        (
            "hydra/launcher=ray",
            "hydra/launcher=ray: only a sweep has it; leave it out, for compose",
        ),
        (
            "drift.path=new",
            "drift.path=new is not a setting of a run; it belongs to the verb drift",
        ),
        ("promote.force=True", r"it belongs to pipeline.promote\(…, force=True\)"),
        ("train.patience=None", "write null"),
        ("augment=null", "write augment=none"),
        ("hydra.run.dir=runs/a", r"as in pipeline.run\(config, folder=…\)"),
        ("hydra.verbose=true", "hydra.verbose=true has no effect on pipeline.compose; leave it"),
        ("hydra/job_logging=none", "no effect on pipeline.compose; leave it out"),
        ("run_id=latest", r"run_id=latest has no effect on pipeline.compose; .*find_run\(…\)"),
    ],
)
def test_python_is_told_in_its_own_terms(word: str, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        compose(word)


def test_a_list_with_spaces_is_told_with_commas(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for value in ("64 32", "'64 32'", "64  32"):
        code, told, _ = answer([f"model.hidden={value}"], monkeypatch, capfd)
        assert code == 2
        assert "as in model.hidden=[64,32]" in told


@pytest.mark.parametrize("names", ["['Ankle boot', Bag]", "[Ankle boot,Bag]", "[10, 9]"])
def test_names_of_classes_may_have_spaces_and_be_numbers(names: str) -> None:
    config = compose("dataset=npz", "dataset.path=x.npz", f"dataset.class_names={names}")
    assert config.dataset["class_names"] in (["Ankle boot", "Bag"], ["10", "9"])
