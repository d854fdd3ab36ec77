"""The findings of `doctor`, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.system.errors import one_line

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_COLOURS = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A result of one check of an `area`: its `state`, and a command or advice that fixes it."""

    area: str
    state: str
    says: str
    mend: str | None = None


def ok(area: str, says: str, mend: str | None = None) -> Finding:
    """A finding that needs no action; `mend` may still say what could be done."""
    return Finding(area=area, state=OK, says=says, mend=mend)


def warning(area: str, says: str, mend: str) -> Finding:
    """A finding that does not stop runs from working."""
    return Finding(area=area, state=WARNING, says=says, mend=mend)


def problem(area: str, says: str, mend: str) -> Finding:
    """A finding that must be fixed before a run can work."""
    return Finding(area=area, state=PROBLEM, says=says, mend=mend)


def looked_at(area: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of the check `look`; an exception becomes one, so other checks still run."""
    try:
        yield from look()
    except Exception as error:
        yield problem(
            area, f"the check itself failed: {one_line(error)}", "fix what the error names"
        )


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Prints a table of the findings, then one line per fix, ready to be copied."""
    table = Table("area", "", "found")
    for finding in findings:
        state = Text(finding.state, style=_COLOURS[finding.state])
        table.add_row(Text(finding.area), state, Text(finding.says))
    console.print(table)
    for finding in findings:
        if finding.mend:
            line = Text.assemble((finding.area, _COLOURS[finding.state]), ": ", finding.mend)
            console.print(line, soft_wrap=True)


def as_json(findings: Sequence[Finding]) -> str:
    """The worst state and every finding as JSON, for scripts."""
    states = [finding.state for finding in findings]
    worst = next((state for state in (PROBLEM, WARNING) if state in states), OK)
    content = {"state": worst, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2, ensure_ascii=False)
