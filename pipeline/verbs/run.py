"""`run` and `train`: train and record a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.effects import untested
from pipeline.config.schema import Config
from pipeline.verbs import Verb

if TYPE_CHECKING:
    from pipeline.run import Result

RUN = Verb(
    name="run",
    help="train, evaluate and record one model (the default)",
    entry="pipeline.run:run",
    ignores=frozenset({"run_id"}),
    records=True,
)
_TRAIN = Verb(
    name="train",
    help="like run, but without evaluating on the test split",
    entry="pipeline.verbs.run:train_without_test",
    uses="pipeline.run",
    ignores=frozenset({"run_id", "evaluate.test"}),
    records=True,
)


def train_without_test(config: Config, folder: Path) -> Result:
    """Like `run`, but does not use the test split; `evaluate run_id=…` completes the run."""
    from pipeline.run import run

    return run(untested(config), folder)
