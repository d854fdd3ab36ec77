from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.values import Predictions, Split
from pipeline.reports.explained import (
    POINTS,
    Scatter,
    captions,
    overlay,
    principal,
    scatter,
    spread,
)


def predictions(labels: list[int], guesses: list[int]) -> Predictions:
    count = len(labels)
    return Predictions(
        split=Split(images=np.zeros((count, 4, 4, 1), np.uint8), labels=np.array(labels, np.int32)),
        probabilities=np.eye(2, dtype=np.float32)[guesses],
        class_names=("cat", "dog"),
    )


def test_a_map_colours_its_places_red_and_leaves_the_others_grey() -> None:
    image = np.full((8, 8, 3), (40, 120, 200), np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:, 4:] = 1
    shown = overlay(image, heat, 32).astype(int)
    assert shown.shape == (32, 32, 3)
    left, right = shown[:, :10].reshape(-1, 3), shown[:, -10:].reshape(-1, 3)
    assert np.ptp(left, axis=1).max() == 0
    assert (right[:, 0] - right[:, 1:].max(axis=1)).min() > 80


def test_an_image_keeps_its_aspect_ratio() -> None:
    image, heat = np.zeros((10, 20, 1), np.uint8), np.zeros((10, 20), np.float32)
    assert overlay(image, heat, 60).shape == (30, 60, 3)


def test_principal_components_are_the_directions_of_most_variance() -> None:
    rng = np.random.default_rng(0)
    long, short = rng.normal(0, 10, 500), rng.normal(0, 1, 500)
    values = np.outer(long, [0.6, 0.8, 0]) + np.outer(short, [0, 0, 1])
    places, (first, second) = principal(values.astype(np.float32))
    assert abs(np.corrcoef(places[:, 0], long)[0, 1]) > 0.999
    assert first == pytest.approx(0.99, abs=0.005)
    assert first + second == pytest.approx(1)


@pytest.mark.parametrize("values", [np.ones((5, 1)), np.ones((1, 4)), np.eye(3)[:, :1]])
def test_few_or_equal_features_have_places_as_well(values: np.ndarray) -> None:
    places, shares = principal(values)
    assert places.shape == (len(values), 2)
    assert np.isfinite([*places.ravel(), *shares]).all()


def test_names_of_classes_extend_into_the_picture_and_leave_their_centres_free() -> None:
    centres = {0: (10.0, 500.0), 1: (500.0, 39.0), 2: (990.0, 1000.0)}
    made = Scatter(points=(), shares=(1.0, 0.0), centres=centres, images=3)
    assert captions(made, ["ant", "bee", "c" * 40]) == [
        ("ant", 10.0, 476.0, "start"),
        ("bee", 500.0, 63.0, "middle"),
        ("c" * 35 + "…", 990.0, 976.0, "end"),
    ]
    assert captions(made, ["ant"] * 31) == []


def test_points_carry_class_and_mistake_and_lie_within_the_picture() -> None:
    given = predictions([0, 0, 1, 1], [0, 1, 1, 1])
    features = np.array([[0.0, 0], [1, 0], [9, 1], [10, 0]], np.float32)
    made = scatter(features, np.arange(4), given)
    assert [point.wrong for point in made.points] == [False, True, False, False]
    assert {*made.centres} == {0, 1}
    assert all(0 <= point.x <= 1000 and 0 <= point.y <= 1000 for point in made.points)
    across = [point.x for point in made.points]
    assert across in (sorted(across), sorted(across, reverse=True))


def test_of_many_images_some_are_shown() -> None:
    assert len(spread(50)) == 50
    chosen = spread(7 * POINTS)
    assert len(chosen) == POINTS
    assert (chosen[0], chosen[-1]) == (0, 7 * POINTS - 1)
