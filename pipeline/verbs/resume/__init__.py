"""`resume`: goes on with a run that did not finish."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from pipeline.verbs import Verb


@dataclass
class Resume:
    """When to go on with a run."""

    force: bool = MISSING
    """Go on although code, libraries or data have changed; the run is told so."""


RESUME = Verb(
    name="resume",
    help="go on with the unfinished run_id=<id> or latest from its checkpoint",
    entry="pipeline.verbs.resume.command:resume",
    request=Resume,
)
