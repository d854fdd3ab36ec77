"""The verb `compare`: compares runs and tests whether their differences are significant."""

from __future__ import annotations

import json
import logging
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.rules import choose
from pipeline.config.schema import Config
from pipeline.evaluation.intervals import Resampling, coverage
from pipeline.evaluation.metrics import scale_of
from pipeline.libraries import import_slow
from pipeline.reports.template import read_template
from pipeline.system.errors import PipelineError, RequestError, one_line
from pipeline.system.files import replacing
from pipeline.system.imports import uncollected
from pipeline.system.terminal import standard_output
from pipeline.verbs.compare import Compare
from pipeline.verbs.compare.comparison import Comparison, Ranking, compare_runs
from pipeline.verbs.compare.pair import Stored
from pipeline.verbs.compare.plots import draw_comparison
from pipeline.verbs.compare.render import document, page, print_comparison
from pipeline.verbs.compare.verdicts import change

if TYPE_CHECKING:
    from jinja2 import Template

    from pipeline.verbs.compare.choice import ChosenRuns

MOST_READ = 20  # runs whose stored predictions are read
LOGGED_S = 30.0  # within which the sweep's own run takes the page

log = logging.getLogger(__name__)


def compare(config: Config, request: Compare, folder: Path) -> Comparison:
    """Compares the requested runs; writes the page and the plots to `folder`.

    For the jobs of a sweep, these are also logged to the sweep's own run, under `compare/`; if it
    does not take them, the log says so.

    Raises:
        RequestError: the runs cannot be found, none of them has the metric, or the resamples are
            too few for the intervals.
    """
    if request.runs and len(set(request.runs)) < 2:
        raise RequestError("runs: name two runs or more, runs=<id>,<id>")
    _require_resamples(request)
    with uncollected():
        found = _find(config, request)  # garbage collection among the records would take a second
        comparison = compare_runs(
            found.runs,
            found.source,
            Ranking(metric=request.metric, lower_is_better=_lower_is_better(request)),
            _stored(found),
            Resampling(confidence=request.confidence, resamples=request.resamples),
        )
        comparison = replace(comparison, packages=_packages(found))
        files = _write(comparison, folder)
        if found.sweep:
            _log(found.sweep, files, config)
    return replace(comparison, files=[str(path) for path in files])


def show(comparison: Comparison, request: Compare) -> None:
    """Prints the comparison as a table, or as JSON."""
    if request.format == "table":
        print(f"{_table(comparison)}page: {comparison.files[0]}", flush=True)
    else:
        print(_json(comparison), flush=True)


def _require_resamples(request: Compare) -> None:
    """Requires a resample beyond each end of an interval, which would be the extremes otherwise."""
    fewest = math.ceil(round(2 / (1 - request.confidence), 6))
    if request.resamples < fewest:
        raise RequestError(
            f"resamples={request.resamples}: {coverage(request.confidence)} intervals need "
            f"resamples={fewest} or more"
        )


def _find(config: Config, request: Compare) -> ChosenRuns:
    import_slow("pipeline.verbs.compare.choice")  # imported only now: MLflow takes seconds
    from pipeline.verbs.compare import choice

    if request.runs:
        found = choice.named_runs(config, request.runs)
    elif request.sweep:
        found = choice.sweep_runs(config, request.sweep)
    else:
        better = scale_of(request.metric).better
        lower = better == "lower" if better else request.direction == "minimize"
        return choice.best_runs(config, request.metric, most=request.top, lower_is_better=lower)
    if not any(request.metric in run.metrics for run in found.runs):
        other = choose(request.metric, sorted({key for run in found.runs for key in run.metrics}))
        raise RequestError(f"metric={request.metric}: none of the runs has it; {other}")
    return found


def _lower_is_better(request: Compare) -> bool:
    """Whether low values of the metric are better, as the metric or the user declares."""
    better, given = scale_of(request.metric).better, request.direction
    if better is None and given is None:
        raise RequestError(
            f"metric={request.metric}: it is not known whether high or low values are "
            "better; add direction=maximize or direction=minimize"
        )
    if better is not None and given is not None and (better == "lower") != (given == "minimize"):
        raise RequestError(
            f"direction={given}: {better} values of {request.metric} are better; leave it out"
        )
    return better == "lower" or given == "minimize"


def _stored(found: ChosenRuns) -> dict[str, Stored]:
    """The stored predictions by run id; empty for more than MOST_READ runs."""
    if len(found.runs) > MOST_READ:
        return {}
    read: dict[str, Stored] = {}
    for run in found.runs:
        with suppress(RequestError):  # it was not evaluated
            read[run.id] = run.predictions()
    return read


def _packages(found: ChosenRuns) -> list[str]:
    """Differences between the environments of two runs that their tags do not show."""
    if len(found.runs) != 2:
        return []  # a table has no room for a hundred packages per row
    from pipeline.tracking import lineage, origin

    try:
        then, now = (run.text("environment.txt") for run in found.runs)
    except RequestError:
        return []
    told = {"Python", *lineage.NAMED}
    differing = origin.in_packages(origin.packages(then), origin.packages(now))
    return [f"{each.what} {each.then} → {each.now}" for each in differing if each.what not in told]


def _write(comparison: Comparison, folder: Path) -> list[Path]:
    pictures = draw_comparison(comparison)
    contents = {"compare.html": page(page_template(), comparison, pictures).encode()}
    contents |= {f"{name}.png": png for name, png in pictures.items()}
    for name, content in contents.items():
        with replacing(folder / name) as path:
            path.write_bytes(content)
    return [folder / name for name in contents]


def page_template() -> Template:
    """The template of `compare.html`."""
    return read_template(Path(__file__).parent / "templates" / "compare.html", change=change)


def _table(comparison: Comparison) -> str:
    """The comparison as text, with the terminal's colours."""
    console = standard_output()
    with console.capture() as printed:
        print_comparison(comparison, console)
    return printed.get()


def _json(comparison: Comparison) -> str:
    whole = document(comparison) | {"files": comparison.files}
    return json.dumps(whole, indent=2, ensure_ascii=False)


def _log(sweep: str, files: list[Path], config: Config) -> None:
    from pipeline.tracking.client import STORE_ERRORS, answered
    from pipeline.tracking.recording import reopen

    recording = reopen(sweep, config.tracking, files[0].parent)
    try:
        answered(lambda: recording.log_files(files, "compare"), LOGGED_S)
        return
    except TimeoutError:
        reason = f"no answer within {LOGGED_S:g} s"
    except (*STORE_ERRORS, OSError, PipelineError) as error:
        reason = one_line(error)
    where = files[0].parent
    log.warning("The page is in %s only, not in the sweep's own run %s: %s", where, sweep, reason)
