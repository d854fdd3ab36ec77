"""`report`: rebuilds the report of a recorded run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from pipeline.config.schema import Config
from pipeline.libraries import import_slow
from pipeline.system.errors import RequestError
from pipeline.system.files import replace_text
from pipeline.system.terminal import native_messages_to
from pipeline.verbs import OF_RUNS, Verb

if TYPE_CHECKING:
    from pipeline.data.values import Predictions
    from pipeline.reports.explained import Explained

_EXPLAINED = 12  # mistakes


@dataclass
class RebuiltReport:
    """Further contents of a rebuilt report."""

    explain: bool = MISSING
    """Show what mattered in the most confident mistakes, and the features of the images."""


REPORT = Verb(
    name="report",
    ignores=OF_RUNS,
    help="build report.html of run_id=<id> or latest",
    entry="pipeline.verbs.report:report",
    uses="pipeline.reports.write",
    needs="run_id=latest",
    request=RebuiltReport,
)


def report(config: Config, request: RebuiltReport, folder: Path) -> Path:
    """Builds the report of a recorded run from what it stored; returns its path.

    The page of the run's data, `data.html`, is put beside it, if the run has one.

    This works for any run, even an unfinished one or one without a model; only `explain` needs a
    model.

    Raises:
        RequestError: `run_id` is missing, there is no such run that has begun, the data here
            differs from that of the run's predictions, or `explain` is set for a run without model
            or predictions.
    """
    from pipeline.reports.data_page import DATA_PAGE
    from pipeline.reports.notes import REPORT_PAGE
    from pipeline.reports.write import REPORTABLE, page_of
    from pipeline.tracking.recording import reopen
    from pipeline.tracking.runs import find_run
    from pipeline.tracking.values import PREDICTIONS

    run = find_run(REPORT.run_id(config), config, latest=REPORTABLE, called="run of its own")
    if run.is_sweep:
        raise RequestError(
            f"run_id={run.id} is a sweep; `compare sweep={run.id}` shows its jobs, and a report "
            "can be built of each of these"
        )
    explain = None
    if request.explain:
        if not run.has(PREDICTIONS) or not run.predictions():  # evaluated on no split
            raise RequestError(f"report.explain=true: run {run.id} has no predictions")
        with native_messages_to(folder / "tensorflow.log"):  # TensorFlow's
            import_slow("pipeline.training.explain")
        model = run.load_model()

        def explain(predictions: Predictions) -> Explained:
            return explained(model, predictions)

    page = page_of(run, reopen(run.id, config.tracking, folder), config.data_dir, explain)
    replace_text(folder / REPORT_PAGE, page)
    if run.has(DATA_PAGE):  # which the report links to
        replace_text(folder / DATA_PAGE, run.text(DATA_PAGE))
    return folder / REPORT_PAGE


def explained(model: Any, predictions: Predictions) -> Explained:
    """Explains a Keras model's most confident mistakes, and plots its features."""
    from pipeline.evaluation.metrics import surest_mistakes
    from pipeline.reports.explained import Explained, scatter, spread
    from pipeline.training.explain import explain, features_of

    chosen = surest_mistakes(predictions, _EXPLAINED)
    images = predictions.split.take(chosen)
    guesses = explain(model, images, predictions.predicted[chosen])
    shown = spread(len(predictions.split))
    features = features_of(model, predictions.split.select(shown), batch_size=256)
    return Explained(
        images=chosen,
        guesses=guesses.maps,
        truths=explain(model, images, predictions.labels[chosen]).maps,
        method=guesses.method,
        scatter=None if features is None else scatter(features, shown, predictions),
        lacking="The layers of this model are no graph that can be asked for its features."
        if features is None
        else "",
    )
