"""`serve`: a model over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.rules import Count, Positive
from pipeline.verbs import Verb


@dataclass
class Serve:
    """Which model to serve, where, and what a request may ask for."""

    model_uri: str | None = MISSING
    """As `models:/fashion_mnist@champion` or `models:/m-…`; null takes the data set's champion."""
    host: str = MISSING
    """Address to listen on; nobody is asked for a password, so one of this machine alone."""
    port: Annotated[int, Field(ge=0, lt=2**16)] = MISSING
    """Port to listen on; 0 takes a free one."""
    follow: bool = MISSING
    """Serve another version as soon as the alias in `model_uri` moves to it."""
    max_images: Count = MISSING
    """Images one request may hold."""
    max_body_mb: Positive = MISSING
    """Size of one request's body, MB (1,000,000 bytes)."""


SERVE = Verb(
    name="serve",
    help="answer requests with the champion, or another model",
    entry="pipeline.verbs.serve.command:serve",
    request=Serve,
)
