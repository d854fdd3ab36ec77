"""The notebook of the documentation, executed as a reader does: a fresh kernel, an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, environment

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = code_cells(NOTEBOOK)
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_goes_from_data_to_champion_in_an_empty_folder(tmp_path: Path) -> None:
    executed = tmp_path / "executed.ipynb"
    ended = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(executed)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    outputs = [output for cell in code_cells(executed) for output in cell["outputs"]]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert "model=cnnn: no such choice; did you mean cnn?" in printed
    assert "more than noise" in printed
    assert "is refused; nothing was changed" in printed
    assert "version=1 alias=champion" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
