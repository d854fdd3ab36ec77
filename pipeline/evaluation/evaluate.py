"""Applies the chosen metrics and plots: `Predictions → Evaluation`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from pipeline.config.rules import function_named, named_in_errors, short_name
from pipeline.data.values import KEPT, Array, Evaluation, Fitted, Predictions
from pipeline.evaluation import metrics, plots
from pipeline.evaluation.slices import slices, slices_table

if TYPE_CHECKING:
    from pipeline.config.schema import Evaluate

COLDEST, WARMEST = 0.05, 20.0  # temperatures that are tried


def evaluate(
    predictions: Predictions,
    metric_names: Sequence[str],
    plot_names: Sequence[str],
    *,
    split: str = "test",
) -> Evaluation:
    """Computes metrics and figures of the predictions of a split; a metric is `<split>/<name>`.

    Raises:
        ValueError: two metrics return a value under the same name.
        PipelineError: a metric or plot of the user's own fails, or returns something else.
    """
    measured: dict[str, float] = {}
    for name in metric_names:
        values = _measured_by(name, predictions)
        keys = metrics.metric_keys(list(values))
        named = {f"{split}/{key}": n for key, n in zip(keys, values.values(), strict=True)}
        if twice := named.keys() & measured.keys():
            raise ValueError(f"evaluate.metrics: two metrics are named {sorted(twice)[0]}")
        measured |= named
    found = slices(predictions)
    return Evaluation(
        metrics=measured,
        figures=_drawn(predictions, plot_names),
        texts={
            "class_report.txt": metrics.class_report(predictions),
            "class_scores.csv": metrics.class_table(predictions),
        }
        | ({"slices.csv": slices_table(found)} if found else {}),
    )


def _measured_by(name: str, predictions: Predictions) -> dict[str, float]:
    with named_in_errors(name):
        value = function_named(metrics.__name__, name)(predictions)
        values = value if isinstance(value, dict) else {short_name(name): value}
        return {key: float(number) for key, number in values.items()}


def _drawn(shown: Predictions | Fitted, plot_names: Sequence[str]) -> dict[str, Figure]:
    return {short_name(name): _figure(name, shown) for name in plot_names}


def _figure(name: str, shown: Predictions | Fitted) -> Figure:
    with named_in_errors(name):
        figure = function_named(plots.__name__, name)(shown)
        if not isinstance(figure, Figure):
            raise TypeError(f"returns {type(figure).__name__}, not a Figure of matplotlib")
        return figure


def alternative_metrics(
    plain: Mapping[str, Predictions], views: Mapping[str, Predictions], settings: Evaluate
) -> Evaluation:
    """Accuracy, loss and calibration error by split, as `<split>/<way>/accuracy`.

    `views` are predictions with test-time augmentation. If `settings` ask for it, finds
    a temperature on the validation split and applies it to the test split.
    """
    measured = _measured("views", views)
    if settings.temperature:
        value = best_temperature(plain["val"])
        test = {"test": at_temperature(plain["test"], value)} if "test" in plain else {}
        measured |= {"val/temperature": value} | _measured("tempered", test)
    return Evaluation(metrics=measured)


def _measured(way: str, predictions: Mapping[str, Predictions]) -> dict[str, float]:
    return {
        f"{split}/{way}/{measure.__name__}": measure(values)
        for split, values in predictions.items()
        for measure in (metrics.accuracy, metrics.loss, metrics.ece)
    }


def best_temperature(predictions: Predictions) -> float:
    """The temperature at which the cross-entropy of `predictions` is lowest.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda logarithm: metrics.loss(at_temperature(predictions, float(np.exp(logarithm)))),
        bounds=(np.log(COLDEST), np.log(WARMEST)),
        method="bounded",
    )
    return float(np.exp(found.x))


def at_temperature(predictions: Predictions, value: float) -> Predictions:
    """The same predictions with their logits divided by `value`; the classes stay the same."""
    return replace(predictions, probabilities=_scaled(predictions.probabilities, value))


def _scaled(probabilities: Array, value: float) -> Array:
    # Logarithms of probabilities serve as logits: their softmax is the probabilities again.
    logits = np.log(np.clip(probabilities.astype(np.float64), 1e-12, 1)) / value
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def draw_training(fitted: Fitted, plot_names: Sequence[str]) -> Evaluation:
    """Draws figures of a training; its metrics are speed, best epoch and those of the kept epoch.

    If any plots are wanted, some augmented images are drawn too.
    """
    if plot_names and fitted.augmented is not None and "augmentation" not in plot_names:
        plot_names = [*plot_names, "augmentation"]
    best = {} if fitted.best_epoch is None else {"train/best_epoch": float(fitted.best_epoch)}
    kept = {
        f"{KEPT}{name}": values[fitted.kept_epoch - 1]
        for name, values in fitted.history.items()
        if name.startswith("val/")
    }
    return Evaluation(
        metrics={"time/images_per_s": fitted.images_per_s} | best | kept,
        figures=_drawn(fitted, plot_names),
    )
