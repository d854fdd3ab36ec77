from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import optuna
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.sweeps.jobs import AxisScale
from pipeline.sweeps.outcomes import (
    FAILED,
    FINISHED,
    KILLED,
    PRUNED,
    RUNNING,
    Outcome,
    SweepObjective,
)
from pipeline.sweeps.plots import Repeats, draw_sweep, repeated, scale_of_parameter

pytestmark = pytest.mark.slow

ACCURACY = SweepObjective(metric="val/accuracy", maximize=True)
LOSS = SweepObjective(metric="val/loss", maximize=False)
PARAMETERS = SweepObjective(metric="model/parameters", maximize=False)
RATE, DROPOUT = "optimizer.learning_rate", "model.dropout"
BY_PARAMETERS = ["parallel_coordinates", "importances", "slice", "contour"]
NAN = math.nan


def trial(index: int, *values: float, state: str = FINISHED, **params: str) -> Outcome:
    full = {"rate": RATE, "dropout": DROPOUT, "width": "model.width"}
    named = {full.get(key, key): text for key, text in params.items()}
    return Outcome(index=index, status=state, params=named, values=values)


def accuracy(rate: str, dropout: str, *, luck: float = 0.0) -> float:
    """At its best for 1e-3 and 0.1; the learning rate matters more."""
    return 0.9 - 0.03 * (math.log10(float(rate)) + 3) ** 2 - 0.02 * abs(float(dropout) - 0.1) + luck


def grid(*, rates: str = "1e-4 3e-4 1e-3 3e-3", dropouts: str = "0.0 0.1 0.3 0.5") -> list[Outcome]:
    pairs = itertools.product(rates.split(), dropouts.split())
    return [trial(i, accuracy(r, d), rate=r, dropout=d) for i, (r, d) in enumerate(pairs)]


def seeded() -> list[Outcome]:
    """Two learning rates × three seeds: 0.80, 0.82, 0.84 and 0.90, 0.90, 0.93."""
    values = iter((0.80, 0.82, 0.84, 0.90, 0.90, 0.93))
    pairs = itertools.product(("1e-4", "1e-3"), "012")
    return [trial(i, next(values), rate=r, dropout="0.1", seed=s) for i, (r, s) in enumerate(pairs)]


def two_objectives() -> list[Outcome]:
    sizes = ((16, 0.80), (32, 0.84), (64, 0.83), (128, 0.88), (512, 0.87))
    return [
        trial(i, value, 100.0 * width, width=str(width), rate=rate)
        for i, ((width, value), rate) in enumerate(zip(sizes, ("1e-3", "1e-4") * 3, strict=False))
    ]


def adaptive() -> list[Outcome]:
    """40 trials with numbers as an adaptive search has them, every fourth one pruned."""
    rates = [f"{10 ** (-4 + 2.5 * (7 * i % 40) / 40):.6g}" for i in range(40)]
    dropouts = [f"{0.01 + 0.49 * (11 * i % 40) / 40:.6g}" for i in range(40)]
    return [
        trial(i, accuracy(r, d), state=FINISHED if i % 4 else PRUNED, rate=r, dropout=d)
        for i, (r, d) in enumerate(zip(rates, dropouts, strict=True))
    ]


def choices() -> list[Outcome]:
    """A model, of which `cnn` is best, by a learning rate, `null` or a number."""
    worth = {"linear": 0.1, "mlp": 0.5, "cnn": 0.8, "null": 0.0, "1e-3": 0.01}
    pairs = itertools.product(("linear", "mlp", "cnn"), ("null", "1e-3"))
    return [trial(i, worth[m] + worth[r], model=m, rate=r) for i, (m, r) in enumerate(pairs)]


def with_values(trials: Sequence[Outcome], *values: float) -> list[Outcome]:
    """The trials with those values, again from the first when they run out."""
    return [
        Outcome(index=t.index, status=t.status, params=t.params, values=(value,))
        for t, value in zip(trials, itertools.cycle(values), strict=False)
    ]


SEARCHES: dict[str, tuple[list[Outcome], list[SweepObjective], list[str]]] = {
    "grid": (grid(), [ACCURACY], [RATE, DROPOUT]),
    "seeds": (seeded(), [ACCURACY], [RATE, "seed"]),
    "adaptive": (adaptive(), [ACCURACY], [RATE, DROPOUT]),
    "choices": (choices(), [ACCURACY], ["model", RATE]),
    "two objectives": (two_objectives(), [ACCURACY, PARAMETERS], ["model.width", RATE]),
    "one parameter": (grid(dropouts="0.1"), [ACCURACY], [RATE, DROPOUT]),
    "two trials": (grid(rates="1e-4 1e-3", dropouts="0.1"), [ACCURACY], [RATE]),
    "one trial": (grid()[:1], [ACCURACY], [RATE, DROPOUT]),
    "all equal": (with_values(grid(), 0.5), [ACCURACY], [RATE, DROPOUT]),
    "nothing differs": ([trial(i, 0.1 * i, rate="1") for i in range(3)], [ACCURACY], [RATE]),
    "some without a value": (with_values(grid(), NAN, 0.8, 0.9), [ACCURACY], [RATE, DROPOUT]),
    "infinite losses": (with_values(grid(), 9.0, math.inf, 0.1), [LOSS], [RATE, DROPOUT]),
    "only failures": (
        [trial(i, NAN, state=FAILED, rate=str(i)) for i in range(3)],
        [ACCURACY],
        [RATE],
    ),
    "only pruned": ([trial(0, 0.5, state=PRUNED, rate="1")], [ACCURACY], [RATE]),
    "no trials": ([], [ACCURACY], [RATE]),
}


@cache
def drawn(name: str) -> dict[str, Figure]:
    """The search's figures after they were laid out for drawing, where late mistakes show."""
    return laid_out(draw_sweep(*SEARCHES[name]))


def laid_out(figures: dict[str, Figure]) -> dict[str, Figure]:
    for figure in figures.values():
        figure.draw_without_rendering()
    return figures


def texts(labels: Sequence[object]) -> list[str]:
    return [label.get_text() for label in labels]  # type: ignore[attr-defined]


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return list(found.get_xdata()), list(found.get_ydata())


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("grid", ["objective", *BY_PARAMETERS]),
        ("seeds", ["objective", "parallel_coordinates", "importances", "slice", "seeds"]),
        ("adaptive", ["objective", *BY_PARAMETERS]),
        ("choices", ["objective", *BY_PARAMETERS]),
        ("two objectives", ["objective", *BY_PARAMETERS, "pareto"]),
        # The share of a single parameter is 1, whatever it is.
        ("one parameter", ["objective", "parallel_coordinates", "slice"]),
        ("two trials", ["objective", "parallel_coordinates", "slice"]),
        ("one trial", ["objective"]),
        ("all equal", ["objective", "parallel_coordinates", "slice"]),
        ("nothing differs", ["objective"]),
        ("some without a value", ["objective", *BY_PARAMETERS]),
        ("infinite losses", ["objective", *BY_PARAMETERS]),
        ("only failures", []),
        ("only pruned", ["objective"]),
        ("no trials", []),
    ],
)
def test_a_search_has_the_pictures_that_make_sense_for_it(search: str, names: list[str]) -> None:
    assert list(drawn(search)) == names


def test_trials_of_many_parameters_can_be_drawn() -> None:
    trials = [
        trial(
            i,
            accuracy(f"{10 ** (-4 + i / 100):.6g}", f"{i % 7 / 10}"),
            rate=f"{10 ** (-4 + i / 100):.6g}",
            dropout=f"{i % 7 / 10}",
            model=("cnn", "mlp", "a_model_with_a_long_name")[i % 3],
            width=str(2 ** (i % 5 + 4)),
        )
        for i in range(0, 200, 4)
    ]
    figures = draw_sweep(trials, [ACCURACY], [RATE, DROPOUT, "model", "model.width"])
    assert list(figures) == ["objective", *BY_PARAMETERS]
    laid_out(figures)


def test_the_objective_is_shown_with_the_best_so_far() -> None:
    values = (0.5, 0.75, 0.25, 0.75, 1.0)
    trials = [trial(i, value) for i, value in enumerate(values)]
    (axes,) = draw_sweep(trials[::-1], [ACCURACY], [])["objective"].axes
    assert line(axes, "finished") == ([0, 1, 2, 3, 4], [0.5, 0.75, 0.25, 0.75, 1.0])
    assert line(axes, "best so far") == ([0, 1, 2, 3, 4], [0.5, 0.75, 0.75, 0.75, 1.0])
    assert axes.get_title(loc="left") == "best: 1, job 4"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("job", "val/accuracy")


def test_the_first_of_equally_good_trials_is_the_best() -> None:
    figures = draw_sweep([trial(i, 0.5) for i in (3, 5)], [ACCURACY], [])
    assert figures["objective"].axes[0].get_title(loc="left") == "best: 0.5, job 3"


def test_each_objective_has_a_panel_and_a_best_of_its_own() -> None:
    trials = [trial(0, 0.5, 200.0), trial(1, 0.75, 400.0), trial(2, NAN, 100.0)]
    upper, lower = draw_sweep(trials, [ACCURACY, PARAMETERS], [])["objective"].axes
    assert line(upper, "best so far") == ([0, 1], [0.5, 0.75])
    assert line(lower, "best so far") == ([0, 1, 2], [200, 200, 100])
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("val/accuracy", "model/parameters")


def test_trials_that_did_not_finish_are_marked_by_what_became_of_them() -> None:
    trials = [
        trial(0, 0.5),
        trial(1, 0.25, state=PRUNED),
        trial(2, NAN, state=PRUNED),
        trial(3, NAN, state=FAILED),
        trial(4, NAN, state=KILLED),
        trial(5, NAN),
        trial(6, NAN, state=RUNNING),
    ]
    figure = draw_sweep(trials, [ACCURACY], [])["objective"]
    (axes,) = figure.axes
    assert line(axes, "best so far") == ([0], [0.5])
    assert line(axes, "pruned") == ([1], [0.25])
    lost = {"pruned": 2, "failed": 3, "killed": 4, "finished": 5}
    for state, index in lost.items():
        assert line(axes, f"{state}, no value")[0] == [index]
    shown = {"finished", "pruned", "best so far", *(f"{state}, no value" for state in lost)}
    assert set(texts(figure.legends[0].get_texts())) == shown
    marks = {str(line.get_label()): line.get_marker() for line in axes.lines}
    assert [marks[f"{state}, no value"] for state in lost] == ["v", "x", "+", "o"]


def test_a_loss_over_orders_of_magnitude_has_a_logarithmic_axis_and_an_accuracy_has_not() -> None:
    trials = [trial(0, 0.01), trial(1, 0.9)]
    assert draw_sweep(trials, [LOSS], [])["objective"].axes[0].get_yscale() == "log"
    assert draw_sweep(trials, [ACCURACY], [])["objective"].axes[0].get_yscale() == "linear"


def test_every_trial_is_a_line_through_its_parameters_the_best_on_top() -> None:
    figure = drawn("grid")["parallel_coordinates"]
    axes, colours, dropout, rate = figure.axes
    assert texts(axes.get_xticklabels()) == ["val/accuracy", DROPOUT, RATE]
    assert texts(dropout.get_yticklabels()) == ["0", "0.1", "0.3", "0.5"]
    assert texts(rate.get_yticklabels()) == ["0.0001", "0.0003", "0.001", "0.003"]
    assert (dropout.get_yscale(), rate.get_yscale()) == ("linear", "log")
    assert colours.get_ylabel() == "val/accuracy"
    starts = [path.vertices[0][1] for path in axes.collections[0].get_paths()]
    assert starts == sorted(t.values[0] for t in grid())
    assert axes.get_title() == "16 finished jobs"


def test_only_finished_trials_have_a_line() -> None:
    axes = drawn("adaptive")["parallel_coordinates"].axes[0]
    assert len(axes.collections[0].get_paths()) == 30


def test_the_lines_of_choices_end_at_their_names() -> None:
    axes, _, model, _ = drawn("choices")["parallel_coordinates"].axes
    places = {label.get_text(): label.get_position()[1] for label in model.get_yticklabels()}
    low, high = axes.get_ylim()
    for path, t in zip(
        axes.collections[0].get_paths(),
        sorted(choices(), key=lambda t: t.values[0]),
        strict=True,
    ):
        # The line is in the objective's units; the parameter's axis goes from 0 to 2.
        height = (path.vertices[1][1] - low) / (high - low) * 2
        assert height == pytest.approx(places[t.params["model"]])


def test_importances_are_a_bar_for_each_parameter_that_varies() -> None:
    (axes,) = drawn("grid")["importances"].axes
    shares = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert texts(axes.get_yticklabels()) == [DROPOUT, RATE]  # from the bottom
    assert shares == pytest.approx([0.074, 0.926], abs=0.01)
    assert axes.get_xlabel() == "share of the variance of val/accuracy"
    trials = [trial(i, i, rate=str(i), dropout="0.1", width=str(i % 2)) for i in range(6)]
    (axes,) = draw_sweep(trials, [ACCURACY], [RATE, DROPOUT, "model.width"])["importances"].axes
    assert DROPOUT not in texts(axes.get_yticklabels())


def test_a_learning_rate_is_as_important_as_its_orders_of_magnitude() -> None:
    rates, dropouts = ("1e-5", "1e-4", "1e-3", "1e-2"), ("0.1", "0.2", "0.3", "0.4")
    trials = [
        trial(i, float(rates.index(r) > 1) + float(dropouts.index(d) > 1), rate=r, dropout=d)
        for i, (r, d) in enumerate(itertools.product(rates, dropouts))
    ]
    (axes,) = draw_sweep(trials, [ACCURACY], [RATE, DROPOUT])["importances"].axes
    shares = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert shares == pytest.approx([0.5, 0.5], abs=0.05)


def test_the_same_search_has_the_same_importances() -> None:
    first, again = (
        [bar.get_width() for bar in figures["importances"].axes[0].patches]  # type: ignore[attr-defined]
        for figures in (drawn("adaptive"), draw_sweep(*SEARCHES["adaptive"]))
    )
    assert first == again


def test_a_slice_shows_trials_by_parameter_value_and_index() -> None:
    dropout, rate, colours = drawn("grid")["slice"].axes
    assert (dropout.get_xlabel(), rate.get_xlabel()) == (DROPOUT, RATE)
    assert rate.get_xscale() == "log"
    assert texts(rate.get_xticklabels()) == ["0.0001", "0.0003", "0.001", "0.003"]
    points = rate.collections[0]
    shown = {
        (*map(float, point), int(index))
        for point, index in zip(points.get_offsets(), points.get_array(), strict=True)
    }
    assert shown == {(float(t.params[RATE]), t.values[0], t.index) for t in grid()}
    assert colours.get_ylabel() == "job"


def test_choices_are_ticks_in_a_slice() -> None:
    model, rate, _ = drawn("choices")["slice"].axes
    assert texts(model.get_xticklabels()) == ["cnn", "linear", "mlp"]
    assert texts(rate.get_xticklabels()) == ["1e-3", "null"]
    heights = {tuple(point) for point in model.collections[0].get_offsets()}
    assert (0, choices()[4].values[0]) in heights  # a cnn


def test_runs_are_shown_by_short_ids_in_the_plots() -> None:
    teachers = (f"[{'12e4' * 8},{'abcd' * 8}]", "abce" * 8)
    trials = [trial(i, 0.1 * i, **{"train.teacher": one}) for i, one in enumerate(teachers)]
    axes = draw_sweep(trials, [ACCURACY], ["train.teacher"])["slice"].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        *("[12e412e4,abcdabcd]", "abceabce")
    ]


def test_slices_and_contours_are_of_the_two_most_important_parameters_but_the_seed() -> None:
    trials = [
        trial(i, 10 * a + b + 0.1 * c + 99 * s, a=str(a), b=str(b), c=str(c), seed=str(s))
        for i, (a, b, c, s) in enumerate(itertools.product(range(3), range(3), range(2), range(2)))
    ]
    figures = draw_sweep(trials, [ACCURACY], ["seed", "c", "b", "a"])
    assert texts(figures["importances"].axes[0].get_yticklabels())[::-1] == ["seed", "a", "b", "c"]
    assert [axes.get_xlabel() for axes in figures["slice"].axes[:2]] == ["a", "b"]
    axes = figures["contour"].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")


def test_contours_are_between_the_values_tried() -> None:
    axes, colours = drawn("grid")["contour"].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == (DROPOUT, RATE)
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert texts(axes.get_yticklabels()) == ["0.0001", "0.0003", "0.001", "0.003"]
    assert colours.get_ylabel() == "val/accuracy"


def test_numbers_without_room_for_each_have_few_plain_ticks() -> None:
    rate = drawn("adaptive")["slice"].axes[1]
    assert rate.get_xscale() == "log"
    low, high = rate.get_xlim()
    within = {
        label.get_text() for label in rate.get_xticklabels() if low < label.get_position()[0] < high
    }
    assert within == {"0.0001", "0.0003", "0.001", "0.003", "0.01"} | (within & {"0.03"})


def test_the_pareto_front_is_told_from_the_other_trials() -> None:
    (axes,) = drawn("two objectives")["pareto"].axes
    others, front = axes.collections
    assert {tuple(point) for point in front.get_offsets()} == {
        (0.80, 1600),
        (0.84, 3200),
        (0.88, 12800),
    }
    assert {tuple(point) for point in others.get_offsets()} == {(0.83, 6400), (0.87, 51200)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("val/accuracy", "model/parameters")
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    legend = axes.get_legend()
    assert legend is not None
    assert texts(legend.get_texts()) == ["job", "on the Pareto front"]


def test_a_trial_without_one_of_two_objectives_is_not_on_the_pareto_front() -> None:
    trials = [trial(0, 0.5, 9.0), trial(1, 0.6, 10.0), trial(2, 0.7, NAN)]
    (axes,) = draw_sweep(trials, [ACCURACY, PARAMETERS], [])["pareto"].axes
    assert sum(len(points.get_offsets()) for points in axes.collections) == 2
    assert "pareto" not in draw_sweep(trials[1:], [ACCURACY, PARAMETERS], [])


def test_groups_are_trials_that_differ_in_the_seed_alone_best_first() -> None:
    best, second = repeated(seeded(), ACCURACY)
    assert best.params == {RATE: "1e-3", DROPOUT: "0.1"}
    assert best.values == (0.90, 0.90, 0.93)
    assert best.n == second.n == 3
    assert second.values == (0.80, 0.82, 0.84)
    assert second.mean == pytest.approx(0.82)
    assert second.sd == pytest.approx(0.02)
    # Student's t for 2 degrees of freedom is 4.302653.
    assert second.half_width == pytest.approx(4.302653 * 0.02 / math.sqrt(3))
    assert best.mean == pytest.approx(0.91)
    assert best.sd == pytest.approx(math.sqrt(0.0003))


def test_the_lowest_mean_loss_comes_first() -> None:
    assert [one.params[RATE] for one in repeated(seeded(), LOSS)] == ["1e-4", "1e-3"]


def test_a_group_of_one_has_no_spread() -> None:
    (one,) = repeated([trial(0, 0.5, seed="0")], ACCURACY)
    assert (one.params, one.n, one.mean) == ({}, 1, 0.5)
    assert math.isnan(one.sd)
    assert math.isnan(one.half_width)


def test_groups_are_of_finished_trials_with_a_value() -> None:
    trials = [
        trial(0, 0.5, seed="0"),
        trial(1, 0.7, seed="1"),
        trial(2, NAN, seed="2"),
        trial(3, math.inf, seed="3"),
        trial(4, 0.9, state=PRUNED, seed="4"),
        trial(5, 0.9, state=FAILED, seed="5"),
    ]
    (one,) = repeated(trials, ACCURACY)
    assert one.values == (0.5, 0.7)
    assert repeated(trials[2:], ACCURACY) == []


def test_the_order_of_the_parameters_does_not_part_what_is_repeated() -> None:
    trials = [trial(0, 0.5, a="1", b="2", seed="0"), trial(1, 0.5, seed="1", b="2", a="1")]
    assert [one.n for one in repeated(trials, ACCURACY)] == [2]


def test_groups_are_values_of_their_own() -> None:
    made = Repeats(params={}, values=(1.0,), n=1, mean=1.0, sd=NAN, half_width=NAN)
    with pytest.raises(AttributeError):
        made.mean = 2.0  # type: ignore[misc]


def test_seeds_are_dots_around_their_mean_and_interval() -> None:
    (axes,) = drawn("seeds")["seeds"].axes
    assert texts(axes.get_yticklabels()) == ["learning_rate=1e-3", "learning_rate=1e-4"]
    bottom, top = axes.get_ylim()
    assert bottom > top  # the best is at the top
    assert axes.get_xlabel() == "val/accuracy"
    dots = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[0.90, 0.90, 0.93], [0.80, 0.82, 0.84]]
    intervals = [bars.lines[2][0].get_segments()[0][:, 0] for bars in axes.containers]
    for one, interval in zip(repeated(seeded(), ACCURACY), intervals, strict=True):
        assert list(interval) == pytest.approx(
            [one.mean - one.half_width, one.mean + one.half_width]
        )


def test_a_group_is_named_by_what_tells_it_from_others() -> None:
    changes = itertools.product(("0", "0.1"), ("0.2", "0.3"), "01")
    trials = [
        trial(
            i,
            0.1 * i,
            **{"augment.dropout": a, "model.dropout": m, "model.units": "[$9,99]", "seed": s},
        )
        for i, (a, m, s) in enumerate(changes)
    ]
    (axes,) = draw_sweep(trials, [ACCURACY], [*trials[0].params])["seeds"].axes
    assert texts(axes.get_yticklabels())[0] == "augment.dropout=0.1, model.dropout=0.3"
    (axes,) = draw_sweep(trials[:2], [ACCURACY], [*trials[0].params])["seeds"].axes
    assert texts(axes.get_yticklabels()) == [
        "augment.dropout=0, model.dropout=0.2,\n" + r"units=[\$9,99]"
    ]


def test_no_more_than_the_best_twenty_groups_are_shown() -> None:
    trials = [
        trial(2 * i + s, 0.01 * i + 0.001 * s, rate=str(i), seed=str(s))
        for i in range(25)
        for s in range(2)
    ]
    (axes,) = draw_sweep(trials, [ACCURACY], [RATE, "seed"])["seeds"].axes
    labels = texts(axes.get_yticklabels())
    assert (len(labels), labels[0]) == (20, "learning_rate=24")
    assert axes.get_title(loc="left") == "best 20 of 25 settings"


@pytest.mark.parametrize(
    ("trials", "searched"),
    [
        (seeded(), [RATE]),  # the seed was not searched
        ([trial(i, i, rate="1", seed="0") for i in range(3)], [RATE, "seed"]),
        ([trial(i, i, rate=str(i), seed=str(i)) for i in range(3)], [RATE, "seed"]),
    ],
)
def test_seeds_are_not_shown_where_there_is_nothing_to_average(
    trials: list[Outcome], searched: list[str]
) -> None:
    assert "seeds" not in draw_sweep(trials, [ACCURACY], searched)


def test_choices_may_look_like_formulas() -> None:
    trials = [trial(i, 0.1 * i, model=m, rate=str(i)) for i, m in enumerate(("$^$", "${x}", "b$"))]
    for figure in draw_sweep(trials, [ACCURACY], ["model", RATE]).values():
        figure.savefig(io.BytesIO())  # a formula is read when it is drawn


def test_pyplot_and_optuna_are_left_as_they_were() -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    matplotlib.use("svg")
    settings = dict(matplotlib.rcParams)
    try:
        figures = draw_sweep(*SEARCHES["two objectives"])
        assert pyplot.get_fignums() == []
        assert dict(matplotlib.rcParams) == settings
        assert matplotlib.get_backend() == "svg"
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        matplotlib.use("agg")
    for figure in figures.values():
        assert type(figure.canvas).__name__ in ("FigureCanvasAgg", "FigureCanvasBase")


def test_figures_of_others_stay_open() -> None:
    own = pyplot.figure()
    try:
        draw_sweep(*SEARCHES["grid"])
        assert pyplot.get_fignums() == [own.number]
        assert pyplot.gcf() is own
    finally:
        pyplot.close(own)


def test_nothing_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    draw_sweep(*SEARCHES["some without a value"])
    assert capsys.readouterr() == ("", "")


def test_a_backend_that_needs_a_screen_is_not_used() -> None:
    script = """
import sys
sys.path.insert(0, ".")
from tests.sweeps.test_plots import SEARCHES, draw_sweep
drawn = draw_sweep(*SEARCHES["two trials"])
print(len(drawn), sorted({"keras", "tensorflow", "mlflow"} & set(sys.modules)))
"""
    environment = {"PATH": "/usr/bin:/bin", "MPLBACKEND": "tkagg"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("3 []\n", 0), done.stderr


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1e-4, 1e-3], "log"),
        ([1e-5, 1e-4, 1e-3], "log"),
        ([3e-4, 1e-3, 3e-3], "log"),
        ([16, 32, 64, 128], "log"),
        ([0.0, 0.1, 0.3], "linear"),
        ([0.1, 0.3], "linear"),
        ([0.1, 0.2, 0.3], "linear"),
        ([1, 2], "linear"),
        ([1, 2, 3, 5, 8], "linear"),
        ([0.9, 0.99, 0.999], "linear"),
        (["a", "b"], "linear"),
    ],
)
def test_a_parameter_that_goes_by_factors_has_a_logarithmic_axis(
    values: list[float], expected: str
) -> None:
    assert scale_of_parameter(values) == expected


@pytest.mark.parametrize("how", ["log", "linear"])
def test_a_parameter_is_drawn_on_the_scale_on_which_it_was_searched(how: AxisScale) -> None:
    rates = ["0.0011", "0.0015", "0.0024", "0.0031"]
    outcomes = [trial(i, accuracy(rate, "0.1"), rate=rate) for i, rate in enumerate(rates)]
    figures = draw_sweep(outcomes, [ACCURACY], [RATE], {RATE: how})
    assert figures["slice"].axes[0].get_xscale() == how


def test_a_picture_that_fails_costs_the_picture_and_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> Figure:
        raise AttributeError("no such plot in this version")

    expected = set(draw_sweep(grid(), [ACCURACY], [RATE, DROPOUT])) - {"parallel_coordinates"}
    monkeypatch.setattr("optuna.visualization.matplotlib.plot_parallel_coordinate", fails)
    assert set(draw_sweep(grid(), [ACCURACY], [RATE, DROPOUT])) == expected
    assert "plot parallel_coordinates could not be drawn: AttributeError: no such" in caplog.text
    monkeypatch.setattr("optuna.create_study", fails)  # as with another Optuna
    assert set(draw_sweep(grid(), [ACCURACY], [RATE, DROPOUT])) == {"objective"}
