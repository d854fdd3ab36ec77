from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.values import Index, Predictions, Split, Texts
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.slices import SHOWN_VALUES, slices
from pipeline.reports.page import run_html
from pipeline.reports.template import template
from tests.commands import configured
from tests.reports.test_page import Page, facts


def predictions(columns: dict[str, list[str]], right: list[bool]) -> Predictions:
    """Predictions on every second row of a packed array; the rows between have other texts."""
    count = len(right)
    probabilities = np.zeros((count, 2), np.float32)
    probabilities[np.arange(count), np.where(right, 0, 1)] = 1
    spread = {
        name: Texts.of(text for value in texts for text in ("no", value))
        for name, texts in columns.items()
    }
    return Predictions(
        split=Split(
            images=np.zeros((2 * count, 2, 2, 1), np.uint8),
            labels=np.zeros(count, np.int32),
            rows=np.arange(1, 2 * count, 2),
        ),
        probabilities=probabilities,
        class_names=("cat", "dog"),
        index=Index(
            root="photos",
            files=["a"] * 2 * count,
            sha256=np.zeros((2 * count, 32), np.uint8),
            digests=np.zeros((2 * count, 32), np.uint8),
            sizes=np.ones((2 * count, 2), np.int32),
            modes=["L"] * 2 * count,
            labels=np.zeros(2 * count, np.int32),
            groups=np.arange(2 * count),
            duplicates=np.empty((0, 3), np.int64),
            columns=spread,
        ),
    )


def test_accuracy_is_that_of_the_images_with_each_value_most_frequent_first() -> None:
    made = predictions(
        {"camera": ["a", "b", "b", "b"], "flash": ["", "=1+1", "", ""]}, [True, True, False, True]
    )
    found = [(one.column, one.label, one.images, one.accuracy) for one in slices(made)]
    assert found == [
        ("camera", "b", 3, pytest.approx(2 / 3)),
        ("camera", "a", 1, 1),
        ("flash", "(empty)", 3, pytest.approx(2 / 3)),
        ("flash", "=1+1", 1, 1),
    ]
    low, high = slices(made)[1].low, slices(made)[1].high
    assert (low, high) == pytest.approx((0.2065493, 1.0))  # Wilson, 1 of 1
    table = evaluate(made, ["accuracy"], []).texts["slices.csv"].splitlines()
    assert table[0] == "column,value,images,accuracy,low,high"
    assert table[1].startswith("camera,b,3,0.666667,0.20766,0.938508")
    assert table[4].startswith("flash,'=1+1,1,1,")


def test_of_many_values_the_largest_are_shown_and_the_others_together() -> None:
    values = [str(number) for number in range(30)] + ["0", "0", "29"]
    found = slices(predictions({"id": values}, [True] * 33))
    assert len(found) == SHOWN_VALUES + 1
    assert [one.label for one in found[:2]] == ["0", "29"]
    assert (found[-1].label, found[-1].images) == ("(10 other values)", 10)
    exact = slices(
        predictions({"id": [str(n) for n in range(SHOWN_VALUES + 1)]}, [True] * (SHOWN_VALUES + 1))
    )
    assert [one.label for one in exact] == [str(n) for n in range(SHOWN_VALUES + 1)]


def test_images_without_columns_have_no_slices() -> None:
    made = predictions({}, [True])
    assert slices(made) == []
    assert "slices.csv" not in evaluate(made, ["accuracy"], []).texts


def test_the_report_shows_slices_with_hostile_names_as_text() -> None:
    text = run_html(
        template("report.html"),
        facts(),
        configured("dataset=digits"),
        {"test": predictions({"<b>\x1b": ["<i>", "b", "b", "b"]}, [True, False, True, True])},
    )
    shown = Page(text).text("section", id="slices")
    assert "<b>\\x1b" in shown
    assert "b0.66720.8 % – 93.9 %3" in shown.replace("\N{NO-BREAK SPACE}", " ")
    assert "<i>" in shown
