from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system.errors import RequestError
from pipeline.system.folders import (
    MADE_BY,
    at_work_in,
    claim,
    folder_of_work,
    move_in,
    owner,
    require_writable,
)
from tests.commands import environment
from tests.stress.matrix import matrix

HOLD = """
import sys
from pathlib import Path
from pipeline.system.folders import at_work_in
with at_work_in(Path(sys.argv[1])):
    print("at work", flush=True)
    sys.stdin.read()
"""


def test_a_new_folder_of_work_shows_who_made_it_and_a_given_one_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made, given = folder_of_work(None), folder_of_work("mine")
    assert made.is_relative_to(tmp_path / "outputs")
    assert [MADE_BY[path.name] for path in made.iterdir()] == ["runs"]
    assert given == tmp_path / "mine"
    assert list(given.iterdir()) == []


def test_a_folder_in_which_another_process_works_is_refused_until_that_one_is_killed(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"at work\n"
        with pytest.raises(RequestError, match="another process is at work there"):
            at_work_in(tmp_path).__enter__()
        other.kill()
    with at_work_in(tmp_path):
        pass


def test_a_process_may_enter_its_folder_again(tmp_path: Path) -> None:
    with at_work_in(tmp_path / "new"), at_work_in(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()


def test_a_new_run_takes_the_folder_over_without_the_checkpoints_of_the_one_before(
    tmp_path: Path,
) -> None:
    assert owner(tmp_path) is None
    move_in(tmp_path, "before")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.keras").write_bytes(b"of another run")
    move_in(tmp_path, "abc")
    assert owner(tmp_path) == "abc"
    assert not (tmp_path / "checkpoints").exists()


def test_what_an_earlier_run_left_goes_and_nothing_else(tmp_path: Path) -> None:
    move_in(tmp_path, "first")
    left = ("artifacts/code.patch", "artifacts/tensorboard/train/events", "model/MLmodel")
    for name in (*left, "notes/mine.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("of the first")
    move_in(tmp_path, "first")  # its own stays
    assert (tmp_path / "artifacts" / "code.patch").exists()
    move_in(tmp_path, "second")
    assert owner(tmp_path) == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "run_id"]


@pytest.mark.parametrize("name", ["artifacts", "checkpoints", "model"])
def test_what_no_run_has_left_is_kept_and_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    for enter in (move_in, claim):
        with pytest.raises(RequestError, match="was not made by a run; choose another folder"):
            enter(tmp_path, "abc")
    assert owner(tmp_path) is None
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_a_folder_named_model_that_no_run_has_saved_is_kept(tmp_path: Path) -> None:
    move_in(tmp_path, "first")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.py").touch()
    with pytest.raises(RequestError, match="model was not made by a run"):
        move_in(tmp_path, "second")
    assert (tmp_path / "model" / "mine.py").exists()


def test_a_linked_folder_of_artefacts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.txt").write_text("mine")
    move_in(tmp_path, "first")
    (tmp_path / "artifacts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="was not made by a run"):
        move_in(tmp_path, "second")
    assert (tmp_path / "elsewhere" / "thesis.txt").exists()


def test_what_is_added_to_a_run_goes_to_no_folder_of_another(tmp_path: Path) -> None:
    claim(tmp_path, "abc")
    claim(tmp_path, "abc")
    assert owner(tmp_path) == "abc"
    with pytest.raises(RequestError, match="is the folder of run abc; choose another folder"):
        claim(tmp_path, "def")


@pytest.mark.parametrize("below", ["", "new", "new/and/newer"])
def test_a_place_that_is_no_folder_is_refused_before_anything_is_written_there(
    below: str, tmp_path: Path
) -> None:
    require_writable(tmp_path / below, holds="the artefacts of runs")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="file: cannot be written .* the artefacts of runs are"):
        require_writable(tmp_path / "file" / below, holds="the artefacts of runs")


@pytest.mark.parametrize("kind", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@matrix(22, 23)
def test_a_read_only_or_full_folder_is_refused_by_name(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(RequestError) as caught:
        require_writable(tmp_path / "new", holds="reports")
    assert str(caught.value).startswith(f"{tmp_path}: cannot be written ({os.strerror(kind)})")
