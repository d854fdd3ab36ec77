from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.tracking import lineage
from pipeline.tracking.lineage import Code, code_state


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git configuration for the test alone."""
    settings = tmp_path / "gitconfig"
    settings.write_text("[user]\nname = Test\nemail = test@example.org\n")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return settings


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit of one file."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "model.py").write_text("width = 1\nheight = 2\n")
    (folder / ".gitignore").write_text("*.log\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "First")
    return folder


def rebuilt(checkout: Path, state: Code, tmp_path: Path) -> Path:
    """A fresh clone at the recorded commit with the recorded patch applied."""
    assert state.commit is not None
    clone, patch = tmp_path / "clone", tmp_path / "code.patch"
    git(tmp_path, "clone", "--quiet", str(checkout), str(clone))
    git(clone, "checkout", "--quiet", state.commit)
    patch.write_bytes(state.patch.encode("utf-8", errors="surrogateescape"))
    git(clone, "apply", str(patch))
    return clone


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def test_a_clean_checkout_is_its_commit_and_no_patch(checkout: Path) -> None:
    assert code_state(checkout) == Code(commit=git(checkout, "rev-parse", "HEAD"), patch="")


def test_an_ignored_file_is_no_change(checkout: Path) -> None:
    (checkout / "run.log").write_text("noise")
    assert code_state(checkout).patch == ""


def test_the_patch_gives_the_changed_new_moved_and_removed_files_back(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / "old.py").write_text("old\n")
    (checkout / "gone.py").write_text("gone\n")
    for name in ("weights.bin", "latin.txt", "dos.txt"):
        (checkout / name).touch()
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "Second")
    (checkout / "model.py").write_text("width = 3\nheight = 2")  # and no newline at the end
    (checkout / "folder").mkdir()
    (checkout / "folder" / "new file é.py").write_text("new = True\n")
    (checkout / "empty.py").touch()
    (checkout / "weights.bin").write_bytes(bytes(range(256)))
    (checkout / "latin.txt").write_bytes(b"caf\xe9\n")
    (checkout / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    (checkout / "gone.py").unlink()
    git(checkout, "mv", "old.py", "moved.py")
    assert content(rebuilt(checkout, code_state(checkout), tmp_path)) == content(checkout)


def test_new_files_that_are_not_code_stay_out_of_the_patch(checkout: Path) -> None:
    (checkout / "photos").mkdir()
    (checkout / "photos" / "holiday.jpg").write_bytes(bytes(range(256)))
    git(checkout / "photos", "init", "--quiet")  # nor does a repository inside stand in the way
    assert code_state(checkout) == Code(commit=git(checkout, "rev-parse", "HEAD"), patch="")


def test_what_runs_and_virtual_environments_consist_of_is_no_change(checkout: Path) -> None:
    for name in (
        *("outputs/2026/run/.hydra/config.yaml", "runs/base/artifacts/config.yaml"),
        *("runs/base/run_id", "mine/1/.hydra/config.yaml", "multirun/a/0/artifacts/config.yaml"),
        *("venv/pyvenv.cfg", "venv/lib/site-packages/numpy/core.py", "mlartifacts/1/a.yaml"),
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("made: true")
    assert code_state(checkout).patch == ""
    (checkout / "package/outputs").mkdir(parents=True)
    for name in ("mine/code.py", "package/outputs/heads.py"):
        (checkout / name).write_text("x = 1\n")
        assert name in code_state(checkout).patch


def test_staged_changes_count_like_unstaged_ones(checkout: Path, tmp_path: Path) -> None:
    (checkout / "model.py").write_text("width = 5\n")
    (checkout / "staged.py").write_text("new\n")
    git(checkout, "add", ".")
    (checkout / "model.py").write_text("width = 6\n")
    clone = rebuilt(checkout, code_state(checkout), tmp_path)
    assert (clone / "model.py").read_text() == "width = 6\n"
    assert (clone / "staged.py").read_text() == "new\n"


def test_a_single_new_file_makes_the_checkout_dirty(checkout: Path, tmp_path: Path) -> None:
    (checkout / "new.py").write_text("new\n")
    state = code_state(checkout)
    assert "+++ b/new.py" in state.patch
    assert (rebuilt(checkout, state, tmp_path) / "new.py").read_text() == "new\n"


@pytest.mark.parametrize(
    "setting",
    [
        "diff.noprefix=true",
        "diff.mnemonicPrefix=true",
        "diff.external=false",
        "color.ui=always",
        "status.showUntrackedFiles=no",
    ],
)
def test_the_patch_applies_whatever_the_users_own_settings(
    checkout: Path, tmp_path: Path, own_settings: Path, setting: str
) -> None:
    (checkout / "model.py").write_text("width = 3\n")
    (checkout / "new.py").write_text("new\n")
    before = own_settings.read_text()
    git(checkout, "config", "--global", *setting.split("="))
    state = code_state(checkout)
    own_settings.write_text(before)
    assert content(rebuilt(checkout, state, tmp_path)) == content(checkout)


def test_the_users_index_is_not_touched(checkout: Path) -> None:
    (checkout / "model.py").write_text("width = 3\n")
    (checkout / "staged.py").write_text("staged\n")
    git(checkout, "add", "staged.py")
    (checkout / "new.py").write_text("new\n")
    index = checkout / ".git" / "index"
    status, before = git(checkout, "status", "--porcelain"), index.read_bytes()
    os.utime(checkout / ".gitignore", (1, 1))  # git would like to note this in the index
    assert code_state(checkout).patch
    assert index.read_bytes() == before
    assert git(checkout, "status", "--porcelain") == status
    assert "?? new.py" in status


def test_another_worktree_of_a_repository_is_a_checkout_too(checkout: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(checkout, "worktree", "add", "--quiet", str(tree))
    (tree / "model.py").write_text("width = 3\n")
    assert "+width = 3" in code_state(tree).patch
    assert code_state(checkout).patch == ""


def test_a_repository_without_a_commit_has_neither_commit_nor_patch(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "new.py").write_text("new\n")
    assert code_state(tmp_path) == Code(commit=None, patch="")


def test_a_folder_that_is_no_repository_has_neither_commit_nor_patch(tmp_path: Path) -> None:
    assert code_state(tmp_path) == Code(commit=None, patch="")


def test_a_folder_inside_someone_elses_repository_is_not_taken_for_it(checkout: Path) -> None:
    inside = checkout / "installed"
    inside.mkdir()
    assert code_state(inside) == Code(commit=None, patch="")


def test_a_machine_without_git_has_neither_commit_nor_patch_and_says_so(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    unreadable = "git is not installed"
    assert code_state(checkout) == Code(commit=None, patch="", unreadable=unreadable)
    assert code_state(tmp_path) == Code(commit=None, patch="")


def test_a_checkout_that_git_refuses_to_read_says_so_in_its_words(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # as in a container
    monkeypatch.setenv("LC_ALL", "C")
    if not subprocess.run(["git", "-C", str(checkout), "status"], capture_output=True).returncode:
        pytest.skip("this git does not know that variable of its own tests")
    state = code_state(checkout)
    assert (state.commit, state.patch) == (None, "")
    assert state.unreadable == f"git config --global --add safe.directory {checkout}"


def test_the_environment_lists_every_distribution_as_pip_would() -> None:
    header, *lines = lineage.environment().splitlines()
    assert header.startswith(f"# Python {platform.python_version()} on ")
    assert f"numpy=={version('numpy')}" in lines
    assert lines == sorted(set(lines), key=str.lower)


def test_the_versions_are_those_of_python_and_the_named_libraries() -> None:
    versions = lineage.versions()
    assert versions["python"] == platform.python_version()
    assert versions["keras"] == version("keras")
    assert set(versions) == {"python", *lineage.NAMED}


def test_the_hardware_is_told_in_plain_text() -> None:
    hardware = lineage.hardware()
    assert set(hardware) == {"host", "cpu", "cores", "threads", "memory_gb"}
    assert 1 <= int(hardware["cores"]) <= (os.cpu_count() or 1)
    assert int(hardware["threads"]) >= 1
    assert float(hardware["memory_gb"]) > 0
    assert hardware["cpu"]


def test_where_no_checkout_is_installed_the_users_own_project_is_recorded(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lineage, "ROOT", tmp_path / "site-packages")
    (checkout / "conf").mkdir()
    (checkout / "model.py").write_text("width = 7\nheight = 2\n")
    monkeypatch.chdir(checkout / "conf")
    state = code_state()
    assert state.commit == git(checkout, "rev-parse", "HEAD")
    assert "+width = 7" in state.patch
    monkeypatch.chdir(tmp_path)
    assert code_state() == Code(commit=None, patch="")


def test_the_pipelines_own_version_is_told_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lineage, "own_version", lambda: "3.4")
    assert lineage.versions()["pipeline"] == "3.4"
    monkeypatch.setattr(lineage, "own_version", lambda: None)
    assert "pipeline" not in lineage.versions()
    monkeypatch.undo()
    monkeypatch.setattr(lineage, "PACKAGE", "no-such-package")
    assert lineage.own_version() is None
