"""`run` and `train`: a model is trained and recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Config
from pipeline.verbs import Verb

if TYPE_CHECKING:
    from pipeline.story import Result

RUN = Verb(
    name="run",
    help="train, evaluate and record one model (the default)",
    entry="pipeline.story:run",
    records=True,
)
TRAIN = Verb(
    name="train",
    help="like run, but leave the test images alone",
    entry="pipeline.verbs.run:train",
    records=True,
)


def train(config: Config, folder: Path) -> Result:
    """Like `run`, but leaves the test split alone; `evaluate run_id=…` completes the run."""
    from pipeline.story import run

    return run(replace(config, evaluate=replace(config.evaluate, test=False)), folder)
