"""Plots of a training (`Fitted → Figure`) and of predictions (`Predictions → Figure`).

To add a plot, add a function here and its name to `train.plots` or `evaluate.plots`. Figures are
made without pyplot, whose global state would leak from one job of a sweep into the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import lazy_loader
import numpy as np

from pipeline.data.polarity import is_shown_inverted
from pipeline.data.values import Array, Fitted, Predictions
from pipeline.evaluation.metrics import (
    ECE_BINS,
    MOST_CLASSES,
    calibration,
    class_scores,
    confusion_counts,
    ece,
    most_confused,
    surest_mistakes,
)
from pipeline.system.errors import in_percent

if TYPE_CHECKING:
    import keras
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Names in a configuration are checked against this file without importing scikit-learn.
sklearn = lazy_loader.load("sklearn")

_TRAIN, VALIDATION = "#1f77b4", "#d95f02"
_MANY = 20  # classes; the confusion matrix of more has smaller cells and no zeros
_MISTAKES = 5  # rows, and columns, of the grid
_LONGEST = 36  # characters of a class's name; longer ones are cut
_CAPTION = 18  # characters of one above a mistake, with its confidence, beside the next mistake
_SHORT = 10  # characters of a class's name for which a matrix has room
_LETTER = 0.09  # inches for each further one


def accuracy(fitted: Fitted) -> Figure:
    """Accuracy per epoch on the training and validation images."""
    return _curves(fitted, "accuracy", "share correct")


def loss(fitted: Fitted) -> Figure:
    """Loss per epoch on the training and validation images."""
    return _curves(fitted, "loss", "cross-entropy [nats]")


def weights(fitted: Fitted) -> Figure:
    """Heat maps of the first layer's weights, before and after training, on one colour scale."""
    fig = empty_figure(
        11, 5, {"left": 0.07, "right": 1.04, "bottom": 0.11, "top": 0.87, "wspace": 0.05}
    )
    found = first_kernel(fitted.model)
    if found is None:
        fig.suptitle(f"No trained layer of model {fitted.model.name} has a kernel")
        return fig
    (layer, after), (_, before) = found, first_kernel(fitted.untrained()) or found
    scale = float(np.quantile(np.abs(np.concatenate([before, after])), 0.999)) or 1.0
    left, right = fig.subplots(1, 2, sharey=True)
    for axes, values, title in ((left, before, "initial"), (right, after, "trained")):
        image = axes.imshow(
            values,
            cmap="RdBu_r",
            vmin=-scale,
            vmax=scale,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set(title=f"{title}, sd {values.std():.4f}", xlabel="unit")
        axes.locator_params(axis="x", integer=True)
    left.set_ylabel("input")
    fig.colorbar(image, ax=[left, right], label="weight", pad=0.02)
    fig.suptitle(f"Weights of layer {layer}, {before.shape[0]} × {before.shape[1]}")
    return fig


def first_kernel(model: keras.Model) -> tuple[str, Array] | None:
    """Name of the first trained layer with a kernel, and that as a matrix f32[inputs, units]."""
    for layer in model.layers:
        found = getattr(layer, "kernel", None)  # of a layer of the user's own, perhaps a size
        trained = any(found is weight for weight in layer.trainable_variables)
        if trained and (kernel := np.array(found)).ndim > 1:
            return layer.name, kernel.reshape(-1, kernel.shape[-1])
    return None


def augmentation(fitted: Fitted) -> Figure:
    """Training images, each with versions of it as augmentation changes it."""
    rows = fitted.augmented
    if rows is None:
        fig = empty_figure(6, 1)
        fig.suptitle("No augmentation")
        return fig
    high, wide = rows.shape[:2]
    fig = empty_figure(wide, high + 0.5, {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 0.85})
    axes = fig.subplots()  # one for all images, as in `mistakes`
    axes.set(xlim=(0, wide), ylim=(high, 0), aspect="equal")
    axes.set_axis_off()
    for position, image in enumerate(rows.reshape(-1, *rows.shape[2:])):
        _picture(
            axes,
            image,
            left=position % wide + 0.05,
            top=position // wide + 0.05,
            side=0.9,
            grey="gray",
        )
    axes.axvline(1, color="grey", linewidth=1)
    fig.suptitle("Augmentation: images, and versions of them")
    return fig


def confusion_matrix(predictions: Predictions) -> Figure:
    """Images by true and predicted class, of the MOST_CLASSES classes with the most mistakes.

    With more than _MANY classes, cells are smaller and zeros are not written.
    """
    names, shown = _names(predictions), most_confused(predictions, MOST_CLASSES)
    longest, cell = max(len(names[label]) for label in shown), 0.6 if len(shown) <= _MANY else 0.4
    side = 2.5 + cell * len(shown) + max(0.0, _LETTER * (longest - _SHORT))
    fig = empty_figure(side, side)
    axes = fig.subplots()
    counts = confusion_counts(predictions, shown)
    largest = counts.max(initial=0)
    display = sklearn.metrics.ConfusionMatrixDisplay(
        counts,
        display_labels=[names[label] for label in shown],
    ).plot(
        xticks_rotation=45,
        cmap="Blues",
        colorbar=False,
        values_format="d",
        text_kw={"fontsize": min(10, cell * 83 / len(str(largest)))},
        ax=axes,
    )
    if len(shown) > _MANY:
        for text in display.text_[counts == 0]:
            text.remove()
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    title = f"{len(predictions.labels):,} images"
    if len(shown) < len(names):
        title += f"; the {len(shown)} of {len(names):,} classes with the most mistakes"
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return fig


def per_class_scores(predictions: Predictions) -> Figure:
    """Precision, recall and F1 as grouped bars, of the MOST_CLASSES classes with the worst F1.

    The worst is at the top. Classes without images have no scores and are left out.
    """
    names = _names(predictions)
    *scores, images = class_scores(predictions)
    order = np.argsort(-scores[2], kind="stable")
    order = order[images[order] > 0][-MOST_CLASSES:]
    fig = empty_figure(8, 1.5 + 0.45 * len(order))
    axes = fig.subplots()
    positions = np.arange(len(order))
    for shift, label, values in zip(
        (0.27, 0.0, -0.27), ("precision", "recall", "F1"), scores, strict=True
    ):
        bars = axes.barh(positions + shift, values[order], height=0.25, label=label)
        axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=7)
    axes.set(xlim=(0, 1.08), xticks=np.linspace(0, 1, 6), xlabel="score")
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_yticks(positions, [names[i] for i in order])
    if len(order) < len(names):
        axes.set_title(f"The {len(order)} of {len(names):,} classes with the lowest F1")
    fig.legend(loc="outside lower center", ncols=3, frameon=False)
    return fig


def reliability(predictions: Predictions) -> Figure:
    """Accuracy by confidence, and the number of predictions per confidence."""
    confidence, share_right, _ = calibration(predictions)
    margins = {"left": 0.13, "right": 0.97, "bottom": 0.08, "top": 0.95, "hspace": 0.06}
    fig = empty_figure(5.5, 6.5, margins)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], linestyle="--", color="grey", label="perfectly calibrated")
    top.plot(confidence, share_right, marker="o", color=_TRAIN, label="model")
    top.set(ylim=(0, 1), ylabel="share correct", title=f"ECE {ece(predictions):.4f}")
    top.legend(loc="upper left", frameon=False)
    bottom.hist(predictions.confidence, bins=ECE_BINS, range=(0, 1), color=_TRAIN)
    # From below one, so that a bar's height is its number, in powers of ten alone.
    bottom.set(xlim=(0, 1), yscale="log", ylim=(0.5, None), ylabel="images", xlabel="confidence")
    bottom.minorticks_off()
    return fig


def mistakes(predictions: Predictions) -> Figure:
    """The most confident mistakes, with their true class and confidence."""
    chosen = surest_mistakes(predictions, _MISTAKES**2)
    fig = empty_figure(9, 9.4, {"left": 0.02, "right": 0.98, "bottom": 0.01, "top": 0.93})
    axes = fig.subplots()  # one for all images: 25 axes would take five times as long
    axes.set(xlim=(0, _MISTAKES), ylim=(_MISTAKES, 0), aspect="equal")
    axes.set_axis_off()
    names = _names(predictions, _CAPTION)
    inverted = is_shown_inverted(predictions.split, predictions.index)
    grey = "gray_r" if inverted else "gray"
    for position, index in enumerate(chosen):
        row, column = divmod(position, _MISTAKES)
        image = predictions.split.take(index)
        _picture(axes, image, left=column + 0.14, top=row + 0.25, grey=grey)
        true = names[predictions.labels[index]]
        guess = names[predictions.predicted[index]]
        axes.text(
            column + 0.5,
            row + 0.22,
            f"{guess} {in_percent(float(predictions.confidence[index]), 1)}%\nis {true}",
            fontsize=8,
            color="#8b0000",
            horizontalalignment="center",
        )
    fig.suptitle(f"The {len(chosen)} most confident of {(~predictions.correct).sum():,} mistakes")
    return fig


def _curves(fitted: Fitted, metric: str, unit: str) -> Figure:
    fig = empty_figure(7, 4.5, {"left": 0.11, "right": 0.98, "bottom": 0.12, "top": 0.92})
    axes = fig.subplots()
    for split, colour in (("train", _TRAIN), ("val", VALIDATION)):
        values = fitted.history.get(f"{split}/{metric}", [])
        if values:
            epochs = np.arange(1, len(values) + 1)
            axes.plot(epochs, values, marker=".", color=colour, label=split)
    if fitted.best_epoch is not None:
        axes.axvline(fitted.best_epoch, color="grey", linestyle=":", label="best epoch")
    axes.set(title=metric, xlabel="epoch", ylabel=unit)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return fig


def empty_figure(width: float, height: float, margins: Mapping[str, float] | None = None) -> Figure:
    """An empty figure, size in inches; computing `margins` that are not given takes longer."""
    from matplotlib.figure import Figure  # matplotlib has no lazy submodules

    fig = Figure(figsize=(width, height), layout=None if margins else "constrained")
    if margins:
        fig.subplots_adjust(**margins)
    return fig


def cut(name: str, longest: int = _LONGEST) -> str:
    """A name with its end cut off if it is too long to stand beside a plot."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def without_markup(text: str) -> str:
    """A text with its dollar signs escaped, which would mark formulas for matplotlib."""
    return text.replace("$", r"\$")


def _names(predictions: Predictions, longest: int = _LONGEST) -> list[str]:
    """The class names as texts for matplotlib, none too long."""
    return [without_markup(cut(name, longest)) for name in predictions.class_names]


def _picture(
    axes: Axes, image: Array, *, left: float, top: float, grey: str, side: float = 0.72
) -> None:
    """Draws an image u8[H,W,C] into a square of `side` units; its longer side fills the square.

    Images of one or two channels are drawn with the colour map `grey`, others by the first three.
    """
    height, width = side * np.array(image.shape[:2]) / max(image.shape[:2])
    x, y = left + (side - width) / 2, top + (side - height) / 2
    extent = (x, x + width, y + height, y)
    if image.shape[2] <= 2:
        axes.imshow(image[:, :, 0], cmap=grey, vmin=0, vmax=255, extent=extent, aspect="auto")
    else:
        axes.imshow(image[:, :, :3], extent=extent, aspect="auto")
