"""The reliability matrix: 45 rows of what must hold however often it is tried.

`matrix(9)` marks a test as part of row 9. `make test` tries a tenth or less of
each, `make stress` all.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

SHARE = "PIPELINE_STRESS"  # environment variable: the share of all tries, such as 1 or 0.1
LOAD, FAULTS, INPUT, SECURITY = "Load", "Faults", "Bad input", "Security"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the matrix; `tries` is the number that it is to be tried, if one was asked for."""

    number: int
    group: str
    what: str
    tries: int | None = None

    @property
    def damage(self) -> str:
        """What a failure of this row means."""
        return {LOAD: "lost", FAULTS: "lost", INPUT: "corrupted", SECURITY: "let in"}[self.group]


_ROWS: dict[str, tuple[tuple[str, int | None], ...]] = {
    LOAD: (
        ("eight runs × 20 epochs × 6 metrics, SQLite and server: points", 1920),
        ("32 runs on PostgreSQL", 32),
        ("eight processes open an empty store and record in it", 50),
        ("eight processes ask for one cache entry", None),
        ("a sweep of 200 jobs: memory stays flat", 200),
        ("10,000 points in one run", 10_000),
        ("eight processes × 20 trials of one study", 160),
        ("promotions at the same time: one wins", None),
    ),
    FAULTS: (
        ("SIGKILL in all stages and verbs", 200),
        ("SIGKILL within saving and sending of model and checkpoints", 50),
        ("a damaged checkpoint: the one before is used", None),
        ("a resumed training equals the uninterrupted one", None),
        ("SIGTERM and Ctrl-C: KILLED within 10 s", None),
        ("a killed run is closed by the next", None),
        ("the server is away for 60 s", None),
        ("the server is away for the rest, and at the end", None),
        ("away, 503, or no answer at the start", None),
        ("500, 503 and 429 on a fifth of the requests", None),
        ("answers are lost, for each kind of request", None),
        ("an upload is cut off", None),
        ("SQLite is locked for 15 s and 60 s", None),
        ("the disk is full, in each stage and verb", None),
        ("folders are read-only", None),
        ("jobs raise, exit, run out of memory, are killed", None),
        ("the loss is NaN or infinite", None),
        ("downloads: cut off, stalled, 404, wrong bytes", None),
        ("PostgreSQL is restarted during a run", None),
    ),
    INPUT: (
        ("mutated IDX, gzip, NPZ, archives, lists", 5_000),
        ("headers and bombs are refused before memory is taken", None),
        ("mutated pictures", 2_000),
        ("labels out of range, missing classes, counts that differ", None),
        ("overlap of training and test images", None),
        ("mutated configurations", 1_000),
        ("bit flips in cached and packed arrays", 100),
        ("a model of another shape or class list", None),
        ("a worse, failed or unevaluated run is promoted", None),
    ),
    SECURITY: (
        ("hostile `_target_` anywhere", None),
        ("malicious model folders and files, by every way to load one", None),
        ("pickles", None),
        ("sources and tags of models that point elsewhere", None),
        ("forged Host and Origin", None),
        ("loopback and tokens", None),
        ("traversal in names of runs, sweeps, experiments, classes, archives", None),
        ("canary secrets in files, rows and output", None),
        ("modes of files, and locked versions with known vulnerabilities", None),
    ),
}


def _numbered() -> Iterator[Row]:
    number = 0
    for group, rows in _ROWS.items():
        for what, tries in rows:
            number += 1
            yield Row(number=number, group=group, what=what, tries=tries)


ROWS = {row.number: row for row in _numbered()}
matrix = pytest.mark.matrix
LEFT = "make stress tries it"
only_stressed = pytest.mark.skipif(  # a text: `make stress` sets the variable after this import
    f"{SHARE!r} not in os.environ", reason=LEFT
)
_tally: Counter[str] = Counter()


def stressed(whole: int, few: int) -> int:
    """How often to try something: `few` times, or PIPELINE_STRESS times `whole`."""
    share = os.environ.get(SHARE)
    return max(few, math.ceil(whole * float(share))) if share else few


def tally(tries: int, *, failed: int = 0) -> None:
    """Records how often the current test tries something, and how many tries were lost.

    A test that does not call this counts as one try.
    """
    _tally.update(tries=tries, failed=failed)


def take_tally() -> Counter[str]:
    """Returns what was recorded since the last call."""
    taken = Counter(_tally)
    _tally.clear()
    return taken
