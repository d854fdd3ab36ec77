from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.evaluation.intervals import Estimate, Resampling
from pipeline.verbs.compare.plots import figures
from pipeline.verbs.compare.verdicts import (
    change,
    interval,
    metric_value,
    notes,
    p_value,
    verdict,
)
from tests.verbs.compare.test_comparison import answers, compared, run


def test_a_metric_without_intervals_is_said_to_have_none() -> None:
    runs = [run("a"), run("b", rate="2")]
    found = compared(runs, "time/total_s", a=answers(300), b=answers(290))
    [first, *_] = notes(found)
    assert first.startswith("time/total_s comes without intervals: ")


def test_of_many_rows_it_is_said_how_many_are_level_with_the_best() -> None:
    runs = [run(str(i), rate=str(i), accuracy=share) for i, share in enumerate((0.9, 0.89, 0.1))]
    assert "1 of the 2 other rows is within noise of it; 1 is significantly worse" in verdict(
        compared(runs)
    )
    assert any("looks better than it is" in note for note in notes(compared(runs)))


def test_rows_that_cannot_be_told_from_the_best_are_not_said_to_be_worse() -> None:
    shares = (0.9, 0.1, None, None)  # as of a sweep, which measures the test split of its best jobs
    runs = [run(str(i), rate=str(i), accuracy=share) for i, share in enumerate(shares)]
    said = verdict(compared(runs))
    assert "0 of the 3 other rows are within noise of it; 1 is significantly worse" in said
    assert "worse; 2 cannot be compared." in said
    assert "better than all 1 others" not in verdict(compared(runs[:3]))


def test_a_metric_that_one_of_two_runs_lacks_is_said_not_to_be_measured() -> None:
    found = verdict(compared([run("a"), run("b", accuracy=None)]))
    assert "against not measured (b). Without intervals, it cannot be told" in found


def test_it_is_said_when_pictures_belong_together() -> None:
    runs = [run("a"), run("b", rate="2"), run("c", rate="3")]
    assert not any("belong together" in note for note in notes(compared(runs)))
    for group, told in (("null", False), ("film", True)):
        of_films = [replace(one, params={**one.params, "dataset.group": group}) for one in runs]
        said = [note for note in notes(compared(of_films)) if "(dataset.group=film)" in note]
        assert bool(said) == told


def test_it_is_said_when_no_row_is_worse_than_the_best_by_more_than_noise() -> None:
    runs = [run(str(i), rate=str(i), accuracy=share) for i, share in enumerate((0.9, 0.89, 0.88))]
    assert verdict(compared(runs)).endswith("All other rows are within noise of it.")


@pytest.mark.parametrize("confidence", ["99.99999%", "99.9%", "97.5%", "95%"])
def test_the_coverage_of_intervals_is_not_rounded(confidence: str) -> None:
    of = Resampling(confidence=float(confidence[:-1]) / 100, resamples=100)
    found = replace(compared([run("a"), run("b", rate="2")]), resampling=of)
    assert any(f"has {confidence} intervals" in note for note in notes(found))
    paired = compared([run("a"), run("b", rate="2")], a=answers(300), b=answers(290))
    assert f"({confidence} interval" in verdict(replace(paired, resampling=of))
    labels = [text.get_text() for text in figures(found)["compare"].texts]
    assert f"val/accuracy with {confidence} intervals" in labels


def test_a_run_that_is_wrong_on_some_images_is_not_said_to_be_right_on_all() -> None:
    found = compared([run("a"), run("b")], a=answers(400), b=answers(400))
    assert "a is right on 100.00%, b on 100.00%: +0.00 points" in verdict(found)
    assert found.pair is not None
    nearly = replace(found, pair=replace(found.pair, first=0.99999, second=0.00001))
    assert "a is right on >99.99%, b on <0.01%: " in verdict(nearly)


def test_numbers_are_told_for_people() -> None:
    assert (metric_value(0.86561), metric_value(235146.0), metric_value(float("nan"))) == (
        "0.8656",
        "235,146",
        "",
    )
    assert (metric_value(17.1372), metric_value(-9.99996)) == ("17.14", "-10.0000")
    assert interval(Estimate(value=0.5)) == "0.5000"
    assert interval(Estimate(value=0.5, low=0.4, high=0.6)) == "0.5000 [0.4000, 0.6000]"
    assert interval(Estimate(value=0.5, low=0.4, high=0.6, n=3, sd=0.1)) == (
        "0.5000 ± 0.1000 [0.4000, 0.6000]"
    )
    assert change(Estimate(value=0.5, low=-0.4, high=0.6)) == "+0.5000 [-0.4000, +0.6000]"
    assert (p_value(0.03812), p_value(1e-9)) == ("p = 0.038", "p < 0.0001")
