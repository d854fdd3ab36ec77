from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import pytest

from pipeline.verbs import verbs
from tests.commands import (
    CONF,
    DRAWN,
    QUICK,
    environment,
    free_port,
    fresh_pipeline,
    fresh_unread,
    pipeline,
    results,
    unread,
)
from tests.stores import MADE_ONCE, empty_store
from tests.stress.matrix import matrix, only_stressed

pytestmark = pytest.mark.slow

# Runs several command lines in forks of one process that has imported what all of them import.
DRIVER = """
import json, os, sys
from pipeline.__main__ import main
from tests.commands import choose_once, compose_once, configured, parse_once
parse_once()
choose_once()
configured()  # imports and finds once what each of them would
compose_once()
for number, arguments in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv[1:] = arguments
        try:
            code = main()
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        heavy = [name for name in ("tensorflow", "mlflow") if name in sys.modules]
        with open(f"{number}.json", "w") as file:
            json.dump({"code": code, "imported": heavy}, file)
        os._exit(0)
    os.waitpid(child, 0)
"""

# The command line, and what its complaint must say.
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "a misspelt key": (
        ["train.epoch=3"],
        ["train.epoch: no such key", "did you mean epochs?", "batch_size"],
    ),
    "a misspelt top key": (["sed=3"], ["sed: no such key", "did you mean seed?"]),
    "a misspelt key of a leaf": (["model.hiden=[3]"], ["model.hiden", "did you mean hidden?"]),
    "a value out of range": (["train.epochs=0"], ["train.epochs", "must be at least 1"]),
    "a value of a wrong type": (["train.epochs=many"], ["train.epochs=many", "whole number"]),
    "a leaf's value out of range": (["model.dropout=1"], ["model.dropout", "must be below 1"]),
    "an unknown metric": (["evaluate.metrics=[acuracy]"], ["evaluate.metrics", "accuracy"]),
    "an unknown choice": (
        ["optimizer=adan"],
        ["optimizer=adan: no such choice", "did you mean adam?", "rmsprop, schedule_free, sgd"],
    ),
    "a path with a line break": (
        ["dataset=folder", "dataset.path=no\nwhere"],
        ["dataset.path=no\\nwhere: no such file or folder"],
    ),
    "an unknown verb": (["rnu"], ["no verb 'rnu'", "run", "evaluate"]),
    "an override without a value": (["run", "seed"], ["cannot read the override 'seed'"]),
    "an unreadable override": (
        ["model.hidden=[256,"],
        ["model.hidden=[256,: a list is written [256]"],
    ),
    "a builder that is not ours": (
        ["model._target_=os.system"],
        ["model._target_: 'os.system' is not allowed", "pipeline.training.models.mlp"],
    ),
    "an added top key": (["+foo=3"], ["foo"]),
    "an added leaf parameter": (["+model.foo=1"], ["model.foo: no such parameter"]),
    "settings at odds": (
        ["preprocess.validation_size=0", "train.patience=3"],
        ["preprocess.validation_size=0", "train.patience"],
    ),
    "a metric of the test split, without it": (
        ["train", "evaluate.metrics=[ece]"],
        ["evaluate.metrics=[ece] has no effect where the test split is not used", "leave it out"],
    ),
    "a store for a run without one": (
        ["tracking.offline=true", "tracking.uri=sqlite:///a.db"],
        ["tracking.uri=", "has no effect with tracking.offline=true", "sync"],
    ),
    "a repetition without a store": (
        ["reproduce", "run_id=abcd", "tracking.offline=true"],
        ["tracking.offline=true: only a new run can do without a store, not reproduce"],
    ),
    "a place for the artefacts of a repetition": (
        ["reproduce", "run_id=abcd", "tracking.artifact_root=there"],
        ["tracking.artifact_root=there has no effect on reproduce"],
    ),
    "a run folder under a file": (["hydra.run.dir=file/run"], ["file", "Not a directory"]),
    "a run folder that cannot be": (["hydra.run.dir=/proc/nowhere"], ["/proc/nowhere"]),
    "pictures without a path": (["dataset=folder"], ["dataset.path is missing: a folder, an arch"]),
    "pictures that are not there": (
        ["dataset=folder", "dataset.path=nowhere"],
        ["dataset.path=nowhere: no such file or folder"],
    ),
    "a folder without pictures": (["dataset=folder", "dataset.path=."], ["no pictures there"]),
    "arrays in a file that is no archive": (
        ["train", "dataset=npz", "dataset.path=file"],
        ["file: this is no file of numpy.savez"],
    ),
    "a data set that may not be fetched": (
        ["dataset=cifar10", "dataset.download=false"],
        ["dataset.download=false, and dataset.path is missing"],
    ),
    "a list of exclusions that is not there": (
        ["dataset=digits", "dataset.exclude=nowhere.csv"],
        ["dataset.exclude=nowhere.csv: No such file"],
    ),
    "data to audit that are not there": (
        ["audit", "dataset=idx", "dataset.path=nowhere"],
        ["dataset.path=nowhere: no such file or folder"],
    ),
    "a name that would steer the terminal": (
        ["dataset=folder", "dataset.path=a\x1b[31m"],
        ["dataset.path=a\\x1b[31m: no such file"],
    ),
    "a name that is not in UTF-8": (
        ["predict", "images=a\udcff.png"],
        ["images=a\\xff.png: this is not in UTF-8", "rename"],
    ),
    "a network that cannot be built": (
        ["dataset=digits", "model.residual=true"],
        ["model=mlp: residual needs two equal widths"],
    ),
    "weights that are not there": (
        ["dataset=digits", "model=efficientnet_lite0", "model.weights=nowhere.keras"],
        ["model.weights=nowhere.keras: there is no such file"],
    ),
    "a bad value in a sweep": (["-m", "seed=0,1", "train.batch_size=0"], ["train.batch_size"]),
    "a setting of a sweep out of range": (
        ["-m", "seed=0,1", "sweep.timeout_s=0"],
        ["sweep.timeout_s", "above 0"],
    ),
    "a direction that contradicts the metric": (
        ["-m", "seed=0,1", "sweep.direction=[minimize]"],
        ["sweep.direction: val/accuracy is to maximize"],
    ),
    "the same run twice": (["-m", "seed=0,0"], ["jobs 0 (seed=0) and 1 (seed=0) are the same"]),
    "the same trial twice": (
        ["-m", "hydra/sweeper=search", "seed=0,0"],
        ["jobs 0 (seed=0) and 1 (seed=0) are the same"],
    ),
    "a sweep without its data": (["-m", "seed=0,1", "dataset=npz"], ["dataset.path is missing"]),
    "a setting for a run to resume": (
        ["resume", "run_id=latest", "train.epochs=30"],
        ["train.epochs=30: resume takes the configuration that the run has recorded"],
    ),
    "a setting for a run to reproduce": (
        ["reproduce", "run_id=latest", "seed=3"],
        ["seed=3: reproduce takes the configuration that the run has recorded"],
    ),
    "a folder without anything to send": (
        ["sync", "folder=/nowhere"],
        ["sync.folder=/nowhere: there is nothing to send"],
    ),
}
SHOWN: dict[str, tuple[list[str], list[str]]] = {
    "help": (["--help"], ["python -m pipeline model=cnn", "verbs", "evaluate", "fashion_mnist"]),
    "the help of a verb": (["train", "--help"], ["verbs"]),
    "the help of a verb with keys of its own": (
        ["predict", "--help"],
        ["usage: python -m pipeline predict images=photos", "output: predictions.csv"],
    ),
    "the configuration": (["--cfg", "job", "seed=7"], ["seed: 7", "epochs: 20"]),
    "hydra's help": (["--hydra-help"], ["--multirun"]),
}
# Shown, and then refused as without --cfg.
DRY: dict[str, tuple[list[str], list[str]]] = {
    "a value out of range, tried": (["--cfg", "job", "train.epochs=0"], ["train.epochs: must be"]),
    "a setting without effect, tried": (
        ["--cfg", "job", "train.epochs=5", "train.patience=30"],
        ["train.patience=30 has no effect"],
    ),
    "keys of a verb at odds, tried": (
        ["compare", "--cfg", "all", "runs=ab,cd", "sweep=latest"],
        ["compare.sweep=latest has no effect beside compare.runs"],
    ),
}


@dataclass(frozen=True)
class Answer:
    code: int
    imported: list[str]
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Answer]:
    (folder / "file").write_text("a file, not a folder")
    cases = REFUSED | SHOWN | DRY
    subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([arguments for arguments, _ in cases.values()]),
        text=True,
        cwd=folder,
        env=environment(),
        check=True,
        timeout=300,
    )
    return {
        name: Answer(
            **json.loads((folder / f"{number}.json").read_text()),
            out=(folder / f"{number}.out").read_text(),
            err=(folder / f"{number}.err").read_text(),
        )
        for number, name in enumerate(cases)
    }


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_two_lines_before_tensorflow_is_imported(
    case: str, answers: dict[str, Answer]
) -> None:
    answer = answers[case]
    assert (answer.code, answer.out, answer.imported) == (2, "", [])
    assert_helpful(answer.err, *REFUSED[case][1])


def test_what_is_refused_opens_no_run(folder: Path, answers: dict[str, Answer]) -> None:
    assert answers
    assert not (folder / "mlflow.db").exists()
    assert not list(folder.rglob("journal*"))


@pytest.mark.parametrize("case", SHOWN)
def test_shows_without_importing_tensorflow(case: str, answers: dict[str, Answer]) -> None:
    answer = answers[case]
    assert (answer.code, answer.err, answer.imported) == (0, "", [])
    for text in SHOWN[case][1]:
        assert text in answer.out


@pytest.mark.parametrize("case", DRY)
def test_a_configuration_that_is_shown_is_checked_too(
    case: str, answers: dict[str, Answer]
) -> None:
    answer = answers[case]
    assert (answer.code, answer.imported) == (2, [])
    assert "epochs: " in answer.out
    assert_helpful(answer.err, *DRY[case][1])


def test_help_names_every_verb_with_its_description(answers: dict[str, Answer]) -> None:
    for name, verb in verbs().items():
        assert re.search(rf"^ +{name} +{re.escape(verb.help)}$", answers["help"].out, re.M), name


def test_the_process_itself_ends_with_the_exit_code(tmp_path: Path) -> None:
    ended = fresh_pipeline("train.epoch=3", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_helpful(ended.stderr, "train.epoch: no such key")


def test_a_refused_command_line_leaves_nothing_in_the_folder(tmp_path: Path) -> None:
    assert pipeline("model=mpl", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_refused_group_of_jobs_is_refused_as_one_run_is(tmp_path: Path) -> None:
    ended = pipeline("-m", "seed=0,1", "train.epochs=0", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("train.epochs: ")


def test_a_command_that_nobody_reads_any_more_ends_as_sigpipe_would_end_it(tmp_path: Path) -> None:
    ended = fresh_unread("--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_table_that_nobody_reads_any_more_is_no_failure(tmp_path: Path) -> None:
    ended = unread("history", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize(
    ("said", "told"),
    [((), "what was recorded so far is kept"), (("3 rows are written",), "3 rows are written")],
)
@matrix(13)
def test_a_command_that_is_stopped_says_what_has_become_of_its_work(
    said: tuple[str, ...],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from pipeline import __main__ as module

    def stopped() -> None:
        module.stopped_by.append(signal.SIGINT)
        raise KeyboardInterrupt(*said)

    monkeypatch.setattr(module, "stopped_by", [])
    monkeypatch.setattr("hydra.main", lambda **_: lambda task: stopped)
    monkeypatch.setattr(sys, "argv", ["pipeline"])
    assert module.main() == 130
    assert capfd.readouterr().err == f"stopped by SIGINT; {told}\n"


@pytest.mark.parametrize("words", [["--version"], ["predict", "--version"]])
def test_the_version_is_the_pipelines_own_beside_those_of_its_libraries(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline import __main__ as module

    own = tomllib.loads((CONF.parent / "pyproject.toml").read_text())["project"]["version"]
    monkeypatch.setattr(sys, "argv", ["pipeline", *words])
    assert module.main() == 0
    said = capfd.readouterr().out
    assert said.startswith(f"image-classification-pipeline {own} (Python {python_version()}, ")
    for library in ("tensorflow", "mlflow", "hydra-core"):
        assert f"{library} {version(library)}" in said


@pytest.mark.parametrize(
    ("before", "code"), [(signal.SIG_DFL, 128 + signal.SIGHUP), (signal.SIG_IGN, 0)]
)
@matrix(13)
def test_a_command_whose_terminal_is_closed_ends_tidily_except_under_nohup(
    before: signal.Handlers,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from pipeline import __main__ as module

    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(module, "stopped_by", [])
    monkeypatch.setattr("hydra.main", lambda **_: lambda task: partial(hang_up, os.getpid()))
    monkeypatch.setattr(sys, "argv", ["pipeline"])
    try:
        signal.signal(signal.SIGHUP, before)
        assert module.main() == code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = "stopped by SIGHUP; what was recorded so far is kept\n"
    assert capfd.readouterr() == ("recorded\n", said if code else "")


def hang_up(process: int) -> None:
    """Work whose terminal is closed, which both the terminal and the shell may tell."""
    try:
        os.kill(process, signal.SIGHUP)
    finally:
        os.kill(process, signal.SIGHUP)
        print("recorded", flush=True)


def test_windows_is_refused_with_what_to_use_instead(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline import __main__ as module

    monkeypatch.setattr(sys, "platform", "win32")
    assert module.main() == 2
    assert "WSL" in capfd.readouterr().err


def test_a_broken_pipe_that_is_not_the_output_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline import __main__ as module

    def broken() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("hydra.main", lambda **_: lambda task: broken)
    monkeypatch.setattr(sys, "argv", ["pipeline"])
    assert module.main() == 2
    assert capfd.readouterr().err == "BrokenPipeError: [Errno 32] Broken pipe\n"


def test_hydra_full_error_shows_the_traceback(tmp_path: Path) -> None:
    ended = pipeline("train.epoch=3", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert ended.returncode == 2
    assert ended.stderr.startswith("Traceback (most recent call last)")


def ingest(folder: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return pipeline("ingest", f"dataset.folder={folder}", "dataset.download=false", cwd=cwd)


def all_four(folder: Path, content: Callable[[str], bytes]) -> Path:
    folder.mkdir()
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{part}-ubyte").write_bytes(content(part))
    return folder


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    ended = ingest(tmp_path / "nowhere", tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_helpful(ended.stderr, f"dataset.folder={tmp_path}/nowhere", "no such folder")


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    folder = all_four(tmp_path / "data_files", lambda part: b"")
    (folder / "train-labels-idx1-ubyte").unlink()
    ended = ingest(folder, tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_helpful(ended.stderr, "train-labels-idx1-ubyte", "missing")


@matrix(26)
def test_a_tampered_data_file_is_named_with_its_checksum_and_nothing_is_cached(
    tmp_path: Path,
) -> None:
    tampered = b"\0\0\x08\x03" + (1).to_bytes(4, "big") * 3 + b"\7"
    folder = all_four(tmp_path / "data_files", lambda part: tampered)
    ended = ingest(folder, tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    path, start = folder / "train-images-idx3-ubyte", hashlib.sha256(tampered).hexdigest()[:12]
    assert_helpful(ended.stderr, str(path), start)
    assert [p for p in (tmp_path / "data").rglob("*") if p.suffix in (".npy", ".partial")] == []


@matrix(29)
def test_a_truncated_packed_data_file_is_named(tmp_path: Path) -> None:
    folder = all_four(tmp_path / "data_files", lambda part: b"")
    packed = folder / "train-images-idx3-ubyte.gz"
    packed.write_bytes(bytes.fromhex("1f8b0800000000000003"))
    ended = ingest(folder, tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_helpful(ended.stderr, str(packed))


@matrix(23)
def test_a_data_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = pipeline("ingest", "dataset=synthetic", "data_dir=file/data", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert_helpful(ended.stderr, "file/data", "Not a directory")


@matrix(22)
def test_a_full_disk_while_caching_is_told_with_the_file_and_leaves_no_half(
    tmp_path: Path,
) -> None:
    ended = limited("ingest", "dataset=synthetic", cwd=tmp_path, bytes_a_file=100_000)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert_helpful(ended.stderr, "data/synthetic/raw-")
    assert [p for p in (tmp_path / "data").rglob("*") if p.suffix == ".npy"] == []
    assert pipeline("ingest", "dataset=synthetic", cwd=tmp_path).returncode == 0


@matrix(22)
def test_a_full_disk_during_a_run_is_told_and_the_next_run_works(tmp_path: Path) -> None:
    assert pipeline("preprocess", "dataset=synthetic", cwd=tmp_path).returncode == 0
    ended = limited(*DRAWN, "model=mlp", cwd=tmp_path, bytes_a_file=1_500_000)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert_helpful(ended.stderr, "File too large", "free", f"log is in {tmp_path}/outputs/")
    assert list(tmp_path.rglob("*.partial*")) == []
    after = pipeline(*QUICK, cwd=tmp_path)
    assert after.returncode == 0
    assert results(after.stdout)["run_id"]


@matrix(17)
def test_an_unreachable_tracking_server_is_refused_before_the_work(tmp_path: Path) -> None:
    address = f"http://someone:secret@127.0.0.1:{free_port()}"
    ended = pipeline(*QUICK, f"tracking.uri={address}", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_helpful(ended.stderr, "127.0.0.1", "nothing answers there", "tracking.uri=")
    assert "secret" not in ended.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("start", [pipeline, pytest.param(fresh_pipeline, marks=only_stressed)])
@matrix(25)
def test_a_failed_run_says_so_in_two_lines_and_logs_its_traceback(
    start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    diverging = ["model=mlp", "model.hidden=[4]", "optimizer=sgd", "optimizer.learning_rate=1e30"]
    talkative = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_MAX_VLOG_LEVEL": "1"}  # JAX sets the first
    empty_store(tmp_path)
    ended = start(*QUICK, *diverging, cwd=tmp_path, **talkative)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert_helpful(ended.stderr, "the loss became nan in epoch 1", "optimizer.learning_rate")
    [log] = tmp_path.glob("outputs/*/*/pipeline.log")
    assert str(log.parent.relative_to(tmp_path)) in ended.stderr
    assert "Traceback (most recent call last)" in log.read_text()


def limited(*arguments: str, cwd: Path, bytes_a_file: int) -> subprocess.CompletedProcess[str]:
    """The command line where no file may grow beyond a size, as on a disk that fills up."""
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    return pipeline(*arguments, cwd=cwd, before=partial(limit_files, bytes_a_file), **env)


def limit_files(size: int) -> None:
    os.environ.pop(MADE_ONCE)  # what MLflow writes as it makes a store is too large
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def assert_helpful(stderr: str, *parts: str) -> None:
    """One or two lines that have all the parts and no traceback."""
    lines = stderr.splitlines()
    assert 1 <= len(lines) <= 2, stderr
    assert "Traceback" not in stderr
    for part in parts:
        assert part in stderr
