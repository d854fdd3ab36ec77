"""`resume`: continues a run that did not finish."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from pipeline.verbs import NAMING, Verb


@dataclass
class Resume:
    """Under which conditions to resume a run."""

    force: bool = MISSING
    """Resume even if code, libraries or data have changed; the run records the changes."""


RESUME = Verb(
    name="resume",
    help="resume the unfinished run_id=<id> or latest from its last checkpoint",
    entry="pipeline.verbs.resume.command:resume",
    request=Resume,
    ignores=NAMING,
    of_record=True,
    needs="run_id=latest",
)
