"""`evaluate`: evaluates the model of a recorded run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Config, has_no_validation
from pipeline.system.errors import RequestError
from pipeline.verbs import DECIDED, Verb

if TYPE_CHECKING:
    from pipeline.run import Result
    from pipeline.tracking.values import RecordedRun

EVALUATE = Verb(
    name="evaluate",
    ignores=DECIDED | {"evaluate.leakage"},
    help="evaluate the model of run_id=<id> or latest",
    entry="pipeline.verbs.evaluate:evaluate_recorded",
    uses="pipeline.run",
    needs="run_id=latest",
)


def evaluate_recorded(config: Config, folder: Path) -> Result:
    """Evaluates the model of an earlier run on that run's data and adds the results to the run.

    The run's configuration names the data set; `evaluate.*` and `data_dir` are the current ones.

    Raises:
        RequestError: `run_id` is missing, there is no such run with a model, or the settings or the
            data here do not fit that run.
    """
    from pipeline.run import complete
    from pipeline.tracking.recording import reopen
    from pipeline.tracking.runs import find_trained

    recorded = find_trained(EVALUATE.run_id(config), config)
    _require_fitting(config, recorded)
    evaluate = replace(config.evaluate, leakage=False)  # that needs another training
    then = replace(recorded.config, evaluate=evaluate, data_dir=config.data_dir)
    recording = reopen(recorded.id, config.tracking, folder)
    return complete(
        then,
        recorded.config,
        recorded.load_model(),
        recording,
        uri=recorded.model_uri,
        identity=recorded.identity,
    )


def _require_fitting(config: Config, run: RecordedRun) -> None:
    """Checks that an evaluation adds to what the run has, and that it has the images for it."""
    from pipeline.tracking.values import PREDICTIONS

    if config.evaluate.temperature and has_no_validation(run.config):
        raise RequestError(
            f"evaluate.temperature=true: run {run.id} has no validation images, on which the "
            "temperature is found; leave it out"
        )
    if not config.evaluate.test and run.has(PREDICTIONS) and "test" in run.predictions():
        raise RequestError(
            f"evaluate.test=false: run {run.id} has predictions on the test split, which would be "
            "lost; leave it out"
        )
