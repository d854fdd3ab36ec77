from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.verbs.doctor.findings import Finding
from pipeline.verbs.doctor.leftovers import Owner, leftovers

MODEL, RESUMABLE = Owner(status="FINISHED", has_model=True), Owner(status="KILLED")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checkpoint(folder: str, size: int = 1_000_000) -> str:
    path = Path(folder, "checkpoints", "last.keras")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * size)
    return str(Path(folder).absolute())


def found(made: Mapping[str, Owner] | None) -> list[Finding]:
    return list(leftovers(Path("data"), made))


def test_an_empty_folder_has_none() -> None:
    assert found({}) == []


def test_checkpoints_of_finished_runs_with_a_model_alone_may_go() -> None:
    made = {
        checkpoint("outputs/day/1"): MODEL,
        checkpoint("outputs/day/2"): RESUMABLE,
        checkpoint("outputs/day/3"): Owner(status="FINISHED"),  # log_model=false: the only copy
    }
    checkpoint("outputs/day/4")  # no record tells of it
    spare, kept = found(made)
    assert spare.mend == "rm -r -- outputs/day/1/checkpoints"
    assert spare.says.startswith("checkpoints of 1 finished run whose")
    assert spare.says.endswith("1.0 MB")
    assert kept.says.startswith("3 further checkpoint folders")
    assert kept.mend is None


def test_of_a_day_on_which_all_may_go_one_pattern_is_enough_and_the_shell_finds_them() -> None:
    made = {checkpoint(f"outputs/a day/{n}"): MODEL for n in range(3)}
    made |= {checkpoint("outputs/later/1"): MODEL, checkpoint("outputs/later/2"): RESUMABLE}
    spare, _ = found(made)
    assert spare.mend == ("rm -r -- 'outputs/a day/'*/checkpoints outputs/later/1/checkpoints")
    subprocess.run(["sh", "-c", spare.mend], check=True)
    assert [str(path) for path in Path("outputs").glob("*/*/checkpoints")] == [
        "outputs/later/2/checkpoints"
    ]


def test_checkpoints_in_folders_that_the_user_has_named_are_found_too() -> None:
    made = {checkpoint("outputs/baseline"): MODEL, checkpoint("multirun/mine/0"): MODEL}
    made[str(Path("multirun/mine").absolute())] = Owner(status="FINISHED")
    spare, sweep = found(made)
    assert spare.mend == "rm -r -- multirun/mine/0/checkpoints outputs/baseline/checkpoints"
    assert sweep.mend == "rm -r -- multirun/mine"


def test_without_a_store_to_ask_no_checkpoint_may_go() -> None:
    checkpoint("outputs/day/1")
    [kept] = found(None)
    assert kept.mend is None
    assert "the store is unavailable" in kept.says


def test_folders_of_finished_sweeps_may_go_and_others_stay() -> None:
    for name in ("done", "broken", "unsent", "owing/0"):
        Path("multirun/day", name).mkdir(parents=True)
    for name in ("unsent", "owing/0"):
        Path("multirun/day", name, "journal.jsonl").touch()
    ended = Owner(status="FINISHED")
    made = {
        str(Path("multirun/day", name).absolute()): owner
        for name, owner in (("done", ended), ("broken", RESUMABLE), ("unsent", ended))
    } | {str(Path("multirun/day/owing").absolute()): ended}
    done, broken = found(made)
    assert done.mend == "rm -r -- multirun/day/done"
    assert broken.mend is None
    assert broken.says.startswith("folders of 3 sweeps, unfinished, unrecorded or not yet sent, ")


def entries(*folders: str) -> None:
    for folder in folders:
        Path(folder).mkdir(parents=True)
        Path(folder, "file").write_bytes(b"x" * 1_000_000)


def test_caches_are_named_with_their_size_and_nothing_else_of_the_data_folder() -> None:
    first, second = "0123456789abcdef", "f" * 16
    entries(f"data/digits/split-{first}", f"data/digits/split-{second}")
    entries(f"data/digits/raw-{first}", f"data/mine/birds/pixels-{first}", "data/xla/machine")
    entries("data/digits/raw-mine", f"data/digits/raw-{second}", f"data/drift/pixels-{first}")
    derived, copies, programs = found({})
    assert derived.mend == f"rm -r -- data/digits/split-* data/drift/pixels-{first}"
    assert programs.mend == "rm -r -- data/xla"
    assert copies.mend == (
        f"rm -r -- data/digits/raw-{first} data/digits/raw-{second} data/mine/birds/pixels-{first}"
    )
    assert "3.0 MB; rebuilt when needed" in derived.says
    assert "3.0 MB; " in copies.says
    assert "recorded runs need them if the files have changed" in copies.says
    assert "1.0 MB" in programs.says


def test_what_a_dead_process_was_writing_may_go_and_what_a_living_one_writes_stays() -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    days_ago = time.time() - 2 * 86_400
    Path("data").mkdir()
    for name in (
        *(f"data/.raw-1.{gone}.partial", f".mlflow.{gone}.partial.db"),
        *(f".mlflow.{os.getpid()}.partial.db", "data/.packing-0123456789abcdef"),
    ):
        Path(name).write_text("half")
        os.utime(name, (days_ago, days_ago))
    Path(f"data/.raw-2.{gone}.partial").mkdir()
    Path(f"data/.raw-2.{gone}.partial", "images.npy").write_text("a process of another host, say")
    os.utime(f"data/.raw-2.{gone}.partial", (days_ago, days_ago))
    [half] = found({})
    assert half.mend == (
        f"rm -r -- .mlflow.{gone}.partial.db data/.packing-0123456789abcdef "
        f"data/.raw-1.{gone}.partial"
    )


def test_what_a_run_at_work_removes_meanwhile_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint("outputs/day/1")
    Path("outputs/day/1/checkpoints/gone.keras").write_bytes(b"x" * 500_000)
    Path("outputs/day/1/checkpoints/gone").mkdir()
    scandir, lstat = os.scandir, Path.lstat

    def removing(place: str | Path) -> Iterator[os.DirEntry[str]]:
        if Path(place).name == "gone":
            raise FileNotFoundError(place)
        return scandir(place)

    def removed(path: Path) -> os.stat_result:
        if path.name == "gone.keras":
            raise FileNotFoundError(path)
        return lstat(path)

    monkeypatch.setattr(os, "scandir", removing)
    monkeypatch.setattr(Path, "lstat", removed)
    [kept] = found({})
    assert kept.says.endswith("1.0 MB")
