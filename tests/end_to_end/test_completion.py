"""What bash offers when Tab is pressed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import environment

pytestmark = pytest.mark.slow

PRESSED = """
eval "$(python -m pipeline --shell-completion install=bash)"
complete -p python
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE}
    COMPREPLY=()
    _pipeline_completion
    echo "${COMPREPLY[*]}"
done
"""


def offered(folder: Path, *lines: str) -> list[str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", PRESSED],
        input="".join(f"{line}\n" for line in lines),
        cwd=folder,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    installed, *answers = done.stdout.splitlines()
    assert "_pipeline_completion python" in installed
    return answers


def test_verbs_groups_their_files_and_keys_are_completed(tmp_path: Path) -> None:
    own = tmp_path / "conf" / "model" / "condor.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: pipeline.training.models.linear\n")
    verbs, files, keys, of_verb, sweepers, foreign = offered(
        tmp_path,
        "python -m pipeline pr",
        "python -m pipeline seed=1 model=c",
        "python -m pipeline train train.ep",
        "python -m pipeline compare t",
        "python -m pipeline -m hydra/sweeper=g",
        "python -m json",
    )
    assert {"predict", "preprocess", "promote"} <= set(verbs.split())
    assert files.split() == ["model=cnn", "model=condor", "model=convnext"]
    assert keys == "train.epochs="
    assert "top=" in of_verb.split()
    assert sweepers == "hydra/sweeper=grid"
    assert foreign == ""
