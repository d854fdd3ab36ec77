from __future__ import annotations

import importlib
import io
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.data.values import Array, Fitted, Predictions, Split
from pipeline.evaluation import plots
from tests.warm import call_warm

pytestmark = pytest.mark.slow


def predictions(
    probabilities: Any,
    labels: list[int],
    *,
    channels: int = 1,
    names: tuple[str, ...] = ("cat", "dog"),
) -> Predictions:
    images = np.arange(len(labels) * 4 * channels).astype(np.uint8)
    images = images.reshape(-1, 2, 2, channels)
    return Predictions(
        split=Split(images=images, labels=np.array(labels, np.int32)),
        probabilities=np.array(probabilities, np.float32),
        class_names=names,
    )


# Right at 0.75, wrong at 1.0, wrong at 0.625, right at 0.5.
MIXED = predictions([[0.75, 0.25], [1, 0], [0.375, 0.625], [0.5, 0.5]], [0, 1, 0, 0])
PERFECT = predictions([[1, 0], [0, 1]], [0, 1])


TRAINED = np.array([[2, -2], [2, -2], [2, -2]], np.float32)


def network(*kernels: Array) -> Any:
    """What plots see of a model: a layer without a kernel, then dense ones."""
    layers = [
        SimpleNamespace(name=f"dense_{n}", kernel=k, trainable_variables=[k])
        for n, k in enumerate(kernels, 1)
    ]
    return SimpleNamespace(
        name="net", layers=[SimpleNamespace(name="flatten", trainable_variables=[]), *layers]
    )


def fitted(**changes: Any) -> Fitted:
    values = {
        "model": network(TRAINED),
        "history": {
            "train/loss": [2.0, 1.0, 0.5],
            "train/accuracy": [0.25, 0.5, 0.75],
            "val/loss": [1.5, 1.0, 1.25],
            "val/accuracy": [0.5, 0.75, 0.75],
        },
        "images_per_s": 100.0,
        "best_epoch": 2,
        "kept_epoch": 2,
        "untrained": lambda: network(TRAINED / 2),
    }
    return Fitted(**{**values, **changes})


def drawn(figure: Figure) -> Figure:
    """The figure after it went through the renderer, where late mistakes show."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in figure.axes[0].lines
    }


def legend(figure: Figure) -> list[str]:
    [box] = figure.legends or [figure.axes[0].get_legend()]
    assert box is not None
    return [text.get_text() for text in box.get_texts()]


@pytest.mark.parametrize(
    ("name", "unit"), [("accuracy", "share correct"), ("loss", "cross-entropy [nats]")]
)
def test_a_curve_shows_both_splits_by_epoch_and_the_best_one(name: str, unit: str) -> None:
    figure = drawn(getattr(plots, name)(fitted()))
    axes = figure.axes[0]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (name, "epoch", unit)
    assert legend(figure) == ["train", "val", "best epoch"]
    history = fitted().history
    assert lines(figure)["train"] == ([1, 2, 3], history[f"train/{name}"])
    assert lines(figure)["val"] == ([1, 2, 3], history[f"val/{name}"])
    assert lines(figure)["best epoch"][0] == [2, 2]


def test_a_curve_without_validation_shows_training_alone() -> None:
    history = {"train/loss": [2.0, 1.0], "train/accuracy": [0.5, 0.75]}
    figure = drawn(plots.loss(fitted(history=history, best_epoch=None)))
    assert legend(figure) == ["train"]
    assert lines(figure) == {"train": ([1, 2], [2.0, 1.0])}


def test_a_single_epoch_is_a_visible_point() -> None:
    history = {"train/loss": [2.0], "val/loss": [1.0]}
    figure = drawn(plots.loss(fitted(history=history, best_epoch=1)))
    assert lines(figure)["train"] == ([1], [2.0])
    assert figure.axes[0].lines[0].get_marker() == "."


def test_weights_are_shown_before_and_after_on_one_colour_scale() -> None:
    figure = drawn(plots.weights(fitted()))
    left, right, colour_bar = figure.axes
    assert left.get_title() == "initial, sd 1.0000"
    assert right.get_title() == "trained, sd 2.0000"
    assert figure.get_suptitle() == "Weights of layer dense_1, 3 × 2"
    assert left.images[0].get_clim() == right.images[0].get_clim() == (-2, 2)
    np.testing.assert_array_equal(right.images[0].get_array(), TRAINED)
    assert colour_bar.get_ylabel() == "weight"


def test_weights_that_are_all_zero_can_be_drawn() -> None:
    zeros = np.zeros((3, 2), np.float32)
    figure = drawn(plots.weights(fitted(model=network(zeros), untrained=lambda: network(zeros))))
    assert figure.axes[0].images[0].get_clim() == (-1, 1)


def test_the_kernel_of_a_convolution_is_one_row_per_input() -> None:
    filters = np.arange(36, dtype=np.float32).reshape(3, 3, 1, 4)
    name, kernel = plots.first_kernel(network(filters)) or ("", TRAINED)
    assert name == "dense_1"
    np.testing.assert_array_equal(kernel, filters.reshape(9, 4))


def test_the_size_or_the_vector_that_a_layer_calls_its_kernel_is_passed_over() -> None:
    model, scale = network(TRAINED), np.ones(3, np.float32)
    model.layers[:0] = [
        SimpleNamespace(name="block", kernel=3, trainable_variables=[TRAINED]),
        SimpleNamespace(name="scale", kernel=scale, trainable_variables=[scale]),
        SimpleNamespace(name="frozen", kernel=TRAINED, trainable_variables=[]),
    ]
    name, _ = plots.first_kernel(model) or ("", TRAINED)
    assert name == "dense_1"


def test_a_model_without_a_kernel_costs_the_picture_of_weights_and_not_the_run() -> None:
    figure = drawn(plots.weights(fitted(model=network())))
    assert figure.get_suptitle() == "No trained layer of model net has a kernel"
    assert figure.axes == []


def test_the_confusion_matrix_counts_true_by_predicted() -> None:
    figure = drawn(plots.confusion_matrix(MIXED))
    (axes,) = figure.axes
    # True cat: two found, one called dog; true dog: called cat.
    assert [text.get_text() for text in axes.texts] == ["2", "1", "1", "0"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "4 images"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


def test_the_confusion_matrix_has_a_row_for_a_class_without_images() -> None:
    names = ("cat", "dog", "eel")
    figure = drawn(plots.confusion_matrix(predictions(np.eye(3)[[0, 1]], [0, 1], names=names)))
    assert [text.get_text() for text in figure.axes[0].texts] == list("100010000")


def test_long_names_are_cut_and_leave_room_for_the_matrix() -> None:
    names = tuple(f"Tomato___{word} Yellow_Leaf_Curl_Virus_of_1960" for word in ("One", "Two"))
    figure = drawn(plots.confusion_matrix(predictions(np.eye(2), [0, 1], names=names)))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "Tomato___One Yellow_Leaf_Curl_Virus…",
        "Tomato___Two Yellow_Leaf_Curl_Virus…",
    ]
    short = drawn(plots.confusion_matrix(PERFECT)).axes[0]
    assert axes.get_window_extent().width > 0.9 * short.get_window_extent().width


def test_of_many_classes_those_with_the_most_mistakes_are_drawn() -> None:
    labels = np.arange(1000)
    guesses = np.where(labels % 20 == 7, labels + 1, labels)  # 7 is taken for 8, 27 for 28, …
    names = tuple(f"class {label}" for label in labels)
    made = predictions(np.eye(1000)[guesses], labels.tolist(), names=names)
    (matrix,) = drawn(plots.confusion_matrix(made)).axes
    shown = [label.get_text() for label in matrix.get_yticklabels()]
    assert (shown[:3], len(shown)) == (["class 7", "class 8", "class 27"], 50)
    expected = "1,000 images; the 50 of 1,000 classes with the most mistakes"
    assert matrix.get_title() == expected
    assert {text.get_text() for text in matrix.texts} == {"1"}  # zeros would hide the mistakes
    alone = drawn(plots.confusion_matrix(predictions(np.eye(1000)[[700]], [700], names=names)))
    assert "class 700" in [label.get_text() for label in alone.axes[0].get_yticklabels()]
    (scores,) = drawn(plots.per_class_scores(made)).axes
    assert scores.get_title() == "The 50 of 1,000 classes with the lowest F1"
    worst = {label.get_text() for label in scores.get_yticklabels()}
    assert worst == {names[label] for label in labels if label % 20 == 7}


def test_scores_are_three_bars_a_class_with_the_worst_class_on_top() -> None:
    figure = drawn(plots.per_class_scores(MIXED))
    (axes,) = figure.axes
    # cat: precision 2/3, recall 2/3, F1 2/3; dog: all 0, and so the worst.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert legend(figure) == ["precision", "recall", "F1"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([2 / 3, 0] * 3)
    assert [text.get_text() for text in axes.texts] == ["0.667", "0.000"] * 3
    assert axes.get_xlim() == (0, 1.08)


def test_the_bars_of_scores_start_at_zero_however_good_they_all_are() -> None:
    assert plots.per_class_scores(PERFECT).axes[0].get_xlim()[0] == 0


def test_reliability_shows_the_share_right_of_each_confidence_and_how_many_have_it() -> None:
    figure = drawn(plots.reliability(MIXED))
    top, bottom = figure.axes
    # Gaps 0.25, 1, 0.625 and 0.5 of one image each.
    assert top.get_title() == "ECE 0.5938"
    assert lines(figure)["model"] == ([0.5, 0.625, 0.75, 1], [1, 0, 1, 0])
    assert lines(figure)["perfectly calibrated"] == ([0, 1], [0, 1])
    assert len(bottom.patches) == 15
    assert sum(bar.get_height() for bar in bottom.patches) == 4
    assert bottom.patches[-1].get_height() == 1
    assert bottom.get_yscale() == "log"


def test_the_numbers_below_reliability_leave_room_for_what_they_are_of() -> None:
    confidence = np.repeat([0.56, 0.7, 0.9], [27, 300, 29])
    some = predictions(np.stack([confidence, 1 - confidence], axis=1), [0] * 356)
    figure = drawn(plots.reliability(some))
    bottom = figure.axes[1]
    assert bottom.get_ylim()[0] < 1
    assert bottom.yaxis.label.get_window_extent().x0 > 0


def titles(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_mistakes_are_shown_surest_first_with_what_they_are() -> None:
    figure = drawn(plots.mistakes(MIXED))
    assert figure.get_suptitle() == "The 2 most confident of 2 mistakes"
    assert titles(figure) == ["cat 100.0%\nis dog", "dog 62.5%\nis cat"]
    np.testing.assert_array_equal(
        figure.axes[0].images[0].get_array(), MIXED.split.images[1, :, :, 0]
    )
    assert len(figure.axes[0].images) == 2


def test_of_many_channels_mistakes_show_the_first_three() -> None:
    wrong = predictions([[1, 0]], [1], channels=5)
    [image] = drawn(plots.mistakes(wrong)).axes[0].images
    np.testing.assert_array_equal(image.get_array(), wrong.split.images[0, :, :, :3])


def test_a_mistake_of_nearly_full_confidence_is_not_shown_as_one_of_full() -> None:
    figure = plots.mistakes(predictions([[0.9996, 0.0004]], [1]))
    assert titles(figure) == ["cat >99.9%\nis dog"]


def test_long_names_above_a_mistake_do_not_run_into_the_next_one() -> None:
    names = ("Symphyotrichum novae-angliae", "Symphyotrichum novi-belgii")
    figure = plots.mistakes(predictions([[0, 1]] * 25, [0] * 25, names=names))

    figure.draw_without_rendering()
    [axes] = figure.axes
    column = axes.get_window_extent().width / 5
    assert max(text.get_window_extent().width for text in axes.texts) < column


def test_no_more_than_25_mistakes_are_shown() -> None:
    figure = plots.mistakes(predictions([[1, 0]] * 30, [1] * 30))
    assert figure.get_suptitle() == "The 25 most confident of 30 mistakes"
    assert len(titles(figure)) == 25


def test_a_model_without_mistakes_has_an_empty_page() -> None:
    figure = drawn(plots.mistakes(PERFECT))
    assert figure.get_suptitle() == "The 0 most confident of 0 mistakes"
    assert titles(figure) == []


def test_colour_images_are_shown_in_colour() -> None:
    made = predictions([[1, 0]], [1], channels=3)
    shown: Array = plots.mistakes(made).axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, made.split.images[0])


@pytest.mark.parametrize("made", [MIXED, PERFECT, predictions([[0.5, 0.5]], [1], channels=3)])
@pytest.mark.parametrize(
    "name", ["confusion_matrix", "per_class_scores", "reliability", "mistakes"]
)
def test_every_picture_of_predictions_can_be_drawn(name: str, made: Predictions) -> None:
    assert drawn(getattr(plots, name)(made)).axes


def uses_of_pyplot() -> tuple[bool, list[int]]:
    """Draws with modules imported anew: whether that imports pyplot, and its figures in the end."""
    for name in [*sys.modules]:
        if name.startswith(("pipeline.evaluation", "tests.evaluation", "matplotlib.pyplot")):
            del sys.modules[name]
    anew: Any = importlib.import_module(__name__)
    for draw in (anew.plots.accuracy, anew.plots.loss, anew.plots.weights):
        drawn(draw(anew.fitted()))
    for draw in (anew.plots.per_class_scores, anew.plots.reliability, anew.plots.mistakes):
        drawn(draw(anew.MIXED))
    is_used = "matplotlib.pyplot" in sys.modules
    drawn(anew.plots.confusion_matrix(anew.MIXED))  # for which scikit-learn imports it
    pyplot = sys.modules.get("matplotlib.pyplot")
    return is_used, pyplot.get_fignums() if pyplot else []


def test_pyplot_is_not_used_and_keeps_no_figure() -> None:
    assert call_warm(uses_of_pyplot, timeout=60) == (False, [])


def test_a_class_may_be_named_like_a_formula() -> None:
    named = predictions([[1, 0], [1, 0]], [0, 1], names=("$^$", "b$"))
    for plot in (plots.confusion_matrix, plots.per_class_scores, plots.mistakes):
        plot(named).savefig(io.BytesIO())  # a formula is read when it is drawn


def test_a_row_of_augmented_images_shows_the_image_first() -> None:
    rows = np.zeros((2, 3, 4, 5, 1), np.uint8)
    rows[:, :, 0] = np.arange(6).reshape(2, 3, 1, 1) * 40
    (axes,) = plots.augmentation(fitted(augmented=rows)).axes
    shown = [np.array(image.get_array())[0, 0] for image in axes.get_images()]
    assert shown == [0, 40, 80, 120, 160, 200]
    left = [image.get_extent()[0] for image in axes.get_images()]
    assert left == pytest.approx([0.05, 1.05, 2.05] * 2)
    assert plots.augmentation(fitted()).get_suptitle() == "No augmentation"
