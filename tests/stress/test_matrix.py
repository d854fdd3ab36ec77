from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stress import __main__ as stress
from tests.stress.matrix import ROWS, SHARE, matrix, only_stressed

TESTS = Path(__file__).parents[1]
CASES = r"(?<!\.)matrix\(([\d, ]+)\)"


def test_every_row_of_the_matrix_has_a_test_and_every_mark_a_row() -> None:
    texts = [path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")]
    marked = {int(n) for text in texts for at in re.findall(CASES, text) for n in at.split(",")}
    assert marked == set(ROWS)


def test_rows_are_chosen_by_numbers_and_ranges() -> None:
    assert stress.chosen("1,15-17") == [1, 15, 16, 17]


def test_what_a_row_came_to_is_a_line_of_the_table_under_the_kind_of_its_damage() -> None:
    result = stress.Result(cases=3, tries=2_000, failed=2, seconds=61.4, date="2026-01-01")
    assert stress.cells(ROWS[28], result) == ("3", "2,000 of 5,000", "0", "2", "0", "61")
    assert stress.cells(ROWS[38], result)[2:5] == ("0", "0", "2")
    [line] = [line for line in stress.page({"28": result}).splitlines() if line.startswith("| 28")]
    assert line.endswith("| 3 | 2,000 of 5,000 | 0 | 2 | 0 | 61 | 2026-01-01 |")


def test_a_row_that_was_not_tried_again_stays_as_it_is() -> None:
    result = stress.Result(cases=3, tries=2_000, date="2026-01-01")
    earlier = stress.page({"28": result})
    again = stress.page({"38": result}, earlier).splitlines()
    tried = [line for line in again if line.endswith("2026-01-01 |")]
    assert [line.split()[1] for line in tried] == ["28", "38"]
    assert len(again) == len(earlier.splitlines())


def item(*marks: pytest.MarkDecorator) -> Any:
    def iter_markers(name: str) -> list[pytest.Mark]:
        return [one.mark for one in marks if one.name == name]

    return SimpleNamespace(nodeid=str(marks), iter_markers=iter_markers)


def test_what_is_left_to_stress_and_of_no_row_comes_after_all_of_the_rows() -> None:
    late, early = item(matrix(2), only_stressed), item(matrix(1))
    extra, other = item(only_stressed), item(pytest.mark.slow)
    items = [extra, late, other, early]
    stress.Matrix(ROWS).pytest_collection_modifyitems(items)
    assert items == [early, late, extra]
    stress.Matrix([1]).pytest_collection_modifyitems(items)
    assert items == [early]


def test_failures_are_printed_even_if_pytest_itself_breaks_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def breaks_down(arguments: object, plugins: list[stress.Matrix]) -> int:
        plugins[0].failures.append("row 9: lost")
        raise OSError("unconfigured")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SHARE, "1")
    monkeypatch.setattr(stress.pytest, "main", breaks_down)
    with pytest.raises(OSError, match="unconfigured"):
        stress.main(["--rows", "9"])
    assert "row 9: lost" in capsys.readouterr().err
