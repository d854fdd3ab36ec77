"""Measures predictions of a saved model, one image and many: `python -m benchmarks.inference`.

A one-epoch run trains and saves the model, which is loaded from the tracking store, as for serving.
Ours are `mlflow.pyfunc.load_model(uri).predict` and the `predict` of `training/predictor.py`, which
the evaluation uses. They are compared with Keras' `predict` and with calling the model, which
Keras' documentation advises for small inputs. After a warm-up they take turns in one process, call
by call, with TensorFlow's own settings and no progress bars. Medians are reported.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import OTHERS, OURS, keep, show
from benchmarks.whole_run import finished, store, warmed
from pipeline.data.values import Array, Split

Ways = dict[str, Callable[[Array], Array]]
Seconds = dict[str, list[float]]
WARM_UP = 3  # calls
BATCH_SIZE = 1024  # that of conf/evaluate


def main() -> None:
    """Reads the command line, measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=200, help="predictions of one image")
    parser.add_argument("--repeats", type=int, default=9, help="predictions of all images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [*warmed(arguments.dataset, folder), f"model={arguments.model}", "train.epochs=1"]
        run = finished(command, folder)
        ways, shape = _ways(run.result["model_uri"], store(folder))
        images = np.random.default_rng(0).integers(0, 256, (arguments.images, *shape), np.uint8)
        _check_agreement(ways, images[:100])
        one, many = (
            in_turns({k: partial(way, shown) for k, way in ways.items()}, calls, warm_up=WARM_UP)
            for shown, calls in ((images[:1], arguments.calls), (images, arguments.repeats))
        )
    _publish(f"Predicting with the saved {arguments.model}", one, many, arguments.images)


def _ways(uri: str, tracking_uri: str) -> tuple[Ways, tuple[int, ...]]:
    """Functions of images u8[N,H,W,C] → probabilities f32[N,K] by name, and [H,W,C]."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of the calls measured here
    import keras
    import mlflow

    from pipeline.training import predictor

    keras.config.disable_interactive_logging()
    mlflow.set_tracking_uri(tracking_uri)
    served = mlflow.pyfunc.load_model(uri)
    model = mlflow.tensorflow.load_model(uri)
    return {
        "ours: pyfunc": served.predict,
        "ours: predict": lambda x: predictor.predict(model, _split(x), batch_size=BATCH_SIZE),
        "Keras predict": lambda x: model.predict(x, verbose=0),
        f"Keras predict, {BATCH_SIZE:,}": lambda x: model.predict(x, BATCH_SIZE, verbose=0),
        "Keras call": lambda x: model(x, training=False).numpy(),
    }, model.input_shape[1:]


def _check_agreement(ways: Ways, images: Array) -> None:
    first, *others = (predict(images) for predict in ways.values())
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)


def in_turns(ways: Mapping[str, Callable[[], object]], calls: int, *, warm_up: int) -> Seconds:
    """Seconds of so many calls of each way, which take turns after a warm-up of each."""
    seconds: Seconds = {name: [] for name in ways}
    for _ in range(warm_up + calls):
        for name, call in ways.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[warm_up:] for name, values in seconds.items()}


def _publish(title: str, one: Seconds, many: Seconds, images: int) -> None:
    columns = ("way", "1 image, ms", "95 % in, ms", f"{images:,}, s", "images/s")
    rows = []
    for name in one:
        median, most = np.percentile(one[name], [50, 95]) * 1000
        batch = float(np.median(many[name]))
        rows.append(
            (name, f"{median:.2f}", f"{most:.2f}", f"{batch:.3f}", f"{images / batch:,.0f}")
        )
    show(title, columns, rows)
    figure = Figure(figsize=(11, 1.4 + 0.45 * len(one)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, {name: [1000 * value for value in values] for name, values in one.items()})
    left.set(xlabel=f"one image: ms (median of {len(next(iter(one.values())))} calls)")
    _bars(right, many)
    right.set(xlabel=f"{images:,} images: s (median of {len(next(iter(many.values())))} calls)")
    figure.suptitle(title)
    medians = {
        kind: {name: float(np.median(values)) for name, values in seconds.items()}
        for kind, seconds in (("one", one), ("many", many))
    }
    keep(
        "inference",
        title,
        figure,
        images=images,
        seconds={"one": one, "many": many},
        medians=medians,
    )


def _bars(axes: Axes, values: Seconds) -> None:
    medians = [float(np.median(of_way)) for of_way in values.values()]
    colours = [OURS if name.startswith("ours") else OTHERS for name in values]
    bars = axes.barh([*values], medians, color=colours)
    axes.bar_label(bars, [f"{median:.3g}" for median in medians], padding=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()


def _split(images: np.ndarray) -> Split:
    return Split(images=images, labels=np.zeros(len(images), np.int32))


if __name__ == "__main__":
    main()
