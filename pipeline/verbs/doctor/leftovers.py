"""Lists what runs have left on this disk, by size, and what can be deleted. Deletes nothing."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil
from rich.filesize import decimal

from pipeline.data.cache import is_entry_name
from pipeline.system.errors import counted, first_of
from pipeline.tracking.journal import (
    RUN_FOLDERS,
    has_journal,
    is_open,
    journals_of_jobs,
    with_journals,
)
from pipeline.tracking.values import Status
from pipeline.verbs.doctor.findings import Finding, ok, warning

OUTPUTS, _MULTIRUN = Path("outputs"), Path("multirun")  # hydra.run.dir and hydra.sweep.dir
_SHOWN = 3  # folders in a finding
_OLD_S = 86_400.0  # since a half-written file changed: processes of other hosts are not seen here
_NEW = "drift"  # the folder of packed copies of new pictures
# Kinds of the cache's entries, what they are, and what it costs to delete them.
_CACHES = (
    (
        # The last by earlier versions.
        ("split", "measures", "features", "originals", _NEW, "prepared"),
        "what the data cache has derived",
        "rebuilt when needed",
    ),
    (
        ("raw", "excluded", "pixels"),
        "the data cache's copies of the data",
        "rebuilt when needed, but recorded runs need them if the files have changed since",
    ),
)
# Named by system.files.replacing, with the id of the process, and by data.packing.
_PARTIAL = re.compile(r"^\..+\.(\d+)\.partial(\.\w+)?$|^\.packing-[0-9a-f]{16}$")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What the tracking store knows about the run or sweep that made a folder."""

    status: str
    has_model: bool = False


def leftovers(data_dir: Path, made: Mapping[str, Owner] | None) -> Iterator[Finding]:
    """Lists caches, checkpoints, sweeps and files left half-written by killed processes.

    `made` has the runs by the absolute path of their folder. It is None if the store is
    unavailable; then nothing that a run may need is reported as safe to delete.
    """
    yield from _caches(data_dir)
    yield from _checkpoints(made)
    yield from _sweeps(made)
    yield from _partial(data_dir)


def unsent() -> Iterator[Finding]:
    """Finds runs with records that their store lacks and that no process is sending."""
    waiting, closed = list[Path](), list[Path]()
    for folder in with_journals(Path()):
        try:
            if not is_open(folder):
                waiting.append(folder)
        except OSError:
            closed.append(folder)
    for folders, where, mend in (
        (waiting, "", "python -m pipeline sync"),
        (closed, " in folders that you cannot write to", "let their owner send them"),
    ):
        if folders:
            many = counted(len(folders), "run has", "runs have")
            says = f"{many} records that no store has yet{where}: {first_of(folders, _SHOWN)}"
            yield warning("unsent", says, mend)


def entries_in(data_dir: Path) -> list[Path]:
    """The entries of the data cache, of all data sets and kinds."""
    known = {kind for kinds, *_ in _CACHES for kind in kinds}
    return [
        path
        for path in sorted(_below(data_dir))
        if is_entry_name(path.name) and _kind(path) in known and path.is_dir()
    ]


def _caches(data_dir: Path) -> Iterator[Finding]:
    entries = entries_in(data_dir)
    for kinds, called, says in _CACHES:
        if chosen := [path for path in entries if _kind(path) in kinds]:
            yield ok("leftovers", f"{called}, {_size(chosen)}; {says}", deletion(_by_kind(chosen)))
    programs = data_dir / "xla"
    if programs.is_dir():
        says = f"programs compiled by XLA, {_size([programs])}; rebuilt when needed"
        yield ok("leftovers", says, deletion([programs]))


def _kind(entry: Path) -> str:
    return _NEW if entry.parent.name == _NEW else entry.name.partition("-")[0]


def _by_kind(entries: Iterable[Path]) -> list[Path]:
    """Replaces several entries of a kind by one pattern, as `data/digits/split-*`.

    Files of the user that such a pattern would match may lie beside them; then each is named.
    """
    alike: dict[Path, list[Path]] = defaultdict(list)
    for path in entries:
        alike[path.with_name(f"{path.name.partition('-')[0]}-*")].append(path)
    short: list[Path] = []
    for pattern, chosen in alike.items():
        several = len(chosen) > 1 and len(list(pattern.parent.glob(pattern.name))) == len(chosen)
        short += [pattern] if several else chosen
    return short


def _checkpoints(made: Mapping[str, Owner] | None) -> Iterator[Finding]:
    found = sorted(path for place in RUN_FOLDERS for path in Path().glob(f"{place}/checkpoints"))
    if not found:
        return
    known = {path: (made or {}).get(str(path.parent.absolute())) for path in found}
    spare = [
        p for p, run in known.items() if run and run.status == Status.FINISHED and run.has_model
    ]
    if spare:
        runs = counted(len(spare), "finished run", "finished runs")
        says = f"checkpoints of {runs} whose model is recorded, {_size(spare)}"
        yield ok("leftovers", says, deletion(_by_day(spare, found)))
    if kept := [path for path in found if path not in spare]:
        why = "of resumable or unrecorded runs"
        if made is None:
            why = "that may still be needed: the store is unavailable"
        folders = counted(len(kept), "further checkpoint folder", "further checkpoint folders")
        yield ok("leftovers", f"{folders} {why}, {_size(kept)}")


def _sweeps(made: Mapping[str, Owner] | None) -> Iterator[Finding]:
    # A sweep in multirun/mine, as hydra.sweep.dir says, has its jobs where others are.
    named = [path for path in _MULTIRUN.glob("*") if str(path.absolute()) in (made or {})]
    by_time = [path for path in _MULTIRUN.glob("*/*") if path.is_dir() and path.parent not in named]
    found = sorted(named + by_time)
    if not found:
        return
    known = {path: (made or {}).get(str(path.absolute())) for path in found}
    ended = [
        path
        for path, sweep in known.items()
        if sweep and sweep.status == Status.FINISHED and not _has_unsent(path)
    ]
    if ended:
        sweeps = counted(len(ended), "finished sweep", "finished sweeps")
        says = f"folders of {sweeps}, {_size(ended)}; needed only to extend them"
        yield ok("leftovers", says, deletion(ended))
    if kept := [path for path in found if path not in ended]:
        kind = "unfinished, unrecorded or not yet sent"
        sweeps = counted(len(kept), f"sweep, {kind}", f"sweeps, {kind}")
        yield ok("leftovers", f"folders of {sweeps}, {_size(kept)}")


def _has_unsent(sweep: Path) -> bool:
    return has_journal(sweep) or bool(journals_of_jobs(sweep))


def _partial(data_dir: Path) -> Iterator[Finding]:
    """Finds files left half-written by killed processes; ignores those of live ones.

    A process of another host may be writing one that changed lately.
    """
    places = map(_below, (data_dir, OUTPUTS, _MULTIRUN))
    dead = [
        path
        for path in (*Path().glob(".*"), *chain.from_iterable(places))
        if (name := _PARTIAL.match(path.name))
        and not (name[1] and psutil.pid_exists(int(name[1])))
        and time.time() - _changed(path) > _OLD_S
    ]
    if dead:
        yield ok(
            "leftovers", f"half-written files of killed processes, {_size(dead)}", deletion(dead)
        )


def _by_day(paths: Iterable[Path], all_of_them: Iterable[Path]) -> list[Path]:
    """Replaces all paths of a day by one pattern, as `outputs/2026-11-25/*/checkpoints`."""
    days: dict[Path, list[Path]] = defaultdict(list)
    whole: dict[Path, set[Path]] = defaultdict(set)
    for path in paths:
        days[path.parent.parent].append(path)
    for path in all_of_them:
        whole[path.parent.parent].add(path)
    short: list[Path] = []
    for day, chosen in days.items():
        several = len(chosen) > 1 and whole[day] == set(chosen)
        short += [day / "*" / "checkpoints"] if several else chosen
    return short


def deletion(paths: Iterable[Path]) -> str:
    """The command that deletes these files and folders, which may be patterns."""
    words = map(_quoted_but_stars, sorted(paths))
    return f"rm -r -- {' '.join(words)}"


def _quoted_but_stars(path: Path) -> str:
    """A word for a shell that still expands the path as a pattern."""
    return "*".join(part and shlex.quote(part) for part in str(path).split("*"))


def _changed(path: Path) -> float:
    """When a file, or anything in a folder, last changed (Unix time)."""
    try:
        return max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
    except OSError:  # some of it has just been renamed or removed
        return time.time()


def _size(paths: Iterable[Path]) -> str:
    return decimal(sum(map(_bytes, paths)))


def _bytes(path: Path) -> int:
    size = 0
    for file in (path, *_below(path)):
        with suppress(OSError):  # a run at work has just renamed or removed it
            size += 0 if file.is_dir() else file.lstat().st_size
    return size


def _below(folder: Path) -> Iterator[Path]:
    """All in a folder and its folders, but those that a run at work removes meanwhile."""
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))
