from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.intervals import (
    BONETT,
    BOOTSTRAP,
    NEWCOMBE,
    STUDENT,
    WELCH,
    WILSON,
    Resampling,
)
from pipeline.evaluation.metrics import scale_of
from pipeline.system.terminal import standard_output
from pipeline.tracking.values import RecordedRun, Status, StoredPredictions
from pipeline.verbs.compare.comparison import Comparison, Ranking, compare_runs
from pipeline.verbs.compare.render import cells, print_comparison
from pipeline.verbs.compare.verdicts import (
    notes,
    standing,
    verdict,
)

RESAMPLING = Resampling(confidence=0.95, resamples=500)
IMAGES = 400
LABELS = np.repeat(np.arange(2, dtype=np.int32), IMAGES // 2)


def run(
    name: str, *, seed: int = 0, rate: str = "0.1", accuracy: float | None = 0.5
) -> RecordedRun:
    return RecordedRun(
        id=(name.encode().hex() + "0" * 32)[:32],
        name=name,
        experiment="fashion_mnist",
        status=Status.FINISHED,
        started=seed,
        params={"optimizer.learning_rate": rate, "seed": str(seed), "preprocess.seed": "0"},
        tags={"data.fingerprint": "f" * 64, "mlflow.source.git.commit": "1" * 40},
        logged={} if accuracy is None else {"val/accuracy": accuracy, "time/total_s": 3.0},
        sizes={"val": IMAGES},
        artifacts="",
    )


def answers(right: int, *splits: str, labels: np.ndarray = LABELS) -> dict[str, StoredPredictions]:
    """Predictions of which the first `right` are so; those of class 1 are the last."""
    probabilities = np.eye(2, dtype=np.float32)[
        np.where(np.arange(len(labels)) < right, labels, 1 - labels)
    ]
    one = StoredPredictions(
        labels=labels, probabilities=probabilities, class_names=("bag", "shirt")
    )
    return dict.fromkeys(splits or ("val", "test"), one)


def compared(
    runs: Sequence[RecordedRun], metric: str = "val/accuracy", **stored: Any
) -> Comparison:
    by_name = {one.name: one.id for one in runs}
    predictions = {by_name[name]: one for name, one in stored.items()}
    ranking = Ranking(metric=metric, lower_is_better=scale_of(metric).better == "lower")
    return compare_runs(runs, "runs", ranking, predictions, RESAMPLING)


def test_rows_come_best_first_and_those_without_the_metric_last() -> None:
    runs = [run("a", rate="1", accuracy=0.5), run("b", rate="2", accuracy=None)]
    runs += [run("c", rate="3", accuracy=0.75)]
    assert [row.label for row in compared(runs).rows] == ["c", "a", "b"]


def test_a_row_over_seeds_has_mean_sd_n_and_students_interval() -> None:
    runs = [run("a", seed=0, accuracy=0.5), run("b", seed=1, accuracy=0.75), run("c", rate="2")]
    found = {row.label: row.estimates["val/accuracy"] for row in compared(runs).rows}
    folded = found["learning_rate=0.1"]
    assert (folded.value, folded.n, folded.method) == (0.625, 2, STUDENT)
    assert folded.sd == pytest.approx(0.25 / np.sqrt(2))


def test_seeds_that_all_agree_have_the_interval_of_their_images() -> None:
    accuracies = {"1": 0.95, "2": 0.90}
    runs = [
        replace(run(f"{rate}{seed}", seed=seed, rate=rate, accuracy=share), sizes={"val": 20})
        for rate, share in accuracies.items()
        for seed in range(2)
    ]
    found = compared(runs)
    first, second = found.rows
    best = first.estimates["val/accuracy"]
    assert (best.value, best.n, best.sd, best.method) == (0.95, 2, 0, WILSON)
    assert (best.low, best.high) == pytest.approx((0.7639, 0.9911), abs=1e-4)
    assert second.difference is not None
    assert second.difference.method == NEWCOMBE
    assert second.difference.is_noise
    assert "within noise" in verdict(found)
    single = compared([*runs[:2], replace(runs[2], params={"seed": "0"})])
    assert [row.difference.method for row in single.rows[1:] if row.difference] == [NEWCOMBE]
    unknown = compared([replace(one, sizes={}) for one in runs])
    assert [row.estimates["val/accuracy"].method for row in unknown.rows] == ["", ""]
    assert "cannot be told" in verdict(unknown)


def test_two_runs_stay_two_rows_in_their_order_even_if_their_seeds_alone_differ() -> None:
    found = compared([run("a", seed=0, accuracy=0.5), run("b", seed=1, accuracy=0.75)])
    assert [row.label for row in found.rows] == ["a", "b"]
    assert found.traits == ["seed"]


def test_without_stored_predictions_the_interval_is_of_the_recorded_share() -> None:
    found = compared([run("a", rate="1"), run("b", rate="2"), run("c", rate="3", accuracy=0.9)])
    assert {row.estimates["val/accuracy"].method for row in found.rows} == {WILSON}
    assert {row.difference.method for row in found.rows if row.difference} == {NEWCOMBE}
    assert any("Wilson score" in note for note in notes(found))


def test_stored_predictions_give_score_intervals_and_paired_differences() -> None:
    runs = [run(name, rate=name, accuracy=0.5) for name in "abc"]
    runs = [replace(one, logged=dict(one.logged) | {"val/loss": 0.5}) for one in runs]
    found = compared(runs, a=answers(200), b=answers(210), c=answers(300))
    first, *others = found.rows
    assert (first.label, first.estimates["val/accuracy"].value) == ("c", 0.75)
    assert first.estimates["val/accuracy"].method == WILSON
    assert first.estimates["val/loss"].method == BOOTSTRAP
    assert [row.difference.method for row in others if row.difference] == [BONETT, BONETT]
    assert [standing(row, found) for row in others] == ["worse", "worse"]


def test_a_paired_difference_is_surer_than_one_of_other_images() -> None:
    runs = [
        run(name, rate=name, accuracy=right / 400)
        for name, right in (("a", 300), ("b", 290), ("c", 9))
    ]
    paired = compared(runs, a=answers(300), b=answers(290), c=answers(9)).rows[1].difference
    apart = compared(runs).rows[1].difference
    assert paired is not None
    assert apart is not None
    assert (paired.is_noise, apart.is_noise) == (False, True)


def test_runs_split_in_other_ways_are_not_paired() -> None:
    runs = [run(name, rate=name) for name in "abc"]
    runs[1] = replace(runs[1], params=dict(runs[1].params) | {"preprocess.seed": "1"})
    found = compared(runs, a=answers(300), b=answers(200), c=answers(100))
    assert [row.difference.method for row in found.rows if row.difference] == [NEWCOMBE, BONETT]


@pytest.mark.parametrize("key", ["dataset.group", "dataset.near_duplicates"])
def test_runs_whose_pictures_were_grouped_in_other_ways_are_paired_on_test_images_only(
    key: str,
) -> None:
    runs = [run(name, rate=name) for name in "abc"]
    runs[1] = replace(runs[1], params=dict(runs[1].params) | {key: "4"})
    stored = {"a": answers(300), "b": answers(200), "c": answers(100)}
    methods = [row.difference.method for row in compared(runs, **stored).rows if row.difference]
    assert methods == [NEWCOMBE, BONETT]
    pair = compared(runs[:2], a=answers(300), b=answers(200)).pair
    assert pair is not None
    assert pair.split == "test"
    only_val = {name: answers(200, "val") for name in "ab"}
    assert compared(runs[:2], **only_val).pair is None


def test_runs_that_name_their_groups_are_paired_by_these_and_with_earlier_ones_by_settings() -> (
    None
):
    def paired(one: dict[str, str], other: dict[str, str]) -> bool:
        runs = [run(name, rate=name) for name in "ab"]
        tags = zip(runs, (one, other), strict=True)
        runs = [replace(run, tags=dict(run.tags) | more) for run, more in tags]
        return compared(runs, **{name: answers(200, "val") for name in "ab"}).pair is not None

    assert paired({"data.groups": "1"}, {"data.groups": "1"})
    assert not paired({"data.groups": "1"}, {"data.groups": "2"})
    assert paired({"data.groups": "1"}, {})


def test_a_perfect_run_has_an_interval_of_its_own() -> None:
    runs = [run(name, rate=name) for name in "abc"]
    labels = LABELS[:20]
    stored = {name: answers(n, labels=labels) for name, n in (("a", 20), ("b", 16), ("c", 9))}
    runs[1] = replace(runs[1], params=dict(runs[1].params) | {"preprocess.seed": "1"})
    first, second, _ = compared(runs, **stored).rows
    assert 0.8 < first.estimates["val/accuracy"].low < first.estimates["val/accuracy"].high == 1
    assert second.difference is not None
    assert second.difference.is_noise


def test_the_verdict_of_a_pair_is_that_of_its_exact_test() -> None:
    runs = [run("a"), run("b", rate="2")]
    for alone, word in ((5, "within noise"), (6, "better")):
        found = compared(runs, a=answers(300), b=answers(300 + alone))
        assert standing(found.rows[1], found) == word
        assert (word == "better") == ("significant: b is better" in verdict(found))


def test_a_metric_that_some_seeds_lack_says_of_how_many_it_is_the_mean() -> None:
    runs = [run(f"a{i}", seed=i) for i in range(5)]
    runs[:3] = [replace(one, logged=dict(one.logged) | {"test/accuracy": 0.5}) for one in runs[:3]]
    runs += [run("b", rate="2")]
    found = compared(runs, metric="test/accuracy")
    header, rows = cells(found)
    assert rows[0][header.index("n")] == "3 of 5"
    assert "mean of 3 of 5 seeds" in verdict(found)
    assert any(note.startswith("Not every run has test/accuracy") for note in notes(found))


def test_two_groups_of_seeds_are_compared_over_their_seeds() -> None:
    runs = [run(f"a{i}", seed=i, accuracy=0.5 + i / 100) for i in range(3)]
    runs += [run(f"b{i}", seed=i, rate="2", accuracy=0.8 + i / 100) for i in range(3)]
    found = compared(runs)
    assert [len(row.row.runs) for row in found.rows] == [3, 3]
    assert found.rows[1].difference is not None
    assert found.rows[1].difference.method == WELCH
    assert "mean of 3 seeds" in verdict(found)
    assert "The difference is significant: the first is better." in verdict(found)


def test_the_interval_of_few_seeds_does_not_leave_what_a_metric_can_be() -> None:
    runs = [run(str(seed), seed=seed, accuracy=0.5 + 0.4 * seed) for seed in range(2)]
    [row] = compared([*runs, run("other", rate="2")]).rows[:1]
    share = row.estimates["val/accuracy"]
    assert (share.low, share.high, share.method) == (0.0, 1.0, STUDENT)
    assert share.sd == pytest.approx(0.4 / 2**0.5)


def test_a_lower_loss_is_better() -> None:
    runs = [run(name, rate=name) for name in "abc"]
    runs = [replace(one, logged={"val/loss": 1.0}) for one in runs]
    found = compared(runs, "val/loss", a=answers(100), b=answers(390), c=answers(100))
    assert found.rows[0].label == "b"
    assert standing(found.rows[1], found) == "worse"


def test_names_are_printed_as_they_are_whatever_a_terminals_markup_makes_of_them() -> None:
    found = compared([run("[/]", rate="[red]"), run(":smile:", rate="[/b]", accuracy=0.4)])
    console = standard_output()
    with console.capture() as captured:
        print_comparison(found, console)
    printed = captured.get()
    assert all(text in printed for text in ("[/]", "[red]", ":smile:", "[/b]"))
