"""What a check of the installation finds, and how it is shown."""

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
    """What one check has found in an `area`: its `state`, and commands or advice to mend it."""

    area: str
    state: str
    says: str
    mend: str | None = None


def ok(area: str, says: str, mend: str | None = None) -> Finding:
    """All is well, or as good as it needs to be; `mend` may still say what could be done."""
    return Finding(area=area, state=OK, says=says, mend=mend)


def warning(area: str, says: str, mend: str) -> Finding:
    """Work is possible, but something is not as it should be."""
    return Finding(area=area, state=WARNING, says=says, mend=mend)


def problem(area: str, says: str, mend: str) -> Finding:
    """Work is not possible before this is mended."""
    return Finding(area=area, state=PROBLEM, says=says, mend=mend)


def looked_at(area: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What `look` finds; a check that fails is itself a finding, and stops no other."""
    try:
        yield from look()
    except Exception as error:
        yield problem(area, f"the check itself failed: {one_line(error)}", "mend what it names")


def show(findings: Sequence[Finding], console: Console) -> None:
    """A table of what was found, then line by line how to mend it, to be copied."""
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
    """The worst state of all and every finding, for scripts."""
    states = [finding.state for finding in findings]
    worst = next((state for state in (PROBLEM, WARNING) if state in states), OK)
    content = {"state": worst, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2, ensure_ascii=False)
