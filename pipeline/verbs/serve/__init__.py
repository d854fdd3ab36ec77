"""`serve`: a model over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.effects import Rule
from pipeline.config.rules import Count, Positive, matching
from pipeline.verbs import OF_RUNS, Verb, by_model_uri

HostName = Annotated[
    str,
    matching(r"[\w-]+(\.[\w-]+)*|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", "a host name or an IP address"),
]


@dataclass
class Serve:
    """Which model to serve, where, and what a request may ask for."""

    model_uri: str | None = MISSING
    """`models:/fashion_mnist@champion` or `models:/m-…`; null takes the data set's champion."""
    host: str = MISSING
    """Address to listen on; to serve other machines, set PIPELINE_SERVE_TOKEN, which requests
    must then send as `Authorization: Bearer …`."""
    port: Annotated[int, Field(ge=0, lt=2**16)] = MISSING
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: list[HostName] = MISSING
    """Further names, without port, by which requests and pages may address the server."""
    follow: bool = MISSING
    """Serve another version as soon as the alias in `model_uri` moves to it."""
    max_images: Count = MISSING
    """Images one request may hold."""
    max_body_mb: Positive = MISSING
    """Size of one request's body, MB (1,000,000 bytes)."""


SERVE = Verb(
    name="serve",
    ignores=OF_RUNS | {"run_id", "data_dir"},
    first="port",
    help="answer requests with the champion, or another model",
    entry="pipeline.verbs.serve.command:serve",
    request=Serve,
    rules=(
        by_model_uri("serve"),
        Rule(
            keys=("serve.follow",),
            when=lambda config: "@" not in (config.serve.model_uri or "@"),
            because="with a serve.model_uri that names no alias: its model stays the same",
            mend="leave it out, or name an alias, as in models:/fashion_mnist@champion",
            nothing=(False,),
        ),
    ),
)
