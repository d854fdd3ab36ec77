from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from pipeline.sweeps import running
from pipeline.sweeps.jobs import Grid, Job
from pipeline.sweeps.outcomes import FAILED, FINISHED, KILLED, PRUNED, Outcome, SweepObjective
from pipeline.sweeps.pool import Ended
from pipeline.system.errors import PipelineError
from tests.stores import AWAY

KEPT = 3


def sweep_jobs(
    folder: Path, values: list[float], states: Sequence[str] = (), on_failure: str = "continue"
) -> running.SweepJobs:
    """A sweep whose jobs only have values; each has left a checkpoint."""
    jobs = [Job(index=index, params={"seed": str(index)}) for index in range(len(values))]

    def settle(job: Job, error: str | None) -> Outcome:
        (folder / str(job.index) / "checkpoints").mkdir(parents=True, exist_ok=True)
        value = (values[job.index],)
        status = states[job.index] if states else FINISHED
        return Outcome(index=job.index, status=status, params=job.params, values=value)

    runs: Any = SimpleNamespace(
        objectives=[SweepObjective(metric="val/accuracy", maximize=True)],
        parent=SimpleNamespace(id="abcd"),
        experiment="synthetic",
        settle=settle,
        close_orphans=set,
    )
    settings = SimpleNamespace(keep_models=KEPT, on_failure=on_failure, max_failures=None)
    multirun: Any = SimpleNamespace(
        config=SimpleNamespace(sweep=settings),
        words=lambda job: ["train.epochs=2", *job.overrides],
        command=lambda job: f"python -m pipeline tracking.run_name='it''s' {job}",
    )
    workers: Any = SimpleNamespace(
        run=lambda jobs, words, known=True: (Ended(key=job.index) for job in jobs if words(job)),
        stop=lambda: None,
    )
    return running.SweepJobs(
        multirun=multirun, workers=workers, source=Grid(jobs), runs=runs, folder=folder
    )


def test_checkpoints_of_the_best_stay_and_each_other_is_removed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, removed = random.Random(0), list[str]()
    real = running.remove

    def remove(path: Path, **options: Any) -> None:
        removed.append(path.parent.name)
        real(path, **options)

    monkeypatch.setattr(running, "remove", remove)
    values = [draw.random() for _ in range(60)]
    sweep_jobs(tmp_path, values).carry_out(lambda outcomes: None)
    best = sorted(range(60), key=lambda index: -values[index])[:KEPT]
    left = {int(path.parent.name) for path in tmp_path.glob("*/checkpoints")}
    assert left == set(best)
    assert len(removed) == len(set(removed)) == 60 - KEPT


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([FINISHED, PRUNED], None),
        ([FINISHED, KILLED], "1 of 2 jobs failed or were killed; .* sweep.resume=abcd"),
        ([FAILED, PRUNED], "1 of 2 jobs failed; .* sweep.resume=abcd"),
    ],
)
def test_a_sweep_is_complete_if_no_job_failed_or_was_killed(
    states: list[str], said: str | None, tmp_path: Path
) -> None:
    jobs = sweep_jobs(tmp_path, [0.5, 0.6], states)
    jobs.carry_out(lambda outcomes: None)
    with pytest.raises(PipelineError, match=said) if said else nullcontext():
        jobs.require_complete()


def test_on_failure_stop_starts_nothing_after_a_killed_job(tmp_path: Path) -> None:
    jobs = sweep_jobs(tmp_path, [0.5, 0.6], [KILLED, FINISHED], on_failure="stop")
    with pytest.raises(PipelineError, match="stopped after job 0 was killed"):
        jobs.carry_out(lambda outcomes: None)
    assert [*jobs.outcomes] == [0]


def test_a_job_is_told_all_that_it_has_to_know_by_one_value(tmp_path: Path) -> None:
    told: list[list[str]] = []
    jobs = sweep_jobs(tmp_path, [0.5])
    object.__setattr__(
        jobs.workers,
        "run",
        lambda some, words, known=True: (
            Ended(key=job.index) for job in some if told.append(words(job)) is None
        ),
    )
    jobs.carry_out(lambda outcomes: None)
    first, completing = told
    assert first[:2] == completing[:2] == ["train.epochs=2", "seed=0"]
    assert [len(words) for words in told] == [3, 3]
    assert first[2].startswith("sweep.job={index:0,parent:'abcd',name:'seed=0',")
    assert completing[2].endswith(",completes:'None'}")


def test_a_store_that_is_away_as_a_sweep_is_stopped_does_not_hide_that_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> set[int]:
        raise MlflowException(AWAY)

    def stop(outcomes: Sequence[Outcome]) -> None:
        raise KeyboardInterrupt

    jobs = sweep_jobs(tmp_path, [0.5])
    object.__setattr__(jobs.runs, "close_orphans", away)
    with pytest.raises(KeyboardInterrupt):
        jobs.carry_out(stop)
    assert "could not be closed: API request to http://store failed" in caplog.text


def test_a_store_that_is_away_for_a_moment_as_all_jobs_are_done_fails_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [MlflowException(AWAY), set()]

    def close_orphans() -> set[int]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return set(answer)

    monkeypatch.setattr("pipeline.tracking.client.time.sleep", lambda seconds: None)
    jobs = sweep_jobs(tmp_path, [0.5])
    object.__setattr__(jobs.runs, "close_orphans", close_orphans)
    [outcome] = jobs.carry_out(lambda outcomes: None)
    assert (outcome.status, answers) == (FINISHED, [])
