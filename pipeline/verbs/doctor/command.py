"""The verb `doctor`: checks everything that a run needs, and says how to fix what is broken.

It does not import TensorFlow itself, and MLflow only to check the store, since either may be
broken. It creates no store, tables or folder.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from subprocess import Popen

from rich.console import Console

from pipeline.config.schema import Config
from pipeline.system.errors import PipelineError, counted
from pipeline.system.processes import cores
from pipeline.system.terminal import standard_output
from pipeline.tracking.addresses import adopted_run_id
from pipeline.verbs.doctor import Doctor, checks
from pipeline.verbs.doctor.findings import (
    PROBLEM,
    Finding,
    as_json,
    looked_at,
    ok,
    print_findings,
)
from pipeline.verbs.doctor.leftovers import Owner, leftovers, unsent


def examine(config: Config, request: Doctor, folder: Path) -> list[Finding]:
    """Runs the checks of every area and returns their findings."""
    waiting = Console(stderr=True)
    with waiting.status("checking"), checks.probing() as probe:
        return list(_examined(config, request, probe))


def show(findings: Sequence[Finding], request: Doctor) -> None:
    """Prints the findings.

    Raises:
        PipelineError: there are problems that must be fixed before a run can work.
    """
    if request.format == "json":
        print(as_json(findings))
    else:
        print_findings(findings, standard_output())
    sys.stdout.flush()
    if problems := [finding.area for finding in findings if finding.state == PROBLEM]:
        areas = ", ".join(dict.fromkeys(problems))
        many = counted(len(problems), "problem", "problems")
        raise PipelineError(f"{many} must be fixed before a run can work: {areas}")


def _examined(config: Config, request: Doctor, probe: Popen[str]) -> Iterator[Finding]:
    yield from looked_at("versions", checks.check_versions)
    yield from looked_at("hardware", checks.check_hardware)
    yield from looked_at("threads", partial(checks.check_threads, os.environ, cores()))
    yield from looked_at("data", partial(checks.data, config))
    made: list[dict[str, Owner]] = []
    yield from looked_at("store", partial(_recorded, config, request, made))
    yield from looked_at("unsent", unsent)
    data_dir = Path(config.data_dir)
    yield from looked_at("disk", partial(checks.disk, Path(), data_dir))
    yield from looked_at("leftovers", partial(leftovers, data_dir, made[0] if made else None))
    yield from looked_at("tensorflow", partial(checks.tensorflow, probe))


def _bring_home(config: Config, run_id: str) -> None:
    from pipeline.reports.write import bring_home  # its imports may be broken

    bring_home(config, run_id)


def _recorded(config: Config, request: Doctor, made: list[dict[str, Owner]]) -> Iterator[Finding]:
    """Checks the store and its runs; appends to `made` which run each folder belongs to."""
    from pipeline.tracking.lifecycle import send_waiting
    from pipeline.verbs.doctor import orphans
    from pipeline.verbs.doctor import store as health

    yield from health.check_place(config.tracking.uri)
    store = health.check_store(config.tracking.uri)
    yield store.finding
    if store.client is not None:
        own, fix = adopted_run_id(), request.fix
        yield from orphans.running(
            store.client, fix=fix, own=own, bring_home=partial(_bring_home, config)
        )
        if fix:
            sent, _ = send_waiting(store.client, within_s=math.inf)
            yield from (ok("unsent", f"sent {one}") for one in sent)
        yield from health.artefacts(store.client)
        made.append(orphans.folders(store.client))
