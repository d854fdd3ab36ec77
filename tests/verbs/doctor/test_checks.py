from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config
from pipeline.data import datasets
from pipeline.data.load import data_folder, ingest, preprocess
from pipeline.data.measures import measured
from pipeline.tracking import lineage
from pipeline.verbs.doctor import checks
from pipeline.verbs.doctor.findings import Finding
from tests.commands import configured, of_data
from tests.pictures import LEAF, class_folders

Usage = namedtuple("Usage", "total used free")
NUMPY, TF = version("numpy"), version("tensorflow")
SEES_NO_GPU = "import json; print(json.dumps(dict(version='2', import_s=1, gpus=[])))"


def one(findings: Iterator[Finding]) -> Finding:
    [finding] = findings
    return finding


def states(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.area: finding.state for finding in findings}


def test_this_environment_is_as_the_lock_pins_it() -> None:
    assert states(checks.check_versions()) == {"python": "ok", "libraries": "ok"}


def test_a_python_out_of_range_is_a_problem(tmp_path: Path) -> None:
    shutil.copy(lineage.ROOT / "requirements.lock", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.99"')
    python, _ = checks.check_versions(tmp_path)
    assert (python.state, ">=3.99 is required" in python.says) == ("problem", True)


@pytest.mark.parametrize(
    ("lock", "state", "says"),
    [
        (f"numpy=={NUMPY} \\\n    --hash=sha256:0\n    # via x\n", "ok", f"numpy {NUMPY}"),
        ("numpy==1.0 \\\n", "warning", f"numpy {NUMPY}, pinned 1.0"),
        ("no-such-thing==1.0\n", "problem", "not installed: no-such-thing"),
        ("no-such-thing==1.0 ; python_version < '3'\n", "ok", "all 0"),
        ("".join(f"no-{n}==1\n" for n in range(10)), "problem", "no-7 and 2 more"),
    ],
)
def test_libraries_are_compared_with_what_the_lock_pins(lock: str, state: str, says: str) -> None:
    found = one(checks.libraries(lock))
    assert found.state == state
    assert says in found.says


@pytest.mark.parametrize(
    ("environment", "state"),
    [
        ({}, "ok"),
        ({"OMP_NUM_THREADS": "2"}, "ok"),
        ({"OMP_NUM_THREADS": "3"}, "warning"),
        ({"TF_NUM_INTRAOP_THREADS": "all"}, "warning"),
    ],
)
def test_more_threads_than_cores_are_warned_of(environment: dict[str, str], state: str) -> None:
    assert one(checks.check_threads(environment, 2)).state == state


@pytest.mark.parametrize(("gb", "state"), [(1, "warning"), (9, "ok")])
def test_little_memory_is_warned_of(gb: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = namedtuple("Memory", "total available")(16e9, gb * 1e9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert one(checks.check_hardware()).state == state


def test_a_limit_of_the_memory_is_told_and_a_low_one_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for limit, state in ((2e9, "ok"), (0.5e9, "warning")):
        monkeypatch.setattr(checks, "memory_limit", lambda limit=limit: int(limit))
        found = one(checks.check_hardware())
        assert found.state == state
        assert found.says.endswith(f"; a container or the like limits it to {limit / 1e9} GB")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise ImportError('no libcudart')", "ImportError: no libcudart"),
        ("import os; os.abort()", "killed by signal 6"),
        ("import sys; sys.exit(3)", "no reason given"),
    ],
)
def test_a_tensorflow_that_cannot_be_imported_is_a_problem_with_its_reason(
    code: str, says: str
) -> None:
    with checks.probing(("-c", code)) as probe:
        found = one(checks.tensorflow(probe))
    assert found.state == "problem"
    assert says in found.says


def test_a_tensorflow_that_never_comes_back_is_a_problem_and_leaves_no_process() -> None:
    with checks.probing(("-c", "import time; time.sleep(600)")) as probe:
        found = one(checks.tensorflow(probe, seconds=0.1))
    assert (found.state, "its import took more than 0.1 s" in found.says) == ("problem", True)
    assert str(found.mend).startswith("end other programs and try again")  # a busy machine is slow
    assert probe.returncode is not None


@pytest.mark.parametrize(
    ("made_for", "mend"),
    [("here", "rm -rf .venv/bin && make setup"), ("other", "rm .venv && make setup")],
)
def test_the_environment_of_another_folder_that_a_link_leads_to_is_never_deleted(
    made_for: str, mend: str, tmp_path: Path
) -> None:
    here, disk = tmp_path / "here", tmp_path / "disk"
    for folder in (here, disk):
        folder.mkdir()
    (here / "requirements.lock").touch()
    (here / ".venv").symlink_to(disk)
    (disk / ".ready").write_text(f"/usr/bin/python3\nis 3.11.7, for {tmp_path / made_for}\n")
    with checks.probing(("-c", "raise ImportError")) as probe:
        assert one(checks.tensorflow(probe, root=here)).mend == mend


@pytest.mark.parametrize(
    ("code", "area", "mend"),
    [
        ("raise ImportError", "tensorflow", f"pip install --force-reinstall tensorflow=={TF}"),
        (SEES_NO_GPU, "gpu", "pip install 'image-classification-pipeline[gpu]'"),
    ],
)
def test_an_installed_package_is_mended_by_pip_and_never_by_deleting_a_project_s_environment(
    code: str, area: str, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "NVIDIA_DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with checks.probing(("-c", code)) as probe:
        found = {finding.area: finding for finding in checks.tensorflow(probe, root=tmp_path)}
    assert found[area].mend == mend


@pytest.mark.parametrize(
    ("seconds", "gpus", "expected"),
    [
        (4.0, "[]", {"tensorflow": "ok", "gpu": "ok"}),
        (40.0, "['GPU:0']", {"tensorflow": "warning", "gpu": "ok"}),
    ],
)
def test_what_tensorflow_says_of_itself_is_shown(
    seconds: float, gpus: str, expected: dict[str, str]
) -> None:
    code = f"import json; print(json.dumps(dict(version='2', import_s={seconds}, gpus={gpus})))"
    with checks.probing(("-c", f"print('a greeting'); {code}")) as probe:
        found = list(checks.tensorflow(probe))
    assert {finding.area: finding.state for finding in found} == expected
    assert f"imported in {seconds} s" in found[0].says


@pytest.mark.parametrize(
    ("shown", "mend"),
    [
        *((None, "make gpu"), ("0,1", "make gpu"), ("GPU-1a2b", "make gpu")),
        *(("", "unset CUDA_VISIBLE_DEVICES"), ("-1", "unset CUDA_VISIBLE_DEVICES")),
    ],
)
def test_a_gpu_that_a_variable_hides_is_told_with_the_variable(
    shown: str | None, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "NVIDIA_DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    with checks.probing(("-c", SEES_NO_GPU)) as probe:
        found = {finding.area: finding for finding in checks.tensorflow(probe)}["gpu"]
    assert (found.state, found.mend) == ("warning", mend)
    assert ("CUDA_VISIBLE_DEVICES" in found.says) == (mend != "make gpu")


@pytest.fixture
def digits(tmp_path: Path) -> Config:
    return configured("dataset=digits", f"data_dir={tmp_path}/data")


def test_a_bundled_data_set_needs_no_cache(digits: Config) -> None:
    assert one(checks.data(digits)).state == "ok"
    assert not Path(digits.data_dir).exists()


def test_a_cached_data_set_is_verified_and_a_changed_one_told(digits: Config) -> None:
    ingest(digits)
    assert one(checks.data(digits)).says.startswith("digits is cached and intact")
    [labels] = Path(digits.data_dir).rglob("raw-*/test_labels.npy")
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    found = one(checks.data(digits))
    assert found.state == "warning"
    assert "test_labels.npy was changed" in found.says
    assert found.mend is not None
    assert found.mend == f"rm -r -- {labels.parent} (a run that needs them makes them again)"


def test_packed_pictures_are_verified_too_and_data_sets_in_subfolders(tmp_path: Path) -> None:
    leaf = {**LEAF, "path": str(class_folders(tmp_path / "photos"))}
    config = of_data(leaf, "mine/birds", tmp_path / "data")
    raw = ingest(config)
    measured(raw, data_folder(config))
    assert one(checks.data(config)).says.startswith("mine/birds is cached and intact")
    for kind in ("pixels", "raw", "measures"):
        [array, *_] = sorted((tmp_path / "data").rglob(f"{kind}-*/*.npy"))
        content = array.read_bytes()
        array.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"{array.parent}: {array.name} was changed" in one(checks.data(config)).says
        array.write_bytes(content)


def test_entries_that_cannot_be_read_are_told_without_deleting_them(
    digits: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(ingest(digits), digits)
    [raw] = Path(digits.data_dir).rglob("raw-*")
    shutil.rmtree(raw)  # what is derived from it is checked without it
    [entry] = Path(digits.data_dir).rglob("split-*")

    def closed(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(checks.cache, "damage", closed)
    found, _ = checks.data(digits)
    assert (found.state, found.says) == ("warning", f"cannot be read: {entry}: Permission denied")
    assert "rm " not in str(found.mend)


def fashion(tmp_path: Path, *overrides: str) -> Finding:
    return one(checks.data(configured(f"data_dir={tmp_path}/data", *overrides)))


def test_where_a_data_set_that_is_not_cached_would_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    known = datasets.FASHION_MNIST
    monkeypatch.setattr(
        datasets,
        "FASHION_MNIST",
        checks.IdxDataset(checksums=known.checksums, mirrors=(), system_folder=files),
    )
    assert fashion(tmp_path).state == "warning"  # it would be downloaded
    assert fashion(tmp_path, "dataset.download=false").state == "problem"
    assert fashion(tmp_path, f"dataset.folder={files}").state == "problem"
    for name in known.checksums:
        (files / f"{name}.gz").touch()
    assert fashion(tmp_path).says == f"fashion_mnist is not cached yet; {files} has it"
    assert fashion(tmp_path, f"dataset.folder={files}").state == "ok"


def test_what_is_said_of_a_data_set_is_what_a_run_would_do(tmp_path: Path) -> None:
    found = fashion(tmp_path, "dataset=cifar10")
    assert found.says == "cifar10 is neither cached nor installed; it is downloaded on first use"
    photos = class_folders(tmp_path / "photos")
    of_photos = fashion(tmp_path, "dataset=folder", f"dataset.path={photos}")
    assert (of_photos.state, of_photos.says) == ("ok", f"folder is not cached yet; {photos} has it")
    for words in (
        ("dataset=cifar10", "dataset.download=false"),
        ("dataset=npz", f"dataset.path={tmp_path}/none.npz"),
        ("dataset=folder", f"dataset.path={tmp_path}/none"),
        ("dataset=folder",),
    ):
        found = fashion(tmp_path, *words)
        assert (found.state, found.says.startswith("dataset.")) == ("problem", True)
        assert found.mend == f"python -m pipeline ingest {words[0]} dataset.path=…"


def test_files_of_arrays_are_searched_once_and_a_closed_folder_is_told_as_by_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "files").mkdir()
    for name in ("train-images", "train-labels", "test-images", "test-labels"):
        (tmp_path / f"files/{name}-idx1-ubyte").touch()
    searched, walk = list[str](), os.walk

    def counted(top: Path, **keys: Any) -> Any:
        searched.append(str(top))
        return walk(top, **keys)

    def closed(top: Path, **keys: Any) -> Any:
        if Path(top).name == "files":
            raise PermissionError(13, "Permission denied", str(top))
        return walk(top, **keys)

    words = ("dataset=idx", f"dataset.path={tmp_path}/files")
    monkeypatch.setattr(os, "walk", counted)
    assert fashion(tmp_path, *words).state == "ok"
    assert searched.count(f"{tmp_path}/files") == 1
    monkeypatch.setattr(os, "walk", closed)
    found = fashion(tmp_path, *words)
    assert found.says.startswith(f"{tmp_path}/files: Permission denied; ")
    assert found.mend == "python -m pipeline ingest dataset=idx dataset.path=…"


@pytest.mark.parametrize(("free_gb", "state"), [(100, "ok"), (2, "warning"), (0.1, "problem")])
def test_free_space_is_judged(
    free_gb: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(500e9, 0, free_gb * 1e9))
    assert one(checks.disk(tmp_path, tmp_path / "made" / "later")).state == state
    assert list(tmp_path.iterdir()) == []


def test_the_space_of_a_small_disk_is_told_in_mb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(30e6, 0, 12e6))
    assert one(checks.disk(tmp_path)).says.startswith("12.0 MB of 30.0 MB free on the disk of ")


def test_a_folder_that_cannot_be_written_is_a_problem() -> None:
    found = one(checks.disk(Path("/proc/self/data")))
    assert found.state == "problem"
    assert "cannot be written" in found.says
