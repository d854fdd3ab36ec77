from __future__ import annotations

import csv
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pipeline.sweeps import results
from pipeline.sweeps.jobs import Job
from pipeline.sweeps.outcomes import FAILED, FINISHED, PRUNED, Outcome, SweepObjective
from pipeline.sweeps.results import log_results, print_results, show_preview

ACCURACY = SweepObjective(metric="val/accuracy", maximize=True)
NAN = float("nan")
RATE = "optimizer.learning_rate"


def outcome(index: int, value: float, state: str = FINISHED, **more: Any) -> Outcome:
    params = {RATE: f"0.{index}", "seed": "0"}
    return Outcome(
        index=index, status=state, params=params, values=(value,), run_id=f"run{index}", **more
    )


OUTCOMES = [
    outcome(0, 0.5, seconds=2.0),
    outcome(1, 0.75, kept=True),
    outcome(2, NAN, FAILED, error="out of memory"),
    outcome(3, 0.25, PRUNED),
]


def printed(*outcomes: Outcome) -> list[str]:
    text = io.StringIO()
    print_results("abcd", outcomes, [ACCURACY], Console(file=text, width=200))
    return text.getvalue().splitlines()


def test_jobs_are_printed_best_first_and_the_last_line_is_for_scripts() -> None:
    *table, last = printed(*OUTCOMES)
    assert last == "sweep_id=abcd best_run_id=run1 val/accuracy=0.7500"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if "│" in line]
    assert [row[0] for row in rows] == ["1", "0", "2", "3"]
    assert rows[0] == ["1", "0.1", "0", "0.7500", "0.0", "finished, model kept"]
    assert rows[2][-1] == "failed: out of memory"


def test_of_many_jobs_the_table_has_the_best_and_says_where_all_are() -> None:
    lines = printed(*(outcome(index, index / 100) for index in range(40)))
    assert sum("│" in line for line in lines) == 30
    assert "30 of 40 jobs; the artefact trials.csv has all" in "\n".join(lines)


def test_without_a_finished_job_there_is_no_best() -> None:
    assert printed(OUTCOMES[2])[-1] == "sweep_id=abcd best_run_id=None"


class Parent:
    """Takes what a sweep records."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.logged: Any = None
        self.note = ""

    def log_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def log(self, logged: Any) -> None:
        self.logged = logged

    def known(self) -> Any:
        return SimpleNamespace(command="python -m pipeline -m seed=0,1")

    def describe(self, note: str) -> None:
        self.note = note


def test_the_sweeps_run_gets_counts_the_best_the_spread_a_table_and_a_description(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.sweeps.plots.draw_sweep", lambda *_: {})
    parent: Any = Parent()
    log_results(parent, OUTCOMES, [ACCURACY], [RATE, "seed"], {})
    assert parent.logged.metrics == {
        "sweep/finished": 2,
        "sweep/pruned": 1,
        "sweep/failed": 1,
        "sweep/killed": 0,
        "sweep/best": 0.75,
        "sweep/mean": 0.625,
        "sweep/sd": pytest.approx(0.25 / 2**0.5),
    }
    assert parent.tags == {
        f"best.{RATE}": "0.1",
        "best.seed": "0",
        "best.run_id": "run1",
        "sweep.objective": "val/accuracy",
    }
    rows = list(csv.DictReader(io.StringIO(parent.logged.texts["trials.csv"])))
    assert [row["state"] for row in rows] == ["finished", "finished", "failed", "pruned"]
    assert (rows[0][RATE], rows[0]["seconds"], rows[2]["error"]) == ("0.0", "2.0", "out of memory")
    assert parent.note.startswith("**Sweep over ")
    assert "4 jobs, 2 finished, 1 pruned, 1 failed." in parent.note
    assert "**0.7500**" in parent.note
    assert parent.note.endswith("```sh\npython -m pipeline -m seed=0,1\n```")


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ((0.75,), ""),
        ((0.75, 0.75, 0.75), ""),  # as many alike do not show how much others vary
        ((0.5, 0.5, 0.8), "0.1697 to 1.0000"),
    ],
)
def test_the_description_has_the_interval_of_seeds_that_differ(
    values: tuple[float, ...], cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sweeps.plots.draw_sweep", lambda *_: {})
    parent: Any = Parent()
    jobs = [
        Outcome(index=n, status=FINISHED, params={"seed": str(n)}, values=(value,))
        for n, value in enumerate(values)
    ]
    log_results(parent, jobs, [ACCURACY], ["seed"], {})
    [row] = [line for line in parent.note.splitlines() if "**0." in line]
    cells = [part.replace("&ensp;", "").strip() for part in row.strip("|").split("|")]
    assert cells[1:] == [cell, str(len(values))]


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        (None, "2 jobs; time unknown: there is no earlier run; nothing was run"),
        (50.0, "2 jobs; about 50 s, 2 at once, as earlier runs took 50 s; nothing was run"),
    ],
)
def test_a_preview_shows_the_jobs_and_how_long_they_would_take(
    seconds: float | None,
    time: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(results, "typical_seconds", lambda config: seconds)
    monkeypatch.setattr(results, "jobs_at_once", lambda launcher: 4)
    plan: Any = SimpleNamespace(searched={"seed": "0,1"})
    jobs = [Job(index=index, params={"seed": str(index)}) for index in range(2)]
    show_preview(plan, jobs, 2, None, None)  # type: ignore[arg-type]
    assert capsys.readouterr().out.splitlines()[-1] == time


def test_a_preview_of_a_search_shows_its_space(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "typical_seconds", lambda config: None)
    monkeypatch.setattr(results, "jobs_at_once", lambda launcher: None)
    plan: Any = SimpleNamespace(searched={"model.dropout": "interval(0,0.5)"})
    settings = SimpleNamespace(sampler="tpe", pruner="median")
    config: Any = SimpleNamespace(sweep=settings)
    show_preview(plan, [], 7, config, None)
    shown = capsys.readouterr().out
    assert "interval(0,0.5)" in shown
    assert "7 jobs proposed by tpe, pruner median; time unknown" in shown
