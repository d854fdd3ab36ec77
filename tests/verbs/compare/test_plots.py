from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.tracking.values import StoredPredictions
from pipeline.verbs.compare.command import page_template
from pipeline.verbs.compare.comparison import Comparison
from pipeline.verbs.compare.plots import MOST_DRAWN, draw_comparison, figures
from pipeline.verbs.compare.render import page
from tests.commands import ROOT, environment
from tests.verbs.compare.test_comparison import compared, run

pytestmark = pytest.mark.slow

LONG = "magnificent-hippopotamus-of-the-nineteenth-century-$1$-and-so-on"


def many(count: int) -> Comparison:
    return compared([run(f"r{i}", rate=f"{i + 1}", accuracy=0.9 - i * 0.004) for i in range(count)])


def seeds() -> Comparison:
    rates = (f"0.{i}234567, schedule=cosine_with_restarts" for i in range(1, 9))
    return compared([run(f"{r}-{s}", rate=r, seed=s) for r in rates for s in range(3)])


def pair(one: str, other: str, *classes: str) -> Comparison:
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), 60)
    probabilities = np.eye(len(classes), dtype=np.float32)
    predictions = []
    for wrong in (30, 90):
        said = np.where(np.arange(len(labels)) < wrong, (labels + 1) % len(classes), labels)
        found = StoredPredictions(
            labels=labels, probabilities=probabilities[said], class_names=classes
        )
        predictions.append({"val": found, "test": found})
    runs = [run(one, rate="1"), run(other, rate="2")]
    return compared(runs, **dict(zip((one, other), predictions, strict=True)))


CASES = {
    "one run": lambda: compared([run("a")]),
    "thirty runs": lambda: many(30),
    "seeds": seeds,
    "long run names": lambda: pair(LONG, f"{LONG}-2", "bag", "shirt"),
    "long class names": lambda: pair("a", "b", "a" * 90, "W" * 70, "c"),
    "wide characters": lambda: pair("a", "b", "靴" * 40, "шапка", "c_d$e"),
}


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
@pytest.mark.parametrize("case", CASES)
def test_every_text_lies_within_its_figure_beside_the_marks_and_can_be_read(case: str) -> None:
    for figure in figures(CASES[case]()).values():
        figure.canvas.draw()
        axes = figure.axes[0]
        frame, whole = axes.get_window_extent(), figure.bbox
        assert frame.width > 0.3 * whole.width
        names, below = figure.texts[:-1], figure.texts[-1]
        assert all(text.get_fontsize() > 6 for text in names)
        assert below.get_fontsize() > 5
        low, high = axes.get_xlim()  # beyond them no label is drawn
        marks = [mark for mark in axes.get_xticklabels() if low <= mark.get_position()[0] <= high]
        assert len(marks) >= 2
        extents = [text.get_window_extent() for text in (*names, below, *marks)]
        for text in extents:
            assert whole.x0 <= text.x0 < text.x1 <= whole.x1
            assert whole.y0 <= text.y0 < text.y1 <= whole.y1
        assert all(text.x1 < frame.x0 for text in extents[: len(names)])
        ticks = extents[len(names) + 1 :]
        assert all(one.x1 < next_.x0 for one, next_ in pairwise(ticks))
        assert all(tick.y0 > extents[len(names)].y1 for tick in ticks)
        heights = sorted((text.y0, text.y1) for text in extents[: len(names)])
        assert all(one[1] < next_[0] for one, next_ in pairwise(heights))


def row_of(figure: Figure, name: str) -> float:
    """The place on the axis at the height where the name is written."""
    figure.canvas.draw()
    extent = next(text for text in figure.texts if text.get_text() == name).get_window_extent()
    return figure.axes[0].transData.inverted().transform((0, (extent.y0 + extent.y1) / 2))[1]


def test_each_mark_lies_at_its_value_beside_its_name_with_its_interval() -> None:
    comparison = many(MOST_DRAWN + 1)
    figure = figures(comparison)["compare"]
    lines, marks = figure.axes[0].collections
    assert len(figure.texts) == MOST_DRAWN + 1  # names and what the axis shows
    for place, row in enumerate(comparison.rows[:MOST_DRAWN]):
        estimate = row.estimates["val/accuracy"]
        assert tuple(marks.get_offsets()[place]) == (estimate.value, place)
        np.testing.assert_allclose(
            lines.get_segments()[place], [(estimate.low, place), (estimate.high, place)]
        )
        assert row_of(figure, row.label) == pytest.approx(place, abs=0.15)


def test_each_bar_is_the_change_of_its_class_and_the_worst_is_on_top_as_in_the_table() -> None:
    comparison = pair("a", "b", "bag", "shirt", "coat")
    assert comparison.pair is not None
    figure = figures(comparison)["classes"]
    bars = figure.axes[0].patches
    ordered = sorted(comparison.pair.classes, key=lambda one: one.change.value)
    assert [bar.get_width() for bar in bars] == [100 * one.change.value for one in ordered]
    for place, one in enumerate(ordered):
        assert row_of(figure, one.name) == pytest.approx(place, abs=0.15)
    top = [text.get_window_extent().y0 for text in figure.texts[:-1]]
    names = [text.get_text() for text in figure.texts[:-1]]
    assert names[int(np.argmax(top))] == ordered[0].name


def test_a_row_without_an_interval_is_a_mark_alone() -> None:
    comparison = compared([run(name, rate=name) for name in "ab"], metric="time/total_s")
    figure = figures(comparison)["compare"]
    lines, marks = figure.axes[0].collections
    assert np.isfinite(marks.get_offsets()).all()
    assert not any(len(segment) and np.isfinite(segment).all() for segment in lines.get_segments())
    assert draw_comparison(comparison)["compare"][:4] == b"\x89PNG"


def test_where_no_row_has_the_metric_there_is_no_picture_and_the_page_does_without() -> None:
    comparison = compared([run(name, rate=name, accuracy=float("nan")) for name in "abc"])
    assert draw_comparison(comparison) == {}
    assert "<img" not in page(page_template(), comparison, {})
    assert "<img" in page(page_template(), many(3), draw_comparison(many(3)))


def test_drawing_needs_no_pyplot_and_without_a_picture_no_matplotlib() -> None:
    code = """
import sys
from pipeline.verbs.compare.plots import draw_comparison
from tests.verbs.compare.test_comparison import compared, run
assert draw_comparison(compared([run(name, accuracy=float("nan")) for name in "ab"])) == {}
assert "matplotlib" not in sys.modules
assert list(draw_comparison(compared([run("a")]))) == ["compare"]
assert "matplotlib.pyplot" not in sys.modules
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
