"""Puts a comparison into words: whether differences are significant, and by which method. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from pipeline.config.flat import as_param
from pipeline.evaluation.intervals import BOOTSTRAP, PAIRED, WELCH, Estimate, coverage
from pipeline.system.errors import counted, in_percent
from pipeline.tracking.values import SEED
from pipeline.verbs.compare.comparison import Compared, Comparison
from pipeline.verbs.compare.pair import PairedRuns


def verdict(comparison: Comparison) -> str:
    """The conclusion of a comparison, in a sentence or two."""
    first, *others = comparison.rows
    if comparison.pair:
        return _of_pair(comparison, comparison.pair)
    if len(others) == 1:
        return _of_two(comparison, first, others[0])
    if not others:
        return "There is only one row, so there is nothing to compare."
    return _of_many(comparison)


def notes(comparison: Comparison) -> Iterator[str]:
    """Notes on methods and caveats, a sentence or two each."""
    if comparison.unpaired:
        yield f"No paired test: {comparison.unpaired}."
    yield _how(comparison)
    if comparison.pair:
        yield (
            "The paired test is about these two trained models. To tell whether one setting is "
            "better than the other, run several seeds of each."
        )
        if list(comparison.traits) == [SEED]:
            yield "The runs differ only in their seed: their differences are chance in training."
    if group := next(filter(None, map(_group, comparison.rows)), None):
        yield (
            f"Pictures belong together (dataset.group={group}), but intervals and tests over "
            "images treat them as independent: they claim more certainty than there is."
        )
    if comparison.packages:
        yield f"Installed packages also differ: {'; '.join(comparison.packages)}."
    if len(comparison.rows) > 2:
        yield (
            "Intervals are not corrected for multiple comparisons; the best of "
            f"{len(comparison.rows):,} rows looks better than it is, because it was chosen as such."
        )
    if partly := [name for name in comparison.metrics if _is_partly_known(comparison, name)]:
        yield (
            f"Not every run has {', '.join(partly)}: a sweep measures the test split for its best "
            "jobs only. The mean of some of the seeds is not that of all."
        )
    if comparison.superseded:
        yield (
            "Of each setting and seed only the newest run counts; "
            f"{counted(comparison.superseded, 'older run is', 'older runs are')} left out."
        )
    if comparison.misplaced:
        yield (
            f"{counted(comparison.misplaced, 'run', 'runs')} kept the weights of an earlier epoch "
            "but did not record its metrics; the val/… metrics shown are those of the last epoch."
        )


def standing(compared: Compared, comparison: Comparison) -> str:
    """How a row compares with the first one, in a word or two."""
    change, pair = compared.difference, comparison.pair
    if change is None or change.is_noise is None:
        return ""
    if pair.is_noise if pair and pair.metric == comparison.metric else change.is_noise:
        return "within noise"
    better = (change.value < 0) == comparison.ranking.lower_is_better
    return "better" if better else "worse"


def seeds_of(compared: Compared, metric: str) -> str:
    """The number of a row's runs that have a metric: `5`, or `3 of 5`."""
    runs, known = len(compared.row.runs), compared.estimates[metric].n
    return f"{runs}" if known == runs else f"{known} of {runs}"


def metric_value(value: float) -> str:
    """Formats a metric: four decimals, fewer from 10 on, thousands separated; empty for NaN."""
    if math.isnan(value):
        return ""
    size = abs(value)
    return f"{value:.4f}" if size < 10 else f"{value:.2f}" if size < 1000 else f"{value:,.0f}"


def interval(estimate: Estimate) -> str:
    """`0.8656 [0.8560, 0.8748]`, or `0.8657 ± 0.0039 [0.8560, 0.8754]` over seeds."""
    spread = f" ± {metric_value(estimate.sd)}" if estimate.n > 1 else ""
    bounds = (
        ""
        if math.isnan(estimate.low)
        else f" [{metric_value(estimate.low)}, {metric_value(estimate.high)}]"
    )
    return f"{metric_value(estimate.value)}{spread}{bounds}"


def change(estimate: Estimate | None) -> str:
    """A difference with its sign and interval; empty if there is none."""
    if estimate is None or math.isnan(estimate.value):
        return ""
    bounds = "" if math.isnan(estimate.low) else f" [{estimate.low:+.4f}, {estimate.high:+.4f}]"
    return f"{estimate.value:+.4f}{bounds}"


def p_value(value: float) -> str:
    """`p = 0.038`, or `p < 0.0001`."""
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def _of_pair(comparison: Comparison, pair: PairedRuns) -> str:
    one, other = (compared.label for compared in comparison.rows)
    points = [100 * x for x in (pair.change.value, pair.change.low, pair.change.high)]
    shares = [in_percent(share, 2) for share in (pair.first, pair.second)]
    test = pair.test
    seen = (
        f"On {pair.images:,} {pair.split} images {one} is right on {shares[0]}%, {other} on "
        f"{shares[1]}%: {points[0]:+.2f} points ({coverage(comparison.resampling.confidence)} "
        f"interval {points[1]:+.2f} to {points[2]:+.2f}). {one} alone is right on "
        f"{test.only_first:,} images, {other} alone on {test.only_second:,} (McNemar's exact test, "
        f"{p_value(test.p_value)}). "
    )
    if pair.is_noise:
        return seen + "The difference is within noise: these images cannot tell the two apart."
    better = other if pair.change.value > 0 else one
    return f"{seen}The difference is significant: {better} is better."


def _of_two(comparison: Comparison, first: Compared, second: Compared) -> str:
    gap = second.difference
    name = comparison.metric
    one, other = (_described(row, name) for row in (first, second))
    seen = f"{name}: {one} against {other}. "
    if gap is None or gap.is_noise is None:
        return seen + "Without intervals, it cannot be told whether the difference is noise."
    seen += f"The difference is {change(gap)} ({gap.method}). "
    if gap.is_noise:
        return seen + "The difference is within noise."
    better = "second" if _better(second, comparison) else "first"
    return f"{seen}The difference is significant: the {better} is better."


def _of_many(comparison: Comparison) -> str:
    best, *others = comparison.rows
    known = [row for row in others if row.difference and row.difference.is_noise is not None]
    level = sum(row.difference.is_noise is True for row in known if row.difference)
    seen = f"Best {comparison.metric}: {_described(best, comparison.metric)}. "
    if not known:
        return seen + "Without intervals, it cannot be told which differences are noise."
    if len(known) == len(others) and not level:
        return seen + f"It is significantly better than all {len(others):,} others."
    if level == len(others):
        return seen + "All other rows are within noise of it."
    verb = "is" if level == 1 else "are"
    untold = len(others) - len(known)
    return seen + (
        f"{level:,} of the {len(others):,} other rows {verb} within noise of it; "
        f"{counted(len(known) - level, 'is', 'are')} significantly worse"
        + (f"; {untold:,} cannot be compared." if untold else ".")
    )


def _described(compared: Compared, metric: str) -> str:
    seeds = f", mean of {seeds_of(compared, metric)} seeds" if len(compared.row.runs) > 1 else ""
    return f"{interval(compared.estimates[metric]) or 'not measured'} ({compared.label}{seeds})"


def _group(compared: Compared) -> str | None:
    """What the runs' pictures were grouped by, if they were."""
    group = compared.row.runs[0].params.get("dataset.group", "")
    return None if group in ("", as_param(None)) else group


def _is_partly_known(comparison: Comparison, metric: str) -> bool:
    """Whether some but not all runs of a row have a metric."""
    return any(0 < row.estimates[metric].n < len(row.row.runs) for row in comparison.rows)


def _better(compared: Compared, comparison: Comparison) -> bool:
    return standing(compared, comparison) == "better"


def _how(comparison: Comparison) -> str:
    """The methods of the intervals, with their counts."""
    main = Counter(
        method for row in comparison.rows if (method := row.estimates[comparison.metric].method)
    )
    gaps = Counter(
        row.difference.method
        for row in comparison.rows
        if row.difference and row.difference.is_noise is not None
    )
    if not main:
        return (
            f"{comparison.metric} comes without intervals: a single run has them only for "
            "accuracies and losses of a split whose predictions were read, several seeds for every "
            "metric in which they differ."
        )
    confidence = coverage(comparison.resampling.confidence)
    said = f"{comparison.metric} has {confidence} intervals by " + _counted(main)
    if gaps:
        said += "; differences to the first row by " + _counted(gaps)
    if {PAIRED, BOOTSTRAP} & {*main, *gaps}:
        said += f"; {comparison.resampling.resamples:,} resamples"
    if WELCH in gaps and any(row.estimates[comparison.metric].n == 1 for row in comparison.rows):
        said += "; a single run is assumed to vary as much as the seeds of the other"
    return said + "."


def _counted(methods: Counter[str]) -> str:
    if len(methods) == 1:
        return next(iter(methods))
    return ", ".join(f"{method} ({count:,})" for method, count in methods.most_common())
