"""The verbs `rollback` and `history`: go back to an earlier champion, and show the ledger."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.config.schema import Config, Tracking
from pipeline.system.errors import RequestError
from pipeline.system.processes import user
from pipeline.system.terminal import standard_output
from pipeline.tracking.models import fetched
from pipeline.tracking.registry import Registry, open_registry
from pipeline.tracking.values import CHAMPION, DONE, PREVIOUS, STATE, Version
from pipeline.verbs.promote import History, Rollback
from pipeline.verbs.promote.describe import whole_ledger
from pipeline.verbs.promote.ledger import (
    ROLLED_BACK,
    UNCHANGED,
    Attempt,
    history_document,
    history_table,
    new_key,
)
from pipeline.verbs.promote.promote import Decision, concluded
from pipeline.verbs.promote.switch import Change, settle, switch


def rollback(config: Config, request: Rollback, folder: Path) -> Decision:
    """Makes the version that the champion replaced, or `rollback.to`, the champion again.

    `previous` becomes the version that the restored one had replaced, so a second rollback goes one
    further back instead of forward again.

    Raises:
        RequestError: there is nothing to go back to, or that version was never champion.
        PipelineError: another promotion happened in the meantime.
    """
    registry = open_registry(config.tracking, config.choices.dataset)
    settle(registry)
    aliases = registry.present().aliases
    champion = aliases.get(CHAMPION)
    if champion is None:
        raise RequestError(f"{registry.name} has no champion to go back from; promote a run first")
    target = _target(registry, request.to, aliases.get(PREVIOUS), config.tracking)
    if target.number == champion:
        says = f"version {champion} is the champion already; nothing was changed"
        return concluded(registry, UNCHANGED, says=says)
    attempt = Attempt(
        key=new_key(datetime.now(UTC), secrets.token_hex(4)),
        who=user(),
        decision=ROLLED_BACK,
        run_id=target.run_id,
        version=target.number,
        replaces=champion,
        reason=request.reason,
    )
    switch(
        registry,
        Change(attempt=attempt, source=target.source, run_id=target.run_id, target=target.number),
    )
    return concluded(registry, ROLLED_BACK)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All attempts to change the champion of the registered model `name`, newest last."""

    name: str
    aliases: Mapping[str, int]
    attempts: Sequence[Attempt]


def history(config: Config, request: History, folder: Path) -> Ledger:
    """The ledger of the data set's registered model."""
    registry = open_registry(config.tracking, config.choices.dataset)
    settle(registry)
    present = registry.present()
    return Ledger(
        name=registry.name, aliases=present.aliases, attempts=whole_ledger(registry, present)
    )


def show_history(ledger: Ledger, request: History) -> None:
    """Prints the ledger as a table or as JSON."""
    console = standard_output()
    if request.format == "json":
        document = history_document(ledger.attempts, ledger.name, ledger.aliases)
        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif ledger.attempts:
        console.print(history_table(ledger.attempts, ledger.name, ledger.aliases.get(CHAMPION)))
    else:
        console.print(f"{ledger.name} has no ledger yet; it begins with the first `promote`")


def _target(
    registry: Registry, wanted: int | None, previous: int | None, tracking: Tracking
) -> Version:
    number = wanted or previous
    if number is None:
        raise RequestError(
            "there is nothing to go back to: no version that the champion replaced still exists; "
            "choose a version with to=<version> (`history` lists them)"
        )
    version = registry.find(number)
    if version is None:
        raise RequestError(f"to={number}: {registry.name} has no such version; see `history`")
    if version.tags.get(STATE) != DONE:
        raise RequestError(
            f"to={number}: that version was never champion; promote run_id={version.run_id} "
            "judges it by the gates"
        )
    try:
        with fetched(version.uri, tracking):
            return version
    except RequestError as error:
        raise RequestError(f"to={number}: its model is gone: {error}") from error
