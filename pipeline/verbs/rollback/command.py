"""The verb `rollback`, from the version to go back to to the alias that names it."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from pipeline.config.schema import Config, Tracking
from pipeline.system.errors import RequestError
from pipeline.system.processes import user
from pipeline.tracking.models import fetched
from pipeline.tracking.registry import Registry, open_registry
from pipeline.tracking.values import CHAMPION, DONE, STATE, Version
from pipeline.verbs.promote.ledger import (
    ROLLED_BACK,
    UNCHANGED,
    Attempt,
    new_key,
)
from pipeline.verbs.promote.promote import Decision, concluded
from pipeline.verbs.promote.switch import Change, replaced_by, settle, switch
from pipeline.verbs.rollback import Rollback


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
    champion = registry.present().aliases.get(CHAMPION)
    target = _target(registry, request.to or _previous(registry, champion), config.tracking)
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


def _previous(registry: Registry, champion: int | None) -> int:
    """The version that the champion replaced.

    The alias `previous` is not asked: it is stale if somebody has moved the alias of the champion.
    """
    if champion is None:
        raise RequestError(
            f"{registry.name} has no champion to go back from; promote a run first, or choose a "
            "version with to=<version> (`history` lists them)"
        )
    version = registry.find(champion)
    number = replaced_by(registry, version) if version else None
    if number is None:
        raise RequestError(
            "there is nothing to go back to: no version that the champion replaced still exists; "
            "choose a version with to=<version> (`history` lists them)"
        )
    return number


def _target(registry: Registry, number: int, tracking: Tracking) -> Version:
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
