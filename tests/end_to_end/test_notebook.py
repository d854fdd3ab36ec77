"""The notebook of the documentation, executed in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, environment
from tests.stress.matrix import only_stressed
from tests.warm import call_warm

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


def execute_here(folder: Path) -> tuple[str, int]:
    """What the cells print in this process, and how many pictures they show."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    class Shell(InteractiveShell):
        def enable_gui(self, gui: str | None = None) -> None:
            """There is none."""

    os.chdir(folder)
    shell, printed, pictures = Shell.instance(), "", 0
    for cell in code_cells(NOTEBOOK):
        with capture_output() as shown:
            ended = shell.run_cell("".join(cell["source"]))
        ended.raise_error()
        printed += shown.stdout
        result, _ = shell.display_formatter.format(ended.result)
        drawn = [*(output.data for output in shown.outputs), result]
        pictures += sum("image/png" in data for data in drawn)
    return printed, pictures


def execute_in_a_kernel(folder: Path) -> tuple[str, int]:
    """The same in a kernel of its own, which imports everything anew."""
    executed = folder / "executed.ipynb"
    ended = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(executed)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    outputs = [output for cell in code_cells(executed) for output in cell["outputs"]]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    return printed, sum("image/png" in output.get("data", {}) for output in outputs)


def execute_in_a_fork(folder: Path) -> tuple[str, int]:
    return call_warm(execute_here, folder, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize(
    "execute", [execute_in_a_fork, pytest.param(execute_in_a_kernel, marks=only_stressed)]
)
def test_the_notebook_goes_from_data_to_champion_in_an_empty_folder(
    execute: Callable[[Path], tuple[str, int]], tmp_path: Path
) -> None:
    printed, pictures = execute(tmp_path)
    assert "model=cnnn: no such choice; did you mean cnn?" in printed
    assert "more than noise" in printed
    assert "is refused; nothing was changed" in printed
    assert "version=1 alias=champion" in printed
    assert pictures == 2
