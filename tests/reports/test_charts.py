from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.values import Predictions, Split
from pipeline.reports.charts import MOST_DOTS, curve_charts, reliability_chart


def test_a_curve_runs_from_the_first_epoch_at_the_left_to_the_last_at_the_right() -> None:
    [chart] = curve_charts({"train/loss": {1: 4.0, 2: 2.0, 3: 0.0}}, None)
    assert (chart.title, chart.y_label, chart.mark) == ("loss", "cross-entropy, nats", None)
    assert [point[:2] for point in chart.lines[0].points] == [(46, 12), (237, 121), (428, 230)]
    assert chart.lines[0].path == "46.0,12.0 237.0,121.0 428.0,230.0"
    assert chart.lines[0].points[1][2] == "training, epoch 2: 2.0000"


def test_both_splits_share_one_scale_and_epochs_are_whole() -> None:
    history = {"train/accuracy": {1: 0.5, 2: 0.75}, "val/accuracy": {1: 0.6, 2: 0.9}}
    [chart] = curve_charts(history, 2)
    assert [line.name for line in chart.lines] == ["training", "validation"]
    assert [label for _, label in chart.x.ticks] == ["1", "2"]
    assert chart.y.low <= 0.5
    assert chart.y.high >= 0.9
    assert chart.mark == chart.x.place(2)


def test_the_lowest_and_the_highest_tick_are_labelled() -> None:
    [chart] = curve_charts({"train/loss": {1: 0.59, 2: 0.31}}, None)
    assert [label for _, label in chart.y.ticks] == [
        *("0.3", "0.35", "0.4", "0.45", "0.5", "0.55", "0.6"),
    ]


def test_accuracy_stands_before_loss_and_other_metrics_have_no_curve() -> None:
    history = {"val/loss": {1: 1.0}, "train/learning_rate": {1: 0.1}, "train/accuracy": {1: 0.5}}
    assert [chart.title for chart in curve_charts(history, None)] == ["accuracy", "loss"]


def test_a_single_epoch_is_a_point_within_the_drawing() -> None:
    [chart] = curve_charts({"train/loss": {1: 2.0}}, None)
    [(x, y, _)] = chart.lines[0].points
    assert 46 <= x <= 428
    assert 12 <= y <= 230


def test_what_is_not_finite_is_left_out() -> None:
    [chart] = curve_charts({"train/loss": {1: 2.0, 2: float("nan"), 3: 1.0}}, None)
    assert len(chart.lines[0].points) == 2
    assert curve_charts({"train/loss": {1: float("inf")}}, None) == []
    assert curve_charts({}, None) == []


@pytest.mark.parametrize(("epochs", "dotted"), [(MOST_DOTS, True), (MOST_DOTS + 1, False)])
def test_many_epochs_have_a_line_without_dots(epochs: int, dotted: bool) -> None:
    values = {epoch: 1 / epoch for epoch in range(1, epochs + 1)}
    assert curve_charts({"train/loss": values}, None)[0].lines[0].dotted is dotted


def test_a_bar_stands_where_confidence_and_share_right_say() -> None:
    chart, bars = reliability_chart(
        Predictions(
            split=Split(
                images=np.zeros((4, 1, 1, 1), np.uint8), labels=np.array([0, 1, 1, 1], np.int32)
            ),
            probabilities=np.array([[1, 0], [1, 0], [0.25, 0.75], [0.25, 0.75]], np.float32),
            class_names=("a", "b"),
        )
    )
    assert [(bar.confidence, bar.right, bar.images, bar.share) for bar in bars] == [
        (0.75, 1.0, 2, 0.5),
        (1.0, 0.5, 2, 0.5),
    ]
    assert [(bar.x, bar.y) for bar in bars] == [(332.5, 12), (428, 121)]
    assert [label for _, label in chart.x.ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
