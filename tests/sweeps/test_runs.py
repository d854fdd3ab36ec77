from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras  # noqa: F401  (before mlflow.tensorflow asks for it half way through its own import)
import pytest

from pipeline.config.sweep import JobSettings
from pipeline.sweeps import runs
from pipeline.sweeps.jobs import Job
from pipeline.sweeps.outcomes import FAILED, FINISHED, KILLED, PRUNED, RUNNING, SweepObjective
from pipeline.sweeps.runs import Children, children, typical_seconds
from pipeline.system.errors import RequestError
from pipeline.tracking.heartbeat import (
    signs,
)
from pipeline.tracking.journal import Journal, has_journal
from pipeline.tracking.lifecycle import record
from pipeline.tracking.values import (
    BEAT_STARTED,
    RecordedRun,
    Status,
)
from tests.commands import configured, inside
from tests.stores import Switch, wait_briefly

OBJECTIVES = [SweepObjective(metric="val/accuracy", maximize=True)]
JOBS = {index: Job(index=index, params={"seed": str(index)}) for index in range(4)}


def run(
    name: str,
    index: int | None,
    status: Status = Status.FINISHED,
    accuracy: float | None = None,
    **tags: str,
) -> RecordedRun:
    place = {} if index is None else {"sweep.index": str(index)}
    return RecordedRun(
        id=name,
        name=name,
        experiment="digits",
        status=status,
        started=1000,
        ended=None if status == Status.RUNNING else 3500,
        tags=place | {key.replace("_", "."): value for key, value in tags.items()},
        logged={} if accuracy is None else {"val/accuracy": accuracy},
    )


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> list[RecordedRun]:
    """The runs that a search finds, oldest first, of a store that closes them when asked."""
    known: list[RecordedRun] = []

    def search(client: Any, query: Any) -> Iterator[RecordedRun]:
        assert (query.parent, query.order) == ("sweep", ("started",))
        return iter([one for one in known if query.index in (None, one.index)])

    def close(client: Any, one: RecordedRun, status: Status, error: str) -> None:
        known[known.index(one)] = run(one.id, one.index, status, error=error)

    monkeypatch.setattr(runs, "search", search)
    monkeypatch.setattr(runs, "close", close)
    monkeypatch.setattr(runs, "by_id", lambda client, name: {one.id: one for one in known}[name])
    monkeypatch.setattr(runs, "journals_of_jobs", lambda folder: [])
    monkeypatch.setattr(runs, "awaited", lambda call: call())
    return known


def of_sweep(folder: Path = Path()) -> Children:
    parent: Any = SimpleNamespace(id="sweep", client=None, folder=folder)
    return Children(parent=parent, experiment="digits", objectives=OBJECTIVES)


def test_a_job_has_the_outcome_of_its_last_run_unless_an_earlier_one_finished(
    store: list[RecordedRun],
) -> None:
    store += [run("a", 0, Status.FAILED, error="no memory"), run("b", 0, accuracy=0.75)]
    store += [run("c", 0, Status.KILLED), run("d", 1, Status.KILLED, error="Ctrl-C")]
    store += [run("e", 2, Status.KILLED, 0.5, sweep_pruned="after epoch 2")]
    store += [run("f", 3, Status.RUNNING), run("g", 9), run("h", None)]
    found = of_sweep().outcomes(JOBS)
    assert [(one.run_id, one.status) for one in found.values()] == [
        ("b", FINISHED),
        ("d", KILLED),
        ("e", PRUNED),
        ("f", RUNNING),
    ]
    assert (found[0].values, found[0].seconds, found[0].params) == ((0.75,), 2.5, {"seed": "0"})
    assert (found[1].error, found[2].error, found[2].values) == ("Ctrl-C", None, (0.5,))
    assert math.isnan(found[3].values[0])
    assert of_sweep().outcomes().keys() == {0, 1, 2, 3, 9}


def test_a_job_that_ended_without_closing_its_run_has_it_closed_as_failed(
    store: list[RecordedRun],
) -> None:
    store += [run("a", 0, Status.RUNNING)]
    settled = of_sweep().settle(JOBS[0], "killed by SIGKILL")
    assert (settled.status, settled.error, settled.run_id) == (FAILED, "killed by SIGKILL", "a")
    again = of_sweep().settle(JOBS[1], None)
    assert (again.status, again.error, again.run_id) == (FAILED, "opened no run", None)


def ended_job(sweep: Path, *records: dict[str, Any]) -> Journal:
    """The open journal of job 0, whose run `a` has ended with these records."""
    opening = {"kind": "opening", "run_id": "a", "local_id": "l", "name": "", "started": 1000}
    opening |= {"experiment": "digits", "tags": {"sweep.index": "0"}, "params": {}, "metrics": {}}
    (sweep / "0").mkdir()
    journal = Journal(sweep / "0")
    for one in (opening, *records, {"kind": "end", "status": "FINISHED", "time": 3000}):
        journal.append(one)
    return journal


def test_a_job_whose_end_has_not_arrived_yet_has_the_outcome_of_its_journal(
    store: list[RecordedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By a thread of the job's process that waits for the store.
    held = ended_job(tmp_path, {"kind": "batch", "metrics": [("val/accuracy", 0.75, 1, 0)]})
    store += [run("a", 0, Status.RUNNING)]
    sweep = of_sweep(tmp_path)
    monkeypatch.setattr(runs, "journals_of_jobs", lambda folder: [tmp_path / "0"])
    monkeypatch.setattr(runs, "LAST_WORDS_S", 0.1)
    settled = sweep.settle(JOBS[0], None)
    assert (settled.status, settled.values, settled.seconds) == (FINISHED, (0.75,), 2.0)
    assert sweep.close_orphans() == set()
    assert store[0].status == Status.RUNNING  # what the journal says will arrive
    held.close()


def test_a_job_whose_place_of_artefacts_is_away_has_the_outcome_of_its_journal_at_once(
    store: list[RecordedRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended_job(tmp_path).close()
    store += [run("a", 0, Status.RUNNING)]
    monkeypatch.setattr(runs, "journals_of_jobs", lambda folder: [tmp_path / "0"])

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("the place of the artefacts: expired")

    monkeypatch.setattr(runs, "send_journal", away)
    assert of_sweep(tmp_path).settle(JOBS[0], None).status == FINISHED
    assert of_sweep(tmp_path).close_orphans() == set()
    assert of_sweep(tmp_path).outcomes()[0].status == FINISHED  # as a resumed sweep sees it
    assert store[0].status == Status.RUNNING
    assert "job 0 is not sent yet: ConnectionError: the place of the artefacts" in caplog.text


def test_a_job_whose_records_the_store_cannot_take_is_named_and_not_waited_for(
    store: list[RecordedRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended_job(tmp_path).close()
    monkeypatch.setattr(runs, "journals_of_jobs", lambda folder: [tmp_path / "0"])
    tried: list[Path] = []

    def deleted(client: Any, folder: Path, *, close: bool) -> None:
        tried.append(folder)
        raise RequestError(f"{folder}: the run a was deleted")

    monkeypatch.setattr(runs, "send_journal", deleted)
    monkeypatch.setattr(runs, "LAST_WORDS_S", 0.1)
    assert of_sweep(tmp_path).close_orphans() == set()
    assert tried == [tmp_path / "0"]
    assert f"job 0 is not sent yet: {tmp_path / '0'}: the run a was deleted" in caplog.text


def test_a_job_that_is_sent_while_its_runs_are_looked_for_is_not_closed(
    store: list[RecordedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ended_job(tmp_path)
    monkeypatch.setattr(runs, "journals_of_jobs", lambda folder: [tmp_path / "0"])
    found = runs.search

    def search(client: Any, query: Any) -> Iterator[RecordedRun]:
        asked.append(query)
        if len(asked) == 2:  # this answer was on its way when the end arrived
            held.delete()
        return found(client, query)

    asked: list[Any] = []
    monkeypatch.setattr(runs, "search", search)
    store += [run("a", 0, Status.RUNNING)]
    assert of_sweep(tmp_path).settle(JOBS[0], None).status == FINISHED
    assert store[0].status == Status.RUNNING
    held.close()


def test_runs_of_before_a_resume_count_only_if_they_finished(store: list[RecordedRun]) -> None:
    store += [run("a", 0, Status.FAILED), run("b", 1, accuracy=0.5)]
    resumed = of_sweep()
    assert resumed.close_orphans() == set()
    assert resumed.settle(JOBS[0], None).error == "opened no run"
    assert resumed.settle(JOBS[1], None).values == (0.5,)


def test_runs_whose_processes_are_gone_are_closed_and_those_at_work_are_named(
    store: list[RecordedRun],
) -> None:
    alive, gone = (run(name, index, Status.RUNNING) for index, name in enumerate(("a", "b")))
    store += [
        RecordedRun(**{**vars(alive), "tags": {**alive.tags, **signs()}}),
        RecordedRun(**{**vars(gone), "tags": {**gone.tags, **signs(), BEAT_STARTED: "1"}}),
    ]
    assert of_sweep().close_orphans() == {0}
    assert [one.status for one in store] == [Status.RUNNING, Status.KILLED]
    assert store[1].error == "its process is gone"


def timed(seconds: float, epochs: int | None) -> RecordedRun:
    params = {} if epochs is None else {"train.epochs": str(epochs)}
    one = run("a", None)
    return RecordedRun(**{**vars(one), "params": params, "logged": {"time/total_s": seconds}})


@pytest.mark.parametrize(
    ("earlier", "seconds"),
    [
        ([], None),
        ([run("a", None)], None),  # without its time
        ([timed(10, 2), timed(30, 2), timed(99, 2), timed(1, 8)], 30),
        ([timed(10, 1), timed(40, 8)], 15),  # 20 and 10 s for two epochs
        ([timed(7, None)], 7),
    ],
)
def test_a_job_takes_about_as_long_as_earlier_ones_of_as_many_epochs(
    earlier: list[RecordedRun], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "find_runs", lambda query, tracking: earlier)
    monkeypatch.setattr(runs, "experiment_name", lambda config: "digits")
    config: Any = SimpleNamespace(
        choices=SimpleNamespace(model="mlp", dataset="digits"),
        train=SimpleNamespace(epochs=2),
        tracking=SimpleNamespace(uri="http://127.0.0.1:5000"),
    )
    assert typical_seconds(config) == seconds


@pytest.mark.slow
def test_the_records_of_a_job_that_the_store_lacks_count_as_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_briefly(monkeypatch)
    switch = Switch(monkeypatch)
    with (
        inside(tmp_path),
        record(
            config := configured("dataset=digits", "model=linear"),
            tmp_path / "sweep",
            searched={"seed": "0,1"},
        ) as parent,
    ):
        nothing = dict.fromkeys(("name", "command", "completes", "study", "storage"))
        job = JobSettings(index=0, parent=parent.id, experiment="digits", **nothing)
        with record(config, parent.folder / "0", job=job) as recording:
            assert recording.outbox.arrive(10)  # type: ignore[union-attr]
            switch.is_away = True
            recording.log_metrics({"kept/val/accuracy": 0.75})
        switch.is_away = False
        outcome = children(parent, OBJECTIVES).settle(Job(index=0, params={"seed": "0"}), None)
    assert (outcome.status, outcome.values) == (FINISHED, (0.75,))
    assert not has_journal(tmp_path / "sweep/0")
