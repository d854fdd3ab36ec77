"""Plots of a sweep: the objectives of its jobs over the searched parameters."""

from __future__ import annotations

import logging
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import lazy_loader
import numpy as np

from pipeline.evaluation.intervals import CONFIDENCE, student
from pipeline.evaluation.plots import empty_figure, without_markup
from pipeline.sweeps.jobs import AxisScale, with_short_ids
from pipeline.sweeps.outcomes import (
    FAILED,
    FINISHED,
    KILLED,
    PRUNED,
    Outcome,
    SweepObjective,
    ranked,
)
from pipeline.system.errors import one_line
from pipeline.tracking.values import SEED

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
else:
    optuna = lazy_loader.load("optuna")

LOG_FROM = 30.0  # ratio of largest to smallest value from which an axis is logarithmic
MOST_TICKS = 8
MOST_REPEATS = 20
MARKS = {
    FINISHED: ("o", "#1f77b4"),
    PRUNED: ("v", "#9a9a9a"),
    FAILED: ("x", "#8b0000"),
    KILLED: ("+", "#000000"),
}
MEAN, _BEST = "#1f77b4", "#d95f02"

log = logging.getLogger(__name__)


class Columns(dict[str, list[Any]]):
    """The values of each parameter, one row per job."""

    scales: Mapping[str, AxisScale] = MappingProxyType({})
    """The scales on which they were searched, if known."""

    def scale(self, key: str) -> AxisScale:
        """The axis of a parameter."""
        return self.scales.get(key) or scale_of_parameter(self[key])


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Finished jobs that differ only in their seed, with their values of the first objective.

    `params` is without the seed, `sd` is the sample's (n - 1), and mean ± `half_width` the 95 %
    confidence interval of Student's t. Both are NaN for a single job, and `half_width` where all
    values are equal.
    """

    params: Mapping[str, str]
    values: tuple[float, ...]
    n: int
    mean: float
    sd: float
    half_width: float


def repeated(outcomes: Sequence[Outcome], objective: SweepObjective) -> list[Repeats]:
    """The finished jobs by everything but their seed, best mean of `objective` first."""
    alike: dict[frozenset[tuple[str, str]], list[Outcome]] = {}
    for outcome in _valued(outcomes, FINISHED):
        alike.setdefault(frozenset(_without_seed(outcome).items()), []).append(outcome)
    found = [_repeats(same) for same in alike.values()]
    return sorted(found, key=lambda one: one.mean, reverse=objective.maximize)


def draw_sweep(
    outcomes: Sequence[Outcome],
    objectives: Sequence[SweepObjective],
    searched: Sequence[str],
    scales: Mapping[str, AxisScale] | None = None,
) -> dict[str, Figure]:
    """Draws the plots that make sense for these jobs, by name; `searched` are the swept keys.

    `scales` are those on which intervals were searched. A plot that cannot be drawn is left out,
    and the log says why.
    """
    figures: dict[str, Figure] = {}
    if any(_valued(outcomes, *MARKS, number=n) for n in range(len(objectives))):
        with _or_without("objective"):
            figures["objective"] = _history(outcomes, objectives)
    finished = ranked(_valued(outcomes, FINISHED), objectives)
    if len(finished) > 1:
        with _or_without("parameters"):
            _draw_study(figures, finished, objectives, searched, scales or {})
    found = repeated(outcomes, objectives[0])
    seeds = {outcome.params[SEED] for outcome in finished if SEED in searched}
    if len(seeds) > 1 and any(one.n > 1 for one in found):
        with _or_without("seeds"):
            figures["seeds"] = _seeds(found, objectives[0].metric)
    return figures


@contextmanager
def _or_without(picture: str) -> Iterator[None]:
    """Logs the failure of a plot instead of raising it: the results of the sweep matter more."""
    try:
        yield
    except Exception as error:
        log.warning("The sweep's plot %s could not be drawn: %s", picture, one_line(error))


def _valued(outcomes: Sequence[Outcome], *statuses: str, number: int = 0) -> list[Outcome]:
    """The jobs in these statuses with a value of objective `number`."""
    return [one for one in outcomes if one.status in statuses and math.isfinite(one.values[number])]


def _without_seed(outcome: Outcome) -> dict[str, str]:
    return {key: text for key, text in outcome.params.items() if key != SEED}


def _repeats(outcomes: Sequence[Outcome]) -> Repeats:
    values = tuple(outcome.values[0] for outcome in outcomes)
    n, params = len(values), _without_seed(outcomes[0])
    if n == 1:
        return Repeats(
            params=params, values=values, n=1, mean=values[0], sd=math.nan, half_width=math.nan
        )
    found = student(np.array(values), CONFIDENCE)
    half = found.high - found.value
    return Repeats(
        params=params, values=values, n=n, mean=found.value, sd=found.sd, half_width=half
    )


def _history(outcomes: Sequence[Outcome], objectives: Sequence[SweepObjective]) -> Figure:
    """One panel per objective: its value by job, and the best value so far."""
    figure = empty_figure(8, 1 + 3 * len(objectives))
    panels = figure.subplots(len(objectives), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, objective) in enumerate(zip(panels, objectives, strict=True)):
        _panel(axes, sorted(outcomes, key=lambda outcome: outcome.index), objective, number)
    panels[-1].set_xlabel("job")
    panels[-1].locator_params(axis="x", integer=True, min_n_ticks=1)
    lines = {str(line.get_label()): line for axes in panels for line in axes.lines}
    _legend(figure, lines)
    return figure


def _panel(axes: Axes, outcomes: Sequence[Outcome], objective: SweepObjective, number: int) -> None:
    for status, (mark, colour) in MARKS.items():
        style: dict[str, Any] = {"marker": mark, "color": colour, "markersize": 5, "linestyle": ""}
        known = [(t.index, t.values[number]) for t in _valued(outcomes, status, number=number)]
        if known:
            axes.plot(*zip(*known, strict=True), **style, label=status)
        lost = {outcome.index for outcome in outcomes if outcome.status == status} - {
            i for i, _ in known
        }
        if lost:  # jobs without a value are drawn at the lower edge
            style |= {"transform": axes.get_xaxis_transform(), "fillstyle": "none"}
            axes.plot(sorted(lost), [0.03] * len(lost), **style, label=f"{status}, no value")
    if finished := _valued(outcomes, FINISHED, number=number):
        values = [outcome.values[number] for outcome in finished]
        so_far = (np.maximum if objective.maximize else np.minimum).accumulate(values)
        indices = [outcome.index for outcome in finished]
        axes.step(indices, so_far, where="post", color=_BEST, label="best so far", zorder=1)
        first = indices[values.index(so_far[-1])]
        axes.set_title(f"best: {so_far[-1]:.6g}, job {first}", loc="left", fontsize=10)
        axes.set_yscale(scale(values, maximize=objective.maximize))
    axes.set_ylabel(objective.metric)
    axes.grid(alpha=0.3)
    axes.margins(y=0.1)


def _seeds(found: Sequence[Repeats], metric: str) -> Figure:
    """Mean and confidence interval of the best parameters over seeds, and their jobs as dots."""
    shown = found[:MOST_REPEATS]
    figure = empty_figure(9, 1.5 + 0.4 * len(shown))
    axes = figure.subplots()
    for row, one in enumerate(shown):
        axes.errorbar(one.mean, row, xerr=one.half_width, fmt="D", capsize=4, color=MEAN)
        axes.plot(one.values, [row] * one.n, "o", color=_BEST, markersize=4)
    axes.set_yticks(range(len(shown)), _labels(shown))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_title(f"best {len(shown)} of {len(found)} settings", loc="left", fontsize=10)
    axes.set_xlabel(metric)
    axes.grid(alpha=0.3, axis="x")
    mean = "mean and its 95 % confidence interval"
    _legend(figure, {"job": axes.lines[-1], mean: axes.containers[0]})
    return figure


def _legend(figure: Figure, marks: Mapping[str, Any]) -> None:
    """Adds a legend below the axes, where it covers nothing."""
    style = {"ncols": 5, "frameon": False, "fontsize": 8}
    figure.legend(list(marks.values()), list(marks), loc="outside lower right", **style)


def _labels(found: Sequence[Repeats]) -> list[str]:
    """Labels with the parameters that differ between them, with short keys if unique."""
    keys = list(found[0].params)
    keys = [key for key in keys if len({one.params[key] for one in found}) > 1] or keys
    ends = [key.rpartition(".")[2] for key in keys]
    names = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    rows = [[without_markup(with_short_ids(one.params[key])) for key in keys] for one in found]
    lines = [", ".join(map("=".join, zip(names, row, strict=True))) for row in rows]
    return [textwrap.fill(line, 50) or "all" for line in lines]


def _draw_study(
    figures: dict[str, Figure],
    ranking: Sequence[Outcome],
    objectives: Sequence[SweepObjective],
    searched: Sequence[str],
    scales: Mapping[str, AxisScale],
) -> None:
    """Adds Optuna's plots of two or more finished jobs, given best first."""
    outcomes = ranking[::-1]  # the best are drawn last, on top
    both = [one for one in outcomes if all(map(math.isfinite, one.values))]
    with _silenced():
        with _or_without("parameters"):
            _draw_over_parameters(figures, outcomes, objectives[0], searched, scales)
        if len(objectives) == 2 and len(both) > 1:
            with _or_without("pareto"):
                figures["pareto"] = _pareto(_study(both, objectives, Columns()))


@contextmanager
def _silenced() -> Iterator[None]:
    """Silences Optuna's log and warnings, and restores pyplot and its settings at the end."""
    import matplotlib

    verbosity = optuna.logging.get_verbosity()
    backend = matplotlib.get_backend(auto_select=False) or "agg"
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        matplotlib.use("agg")
        try:
            yield
        finally:
            # If that backend is unavailable (no screen), pyplot had not used it yet.
            matplotlib.use(backend, force=False)
            optuna.logging.set_verbosity(verbosity)


def _study(
    outcomes: Sequence[Outcome], objectives: Sequence[SweepObjective], columns: Columns
) -> Study:
    """The jobs as trials of an Optuna study, with the parameters in `columns`."""
    space = {key: _distribution(column, columns.scale(key)) for key, column in columns.items()}
    study = optuna.create_study(directions=[objective.direction for objective in objectives])
    study.set_metric_names([objective.metric for objective in objectives])
    study.add_trials(
        optuna.create_trial(
            values=outcome.values[: len(objectives)],
            params={key: column[row] for key, column in columns.items()},
            distributions=space,
            user_attrs={"index": outcome.index},
        )
        for row, outcome in enumerate(outcomes)
    )
    return study


def _column(texts: Sequence[str]) -> list[Any]:
    """The values of a parameter, as numbers if all of them are numbers."""
    with suppress(ValueError):
        numbers = [float(text) for text in texts]
        if all(map(math.isfinite, numbers)):
            return numbers
    return [without_markup(with_short_ids(text)) for text in texts]


def _distribution(column: Sequence[Any], scale: AxisScale) -> BaseDistribution:
    if isinstance(column[0], str):
        return optuna.distributions.CategoricalDistribution(sorted(set(column)))
    log = scale == "log"
    return optuna.distributions.FloatDistribution(min(column), max(column), log=log)


def scale(values: Sequence[Any], *, maximize: bool = False) -> AxisScale:
    """An axis for these values; never logarithmic if that would compress the best values."""
    if isinstance(values[0], str) or maximize or min(values) <= 0:
        return "linear"
    return "log" if max(values) / min(values) >= LOG_FROM else "linear"


def scale_of_parameter(values: Sequence[Any]) -> AxisScale:
    """An axis for the listed values of a parameter.

    Logarithmic if they span more than a decade and a half, or if they are spaced by factors: 1e-4,
    1e-3 or 16, 32, 64.
    """
    if isinstance(values[0], str) or min(values) <= 0:
        return "linear"
    points = np.array(sorted(set(values)), float)
    factors, steps = points[1:] / points[:-1], np.diff(points)
    by_factors = len(points) > 2 and 1.4 < factors.min() and factors.max() < 1.25 * factors.min()
    by_factors = by_factors and steps.max() > 1.9 * steps.min()
    by_decades = len(points) == 2 and factors[0] >= 10
    return "log" if by_factors or by_decades else scale(values)


def _draw_over_parameters(
    figures: dict[str, Figure],
    outcomes: Sequence[Outcome],
    objective: SweepObjective,
    searched: Sequence[str],
    scales: Mapping[str, AxisScale],
) -> None:
    """Adds plots of the objective over the parameters that differ between the jobs."""
    every = {key: _column([outcome.params[key] for outcome in outcomes]) for key in searched}
    columns = Columns({key: column for key, column in every.items() if len(set(column)) > 1})
    columns.scales = scales
    study = _study(outcomes, [objective], columns)
    order = list(columns)
    if order:
        with _or_without("parallel_coordinates"):
            figures["parallel_coordinates"] = _parallel(study, columns)
    if len(order) > 1:
        # Optuna's fANOVA uses linear scales: 1e-4 to 1e-3 would hardly count next to 1e-2.
        logs = Columns(
            {k: list(np.log(c)) if columns.scale(k) == "log" else c for k, c in columns.items()}
        )
        # No variance to attribute: all values are equal.
        with _or_without("importances"), suppress(RuntimeError):
            figures["importances"], order = _importances(_study(outcomes, [objective], logs))
    pair = {key: columns[key] for key in sorted([key for key in order if key != SEED][:2])}
    if pair:
        with _or_without("slice"):
            figures["slice"] = _slice(study, pair)
    if len(pair) == 2 and len(set(_objective(study))) > 1:
        with _or_without("contour"):
            figures["contour"] = _contour(study, pair)


def _drawn(plot: str, study: Study, size: tuple[float, float], **options: Any) -> Figure:
    """The figure of Optuna's `plot_<plot>`, on white, size in inches."""
    from matplotlib import pyplot

    with pyplot.rc_context():  # Optuna sets a style and does not reset it
        pyplot.rcParams["figure.constrained_layout.use"] = True
        pyplot.rcParams["figure.constrained_layout.wspace"] = 0.06
        getattr(optuna.visualization.matplotlib, f"plot_{plot}")(study, **options)
    figure = pyplot.gcf()
    pyplot.close(figure)  # the figure stays usable without pyplot
    figure.set_size_inches(size)
    for axes in figure.axes:
        axes.set_facecolor("white")
        axes.tick_params(grid_color="0.9")
    return figure


def _parallel(study: Study, columns: Columns) -> Figure:
    """One line per job through its objective and its parameters."""
    names = [_metric(study), *sorted(columns)]  # as Optuna sorts them
    figure = _drawn("parallel_coordinate", study, (1.9 * len(names) + 1, 5), target_name=names[0])
    axes, _, *twins = figure.axes
    axes.collections[0].set_cmap("viridis_r" if _maximize(study) else "viridis")
    axes.set_xticks(range(len(names)), names, rotation=0)
    axes.tick_params(axis="x", pad=8)
    axes.set_title(f"{len(study.trials)} finished jobs", y=1.04, fontsize=10)
    for twin, key in zip(twins, names[1:], strict=True):
        if not isinstance(columns[key][0], str):
            _ticks(twin.yaxis, columns[key])
        for label in twin.get_yticklabels():  # the lines pass behind them
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})
    return figure


def _importances(study: Study) -> tuple[Figure, list[str]]:
    """Shares of the objective's variance (fANOVA), and the parameters, largest share first."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    figure = _drawn("param_importances", study, (7, 4), evaluator=evaluator)
    axes: Any = figure.axes[0]
    figure.set_figheight(1.2 + 0.4 * len(axes.patches))
    axes.get_legend().remove()
    axes.set_title("", loc="left")
    axes.set(ylabel="", xlabel=f"share of the variance of {_metric(study)}")
    axes.set_xlim(0, 1.15 * max(bar.get_width() for bar in axes.patches))
    return figure, [label.get_text() for label in reversed(axes.get_yticklabels())]


def _slice(study: Study, columns: Mapping[str, list[Any]]) -> Figure:
    """The objective over each of these parameters; the colour is the job's index."""
    size, metric = (4 * len(columns) + 2, 4.5), _metric(study)
    figure = _drawn("slice", study, size, params=list(columns), target_name=metric)
    *panels, colours = figure.axes
    indices = np.array([trial.user_attrs["index"] for trial in study.trials])
    for axes, column in zip(panels, columns.values(), strict=True):
        points: Any = axes.collections[0]
        # Optuna uses the row in the study
        points.set_array(indices[points.get_array().astype(int)])
        points.set(cmap="viridis_r", clim=(indices.min(), indices.max()))
        axes.set(title="", yscale=scale(_objective(study), maximize=_maximize(study)))
        _ticks(axes.xaxis, column)
    figure.suptitle("")
    colours.set_ylabel("job")
    colours.locator_params(axis="y", integer=True)
    return figure


def _contour(study: Study, columns: Mapping[str, list[Any]]) -> Figure:
    """The best objective at each pair of values of two parameters, interpolated between them."""
    options = {"params": list(columns), "target_name": _metric(study)}
    figure = _drawn("contour", study, (7.5, 5.5), **options)
    axes = figure.axes[0]
    axes.set_title("the best job at each point, smoothed between them", fontsize=10)
    for axis, column in zip((axes.xaxis, axes.yaxis), columns.values(), strict=True):
        _ticks(axis, column)
    return figure


def _ticks(axis: Axis, values: Sequence[Any]) -> None:
    """Sets ticks at the values of a parameter if there is room, else fewer."""
    from matplotlib.ticker import LogLocator

    points, log = sorted(set(values)), axis.get_scale() == "log"
    if isinstance(points[0], str):
        axis.set_ticks(range(len(points)), points)
        if axis is axis.axes.xaxis and sum(map(len, points)) > 30:
            axis.set_tick_params(rotation=15)
        return
    scaled = np.log(points) if log else np.array(points)
    if len(points) <= MOST_TICKS and np.diff(scaled).min() > 0.07 * np.ptp(scaled):
        axis.set_ticks(points, [f"{point:g}" for point in points])
        axis.set_ticks([], minor=True)
    elif log:
        subs = (1, 3) if points[-1] / points[0] > LOG_FROM else (1, 2, 5)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


def _pareto(study: Study) -> Figure:
    """The two objectives of each job; on the Pareto front, improving one worsens the other."""
    figure = _drawn("pareto_front", study, (7, 5))
    (axes,) = figure.axes
    x, y = (scale(_objective(study, n), maximize=_maximize(study, n)) for n in (0, 1))
    axes.set(title="", xscale=x, yscale=y)
    for points in axes.collections:
        points.set_label("job" if points.get_label() == "Trial" else "on the Pareto front")
    axes.legend()
    return figure


def _metric(study: Study) -> str:
    return cast("list[str]", study.metric_names)[0]


def _maximize(study: Study, number: int = 0) -> bool:
    return study.directions[number] == optuna.study.StudyDirection.MAXIMIZE


def _objective(study: Study, number: int = 0) -> list[float]:
    return [trial.values[number] for trial in study.get_trials(deepcopy=False)]
