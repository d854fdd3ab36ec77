from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.evaluation.drift import Shift
from pipeline.reports.drift_page import Unsure, drift_html
from pipeline.reports.template import template
from tests.reports.test_page import Page


def shift(name: str, level: int = 0, detail: str = "") -> Shift:
    return Shift(
        name=name, reference=100.0, new=30.0, distance=0.5, p=0.01, psi=2.0, level=level,
        detail=detail,
    )  # fmt: skip


def page(*shifts: Shift, **changes: Any) -> Page:
    known: dict[str, Any] = {
        "run_id": "abcd",
        "path": "<i>new",
        "pictures": 4,
        "verdict": "The new pictures differ.",
        "notes": ["classes that the run does not have: <b>cow"],
        "reference": {"brightness": [0.0, 50.0, 100.0]},
        "values": {"brightness": np.array([10.0, 10.0, 20.0, 90.0])},
        "unsure": (),
    }
    return Page(drift_html(template("drift.html"), shifts, **(known | changes)))


def test_names_from_elsewhere_are_text() -> None:
    found = page(shift("<u>width", level=1), shift("classes", detail="<s>dog: 50 % → 0 %"))
    assert found.text("h1").endswith("<i>new")
    text = found.text("body")
    for shown in ("<u>width", "<s>dog: 50 % → 0 %", "classes that the run does not have: <b>cow"):
        assert shown in text
    for tag in ("i", "u", "s", "b", "script"):
        assert found.all(tag) == []


def test_each_quantity_with_values_has_both_distributions() -> None:
    found = page(shift("brightness", level=2), shift("classes"))
    [(line, _)] = found.all("polyline")
    points = [point.split(",") for point in line["points"].split()]
    assert len(points) == 40
    assert [float(x) for x, _ in points][:2] == [0.5, 1.5]
    heights = [100 - float(y) for _, y in points]
    # A third of the reference is in each of three bins, half of the new pictures in one.
    assert sorted(heights)[-4:] == [0, 66.7, 66.7, 66.7]


def test_values_that_are_all_alike_can_be_drawn_too() -> None:
    same = {"brightness": [7.0, 7.0]}
    found = page(shift("brightness"), reference=same, values={"brightness": np.full(3, 7.0)})
    assert len(found.all("polyline")) == 1


def test_the_pictures_that_the_model_is_least_sure_of_are_shown() -> None:
    tile = np.zeros((8, 6, 3), np.uint8)
    unsure = [Unsure(image=tile, file=f"<q>{name}.png", confidence=0.25) for name in "ab"]
    found = page(shift("brightness"), unsure=unsure)
    assert "<q>a.png" in found.text("body")
    assert "<q>b.png" in found.text("body")
    assert found.all("q") == []
    assert "data:image/" in drift_text(unsure)


def drift_text(unsure: list[Unsure]) -> str:
    return drift_html(
        template("drift.html"), [], run_id="a", path="p", pictures=0, verdict="", notes=[],
        reference={}, values={}, unsure=unsure,
    )  # fmt: skip
