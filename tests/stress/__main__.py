"""`make stress`: tries the rows of the matrix and prints what came of it.

usage: python -m tests.stress [--rows 1,15-19] [--share 0.1] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from tests.stress.matrix import LEFT, ROWS, SHARE, Row, take_tally

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "outputs" / "stress"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: make stress -->\n", "<!-- end: make stress -->\n"
DAMAGE = ("lost", "corrupted", "let in")
COLUMNS = ("cases", "tries", *DAMAGE, "s")
LONGEST_S = 3600  # for all tries of a test, on a busy machine too
WIDTH = 62  # characters of what is tried, on a terminal


@dataclass
class Result:
    """The result of a row: its tests (`cases`), their tries, failures, and what was left out."""

    cases: int = 0
    tries: int = 0
    failed: int = 0
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)
    date: str = ""


class Matrix:
    """A plugin of pytest that runs the tests of some rows, row by row, and counts."""

    def __init__(self, rows: Iterable[int]) -> None:
        self.rows = sorted(rows)
        self.results = {number: Result() for number in self.rows}
        self.failures: list[str] = []
        self._left: dict[int, set[str]] = defaultdict(set)
        self._counted: dict[str, Counter[str]] = {}

    def _of(self, item: pytest.Item) -> list[int]:
        marked = [number for mark in item.iter_markers("matrix") for number in mark.args]
        return sorted({number for number in marked if number in self.results})

    def _is_extra(self, item: pytest.Item) -> bool:
        """Whether a test is only for `make stress` but of no row; these come after all rows."""
        left = any(mark.kwargs.get("reason") == LEFT for mark in item.iter_markers("skipif"))
        return left and len(self.rows) == len(ROWS) and not any(item.iter_markers("matrix"))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted = [item for item in items if self._of(item)]
        wanted.sort(key=lambda item: self._of(item)[0])
        items[:] = [*wanted, *filter(self._is_extra, items)]
        for item in wanted:
            for number in self._of(item):
                self._left[number].add(item.nodeid)
        print(_line("row", "what", COLUMNS), flush=True)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        take_tally()
        began = time.monotonic()
        reports: list[pytest.TestReport] = []
        self._reports = reports
        done = yield
        numbers, said = self._of(item), take_tally()
        for number in numbers:
            self._add(self.results[number], reports, said)
            self.results[number].seconds += (time.monotonic() - began) / len(numbers)
            self._left[number].discard(item.nodeid)
            if not self._left[number]:
                self._show(ROWS[number])
        if not numbers:
            self.failures += [one.longreprtext for one in reports if one.failed]
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(report.longreprtext)

    def _add(
        self, result: Result, reports: Sequence[pytest.TestReport], said: Counter[str]
    ) -> None:
        failed = [report for report in reports if report.failed]
        skipped = [report for report in reports if report.skipped]
        if skipped:
            result.skipped += [str(report.longrepr[2]) for report in skipped]  # type: ignore[index]
            return
        result.cases += 1
        result.tries += said["tries"] or 1
        result.failed += said["failed"] or bool(failed)
        self.failures += [f"{report.nodeid}\n{report.longreprtext}" for report in failed]

    def _show(self, row: Row) -> None:
        result = self.results[row.number]
        result.date = f"{datetime.now(UTC):%Y-%m-%d}"
        print(_line(str(row.number), row.what, cells(row, result)), flush=True)
        for reason in dict.fromkeys(result.skipped):
            print(f"     {reason}", flush=True)
        keep({row.number: result})


def cells(row: Row, result: Result) -> tuple[str, ...]:
    """The columns of a row, as texts."""
    tries = f"{result.tries:,}" + (f" of {row.tries:,}" if row.tries else "")
    failed = [str(result.failed) if kind == row.damage else "0" for kind in DAMAGE]
    return str(result.cases), tries, *failed, f"{result.seconds:.0f}"


def _line(number: str, what: str, texts: Sequence[str]) -> str:
    cases, tries, *rest = texts
    shown = what if len(what) <= WIDTH else f"{what[: WIDTH - 1]}…"
    ends = "".join(f"{text:>10}" for text in rest)
    return f"{number:>3}  {shown:<{WIDTH}}{cases:>6}{tries:>17}{ends}"


def chosen(text: str) -> list[int]:
    """The numbers that a text such as `1,15-19` names."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def machine() -> str:
    """The machine, in a few words."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    name = model[1] if model else platform.machine()
    return f"{os.cpu_count()} cores ({name}), {psutil.virtual_memory().total / 1e9:.0f} GB"


def page(known: dict[str, Result], earlier: str = "") -> str:
    """The table in Markdown; a row without a result stays as it is in an `earlier` table."""
    lines_before = dict(re.findall(r"^(\| \d+ \|)(.*)$", earlier, re.MULTILINE))
    head = ("row", "what is tried", "cases", "tries", *DAMAGE, "seconds", "date")
    lines = [f"| {' | '.join(head)} |", "|---:|---|" + "---:|" * 7]
    for row in ROWS.values():
        result = known.get(str(row.number))
        begin = f"| {row.number} |"
        if result is None or not (result.cases or result.skipped):
            if begin in lines_before:
                lines.append(begin + lines_before[begin])
                continue
            ends: tuple[str, ...] = ("–",) * 7
        else:
            ends = (*cells(row, result), result.date)
        note = f" ({'; '.join(dict.fromkeys(result.skipped))})" if result and result.skipped else ""
        lines.append(f"{begin} {row.group}: {row.what}{note} | {' | '.join(ends)} |")
    return "\n".join(lines) + "\n"


def keep(results: dict[int, Result], page_before: str = "") -> str:
    """Adds results to those of earlier times and of the page; returns the table."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / "results.json"
    earlier = json.loads(file.read_text()) if file.exists() else {}
    known = {number: Result(**values) for number, values in earlier.items()}
    known |= {str(number): result for number, result in results.items()}
    file.write_text(json.dumps({number: asdict(one) for number, one in known.items()}, indent=1))
    table = f"{machine()}\n\n{page(known, page_before)}"
    (RESULTS / "results.md").write_text(table)
    return table


def main(arguments: Sequence[str]) -> int:
    """Returns 1 if anything was lost, corrupted or let in, or could not be tried."""
    parser = argparse.ArgumentParser(prog="make stress", description=__doc__)
    parser.add_argument("--rows", default=f"1-{len(ROWS)}", help="such as 1,15-19")
    parser.add_argument("--share", default="1", help="of all tries, such as 0.1")
    parser.add_argument("--write", action="store_true", help=f"the table into {PAGE.name}")
    given = parser.parse_args(arguments)
    os.environ[SHARE] = str(float(given.share))
    matrix = Matrix(chosen(given.rows))
    os.chdir(ROOT)
    plain = ("-p", "no:terminal", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers")
    options = (*plain, "-o", f"timeout={LONGEST_S}")
    try:
        code = pytest.main([*options, "tests"], plugins=[matrix])
    finally:  # if pytest itself fails too
        for failure in matrix.failures:
            print(f"\n{failure}", file=sys.stderr)
    print(f"results are in {RESULTS.relative_to(ROOT)}")
    if given.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        table, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}{keep({}, table)}{END}{after}")
    return int(code != 0 or bool(matrix.failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
