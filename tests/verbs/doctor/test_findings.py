from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from pipeline.verbs.doctor.findings import (
    Finding,
    as_json,
    looked_at,
    ok,
    print_findings,
    problem,
    warning,
)

FINDINGS = [ok("python", "3.11"), warning("data", "none [yet]", "make data " * 30)]


def test_the_table_has_areas_states_and_findings_and_what_mends_them_is_one_line_each() -> None:
    console = Console(file=StringIO(), width=60)
    with console.capture() as capture:
        print_findings(FINDINGS, console)
    lines = capture.get().splitlines()
    assert "│ python │ ok      │ 3.11       │" in lines
    assert "│ data   │ warning │ none [yet] │" in lines
    assert lines[-1].rstrip() == f"data: {'make data ' * 30}".rstrip()


@pytest.mark.parametrize(
    ("findings", "worst"),
    [([], "ok"), (FINDINGS, "warning"), ([*FINDINGS, problem("disk", "full", "free")], "problem")],
)
def test_json_has_the_worst_state_and_every_finding(findings: list[Finding], worst: str) -> None:
    said = json.loads(as_json(findings))
    assert said["state"] == worst
    assert [Finding(**finding) for finding in said["findings"]] == findings


def test_a_check_that_fails_is_a_finding_after_those_it_had() -> None:
    def look() -> Iterator[Finding]:
        yield ok("disk", "so far")
        raise OSError("gone away")

    first, last = looked_at("disk", look)
    assert first == ok("disk", "so far")
    assert (last.area, last.state) == ("disk", "problem")
    assert "OSError: gone away" in last.says
