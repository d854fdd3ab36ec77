"""Measures `python -m pipeline compare` over a thousand runs: `python -m benchmarks.compare`.

The store has the runs of a sweep: two models, learning rates, dropouts and ten seeds, each run with
its parameters, tags and metrics, but without artefacts. The command is measured from process start
to exit, including table, page and plots, and compared with its lower bound: a process that imports
MLflow and searches the same store for the same runs once.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.report import publish
from benchmarks.whole_run import finished, store

METRICS = 20
PARAMS = 45
SEARCH = """
import mlflow, os
client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
[known] = [e for e in client.search_experiments() if e.name == "fashion_mnist"]
print(len(client.search_runs([known.experiment_id], max_results=5000)))
"""


def main() -> None:
    """Reads the command line, fills the store and measures, the contenders taking turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where to fill the store, or where it was filled before")
    arguments = parser.parse_args()
    count = arguments.runs
    ours = ["-m", "pipeline", "compare", f"top={count}"]
    contenders = {
        f"compare, {count:,} runs": ours,
        f"compare format=json, {count:,} runs": [*ours, "format=json"],
        "compare, 10 runs": [*ours[:-1], "top=10"],
        "import mlflow and one bare search": ["-c", SEARCH],
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or made
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not Path(folder, "mlflow.db").exists():
            _fill(folder, count)
        for _ in range(1 + arguments.repeats):
            for name, command in contenders.items():
                seconds[name].append(finished(command, folder).seconds)
    warm = {name: values[1:] for name, values in seconds.items()}  # the first reads the files
    title = f"Comparing {count:,} runs of one sqlite store: seconds from process start to exit"
    publish("compare", title, warm, reference=next(iter(contenders)), runs=count)


def _fill(folder: str, count: int) -> None:
    """Makes a store with `count` finished runs and the sweep that they are jobs of."""
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
    import mlflow
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    profile = json.dumps({"train_images": 55_000, "val_images": 5_000, "test_images": 10_000})
    dataset = Dataset("fashion_mnist", "f" * 36, "local", "{}", profile=profile)
    data = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
    started = time.perf_counter()
    client = mlflow.MlflowClient(store(folder))
    experiment = client.create_experiment("fashion_mnist")
    parent = client.create_run(experiment, tags={"sweep.folder": folder}).info.run_id
    for index, (params, tags, metrics) in enumerate(_runs(count)):
        now = int(time.time() * 1000)
        place = {"mlflow.parentRunId": parent, "sweep.index": str(index)}
        run_id = client.create_run(experiment, run_name=f"job-{index}").info.run_id
        client.log_batch(
            run_id,
            [Metric(key, value, now, 1) for key, value in metrics.items()],
            [Param(key, value) for key, value in params.items()],
            [RunTag(key, value) for key, value in (tags | place).items()],
        )
        client.log_inputs(run_id, [data])
        client.set_terminated(run_id)
    client.set_terminated(parent)
    seconds = time.perf_counter() - started
    print(f"filled with {count:,} runs in {seconds:.0f} s", flush=True)


def _runs(count: int) -> Iterator[tuple[dict[str, str], dict[str, str], dict[str, float]]]:
    """Parameters, tags and metrics of each run, as `pipeline run` records them."""
    from pipeline.tracking import lineage

    rng = np.random.default_rng(0)
    tags = {f"version.{key}": value for key, value in lineage.versions().items()}
    tags |= {f"hardware.{key}": value for key, value in lineage.hardware().items()}
    tags |= {"dataset": "fashion_mnist", "optimizer": "adam", "augment": "none", "train": "default"}
    tags |= {"code.dirty": "false", "mlflow.source.git.commit": "0" * 40, "command": "python"}
    tags |= {"data.fingerprint": "f" * 64, "data.source": "made up"}
    for index in range(count):
        setting, seed = divmod(index, 10)
        params = {f"constant.parameter_{number}": str(number) for number in range(PARAMS - 5)}
        params |= {
            "optimizer.learning_rate": f"{10 ** (-4 + 2 * (setting % 20) / 19):.3g}",
            "model.dropout": f"{0.05 * (setting // 20):.2f}",
            "model.hidden": "[256, 128]",
            "preprocess.validation_size": "5000",
            "seed": str(seed),
        }
        mean = 0.88 - 0.002 * abs(setting % 20 - 10) - 0.003 * abs(setting // 20 - 2)
        accuracy = float(rng.binomial(5000, mean)) / 5000
        metrics = {f"test/f1_{number}": float(rng.random()) for number in range(METRICS - 5)}
        metrics |= {"val/accuracy": accuracy, "val/loss": 1.2 - accuracy, "train/loss": 0.2}
        metrics |= {"time/train_s": 20 + float(rng.random()), "time/total_s": 25.0}
        yield params, tags | {"model": "mlp"}, metrics


if __name__ == "__main__":
    main()
