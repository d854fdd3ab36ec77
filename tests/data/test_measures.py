from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.measures import (
    Measures,
    measured,
    parsed,
    quantiles,
    quantities_of,
    rounded,
    summarised,
)
from pipeline.data.values import Array, RawData, Split
from pipeline.evaluation.drift import of_values
from pipeline.system.errors import RequestError
from tests.pictures import noise


def of_arrays(images: Array, labels: list[int], folder: Path) -> tuple[RawData, Measures]:
    raw = RawData(
        train=Split(images=images, labels=np.array(labels, np.int32)),
        test=Split(images=noise(99, (2, 4, 4, 1)), labels=np.array([0, 1], np.int32)),
        class_names=("cat", "dog"),
        source="a test",
    )
    return raw, measured(raw, folder)


def test_the_second_time_no_image_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = of_arrays(noise(1, (4, 4, 4, 1)), [0, 0, 1, 1], tmp_path)[1]
    monkeypatch.delattr("pipeline.data.measures.quantities_of")
    second = of_arrays(noise(1, (4, 4, 4, 1)), [0, 0, 1, 1], tmp_path)[1]
    np.testing.assert_array_equal(first.values, second.values)


def test_brightness_contrast_and_colour_are_those_of_the_pixels() -> None:
    image = np.zeros((1, 1, 2, 3), np.uint8)
    image[0, 0, 0] = (30, 60, 90)
    np.testing.assert_allclose(quantities_of(image), [[30, 30, 30]], rtol=1e-6)
    assert quantities_of(np.full((2, 200, 300, 1), 9, np.uint8)).tolist() == [[9, 0, 0]] * 2


def test_a_summary_is_read_as_it_was_written_and_nothing_else_is(tmp_path: Path) -> None:
    raw, measures = of_arrays(noise(1, (1500, 4, 4, 1)), [0] * 1000 + [1] * 500, tmp_path)
    summary = summarised(raw, measures)
    assert summary.classes == {"cat": 1000, "dog": 500}
    assert [len(values) for values in summary.quantities.values()] == [1001] * 3
    assert parsed(summary.to_json()) == summary
    assert len(summary.to_json()) < 30_000
    hostile = ("{}", "[" * 100_000, "null", summary.to_json().replace("1500", "NaN"))
    for text in (*hostile, '{"shape": [1, 2, 3], "quantities": {"a": [1e999]}}'):
        with pytest.raises(RequestError, match=r"data_summary.json cannot be read"):
            parsed(text)


def test_the_values_of_a_summary_are_those_of_the_same_pictures_measured_again() -> None:
    ratios = np.array([640 / 480, 16 / 9, 4 / 3] * 40)
    assert set(quantiles(ratios)) == set(rounded(ratios).tolist()) == {1.333, 1.778}
    assert of_values("aspect ratio", quantiles(ratios), len(ratios), rounded(ratios)).distance == 0
