"""`train`: a run that leaves the test split alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.effects import untested
from pipeline.config.schema import Config
from pipeline.verbs import Verb
from pipeline.verbs.run import OF_OPENED_RUN

if TYPE_CHECKING:
    from pipeline.data.own_pictures import Pictures
    from pipeline.run import Result

TRAIN = Verb(
    name="train",
    help="like run, but without evaluating on the test split",
    entry="pipeline.verbs.train:train_without_test",
    check="pipeline.verbs.run:require_possible",
    rules=(OF_OPENED_RUN,),
    uses="pipeline.run",
    ignores=frozenset({"run_id", "evaluate.test"}),
    records=True,
)


def train_without_test(config: Config, folder: Path, *, pictures: Pictures | None = None) -> Result:
    """Like `run`, but does not use the test split; `evaluate run_id=…` completes the run."""
    from pipeline.run import run

    return run(untested(config), folder, pictures=pictures)
