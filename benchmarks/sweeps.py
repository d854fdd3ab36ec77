"""Measures a sweep, compared with scripts and a study: `python -m benchmarks.sweeps`.

A grid of learning rates and dropouts of the MLP on Fashion-MNIST: ours as users run it, two jobs at
once; a plain script per point, two at once, which tracks nothing; and two Optuna studies at once,
each of half the learning rates, with each trial tracked in MLflow. Scripts and studies run also on
Keras' JAX backend, if JAX is installed. All are measured from process start to exit, in turns, and
without XLA programs of earlier runs.

The cost of a job besides its fit is read from the records: the duration of its MLflow run, and the
time in which its worker had no run open. A worker's next run is taken to be the first that starts
after the end of its last. Then comes a sweep of many trivial jobs, whose parent is looked at once
per second.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure

from benchmarks.report import OTHERS, OURS, keep, publish, show
from benchmarks.stages import seconds_of_epochs
from benchmarks.whole_run import (
    DATA,
    ROOT,
    Finished,
    backends,
    finished,
    plain_arrays,
    store,
    warmed,
)

DATASET = "fashion_mnist"
WORKERS = 2  # of ours; so many scripts and studies run at once
SCRIPTS, STUDY = "bare Keras scripts", "Optuna + MLflow studies"
BESIDES_BAR_S = 1.5  # most that a job may take besides its fit
GROWTH_BAR = 1.1  # of the parent, from a tenth of the jobs to all of them
LOOK_S = 1.0
TRIVIAL = ["dataset=synthetic", "model=linear", "train.epochs=1", "train.tensorboard=false"]
TRIVIAL += ["train.plots=[]", "evaluate.plots=[]", "sweep.keep_models=0"]
PARALLEL = f"hydra.launcher.n_jobs={WORKERS}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The points to try, as written on a command line."""

    learning_rates: list[str]
    dropouts: list[str]


@dataclass(frozen=True, kw_only=True)
class Child:
    """A job's run in MLflow: start and end in Unix time; its own account and its fit in seconds."""

    started: float
    ended: float
    total: float
    fit: float


@dataclass(frozen=True, kw_only=True)
class Look:
    """A sweep's parent at a moment: seconds since its start, jobs done, memory, open files."""

    seconds: float
    done: int
    parent_mb: float
    parent_files: int
    biggest_worker_mb: float


def main() -> None:
    """Reads the command line, measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=200, help="trivial ones; 0 leaves them out")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    sweeps: list[Finished] = []
    with tempfile.TemporaryDirectory() as folder:
        warmed(DATASET, folder)
        raw = plain_arrays(DATASET, folder)
        contenders = _contenders(_grid(arguments.trials), arguments.epochs, raw)
        for repeat in range(arguments.repeats):
            for name, measure in contenders.items():
                print(f"{name}, repeat {repeat + 1} of {arguments.repeats}", file=sys.stderr)
                started = time.monotonic()
                done = measure(folder)
                seconds[name].append(time.monotonic() - started)
                sweeps += [done] if name == "ours" else []
        looks = _watched_sweep(arguments.jobs, folder) if arguments.jobs else []
        children = [_children(sweep, store(folder)) for sweep in sweeps]
    title = f"A sweep of {arguments.trials} trials of {arguments.epochs} epochs"
    _publish(title, seconds, list(zip(sweeps, children, strict=True)))
    if looks:
        _publish_growth(looks, arguments.jobs)


def _grid(trials: int) -> Grid:
    """The grid, as square as possible."""
    rates = max(n for n in range(1, math.isqrt(trials) + 1) if trials % n == 0)
    return Grid(
        learning_rates=[f"{rate:.3g}" for rate in np.geomspace(3e-4, 3e-3, rates)],
        dropouts=[f"{dropout:.3g}" for dropout in np.linspace(0.1, 0.4, trials // rates)],
    )


def _contenders(grid: Grid, epochs: int, arrays: Path) -> dict[str, Callable[[str], Any]]:
    """Each contender as a function of the folder to run in."""
    raw = str(arrays)

    def ours(folder: str) -> Finished:
        options = [f"optimizer.learning_rate={','.join(grid.learning_rates)}"]
        options += [f"model.dropout={','.join(grid.dropouts)}", f"train.epochs={epochs}", PARALLEL]
        data = f"data_dir={_data_without_programs(folder)}"
        return finished(["-m", "pipeline", "-m", data, f"dataset={DATASET}", *options], folder)

    def scripts(folder: str, backend: str) -> None:
        def point(rate: str, dropout: str) -> None:
            options = ["--learning-rate", rate, "--dropout", dropout]
            command = ["-m", "benchmarks.bare_script", raw, str(epochs), *options]
            finished(command, folder, backend=backend)

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda pair: point(*pair), product(grid.learning_rates, grid.dropouts)))

    def studies(folder: str, backend: str) -> None:
        def part(rates: list[str]) -> None:
            points = ["--learning-rates", *rates, "--dropouts", *grid.dropouts]
            command = ["-m", "benchmarks.bare_study", raw, str(epochs), *points]
            finished(command, folder, backend=backend)

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(part, [grid.learning_rates[n::WORKERS] for n in range(WORKERS)]))

    return {"ours": ours} | {
        f"{name}, {backend}": partial(measure, backend=backend)
        for name, measure in ((SCRIPTS, scripts), (STUDY, studies))
        for backend in backends()
    }


def _data_without_programs(folder: str) -> Path:
    """A data folder with the arrays but without the XLA programs that other runs have kept.

    A search rarely needs the same program again; a repeated benchmark would.
    """
    data = Path(tempfile.mkdtemp(dir=folder))
    (data / DATASET).symlink_to(DATA / DATASET)
    return data


def _children(sweep: Finished, uri: str) -> list[Child]:
    """The runs of a sweep's jobs, in the order they were started."""
    import mlflow  # imported only now: the measuring process should be small

    client = mlflow.MlflowClient(uri)
    parent = client.get_run(sweep.result["sweep_id"])
    runs = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
        max_results=10_000,
        order_by=["start_time ASC"],
    )
    return [
        Child(
            started=run.info.start_time / 1000,
            ended=run.info.end_time / 1000,
            total=run.data.metrics["time/total_s"],
            fit=seconds_of_epochs(run, int(run.data.params["train.epochs"])),
        )
        for run in runs
    ]


def _besides_fit(children: list[Child]) -> dict[str, list[float]]:
    """Seconds by what they were spent on, a number for each job that it concerns."""
    first, later = children[:WORKERS], children[WORKERS:]
    ends = sorted(child.ended for child in children)
    gaps = [child.started - ended for child, ended in zip(later, ends, strict=False)]
    runs = [child.ended - child.started - child.fit for child in later]
    return {
        "a worker's first job: its run": [c.ended - c.started - c.fit for c in first],
        "another job: its run": runs,
        "of this by its own account (time/total_s)": [c.total - c.fit for c in later],
        "another job: before its run": gaps,
        "another job in all": [run + gap for run, gap in zip(runs, gaps, strict=True)],
    }


def _phases(sweep: Finished, children: list[Child]) -> dict[str, float]:
    """Seconds of a whole sweep, from process start to exit."""
    first, last = children[0].started, max(child.ended for child in children)
    workers = min(WORKERS, len(children))
    fits = sum(child.fit for child in children) / workers
    return {
        "before the first run": first - sweep.started,
        "fits, the workers sharing them": fits,
        "the jobs besides": last - first - fits,
        "after the last run": sweep.ended - last,
    }


def _publish(
    title: str, seconds: dict[str, list[float]], sweeps: list[tuple[Finished, list[Child]]]
) -> None:
    phases = [_phases(sweep, children) for sweep, children in sweeps]
    besides: dict[str, list[float]] = defaultdict(list)
    for _, children in sweeps:
        for name, values in _besides_fit(children).items():
            besides[name] += values
    facts: dict[str, Any] = dict(besides)
    facts["children"] = [[asdict(child) for child in children] for _, children in sweeps]
    publish("sweeps", title, seconds, phases=phases, **facts)
    medians = {name: statistics.median(p[name] for p in phases) for name in phases[0]}
    phase_rows = [(name, f"{value:.2f}") for name, value in medians.items()]
    show("Where the time of ours goes", ("phase", "median s"), phase_rows)
    overheads = {name: values for name, values in besides.items() if values}
    columns = ("besides the fit", "jobs", "median s", "95 % in")
    show(
        f"What a trial costs besides its fit; the bar is {BESIDES_BAR_S} s",
        columns,
        [
            (name, str(len(values)), *(f"{s:.2f}" for s in np.percentile(values, [50, 95])))
            for name, values in overheads.items()
        ],
    )


def _watched_sweep(jobs: int, folder: str) -> list[Look]:
    """Runs a sweep of trivial jobs and looks at its processes at regular intervals.

    Raises:
        SystemExit: it failed.
    """
    print(f"{jobs} trivial jobs", file=sys.stderr)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store(folder)}
    options = [f"data_dir={DATA}", *TRIVIAL, PARALLEL, f"seed=range({jobs})"]
    command = [sys.executable, "-m", "pipeline", "-m", *options]
    printed = Path(folder, "printed.txt")
    looks: list[Look] = []
    started = time.monotonic()
    with printed.open("w") as output:
        process = psutil.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=output
        )
        while process.poll() is None:
            looks += _look(process, printed, time.monotonic() - started)
            time.sleep(LOOK_S)
    if process.returncode:
        raise SystemExit(f"{command} failed:\n{printed.read_text()[-2000:]}")
    return looks


def _look(process: psutil.Process, printed: Path, seconds: float) -> list[Look]:
    """What can be seen now; nothing if a process ends meanwhile."""
    try:
        look = Look(
            seconds=seconds,
            done=len(re.findall(r"^job \d+ ", printed.read_text(), re.MULTILINE)),
            parent_mb=process.memory_info().rss / 1e6,
            parent_files=process.num_fds(),
            biggest_worker_mb=max(
                (child.memory_info().rss / 1e6 for child in process.children()), default=0.0
            ),
        )
    except psutil.Error:
        return []
    return [look]


def _publish_growth(looks: list[Look], jobs: int) -> None:
    """Compares the last looks before a tenth of the jobs, and before all of them, were done."""
    early, late = ([look for look in looks if look.done < share * jobs][-1] for share in (0.1, 1.0))
    title = f"A sweep of {jobs} trivial jobs"
    measures = ("parent_mb", "parent_files", "biggest_worker_mb")
    growth = {name: getattr(late, name) / max(1, getattr(early, name)) for name in measures}
    rows = [
        (
            name.replace("_", " "),
            f"{getattr(early, name):,.0f}",
            f"{getattr(late, name):,.0f}",
            f"{growth[name]:.2f}",
            f"{GROWTH_BAR:.2f}" if name.startswith("parent") else "",
        )
        for name in measures
    ]
    show(title, ("", "10 % done", "all done", "ratio", "at most"), rows)
    keep(
        "sweep-growth",
        title,
        _growth_plot(title, looks),
        looks=[asdict(look) for look in looks],
        growth=growth,
        bar=GROWTH_BAR,
    )


def _growth_plot(title: str, looks: list[Look]) -> Figure:
    figure = Figure(figsize=(8, 6), layout="constrained")
    figure.suptitle(title)
    memory, files = figure.subplots(2, sharex=True, height_ratios=[2, 1])
    seconds = [look.seconds for look in looks]
    memory.plot(seconds, [look.biggest_worker_mb for look in looks], color=OTHERS, label="worker")
    memory.plot(seconds, [look.parent_mb for look in looks], color=OURS, label="parent")
    memory.set(ylabel="resident memory in MB")
    memory.legend(frameon=False)
    files.plot(seconds, [look.parent_files for look in looks], color=OURS)
    files.set(xlabel="seconds since the process started", ylabel="the parent's open files")
    for axes in (memory, files):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
