"""The results of a sweep: printed, drawn, and logged to its own run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipeline.config.schema import Config
from pipeline.config.words import key_of
from pipeline.data.values import Evaluation
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.metrics import scale_of
from pipeline.reports.notes import code_block, escaped, markdown_table
from pipeline.sweeps.board import rough_duration, short_number
from pipeline.sweeps.jobs import AxisScale, Job, brief, short_keys
from pipeline.sweeps.launch import jobs_at_once
from pipeline.sweeps.manifest import Manifest
from pipeline.sweeps.outcomes import (
    FAILED,
    FINISHED,
    KILLED,
    PRUNED,
    Outcome,
    SweepObjective,
    ranked,
)
from pipeline.sweeps.runs import typical_seconds
from pipeline.system.imports import uncollected
from pipeline.system.tables import csv_text
from pipeline.system.terminal import standard_output
from pipeline.tracking.recording import Recording
from pipeline.tracking.values import BEST_JOB, OBJECTIVE, SEED

if TYPE_CHECKING:
    from pipeline.sweeps.plots import Repeats

_STATUSES = (FINISHED, PRUNED, FAILED, KILLED)
DESCRIBED = 5  # rows of the table in the description
_SHOWN = 30  # rows of the table at the end; the artefact `trials.csv` has them all


def log_results(
    parent: Recording,
    outcomes: Sequence[Outcome],
    objectives: Sequence[SweepObjective],
    searched: Sequence[str],
    scales: Mapping[str, AxisScale],
) -> None:
    """Logs the best, the spread, the counts, a table, plots and a description."""
    best = ranked(outcomes, objectives)
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in _STATUSES}
    metrics = {f"sweep/{status}": float(count) for status, count in counts.items()}
    if best:
        values = [outcome.values[0] for outcome in best]
        metrics |= {"sweep/best": values[0], "sweep/mean": statistics.fmean(values)}
        metrics |= {"sweep/sd": statistics.stdev(values)} if len(values) > 1 else {}
        tags = {BEST_JOB + key_of(key): value for key, value in best[0].params.items()}
        parent.log_tags(tags | {f"{BEST_JOB}run_id": str(best[0].run_id)})
    parent.log_tags({OBJECTIVE: ", ".join(objective.metric for objective in objectives)})
    with uncollected():
        # Imported only now: it takes seconds, and no job should wait for it.
        from pipeline.sweeps.plots import draw_sweep, repeated

        figures = draw_sweep(outcomes, objectives, searched, scales)
        alike = repeated(outcomes, objectives[0])
    texts = {"trials.csv": _csv(outcomes, objectives, searched)}
    parent.log(Evaluation(metrics=metrics, figures=figures, texts=texts))
    command = parent.known().command
    parent.describe(_note(outcomes, objectives, searched, alike, command))


def _note(
    outcomes: Sequence[Outcome],
    objectives: Sequence[SweepObjective],
    searched: Sequence[str],
    alike: Sequence[Repeats],
    command: str,
) -> str:
    """The description of a sweep: how its jobs ended, and the best of them, grouped over seeds."""
    names, metric = short_keys(searched), objectives[0].metric
    statuses = [(status, sum(one.status == status for one in outcomes)) for status in _STATUSES]
    ended = ", ".join(f"{count} {status}" for status, count in statuses if count)
    keys = [key for key in names if key != SEED]
    rows = [
        (
            *(escaped(brief(one.params.get(key, ""))) for key in keys),
            f"**{_number(one.mean)}**",
            _interval(one, metric),
            str(one.n),
        )
        for one in alike[:DESCRIBED]
    ]
    header = (*(escaped(names[key]) for key in keys), escaped(metric), "95 % interval", "jobs")
    more = f"The best {DESCRIBED} of {len(alike)}; the" if len(alike) > DESCRIBED else "The"
    table = "[trials.csv](artifacts:trials.csv)"
    parts = [
        f"**Sweep over {escaped(', '.join(names.values()))}**: {len(outcomes)} jobs, {ended}.",
        markdown_table(header, rows) if rows else "",
        f"{more} table of all jobs is {table}." if rows else f"All jobs: {table}",
        code_block(command),
    ]
    return "\n\n".join(filter(None, parts))


def _interval(repeats: Repeats, metric: str) -> str:
    if math.isnan(repeats.half_width):
        return ""
    bounds = Estimate(
        value=repeats.mean,
        low=repeats.mean - repeats.half_width,
        high=repeats.mean + repeats.half_width,
    )
    within = scale_of(metric).within(bounds)
    return f"{_number(within.low)} to {_number(within.high)}"


def print_results(
    sweep_id: str,
    outcomes: Sequence[Outcome],
    objectives: Sequence[SweepObjective],
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


def show_preview(
    manifest: Manifest, jobs: Sequence[Job], count: int, config: Config, launcher: Any
) -> None:
    """Prints the jobs that a sweep would run, and an estimate of the time from earlier runs.

    `jobs` are those that are known before the first one runs; `count` is the number of all.
    """
    console = standard_output()
    console.print(_preview(manifest, jobs))
    proposed = "" if jobs else f" proposed by {config.sweep.sampler}, pruner {config.sweep.pruner}"
    parallel = min(count, jobs_at_once(launcher) or count)
    time = _estimate(count, parallel, typical_seconds(config))
    console.print(f"{count} jobs{proposed}; {time}; nothing was run", soft_wrap=True)


def _preview(manifest: Manifest, jobs: Sequence[Job]) -> Table:
    """The jobs or, of a search, the space of its keys."""
    if jobs:
        table = Table("job", *manifest.searched)
        for job in jobs:
            table.add_row(str(job.index), *job.params.values())
    else:
        table = Table("searched", "space")
        for key, space in manifest.searched.items():
            table.add_row(key, space)
    return table


def _estimate(count: int, parallel: int, seconds: float | None) -> str:
    """The time that jobs take, as earlier runs took `seconds` each, if there are any."""
    if not seconds:
        return "time unknown: there is no earlier run"
    return (
        f"about {rough_duration(seconds * -(-count // parallel))}, {parallel} at once, "
        f"as earlier runs took {rough_duration(seconds)}"
    )


def _table(
    best: Sequence[Outcome], outcomes: Sequence[Outcome], objectives: Sequence[SweepObjective]
) -> Table:
    finished = {outcome.index for outcome in best}
    others = [outcome for outcome in outcomes if outcome.index not in finished]
    keys = list(dict.fromkeys(key for outcome in outcomes for key in outcome.params))
    names = [objective.metric for objective in objectives]
    table = Table("job", *short_keys(keys).values(), *names, "s", "status")
    for outcome in [*best, *others][:_SHOWN]:
        status = f"{outcome.status}: {outcome.error}" if outcome.error else outcome.status
        table.add_row(
            str(outcome.index),
            *(brief(outcome.params.get(key, "")) for key in keys),
            *(_number(value) for value in outcome.values),
            f"{outcome.seconds:.1f}",
            f"{status}, model kept" if outcome.kept else status,
        )
    if len(outcomes) > _SHOWN:
        table.caption = f"{_SHOWN} of {len(outcomes)} jobs; the artefact trials.csv has all"
    return table


def _csv(
    outcomes: Sequence[Outcome], objectives: Sequence[SweepObjective], searched: Sequence[str]
) -> str:
    # The second column keeps the name that it had from the first version on.
    header = ("job", "state", *searched, *(one.metric for one in objectives))
    rows = [
        (
            outcome.index,
            outcome.status,
            *(outcome.params.get(key, "") for key in searched),
            *outcome.values,
            round(outcome.seconds, 3),
            outcome.run_id,
            outcome.error,
        )
        for outcome in outcomes
    ]
    return csv_text([(*header, "seconds", "run_id", "error"), *rows])


def _number(value: float) -> str:
    return "" if math.isnan(value) else short_number(value)
