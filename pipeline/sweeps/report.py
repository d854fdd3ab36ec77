"""The results of a sweep: printed, drawn, and logged to its own run."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.config.schema import Config
from pipeline.data.values import Report
from pipeline.sweeps.board import duration
from pipeline.sweeps.jobs import Job, Scale, brief, short_names
from pipeline.sweeps.launch import at_once
from pipeline.sweeps.manifest import Manifest
from pipeline.sweeps.outcomes import FAILED, FINISHED, KILLED, PRUNED, Objective, Outcome, ranked
from pipeline.sweeps.runs import typical_seconds
from pipeline.system.files import csv_cell
from pipeline.system.imports import uncollected
from pipeline.system.terminal import standard_output
from pipeline.tracking.recording import Recording

SHOWN = 30  # rows of the table at the end; the artefact `trials.csv` has them all


def log_report(
    parent: Recording,
    outcomes: Sequence[Outcome],
    objectives: Sequence[Objective],
    searched: Sequence[str],
    scales: Mapping[str, Scale],
) -> None:
    """Logs the best, the spread, the counts, a table and plots."""
    best = ranked(outcomes, objectives)
    states = (FINISHED, PRUNED, FAILED, KILLED)
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in states}
    metrics = {f"sweep/{state}": float(count) for state, count in counts.items()}
    if best:
        values = [outcome.values[0] for outcome in best]
        metrics |= {"sweep/best": values[0], "sweep/mean": statistics.fmean(values)}
        metrics |= {"sweep/sd": statistics.stdev(values)} if len(values) > 1 else {}
        tags = {f"best.{key}": value for key, value in best[0].params.items()}
        parent.log_tags(tags | {"best.run_id": str(best[0].run_id)})
    parent.log_tags({"sweep.objective": ", ".join(objective.metric for objective in objectives)})
    with uncollected():
        # Imported only now: it takes seconds, and no job should wait for it.
        from pipeline.sweeps.plots import draw

        figures = draw(outcomes, objectives, searched, scales)
    texts = {"trials.csv": _csv(outcomes, objectives, searched)}
    parent.log_report(Report(metrics=metrics, figures=figures, texts=texts))


def print_report(
    sweep_id: str,
    outcomes: Sequence[Outcome],
    objectives: Sequence[Objective],
    console: Console | None = None,
) -> None:
    """Prints all jobs, best first and failures last, and a line that scripts read."""
    console = console or standard_output()
    best = ranked(outcomes, objectives)
    console.print(_table(best, outcomes, objectives))
    values = (
        [f"{o.metric}={v:.4f}" for o, v in zip(objectives, best[0].values, strict=True)]
        if best
        else []
    )
    words = [f"sweep_id={sweep_id}", f"best_run_id={best[0].run_id if best else None}", *values]
    console.print(" ".join(words), soft_wrap=True)


def show_preview(plan: Manifest, jobs: Sequence[Job], config: Config, launcher: Any) -> None:
    """Prints the jobs that a sweep would run, and an estimate of the time from earlier runs."""
    console = standard_output()
    if jobs:
        table = Table("job", *plan.searched)
        for job in jobs:
            table.add_row(str(job.index), *job.params.values())
    else:
        table = Table("searched", "space")
        for key, space in plan.searched.items():
            table.add_row(key, space)
    console.print(table)
    count = len(jobs) or config.sweep.n_trials
    proposed = "" if jobs else f" proposed by {config.sweep.sampler}, pruner {config.sweep.pruner}"
    parallel = min(count, at_once(launcher) or count)
    seconds = typical_seconds(config)
    time = (
        f"about {duration(seconds * -(-count // parallel))}, {parallel} at once, "
        f"as earlier runs took {duration(seconds)}"
        if seconds
        else "time unknown: there is no earlier run"
    )
    console.print(f"{count} jobs{proposed}; {time}; nothing was run", soft_wrap=True)


def _table(
    best: Sequence[Outcome], outcomes: Sequence[Outcome], objectives: Sequence[Objective]
) -> Table:
    finished = {outcome.index for outcome in best}
    others = [outcome for outcome in outcomes if outcome.index not in finished]
    keys = list(dict.fromkeys(key for outcome in outcomes for key in outcome.params))
    names = [objective.metric for objective in objectives]
    table = Table("job", *short_names(keys).values(), *names, "s", "state")
    for outcome in [*best, *others][:SHOWN]:
        state = f"{outcome.state}: {outcome.error}" if outcome.error else outcome.state
        table.add_row(
            str(outcome.index),
            *(brief(outcome.params.get(key, "")) for key in keys),
            *(_number(value) for value in outcome.values),
            f"{outcome.seconds:.1f}",
            f"{state}, model kept" if outcome.kept else state,
        )
    if len(outcomes) > SHOWN:
        table.caption = f"{SHOWN} of {len(outcomes)} jobs; the artefact trials.csv has all"
    return table


def _csv(
    outcomes: Sequence[Outcome], objectives: Sequence[Objective], searched: Sequence[str]
) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    names = [objective.metric for objective in objectives]
    header = ["job", "state", *searched, *names, "seconds", "run_id", "error"]
    writer.writerow(map(csv_cell, header))
    for outcome in outcomes:
        cells = [
            outcome.index,
            outcome.state,
            *(outcome.params.get(key, "") for key in searched),
            *outcome.values,
            round(outcome.seconds, 3),
            outcome.run_id,
            outcome.error,
        ]
        writer.writerow(map(csv_cell, cells))
    return text.getvalue()


def _number(value: float) -> str:
    if value != value:
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
