"""Repeats a recorded run and compares the results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from pipeline.config.schema import Config
from pipeline.config.sweep import JobSettings
from pipeline.data.load import ingest
from pipeline.data.values import SPLITS
from pipeline.libraries import import_slow
from pipeline.system.errors import PipelineError, RequestError
from pipeline.system.terminal import native_messages_to, standard_output
from pipeline.tracking import origin
from pipeline.tracking.client import STORE_ERRORS
from pipeline.tracking.journal import run_in_journal
from pipeline.tracking.recording import add_tags
from pipeline.tracking.runs import as_trained, find_run, require_named_runs, with_weights
from pipeline.tracking.values import (
    REPEAT_CHANGES,
    REPRODUCES,
    VERDICT,
    Query,
    RecordedRun,
    Status,
    StoredPredictions,
)
from pipeline.training.pretrained import weights_sha256
from pipeline.verbs.reproduce import REPRODUCE, Reproduce

if TYPE_CHECKING:
    from pipeline.run import Result

REPEATABLE = Query(status=(Status.FINISHED,), has_folder=True, tags={REPRODUCES: False})
DECISIVE = {f"{split}/{name}" for split in SPLITS for name in ("accuracy", "loss")}

log = logging.getLogger(__name__)

Predicted = Mapping[str, StoredPredictions]


class Verdict(StrEnum):
    """The verdict on a rerun; `IDENTICAL`: every predicted probability is equal bit for bit."""

    IDENTICAL = "bit-identical"
    WITHIN = "within tolerance"
    NOT = "not reproduced"


@dataclass(frozen=True, kw_only=True)
class MetricPair:
    """A metric of a run and of its rerun; `decides`: whether the verdict depends on it."""

    name: str
    then: float
    now: float

    @property
    def decides(self) -> bool:
        """Whether the verdict depends on it: true for the accuracy and loss of a whole split."""
        return self.name in DECISIVE

    @property
    def difference(self) -> float:
        """The absolute difference; 0 if both are NaN."""
        return 0.0 if self.then != self.then and self.now != self.now else abs(self.now - self.then)


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A run and its rerun: the `result` of the rerun, the metrics of both, and the verdict."""

    run_id: str
    result: Result
    pairs: Sequence[MetricPair]
    verdict: Verdict


def reproduce(config: Config, request: Reproduce, folder: Path) -> Reproduction:
    """Repeats a run with its recorded configuration and seed, and compares the two.

    It uses the current code, and first prints what differs from the run's code, environment, data
    and hardware. The rerun is a run of its own, tagged with the run it repeats and the verdict.

    Raises:
        RequestError: there is no such run, or it cannot be repeated.
    """
    run = _repeatable(config)
    predicted, again = run.predictions(), _again(run, config)
    if not predicted:
        raise RequestError(f"run_id={run.id} has no predictions to compare with")
    require_named_runs(again)
    again = replace(again, evaluate=replace(again.evaluate, test="test" in predicted))
    changed = _changed(run, again)
    _show_changes(run, changed)
    # Imported only now: a refusal need not wait for TensorFlow.
    with native_messages_to(folder / "tensorflow.log"):
        story = import_slow("pipeline.run")
    result: Result = story.run(again, folder, identity=run.identity)
    # There is a journal if the store does not have all of the rerun.
    rerun = run_in_journal(folder) or _recorded(result.run_id, config)
    pairs = paired(run.logged, rerun.logged)
    verdict = verdict_on(predicted, rerun.predictions(), pairs, tolerance=request.tolerance)
    told = "; ".join(map(str, changed))
    tags = {VERDICT: str(verdict)} | ({REPEAT_CHANGES: told} if told else {})
    try:
        add_tags(rerun.id, config.tracking, folder, tags)
    except (PipelineError, *STORE_ERRORS) as error:  # the verdict is shown all the same
        log.warning("the verdict is not recorded: %s", error)
    return Reproduction(run_id=run.id, result=result, pairs=pairs, verdict=verdict)


def show(outcome: Reproduction, request: Reproduce) -> None:
    """Prints the rerun's result, the metrics side by side, and the verdict.

    Raises:
        PipelineError: the results differ.
    """
    print(outcome.result, flush=True)
    standard_output().print(_table(outcome.pairs, request.tolerance))
    print(
        f"reproduces={outcome.run_id} run_id={outcome.result.run_id} verdict={outcome.verdict!s}",
        flush=True,
    )
    if outcome.verdict is Verdict.NOT:
        raise PipelineError(f"{outcome.run_id} was not reproduced: {_worst(outcome.pairs)}")


def paired(then: Mapping[str, float], now: Mapping[str, float]) -> list[MetricPair]:
    """Pairs the metrics of both runs; NaN stands for a missing one."""
    names = sorted(
        (name for name in then.keys() | now.keys() if name.partition("/")[0] in SPLITS),
        key=lambda name: (SPLITS.index(name.partition("/")[0]), name not in DECISIVE, name),
    )
    nan = float("nan")
    return [
        MetricPair(name=name, then=then.get(name, nan), now=now.get(name, nan)) for name in names
    ]


def verdict_on(
    then: Predicted, now: Predicted, pairs: Sequence[MetricPair], *, tolerance: float
) -> Verdict:
    """Compares the predictions bit for bit; if they differ, compares accuracies and losses.

    `then` and `now`: the predictions of the run and of its rerun, by split.
    """
    if then.keys() == now.keys() and all(_are_equal(then[split], now[split]) for split in then):
        return Verdict.IDENTICAL
    within = all(pair.difference <= tolerance for pair in pairs if pair.decides)
    return Verdict.WITHIN if within else Verdict.NOT


def _are_equal(then: StoredPredictions, now: StoredPredictions) -> bool:
    return (
        np.array_equal(then.labels, now.labels)
        and np.array_equal(then.probabilities, now.probabilities)
        and then.class_names == now.class_names
    )


def _repeatable(config: Config) -> RecordedRun:
    run = _recorded(REPRODUCE.run_id(config), config)
    if run.is_sweep:
        raise RequestError(f"run_id={run.id} is a sweep; reproduce one of its jobs")
    if run.status != Status.FINISHED:
        raise RequestError(
            f"run_id={run.id} is {run.status} and has no results to reproduce; "
            f"resume run_id={run.id} finishes it"
        )
    return run


def _recorded(run_id: str, config: Config) -> RecordedRun:
    return find_run(run_id, config, latest=REPEATABLE, called="finished run of its own")


def _again(run: RecordedRun, today: Config) -> Config:
    """The run's configuration for an independent run, with the current store and cache.

    It names the precision and the teachers that the run had, as `as_trained` does.
    """
    then = as_trained(run.config, run)
    name = run.name or run.id
    tracking = replace(
        then.tracking,
        uri=today.tracking.uri,
        offline=False,
        experiment=run.experiment,
        artifact_root=None,  # the experiment has its own, also if it has got another name
        run_name=f"{name} again",
        tags={**then.tracking.tags, REPRODUCES: run.id},
    )
    alone = replace(then.sweep, job=JobSettings(**dict.fromkeys(vars(then.sweep.job))))
    return replace(then, tracking=tracking, sweep=alone, data_dir=today.data_dir)


def _changed(run: RecordedRun, again: Config) -> list[origin.Difference]:
    raw = ingest(again, identity=run.identity)
    at_start = origin.recorded_origin(
        run.tags,
        patch=run.text("code.patch") if run.has_uncommitted_changes else "",
        environment=run.text("environment.txt"),
    )
    origin.with_threads_of(at_start)
    weights = weights_sha256(with_weights(again).model)
    return origin.differences(at_start, origin.here(raw.identity, weights))


def _show_changes(run: RecordedRun, changed: Sequence[origin.Difference]) -> None:
    console = standard_output()
    if not changed:
        console.print("Code, environment, data and hardware are unchanged.")
        return
    table = Table("", "what", "then", "now", title=f"Changed since run {run.id}")
    for change in changed:
        table.add_row(change.kind, change.what, change.then, change.now)
    console.print(table)
    if any(change.kind == "code" for change in changed):
        commit = run.commit or "the run's commit"
        told = f"To restore the run's code: git checkout {commit}"
        if run.has_uncommitted_changes:
            told += "; git apply <the run's artefact code.patch>"
        console.print(told, soft_wrap=True)


def _table(pairs: Sequence[MetricPair], tolerance: float) -> Table:
    """A table of the metrics that decide or differ; its caption counts those that are equal."""
    shown = [pair for pair in pairs if pair.decides or pair.difference != 0]
    equal = len(pairs) - len(shown)
    caption = f"{equal} further metrics of the splits are equal" if equal else None
    table = Table("metric", title="Then and now", caption=caption)
    for column in ("then", "now", "difference"):
        table.add_column(column, justify="right")
    for pair in shown:
        off = pair.decides and not pair.difference <= tolerance
        style = "bold red" if off else "bold" if pair.decides else None
        gap = f"{pair.difference:.2g}" + (" !" if off else "")
        table.add_row(pair.name, f"{pair.then:.6f}", f"{pair.now:.6f}", gap, style=style)
    return table


def _worst(pairs: Sequence[MetricPair]) -> str:
    worst = max((pair for pair in pairs if pair.decides), key=_distance)
    return f"{worst.name} was {worst.then:.4f} and is {worst.now:.4f}"


def _distance(pair: MetricPair) -> float:
    return float("inf") if pair.difference != pair.difference else pair.difference
