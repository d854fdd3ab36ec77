from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system.errors import RequestError
from pipeline.system.folders import at_work_in, move_in, owner
from tests.commands import environment

HOLD = """
import sys
from pathlib import Path
from pipeline.system.folders import at_work_in
with at_work_in(Path(sys.argv[1])):
    print("at work", flush=True)
    sys.stdin.read()
"""


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
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.keras").write_bytes(b"of another run")
    move_in(tmp_path, "abc")
    assert owner(tmp_path) == "abc"
    assert not (tmp_path / "checkpoints").exists()
