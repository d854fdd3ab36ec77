"""Modes of the files that are written, and the check of the locks: row 45."""

from __future__ import annotations

import os
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.commands import DRAWN, pipeline
from tests.stress.matrix import matrix, stressed, tally

ROOT = Path(__file__).parents[2]
OWNERS_ALONE = Path("data/xla")  # below it lie compiled programs, by machine


@pytest.mark.slow
@matrix(45)
def test_what_is_written_has_the_modes_of_the_umask(tmp_path: Path) -> None:
    masks = (0o027, 0o077, 0o022)[: stressed(3, 1)]
    tally(len(masks))
    for mask in masks:
        folder = tmp_path / f"{mask:o}"
        folder.mkdir()
        words = (*DRAWN, "train.plots=[]", "evaluate.plots=[]")
        ended = pipeline(*words, cwd=folder, before=partial(os.umask, mask))
        assert ended.returncode == 0, ended.stderr
        wrong = {}
        for path in folder.rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            if folder / OWNERS_ALONE in path.parents:
                allowed = 0o700
            else:
                allowed = (0o777 if path.is_dir() else 0o666) & ~mask
            if mode & ~allowed or not mode & 0o400:
                wrong[str(path.relative_to(folder))] = oct(mode)
        assert not wrong


@pytest.mark.parametrize(
    ("says", "code", "told"),
    [
        ("No known vulnerabilities found", 0, "requirements.lock: no known vulnerability"),
        ("Found 1 known vulnerability in 1 package", 1, "make lock ARGS="),
        ("ConnectionError: name resolution", 2, "not checked (exit code 1)"),
    ],
)
@matrix(45)
def test_the_locks_are_compared_with_known_vulnerabilities_or_it_is_said_that_they_are_not(
    says: str, code: int, told: str, tmp_path: Path
) -> None:
    audit = tmp_path / "audit"
    audit.write_text(f"#!/bin/sh\necho '{says}'\nexit {int(code > 0)}\n")
    audit.chmod(0o755)
    made = subprocess.run(
        [ROOT / ".ci" / "vulnerabilities"],
        env={**os.environ, "AUDIT": str(audit), "LOCKS": "requirements.lock"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == code
    assert told in made.stdout + made.stderr
