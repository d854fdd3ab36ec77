"""`audit`: finds labels that are likely wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.rules import Count, TypedPath, ending_in
from pipeline.verbs import NAMING, Verb


@dataclass
class Audit:
    """How to look for wrong labels, and where to write the results."""

    folds: Annotated[int, Field(ge=2, le=100)] = MISSING
    """Number of parts of the data; each is judged by a model that was trained without it."""
    page: Annotated[TypedPath, ending_in(".html")] = MISSING
    """File for the page."""
    output: Annotated[TypedPath, ending_in(".csv")] = MISSING
    """File for the table of all images."""
    exclude: Annotated[TypedPath, ending_in(".csv")] = MISSING
    """File for the list of images with likely wrong labels, for `dataset.exclude`."""
    shown: Count = MISSING
    """Most pictures on the page."""


AUDIT = Verb(
    name="audit",
    ignores=NAMING | {"run_id", "evaluate", "ingest"},
    help="find labels that are likely wrong, and list them for dataset.exclude",
    entry="pipeline.verbs.audit.command:audit_labels",
    show="pipeline.verbs.audit.command:show",
    check="pipeline.verbs.run:require_possible",
    request=Audit,
)
