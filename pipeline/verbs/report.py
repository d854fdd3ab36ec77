"""`report`: rebuilds the report of a recorded run."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.schema import Config
from pipeline.system.errors import RequestError
from pipeline.system.files import replacing
from pipeline.verbs import OF_RUNS, Verb

REPORT = Verb(
    name="report",
    ignores=OF_RUNS,
    help="build report.html of run_id=<id> or latest",
    entry="pipeline.verbs.report:report",
    uses="pipeline.reports.write",
    takes_run="latest",
)


def report(config: Config, folder: Path) -> Path:
    """Builds the report of a recorded run from what it stored; returns its path.

    This works for any run, even an unfinished one or one without a model.

    Raises:
        RequestError: `run_id` is missing, there is no such run that has begun, or the data here
            differs from that of the run's predictions.
    """
    from pipeline.reports.notes import REPORT_PAGE
    from pipeline.reports.write import REPORTABLE, page_of
    from pipeline.tracking.recording import reopen
    from pipeline.tracking.runs import find_run

    entry = find_run(REPORT.run_id(config), config, latest=REPORTABLE, called="run of its own")
    if entry.is_sweep:
        raise RequestError(
            f"run_id={entry.id} is a sweep; `compare sweep={entry.id}` shows its jobs, and each of "
            "these has a report"
        )
    page = page_of(entry, reopen(entry.id, config.tracking, folder), config.data_dir)
    with replacing(folder / REPORT_PAGE) as path:
        path.write_text(page, encoding="utf-8")
    return folder / REPORT_PAGE
