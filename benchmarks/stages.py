"""Measures time and memory of one tracked default run by stage: `python -m benchmarks.stages`.

The run trains the MLP for 20 epochs on Fashion-MNIST, from a warm data cache and into an existing
store. Process start and exit are measured from outside, everything between is read from the run's
own record: `time/<stage>_s`, the times at which it began, logged its times and ended according to
MLflow, and the fit from `time/images_per_s`. The peak of its resident memory is compared with that
of a process that only imports TensorFlow and MLflow and holds the same data at one byte per pixel.
The two take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import OTHERS, OURS, keep, show
from benchmarks.whole_run import Finished, finished, raw_folder, store, warmed

FIT = "fit"
MEMORY_BAR = 1.3  # times the baseline's peak
BASELINE = """
import sys, mlflow, numpy, tensorflow
held = [numpy.load(path) for path in sys.argv[1:]]
print([int(array.sum()) for array in held])
"""


def main() -> None:
    """Reads the command line, measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    runs: list[Finished] = []
    baselines: list[Finished] = []
    with tempfile.TemporaryDirectory() as folder:
        command = [*warmed(arguments.dataset, folder), f"train.epochs={arguments.epochs}"]
        data = sorted(str(path) for path in raw_folder(arguments.dataset).glob("*.npy"))
        for repeat in range(arguments.repeats):
            print(f"stages, repeat {repeat + 1} of {arguments.repeats}", file=sys.stderr)
            runs.append(finished(command, folder))
            baselines.append(finished(["-c", BASELINE, *data], folder))
        # Only now: with MLflow imported, this process would no longer be a small one.
        stages = [stages_of(run, store(folder)) for run in runs]
    title = (
        f"One tracked run, process start to exit: {arguments.dataset}, {arguments.epochs} epochs"
    )
    memory = {
        "the run": [run.peak_mb for run in runs],
        "TensorFlow, MLflow, data": [baseline.peak_mb for baseline in baselines],
    }
    _publish(title, [run.seconds for run in runs], stages, memory)


def stages_of(run: Finished, uri: str) -> dict[str, float]:
    """Seconds by stage of a finished `python -m pipeline run`, in order; they sum up to its own."""
    recorded = _recorded(run, uri)
    metrics = recorded.data.metrics
    named = {name: metrics[f"time/{name}_s"] for name in ("ingest", "preprocess", "train")}
    fit = fit_seconds(run, uri)
    after = {name: metrics[f"time/{name}_s"] for name in ("evaluate", "save")}
    logged = _client(uri).get_metric_history(recorded.info.run_id, "time/total_s")[-1]
    began, upload = logged.timestamp / 1000 - logged.value, logged.timestamp / 1000
    return {
        "imports and configuration": began - run.started,
        "open the run": logged.value - sum(named.values()) - sum(after.values()),
        "ingest": named["ingest"],
        "preprocess": named["preprocess"],
        "train: build, summarise, draw": named["train"] - fit,
        FIT: fit,
        **after,
        "upload": recorded.info.end_time / 1000 - upload,
        "exit": run.ended - recorded.info.end_time / 1000,
    }


def fit_seconds(run: Finished, uri: str) -> float:
    """Seconds that the epochs took, with their validation, checkpoints and logging."""
    recorded = _recorded(run, uri)
    epochs = len(_client(uri).get_metric_history(recorded.info.run_id, "train/loss"))
    return seconds_of_epochs(recorded, epochs)


def seconds_of_epochs(recorded: Any, epochs: int) -> float:
    """Seconds that so many epochs of a run in MLflow took."""
    profile = json.loads(recorded.inputs.dataset_inputs[0].dataset.profile)
    images: int = epochs * profile["train_images"]
    return images / float(recorded.data.metrics["time/images_per_s"])


def _recorded(run: Finished, uri: str) -> Any:
    return _client(uri).get_run(run.result["run_id"])


def _client(uri: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(uri)


def _publish(
    title: str, totals: list[float], stages: list[dict[str, float]], memory: dict[str, list[float]]
) -> None:
    total = statistics.median(totals)
    medians = {name: statistics.median(run[name] for run in stages) for name in stages[0]}
    besides = [whole - run[FIT] for whole, run in zip(totals, stages, strict=True)]
    peaks = {name: statistics.median(values) for name, values in memory.items()}
    ours, baseline = peaks.values()
    rows = [(name, f"{value:.2f}", f"{value / total:.0%}") for name, value in medians.items()]
    rows += [
        ("total", f"{total:.2f}", ""),
        (f"all but the {FIT}", f"{statistics.median(besides):.2f}", ""),
    ]
    show(title, ("stage", "median s", "share"), rows)
    peak_rows = [
        (name, f"{value:,.0f}", f"{value / baseline:.2f}") for name, value in peaks.items()
    ]
    show("Peak of the resident memory", ("process", "median MB", "ratio"), peak_rows)
    keep(
        "stages",
        title,
        _plot(f"{title}, {total:.1f} s", medians, peaks),
        seconds=stages,
        medians=medians,
        total=totals,
        besides_fit=besides,
        peak_mb=memory,
        memory_ratio=ours / baseline,
        memory_bar=MEMORY_BAR,
    )


def _plot(title: str, medians: dict[str, float], peaks: dict[str, float]) -> Figure:
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, height_ratios=[len(medians), 2.2])
    _waterfall(above, medians)
    above.set_title(title)
    ours, baseline = peaks.values()
    bars = below.barh([*peaks], [*peaks.values()], color=[OURS, OTHERS])
    below.bar_label(
        bars, [f"{ours:,.0f}  (× {ours / baseline:.2f})", f"{baseline:,.0f}"], padding=3
    )
    below.axvline(MEMORY_BAR * baseline, color="0.4", linestyle=":")
    below.annotate(f" × {MEMORY_BAR}", (MEMORY_BAR * baseline, 1), color="0.4", va="center")
    below.invert_yaxis()
    below.margins(x=0.2)
    below.set(xlabel="peak of the resident memory in MB (median)")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _waterfall(axes: Axes, medians: dict[str, float]) -> None:
    widths = [*medians.values()]
    starts = [sum(widths[:number]) for number in range(len(widths))]
    colours = [OURS if name == FIT else OTHERS for name in medians]
    bars = axes.barh([*medians], widths, left=starts, color=colours)
    axes.bar_label(bars, [f"{width:.2f}" for width in widths], padding=3)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    axes.set(xlabel="seconds since the process started (medians)")


if __name__ == "__main__":
    main()
