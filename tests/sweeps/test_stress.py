from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow.entities import Run

from pipeline.sweeps.pool import Call, Pool
from tests.commands import QUICK, environment
from tests.stores import empty_store
from tests.stress.matrix import matrix, only_stressed, stressed, tally
from tests.sweeps.test_sweep import (
    INDEX,
    PATIENCE_S,
    Swept,
    artifact,
    gone,
    index_of,
    until,
)

pytestmark = pytest.mark.slow

# A sweep with kills takes half a minute. `make test` has, without a training, that a worker ends
# when its parent is killed (test_pool.py), and resumes sweeps that were stopped (test_sweep.py).
KILLS = stressed(20, 6)
# Parts of the time that an undisturbed sweep takes: from before there is a run to when the models
# are kept. A sweep is killed once in each, and the last part first: what is resumed ends sooner.
PARTS = ((0.65, 0.9), (0.35, 0.65), (0.05, 0.35))
GONE_WITHIN_S = 10.0
JOBS, KEPT = 6, 2
GRID = (*QUICK, f"seed=range(0,{JOBS})")
WORDS = (*GRID, f"sweep.keep_models={KEPT}", "hydra.launcher.n_jobs=2")


@dataclass
class Story:
    """What happened to sweeps whose leading process was killed again and again."""

    took_s: float = 0.0
    """How long the same sweep takes undisturbed."""
    ended: list[Swept] = field(default_factory=list)
    killed_after: list[float] = field(default_factory=list)
    survivors: list[tuple[float, list[psutil.Process]]] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)
    mapped: list[str] = field(default_factory=list)
    """What files were in the memory of the leading process and of its workers at the first kill."""


def meet_at_work(process: subprocess.Popen[bytes], cwd: Path) -> list[str]:
    """Waits until a job trains; the files in the memory of the sweep's process and its workers."""
    outputs = "multirun/*/*/*/output.txt"
    until(lambda: any("epoch" in path.read_text() for path in cwd.glob(outputs)), process)
    pids = [process.pid, *(worker.pid for worker in offspring(process))]
    maps = [Path(f"/proc/{pid}/maps") for pid in pids]
    return [path.read_text() for path in maps if path.exists()]


def all_gone(processes: list[psutil.Process], within: float) -> bool:
    end = time.monotonic() + within
    while not (done := all(map(gone, processes))) and time.monotonic() < end:
        time.sleep(0.05)
    return done


def offspring(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def begin(*words: str, cwd: Path) -> subprocess.Popen[bytes]:
    """A sweep in a session of its own, that heeds Ctrl-C; it writes to files `out` and `err`."""
    cwd.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (cwd / "out").open("wb") as out, (cwd / "err").open("wb") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "pipeline", "-m", *words],
                cwd=cwd,
                env=environment(),
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
    finally:
        signal.signal(signal.SIGINT, before)


def waited(process: subprocess.Popen[bytes], cwd: Path) -> Swept:
    try:
        code = process.wait(PATIENCE_S)
    finally:
        process.kill()
    said = [(cwd / name).read_text(encoding="utf-8") for name in ("out", "err")]
    return Swept(folder=cwd, done=subprocess.CompletedProcess(process.args, code, *said))


def killed(process: subprocess.Popen[bytes], cwd: Path, after: float, story: Story) -> bool:
    """Kills the leading process alone, unless it ends before that moment."""
    if not story.killed_after:
        story.mapped = meet_at_work(process, cwd)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        below = offspring(process)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            if not all_gone(below, GONE_WITHIN_S):
                story.survivors.append((after, below))
            story.killed_after.append(after)
            return True
    return False


def sweep_with_kills(cwd: Path, moments: Iterator[float], story: Story) -> Swept:
    """One sweep, started and resumed until it ends; `moments` are when to kill it, as they last."""
    words = WORDS
    empty_store(cwd)
    while True:
        process = begin(*words, cwd=cwd)
        after = next(moments, None)
        if after is None or not killed(process, cwd, after, story):
            return waited(process, cwd)
        # What has a folder has a run; what has none yet is begun anew.
        parents = [run for run in Swept(folder=cwd, done=None).runs if INDEX not in run.data.tags]
        known = [run for run in parents if "sweep.folder" in run.data.tags]
        story.orphaned += [run.info.run_id for run in parents if run not in known]
        if known:
            assert len(known) == 1
            words = (*WORDS, f"sweep.resume={known[0].info.run_id}")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Kills at moments of every part of a sweep, spread over as many sweeps as it takes."""
    draw, story = random.Random(7), Story()

    def moments() -> Iterator[float]:
        for part in PARTS[: KILLS - len(story.killed_after)]:
            yield story.took_s * draw.uniform(*part) if story.killed_after else draw.random()

    began = time.monotonic()
    story.ended.append(sweep_with_kills(tmp_path_factory.mktemp("whole"), iter(()), story))
    story.took_s = time.monotonic() - began
    while len(story.killed_after) < KILLS:
        cwd = tmp_path_factory.mktemp("killed")
        story.ended.append(sweep_with_kills(cwd, moments(), story))
    tally(len(story.killed_after), failed=len(story.survivors) + len(story.orphaned))
    return story


def finished(swept: Swept) -> dict[int, Run]:
    runs = [run for run in swept.children if run.info.status == "FINISHED"]
    assert len({index_of(run) for run in runs}) == len(runs), swept.states()
    return {index_of(run): run for run in runs}


@only_stressed
@matrix(9)
def test_the_kills_are_spread_over_a_sweep(story: Story) -> None:
    for earliest, latest in PARTS:
        assert any(earliest < at / story.took_s < latest for at in story.killed_after)


@only_stressed
@matrix(9)
def test_no_worker_outlives_a_killed_leader(story: Story) -> None:
    assert len(story.killed_after) == KILLS
    assert story.survivors == []


@only_stressed
@matrix(9)
def test_a_killed_sweep_is_completed_by_resuming_it(story: Story) -> None:
    for swept in story.ended:
        assert swept.done.returncode == 0, swept.done.stderr
        assert swept.parent.info.status == "FINISHED"
        assert swept.said["sweep_id"] == swept.parent.info.run_id
        assert swept.parent.data.metrics["sweep/finished"] == JOBS
        assert swept.parent.data.tags.keys() & {"error", "traceback"} == set()


@only_stressed
@matrix(9)
def test_every_job_has_finished_exactly_once_and_none_is_left_running(story: Story) -> None:
    for swept in story.ended:
        assert list(finished(swept)) == list(range(JOBS))
        assert {state for _, state in swept.states()} <= {"FINISHED", "KILLED"}


@only_stressed
@matrix(9)
def test_no_job_was_run_again_after_it_had_finished(story: Story) -> None:
    for swept in story.ended:
        done = finished(swept)
        for run in swept.children:
            end = done[index_of(run)].info.end_time
            assert run.info.start_time < end, (index_of(run), run.info.run_id)


@only_stressed
@matrix(9)
def test_the_models_kept_in_the_end_are_the_best_ones_and_complete(story: Story) -> None:
    for swept in story.ended:
        runs = finished(swept).values()
        best = sorted(runs, key=lambda run: (-run.data.metrics["val/accuracy"], index_of(run)))
        kept = [run for run in runs if "model_uri" in run.data.tags]
        assert {index_of(run) for run in kept} == {index_of(run) for run in best[:KEPT]}
        for run in kept:
            arrays = np.load(artifact(run, "predictions.npz")).files
            assert arrays == ["class_names", "val_labels", "val_probs", "test_labels", "test_probs"]
            assert "test/accuracy" in run.data.metrics
        [best_id] = {run.info.run_id for run in best[:1]}
        assert swept.said["best_run_id"] == best_id


@only_stressed
@matrix(9)
def test_the_process_that_leads_a_sweep_never_loads_tensorflow(story: Story) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc here")
    leader, *workers = story.mapped
    assert "tensorflow" not in leader
    assert any("tensorflow" in worker for worker in workers)


@only_stressed
@matrix(9)
def test_no_run_of_a_sweep_is_left_that_nobody_can_resume(story: Story) -> None:
    assert story.orphaned == []


# --- many jobs ---

# Many jobs that record a run and do nothing else, through all that a sweep is made of.
JOBS_OF_MANY = stressed(200, 75)  # `make test` has this of tasks alone, below
MANY = f"""
import sys
import time
import mlflow
from pipeline import __main__ as entry
from pipeline.sweeps import launch
from pipeline.tracking.client import connect

def trivial(composed):
    job, uri = composed.sweep.job, composed.tracking.uri
    client = connect(uri)
    here = client.get_experiment_by_name(job.experiment).experiment_id
    tags = {{"mlflow.parentRunId": job.parent, "sweep.index": str(job.index)}}
    run = client.create_run(here, tags=tags)
    client.log_metric(run.info.run_id, "val/accuracy", composed.seed / 1000)
    client.set_terminated(run.info.run_id, "FINISHED")

launch.do_job = trivial
if __name__ == "__main__":
    words = "-m seed=range(0,{JOBS_OF_MANY}) hydra.launcher.n_jobs=2 sweep.keep_models=0"
    sys.argv[1:] = words.split()
    sys.exit(entry.main())
"""


@only_stressed
@matrix(5)
def test_many_jobs_need_no_more_memory_than_twenty(tmp_path: Path) -> None:
    tally(JOBS_OF_MANY)
    (tmp_path / "many.py").write_text(MANY)
    command = [sys.executable, "many.py"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes) as process:
        me, lines, seen = psutil.Process(process.pid), [], {}
        try:
            for line in process.stderr:
                if not line.startswith("job "):
                    continue
                lines.append(line)
                if len(lines) in (20, JOBS_OF_MANY - 5):
                    used = me.memory_info().rss, me.num_fds(), len(me.children())
                    seen[len(lines)] = used
            assert process.wait(PATIENCE_S) == 0, "".join(lines[-5:])
        finally:
            process.kill()
    assert sum(" finished " in line for line in lines) == len(lines) == JOBS_OF_MANY
    (early, *opened), (late, *opened_then) = seen[20], seen[JOBS_OF_MANY - 5]
    assert late < (1 + 0.1 * (JOBS_OF_MANY - 20) / 180) * early  # a tenth in 200 jobs
    assert opened_then == opened  # files and processes


@matrix(5)
def test_two_hundred_tasks_need_no_more_memory_than_twenty() -> None:
    me = psutil.Process()
    with Pool(2, threads=1) as pool:
        work = (Call(key=key, function=int) for key in range(200))
        sizes = [me.memory_info().rss for _ in pool.run(work)]
    assert len(sizes) == 200
    assert sizes[-1] < 1.1 * sizes[19]
