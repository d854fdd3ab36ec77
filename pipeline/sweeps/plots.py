"""Pictures of what a sweep found: the objectives of its trials over what was searched."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lazy_loader
import numpy as np

from pipeline.sweeps import study_plots
from pipeline.sweeps.states import FAILED, FINISHED, KILLED, PRUNED, Objective, Trial, ranked
from pipeline.sweeps.study_plots import SEED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

scipy = lazy_loader.load("scipy")

MOST_GROUPS = 20
MARKS = {
    FINISHED: ("o", "#1f77b4"),
    PRUNED: ("v", "#9a9a9a"),
    FAILED: ("x", "#8b0000"),
    KILLED: ("+", "#000000"),
}
MEAN, BEST = "#1f77b4", "#d95f02"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Finished trials that differ in their seed alone, and their values of the first objective.

    `params` is without the seed, `sd` is the sample's (n - 1), and mean ± `half_width` the 95 %
    confidence interval of Student's t; both are NaN for a single trial.
    """

    params: Mapping[str, str]
    values: tuple[float, ...]
    n: int
    mean: float
    sd: float
    half_width: float


def groups(trials: Sequence[Trial], objective: Objective) -> list[Group]:
    """The finished trials by all but their seed, best mean of `objective`, the first one, first."""
    alike: dict[frozenset[tuple[str, str]], list[Trial]] = {}
    for trial in _valued(trials, FINISHED):
        alike.setdefault(frozenset(_without_seed(trial).items()), []).append(trial)
    found = [_group(same) for same in alike.values()]
    return sorted(found, key=lambda group: group.mean, reverse=objective.maximize)


def draw(
    trials: Sequence[Trial], objectives: Sequence[Objective], searched: Sequence[str]
) -> dict[str, Figure]:
    """The pictures, by name, that make sense for these trials; `searched` are the swept keys."""
    figures = {}
    if any(_valued(trials, *MARKS, number=n) for n in range(len(objectives))):
        figures["objective"] = _history(trials, objectives)
    finished = ranked(_valued(trials, FINISHED), objectives)
    if len(finished) > 1:
        figures |= study_plots.draw(finished, objectives, searched)
    found = groups(trials, objectives[0])
    seeds = {trial.params[SEED] for trial in finished if SEED in searched}
    if len(seeds) > 1 and any(group.n > 1 for group in found):
        figures["seeds"] = _seeds(found, objectives[0].metric)
    return figures


def _valued(trials: Sequence[Trial], *states: str, number: int = 0) -> list[Trial]:
    """The trials in these states that have a value of the objective of that number."""
    return [t for t in trials if t.state in states and math.isfinite(t.values[number])]


def _without_seed(trial: Trial) -> dict[str, str]:
    return {key: text for key, text in trial.params.items() if key != SEED}


def _group(trials: Sequence[Trial]) -> Group:
    values = tuple(trial.values[0] for trial in trials)
    n, mean, sd, half_width = len(values), float(np.mean(values)), math.nan, math.nan
    if n > 1:
        sd = float(np.std(values, ddof=1))
        half_width = float(scipy.stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    params = _without_seed(trials[0])
    return Group(params=params, values=values, n=n, mean=mean, sd=sd, half_width=half_width)


def _history(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Figure:
    """Each objective over the trials in a panel of its own, with the best value so far."""
    figure = _figure(8, 1 + 3 * len(objectives))
    panels = figure.subplots(len(objectives), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, objective) in enumerate(zip(panels, objectives, strict=True)):
        _panel(axes, sorted(trials, key=lambda trial: trial.index), objective, number)
    panels[-1].set_xlabel("trial")
    panels[-1].locator_params(axis="x", integer=True, min_n_ticks=1)
    lines = {str(line.get_label()): line for axes in panels for line in axes.lines}
    _legend(figure, lines)
    return figure


def _panel(axes: Axes, trials: Sequence[Trial], objective: Objective, number: int) -> None:
    for state, (mark, colour) in MARKS.items():
        style: dict[str, Any] = {"marker": mark, "color": colour, "markersize": 5, "linestyle": ""}
        known = [(t.index, t.values[number]) for t in _valued(trials, state, number=number)]
        if known:
            axes.plot(*zip(*known, strict=True), **style, label=state)
        lost = {trial.index for trial in trials if trial.state == state} - {i for i, _ in known}
        if lost:  # no value, no height: they stand on the lower edge
            style |= {"transform": axes.get_xaxis_transform(), "fillstyle": "none"}
            axes.plot(sorted(lost), [0.03] * len(lost), **style, label=f"{state}, no value")
    if finished := _valued(trials, FINISHED, number=number):
        values = [trial.values[number] for trial in finished]
        so_far = (np.maximum if objective.maximize else np.minimum).accumulate(values)
        places = [trial.index for trial in finished]
        axes.step(places, so_far, where="post", color=BEST, label="best so far", zorder=1)
        first = places[values.index(so_far[-1])]
        axes.set_title(f"best: {so_far[-1]:.6g}, trial {first}", loc="left", fontsize=10)
        axes.set_yscale(study_plots.scale(values, maximize=objective.maximize))
    axes.set_ylabel(objective.metric)
    axes.grid(alpha=0.3)
    axes.margins(y=0.1)


def _seeds(found: Sequence[Group], metric: str) -> Figure:
    """Mean and confidence interval of the best groups, and their trials as dots."""
    shown = found[:MOST_GROUPS]
    figure = _figure(9, 1.5 + 0.4 * len(shown))
    axes = figure.subplots()
    for row, group in enumerate(shown):
        axes.errorbar(group.mean, row, xerr=group.half_width, fmt="D", capsize=4, color=MEAN)
        axes.plot(group.values, [row] * group.n, "o", color=BEST, markersize=4)
    axes.set_yticks(range(len(shown)), _labels(shown))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_title(f"best {len(shown)} of {len(found)} settings", loc="left", fontsize=10)
    axes.set_xlabel(metric)
    axes.grid(alpha=0.3, axis="x")
    mean = "mean and its 95 % confidence interval"
    _legend(figure, {"trial": axes.lines[-1], mean: axes.containers[0]})
    return figure


def _legend(figure: Figure, marks: Mapping[str, Any]) -> None:
    """Below the axes, where it covers nothing."""
    style = {"ncols": 5, "frameon": False, "fontsize": 8}
    figure.legend(list(marks.values()), list(marks), loc="outside lower right", **style)


def _labels(found: Sequence[Group]) -> list[str]:
    """What tells the groups apart, by the last part of the keys where that is enough."""
    keys = list(found[0].params)
    keys = [key for key in keys if len({group.params[key] for group in found}) > 1] or keys
    ends = [key.rpartition(".")[2] for key in keys]
    names = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    rows = [[study_plots.plain(group.params[key]) for key in keys] for group in found]
    lines = [", ".join(map("=".join, zip(names, row, strict=True))) for row in rows]
    return [textwrap.fill(line, 50) or "all" for line in lines]


def _figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
