from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.sweeps.board import Board, rough_duration
from pipeline.sweeps.jobs import Job
from pipeline.sweeps.outcomes import FAILED, FINISHED, PRUNED, Outcome, SweepObjective
from tests.commands import Terminal

ACCURACY = SweepObjective(metric="val/accuracy", maximize=True)


def outcome(index: int, value: float, state: str = FINISHED, error: str | None = None) -> Outcome:
    return Outcome(
        index=index,
        status=state,
        params={"optimizer.learning_rate": f"0.{index}"},
        values=(value,),
        seconds=1.25,
        error=error,
    )


def board(*known: Outcome, terminal: bool = False) -> tuple[Board, io.StringIO]:
    printed = Terminal() if terminal else io.StringIO()
    # FORCE_COLOR, as in CI, makes rich take everything for a terminal
    console = Console(file=printed, force_terminal=True, color_system=None, width=200)
    return Board([ACCURACY], 6, {one.index: one for one in known}, console), printed


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(45, "45 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h")],
)
def test_a_duration_is_told_roughly(seconds: float, said: str) -> None:
    assert rough_duration(seconds) == said


def test_the_line_counts_by_state_and_names_the_best() -> None:
    shown, _ = board(outcome(0, 0.5))
    assert str(shown.line()) == (
        "1/6 done · 0 running · best val/accuracy 0.5000 (lr=0.0) · time left unknown"
    )
    for index in (1, 2, 3):
        shown.start(Job(index=index, params={}))
    shown.end(outcome(1, 0.75))
    shown.end(outcome(2, float("nan"), PRUNED))
    line = str(shown.line())
    assert line.startswith("3/6 done · 1 running · 1 pruned · best val/accuracy 0.7500 (lr=0.1) · ")
    assert line.endswith(" s left")
    assert shown.busiest == 3


def test_in_a_file_there_is_a_line_for_each_job_that_ended() -> None:
    shown, printed = board()
    with shown:
        shown.end(outcome(1, 0.75))
        shown.end(outcome(2, float("nan"), FAILED, "out of memory"))
        shown.keeping(2)
    first, second, third = printed.getvalue().splitlines()
    assert first.startswith("job 1 finished  lr=0.1  val/accuracy 0.7500  1.2 s  1/6  ")
    assert second.startswith("job 2 failed  lr=0.2  out of memory  1.2 s  2/6  ")
    assert third == "evaluating and saving the best 2"


def test_on_a_terminal_only_failures_get_a_line_of_their_own() -> None:
    shown, printed = board(terminal=True)
    shown.end(outcome(1, 12345.0))
    assert printed.getvalue() == ""
    shown.end(outcome(2, float("nan"), FAILED, "out of memory"))
    assert "out of memory" in printed.getvalue()
    assert "best val/accuracy 12,345" in str(shown.line())
    shown.keeping(1)
    assert str(shown.line()) == "evaluating and saving the best 1"
