"""Measures training as data and batches grow: `python -m benchmarks.scaling`.

The MLP is trained on more and more images of noise at batch size 128, and on 60,000 at growing
batch sizes; the CNN on fewer images, at three batch sizes. Each measurement is a process of its
own, and the contenders take turns; the first epoch, in which graphs are compiled, is left out.
Memory is the peak of the process, TensorFlow included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.contenders import CONTENDERS, contenders_of
from benchmarks.report import OURS, REFERENCE, keep, show
from benchmarks.training import task_of
from benchmarks.whole_run import finished

BATCH_SIZE = 128  # while the data grow
COLOURS = ("#7f9fbf", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d")


@dataclass(frozen=True, kw_only=True)
class Point:
    """The settings at which a contender is measured."""

    contender: str
    model: str
    size: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds of each epoch but the first, and the peak of the process' memory."""

    point: Point
    seconds: list[float]
    peak_mb: list[float]

    @property
    def median(self) -> float:
        """Seconds per epoch."""
        return statistics.median(self.seconds)

    @property
    def images_per_s(self) -> float:
        """Images trained on per second."""
        return self.point.size / self.median

    @property
    def peak_gb(self) -> float:
        """The highest peak of the repeats."""
        return max(self.peak_mb) / 1000


def main() -> None:
    """Reads the command line and measures, or is one of the measuring processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60_000, 300_000, 1_200_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512, 2048, 4096])
    parser.add_argument("--cnn-size", type=int, default=12_800)
    parser.add_argument("--cnn-batches", type=int, nargs="*", default=[32, 128, 512])
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=["ours", "keras fit, 50 steps", "keras fit"],
    )
    parser.add_argument("--epochs", type=int, default=2, help="after the first")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_epochs(Point(**json.loads(arguments.one)), arguments.epochs)))
        return
    _publish(
        _measure(_points(arguments), arguments.repeats, arguments.epochs), min(arguments.sizes)
    )


def _points(arguments: argparse.Namespace) -> list[Point]:
    places = [("mlp", size, BATCH_SIZE) for size in arguments.sizes]
    places += [("mlp", min(arguments.sizes), batch_size) for batch_size in arguments.batches]
    places += [("cnn", arguments.cnn_size, batch_size) for batch_size in arguments.cnn_batches]
    return [
        Point(contender=contender, model=model, size=size, batch_size=batch_size)
        for model, size, batch_size in dict.fromkeys(places)
        for contender in arguments.contenders
        if contender in contenders_of(model)
    ]


def _measure(points: list[Point], repeats: int, epochs: int) -> list[Measured]:
    seconds: dict[Point, list[float]] = defaultdict(list)
    peaks: dict[Point, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for point in points:
                print(f"repeat {repeat + 1} of {repeats}: {point}", file=sys.stderr)
                one = ["--one", json.dumps(asdict(point)), "--epochs", str(epochs)]
                done = finished(["-m", "benchmarks.scaling", *one], folder)
                seconds[point] += json.loads(done.output.splitlines()[-1])[1:]
                peaks[point].append(done.peak_mb)
    return [Measured(point=p, seconds=seconds[p], peak_mb=peaks[p]) for p in points]


def _epochs(point: Point, epochs: int) -> list[float]:
    task = task_of(point.model, size=point.size, batch_size=point.batch_size, epochs=1 + epochs)
    return list(CONTENDERS[point.contender](task))


def _publish(measured: list[Measured], base: int) -> None:
    title = "Training as data and batches grow"
    columns = ("model", "images", "batch", "by", "s/epoch", "images/s", "ours/it", "peak GB")
    show(title, columns, [_row(taken, measured) for taken in measured])
    points = [asdict(taken) for taken in measured]
    keep("scaling", title, _plot(title, measured, base), points=points)


def _row(taken: Measured, measured: list[Measured]) -> list[str]:
    point = taken.point
    medians = {other.point: other.median for other in measured}
    ours = medians.get(replace(point, contender=REFERENCE))
    return [
        point.model,
        f"{point.size:,}",
        f"{point.batch_size:,}",
        point.contender,
        f"{taken.median:.2f}",
        f"{taken.images_per_s:,.0f}",
        f"{ours / taken.median:.2f}" if ours else "",
        f"{taken.peak_gb:.2f}",
    ]


def _plot(title: str, measured: list[Measured], base: int) -> Figure:
    mlp = [taken for taken in measured if taken.point.model == "mlp"]
    of_sizes = [taken for taken in mlp if taken.point.batch_size == BATCH_SIZE]
    of_batches = [taken for taken in mlp if taken.point.size == base]
    of_cnn = [taken for taken in measured if taken.point.model == "cnn"]
    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(title)
    (sizes, memory), (batches, cnn) = figure.subplots(2, 2)
    sizes.set(title=f"MLP, batch {BATCH_SIZE}", xlabel="images", ylabel="images/s")
    memory.set(title=f"MLP, batch {BATCH_SIZE}", xlabel="images", ylabel="peak of memory, GB")
    batches.set(title=f"MLP, {base:,} images", xlabel="batch", ylabel="images/s")
    _lines(sizes, of_sizes, lambda taken: (taken.point.size, taken.images_per_s))
    _lines(memory, of_sizes, lambda taken: (taken.point.size, taken.peak_gb))
    _lines(batches, of_batches, lambda taken: (taken.point.batch_size, taken.images_per_s))
    if of_cnn:
        title = f"CNN, {of_cnn[0].point.size:,} images"
        cnn.set(title=title, xlabel="batch", ylabel="images/s")
        _lines(cnn, of_cnn, lambda taken: (taken.point.batch_size, taken.images_per_s))
    else:
        cnn.set_axis_off()
    sizes.legend(frameon=False)
    return figure


def _lines(
    axes: Axes, measured: list[Measured], place: Callable[[Measured], tuple[float, float]]
) -> None:
    """A line per contender, on log axes with ticks at the measured points."""
    others = iter(COLOURS)
    for name in dict.fromkeys(taken.point.contender for taken in measured):
        colour = OURS if name == REFERENCE else next(others)
        places = sorted(place(taken) for taken in measured if taken.point.contender == name)
        axes.plot(*zip(*places, strict=True), "o-", color=colour, label=name)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sorted({place(taken)[0] for taken in measured}))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    for kind in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        kind("{x:,.6g}")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
