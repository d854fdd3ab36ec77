"""Compares runs and tests their differences: `RecordedRun`s → `Comparison`. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.values import Array
from pipeline.evaluation.intervals import (
    BOOTSTRAP,
    PAIRED,
    Estimate,
    Resampling,
    bootstrap,
    newcombe,
    student,
    welch,
    wilson,
)
from pipeline.evaluation.metrics import cross_entropies, scale_of
from pipeline.evaluation.paired import paired_change
from pipeline.tracking.values import RecordedRun
from pipeline.verbs.compare.pair import PairedRuns, Stored, Unpaired, pair_up, same_images
from pipeline.verbs.compare.rows import Row, differing, fold, labels

_SHOWN = ("test/accuracy", "val/accuracy", "val/loss", "time/total_s")  # beside the ranking metric
Values = dict[tuple[str, str], Array]  # by run and metric: one number per image, f64[N]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The metric that ranks the runs, and whether low values of it are better."""

    metric: str
    lower_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A row with its metrics, and the difference of its ranking metric to the first row."""

    label: str
    row: Row
    estimates: Mapping[str, Estimate]
    difference: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows, best first by `ranking` unless two runs were named, and the traits that differ.

    `pair` exists for exactly two runs; if they cannot be paired, `unpaired` says why. `superseded`
    counts runs replaced by a newer one of the same setting and seed; `misplaced` counts those
    whose recorded metrics do not belong to the epoch whose weights they kept.
    """

    source: str
    ranking: Ranking
    resampling: Resampling
    rows: Sequence[Compared]
    traits: Sequence[str]
    metrics: Sequence[str]
    runs: int
    superseded: int
    misplaced: int
    pair: PairedRuns | None
    unpaired: str | None
    files: Sequence[str] = ()
    """The page and the plots that show it, once they are written."""
    packages: Sequence[str] = ()
    """For two runs: installed packages that differ and are not among the traits, in words."""

    @property
    def metric(self) -> str:
        """The metric that ranks the rows."""
        return self.ranking.metric


def compare_runs(
    runs: Sequence[RecordedRun],
    source: str,
    ranking: Ranking,
    stored: Mapping[str, Stored],
    resampling: Resampling,
) -> Comparison:
    """Compares runs; `stored` are the predictions that were read, by run id."""
    metric = ranking.metric
    paired = len(runs) == 2
    folded = fold(runs)
    rows = tuple(Row(runs=(run,)) for run in runs) if paired else folded.rows
    metrics = _metrics(runs, metric)
    values = _per_image(runs, stored, metrics)
    intervals = _over_images(values, resampling)
    estimated = [
        (row, {name: _estimate(row, name, intervals, resampling) for name in metrics})
        for row in rows
    ]
    if not paired:
        estimated.sort(key=lambda item: _rank(item[1][metric], ranking.lower_is_better))
    rows = tuple(row for row, _ in estimated)
    traits = differing(rows)
    differences = _differences(
        [numbers[metric] for _, numbers in estimated],
        _gaps(rows, metric, values, stored, resampling),
        resampling,
    )
    pair, unpaired = _pair(runs, stored, resampling.confidence) if paired else (None, None)
    return Comparison(
        source=source,
        ranking=ranking,
        resampling=resampling,
        rows=[
            Compared(label=label, row=row, estimates=estimates, difference=difference)
            for label, (row, estimates), difference in zip(
                labels(rows, traits), estimated, differences, strict=True
            )
        ],
        traits=traits,
        metrics=metrics,
        runs=len(runs),
        superseded=0 if paired else folded.superseded,
        misplaced=sum(run.kept_another_epoch for run in runs if run.id not in stored),
        pair=pair,
        unpaired=unpaired,
    )


def _metrics(runs: Sequence[RecordedRun], metric: str) -> list[str]:
    names = dict.fromkeys((metric, *_SHOWN))
    return [name for name in names if any(name in run.metrics for run in runs)]


def _per_image(
    runs: Sequence[RecordedRun], stored: Mapping[str, Stored], metrics: Sequence[str]
) -> Values:
    found: Values = {}
    for run in runs:
        for metric in metrics:
            split, _, kind = metric.partition("/")
            one = stored.get(run.id, {}).get(split)
            if one and kind == "accuracy":
                found[run.id, metric] = (one.predicted == one.labels).astype(np.float64)
            elif one and kind == "loss":
                found[run.id, metric] = cross_entropies(one.probabilities, one.labels)
    return found


def _over_images(values: Values, resampling: Resampling) -> dict[tuple[str, str], Estimate]:
    """Each metric of each run with its interval: of accuracies by their score, else a bootstrap."""
    found = {
        key: wilson(float(numbers.mean()), len(numbers), resampling.confidence)
        for key, numbers in values.items()
        if _is_accuracy(key[1])
    }
    rest = values.keys() - found.keys()
    for images in sorted({len(values[key]) for key in rest}):
        keys = sorted(key for key in rest if len(values[key]) == images)
        table = np.stack([values[key] for key in keys])
        for key, mean, (low, high) in zip(
            keys, table.mean(axis=1), bootstrap(table, resampling), strict=True
        ):
            found[key] = Estimate(
                value=float(mean), low=float(low), high=float(high), method=BOOTSTRAP
            )
    return found


def _estimate(
    row: Row,
    metric: str,
    intervals: Mapping[tuple[str, str], Estimate],
    resampling: Resampling,
) -> Estimate:
    """A metric with its interval over seeds; of one run, over images if that is known.

    Seeds that all agree have the interval of one run: they do not show how much seeds vary.
    """
    known = [
        intervals.get((run.id, metric)) or Estimate(value=run.metrics[metric])
        for run in row.runs
        if metric in run.metrics
    ]
    known = [one for one in known if math.isfinite(one.value)]
    if not known:
        return Estimate(value=math.nan, n=0)
    over_seeds = None if len(known) == 1 else student(_values(known), resampling.confidence)
    if over_seeds and over_seeds.sd:
        return scale_of(metric).within(over_seeds)
    one, images = known[0], row.runs[0].sizes.get(metric.partition("/")[0])
    if not one.method and _is_accuracy(metric) and images:
        one = wilson(one.value, images, resampling.confidence)
    return replace(one, n=over_seeds.n, sd=over_seeds.sd) if over_seeds else one


def _values(estimates: Sequence[Estimate]) -> Array:
    return np.array([one.value for one in estimates])


def _is_accuracy(metric: str) -> bool:
    """Whether a metric is the share of the images of a split that are right."""
    return metric.partition("/")[2] == "accuracy"


def _gaps(
    rows: Sequence[Row],
    metric: str,
    values: Values,
    stored: Mapping[str, Stored],
    resampling: Resampling,
) -> dict[int, Estimate]:
    """The differences to the first row with paired intervals, for rows with the same images."""
    first = values.get((rows[0].runs[0].id, metric))
    others = {
        position: values[row.runs[0].id, metric]
        for position, row in enumerate(rows)
        if position and _same_images(rows[0], row, metric, values, stored)
    }
    if first is None or not others:
        return {}
    if _is_accuracy(metric):
        confidence = resampling.confidence
        return {
            position: paired_change(first > 0, other > 0, confidence)
            for position, other in others.items()
        }
    gaps = np.stack([other - first for other in others.values()])
    intervals = bootstrap(gaps, resampling).tolist()  # all at once: the resampling takes the time
    return {
        position: Estimate(value=float(gap.mean()), low=low, high=high, method=PAIRED)
        for position, gap, (low, high) in zip(others, gaps, intervals, strict=True)
    }


def _differences(
    estimates: Sequence[Estimate], gaps: Mapping[int, Estimate], resampling: Resampling
) -> Iterator[Estimate | None]:
    """The difference of each row's estimate to the first row's; None for the first."""
    first, *others = estimates
    yield None
    for position, other in enumerate(others, start=1):
        if position in gaps:
            yield gaps[position]
        elif (first.sd > 0 or other.sd > 0) and min(first.n, other.n) > 0:
            yield welch(first, other, resampling.confidence)
        else:  # NaN if one of them has no interval
            yield newcombe(first, other)


def _same_images(
    first: Row, second: Row, metric: str, values: Values, stored: Mapping[str, Stored]
) -> bool:
    pair = [row.runs[0] for row in (first, second) if len(row.runs) == 1]
    if len(pair) < 2 or any((run.id, metric) not in values for run in pair):
        return False
    split = metric.partition("/")[0]
    return same_images(pair, stored, split)


def _pair(
    runs: Sequence[RecordedRun], stored: Mapping[str, Stored], confidence: float
) -> tuple[PairedRuns | None, str | None]:
    try:
        return pair_up((runs[0], runs[1]), stored, confidence), None
    except Unpaired as reason:
        return None, str(reason)


def _rank(estimate: Estimate, lower: bool) -> tuple[bool, float]:
    """Sort key: best first, rows without a value last."""
    value = estimate.value
    return math.isnan(value), value if lower else -value
