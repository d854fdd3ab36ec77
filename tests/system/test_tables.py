from __future__ import annotations

import csv
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.system.tables import csv_cell, csv_text


@pytest.mark.parametrize(
    "formula",
    ["=1+1", "+cmd|' /C calc'!A0", "-x.png", "@SUM(A1)", "\t=1", "\uff1d1", "-inf", "- 1"],
)
def test_a_text_that_a_spreadsheet_would_carry_out_begins_with_an_apostrophe(formula: str) -> None:
    assert csv_cell(formula) == f"'{formula}"


@pytest.mark.parametrize("value", ["a.png", "-1", "+1e-3", -0.5, 3, None, "", "a=b"])
def test_numbers_and_other_texts_stay_as_they_are_in_a_cell(value: object) -> None:
    assert csv_cell(value) is value


@given(st.lists(st.lists(st.text(), min_size=2, max_size=4)))
def test_a_reader_of_csv_finds_the_cells_again(rows: list[list[str]]) -> None:
    found = list(csv.reader(StringIO(csv_text(rows), newline="")))
    assert found == [[csv_cell(cell) for cell in row] for row in rows]
