"""Moves the alias `champion` atomically: one of two concurrent moves wins, and a kill is repaired.

MLflow sets an alias unconditionally: the last writer wins. But it gives every new version a unique
number, and these numbers serve as tickets (Lamport, "A New Solution of Dijkstra's Concurrent
Programming Problem", 1974). To move the alias, a process creates a version tagged `pending`, which
names its holder and the intended move; the lowest ticket with a living holder goes first, and all
others give up. The move takes effect when the alias is set; any process can complete the steps
after it, because the ticket holds all that they need.

A holder is one move of a process, and is dead when that has ended, even if the process lives on and
the ticket is left behind, as in a notebook whose store went away. A holder on another host counts
as dead after a while. If it was alive after all, it finds its ticket gone and gives up. It checks
this before it sets the alias and, since a request may take long, afterwards too: MLflow refuses a
deleted ticket, but not the target version of a rollback.

The registry is passed in: the same steps run on one in memory.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.system.errors import PipelineError, RequestError
from pipeline.system.processes import at_work, process_name, this_process
from pipeline.tracking.values import (
    ATTEMPT,
    ATTEMPT_KEY,
    CHALLENGER,
    CHAMPION,
    DONE,
    HOLDER,
    PENDING,
    PREVIOUS,
    REPLACES,
    STATE,
    TARGET,
    Version,
)
from pipeline.verbs.promote.ledger import (
    ABANDONED,
    MOVES,
    REFUSED,
    Attempt,
    attempts_in,
    decided,
    from_tag,
    reading,
    to_tag,
)

if TYPE_CHECKING:
    from pipeline.tracking.registry import Registry

NONE = ""  # no version, also as the value of a tag in earlier versions of this pipeline
BROKEN_OFF = "it was interrupted before the champion changed"
LATE = (
    "this took so long that another promotion or rollback counted it as dead; nothing was changed, "
    "try again"
)

_ended: set[str] = set()  # holders of this process whose moves have ended


class Outrun(PipelineError):
    """Another promotion or rollback happened in the meantime; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """An intended move of the alias `champion`, as an attempt for the ledger.

    `source` and `run_id` describe the model of the intended champion, `tags` and `description` its
    version. `target` is the version to go back to; None makes the ticket itself the champion. The
    move is valid as long as `attempt.replaces` is the champion.
    """

    attempt: Attempt
    source: str
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    target: int | None = None


def switch(registry: Registry, change: Change) -> int:
    """Makes the move, records it in the ledger, and returns the new champion's version.

    Raises:
        Outrun: another move happened in the meantime; the ledger records a refusal.
    """
    with _holding() as holder:
        return _switched(registry, change, holder)


@contextmanager
def _holding() -> Iterator[str]:
    """A holder for tickets, which lives as long as the block runs."""
    holder = this_process(move=secrets.token_hex(4))
    try:
        yield holder
    finally:
        _ended.add(holder)


def _switched(registry: Registry, change: Change, holder: str) -> int:
    try:
        ticket = _take(registry, change, holder)
        try:
            _await_nobody(registry, ticket, change)
            target = _move(registry, ticket, change)
        except Outrun as outrun:
            _record(registry, decided(change.attempt, REFUSED, note=str(outrun)))
            registry.drop(ticket.number)
            raise
        _complete(registry, ticket)
        return target
    except BaseException:
        # Ctrl-C, for example: a ticket left behind would keep other hosts waiting
        with suppress(Exception):
            own = [
                one for one in registry.pending() if one.tags.get(ATTEMPT_KEY) == change.attempt.key
            ]
            _settle(registry, own)
        raise


def settle(registry: Registry) -> None:
    """Completes or undoes the moves of killed processes; leaves those of live ones alone."""
    dead = [ticket for ticket in registry.pending() if not _alive(ticket)]
    if not dead:
        return
    # This needs a ticket too: two processes doing it could undo the newer move of a third.
    with _holding() as holder:
        tags = {STATE: PENDING, HOLDER: holder}
        own = registry.add(dead[0].source, dead[0].run_id, tags)
        lower = [ticket for ticket in registry.pending() if ticket.number < own.number]
        if not any(map(_alive, lower)):
            _settle(registry, lower)
        registry.drop(own.number)


def _take(registry: Registry, change: Change, holder: str) -> Version:
    registry.ensure()
    ticket = {
        STATE: PENDING,
        HOLDER: holder,
        ATTEMPT_KEY: change.attempt.key,
        ATTEMPT: to_tag(change.attempt),
    }
    ticket |= {REPLACES: str(change.attempt.replaces)} if change.attempt.replaces else {}
    ticket |= {TARGET: str(change.target)} if change.target else {}
    return registry.add(change.source, change.run_id, {**change.tags, **ticket}, change.description)


def _await_nobody(registry: Registry, ticket: Version, change: Change) -> None:
    """Checks that it is this ticket's turn and that the champion is the one to be replaced."""
    lower = [other for other in registry.pending() if other.number < ticket.number]
    # If a response was lost and the request repeated, that ticket is ours as well.
    twice = [other for other in lower if other.tags.get(ATTEMPT_KEY) == change.attempt.key]
    others = [other for other in lower if other not in twice]
    for other in others:
        if _alive(other):
            raise Outrun(
                f"another promotion is in progress ({process_name(other.tags.get(HOLDER, NONE))}); "
                "nothing was changed; try again when it has ended"
            )
    for other in twice:
        registry.drop(other.number)
    _settle(registry, others)
    champion = registry.present().aliases.get(CHAMPION)
    if champion != change.attempt.replaces:
        raise Outrun(
            f"the champion is now {_named(champion)}, but was {_named(change.attempt.replaces)} "
            "when this was judged; nothing was changed; try again"
        )


def _move(registry: Registry, ticket: Version, change: Change) -> int:
    """Sets the alias, unless another process considered this one dead and deleted its ticket."""
    target = change.target or ticket.number
    if registry.find(ticket.number) is None:
        raise Outrun(LATE)
    registry.point(CHAMPION, target)
    if registry.find(ticket.number) is None:
        rightful = _last_move(registry) or change.attempt.replaces
        if rightful != target:
            registry.point(CHAMPION, rightful)
            raise Outrun(LATE)
    return target


def _last_move(registry: Registry) -> int | None:
    """The version that is champion according to the ledger."""
    attempts = attempts_in(registry.present().tags, registry.name)
    moves = [attempt.version for attempt in attempts if attempt.decision in MOVES]
    return moves[-1] if moves else None


def _settle(registry: Registry, dead: list[Version]) -> None:
    """Settles dead tickets; called by the holder of the lowest live one, or with its own."""
    for ticket in dead:
        if ATTEMPT_KEY not in ticket.tags:  # a process that only wanted to settle
            registry.drop(ticket.number)
        elif registry.present().aliases.get(CHAMPION) == _target(ticket):
            _complete(registry, ticket)
        else:
            _record(registry, decided(_attempt(ticket), ABANDONED, BROKEN_OFF))
            registry.drop(ticket.number)


def _complete(registry: Registry, ticket: Version) -> None:
    """The steps after the ticket's target has become champion; idempotent."""
    target = _target(ticket)
    present = registry.present().aliases
    champion = ticket if target == ticket.number else registry.find(target)
    before = replaced_by(registry, champion) if champion else None
    if present.get(PREVIOUS) != before and present.get(CHAMPION) == target:
        registry.point(PREVIOUS, before)
    challenger = present.get(CHALLENGER)
    if challenger and champion and _run_of(registry, challenger) == champion.run_id:
        registry.point(CHALLENGER, None)  # it is the champion now
    _record(registry, replace(_attempt(ticket), version=target))
    if target == ticket.number:
        spent = [key for key in (HOLDER, TARGET, ATTEMPT_KEY, ATTEMPT) if key in ticket.tags]
        registry.mark(ticket.number, DONE, without=spent)
    else:
        registry.drop(ticket.number)


def replaced_by(registry: Registry, champion: Version) -> int | None:
    """The version that a champion replaced; None if there was none, or it no longer exists."""
    before = _as_number(champion, REPLACES)
    return before if before and registry.find(before) else None


def _record(registry: Registry, attempt: Attempt) -> None:
    """Writes an attempt to the ledger unless it is there already."""
    if attempt.key not in registry.present().tags:
        registry.keep(attempt.key, to_tag(attempt))


def _run_of(registry: Registry, number: int) -> str | None:
    version = registry.find(number)
    return version.run_id if version else None


def _alive(ticket: Version) -> bool:
    holder = ticket.tags.get(HOLDER, NONE)
    return holder not in _ended and at_work(holder, ticket.age_s)


def _target(ticket: Version) -> int:
    return _as_number(ticket, TARGET) or ticket.number


def _attempt(ticket: Version) -> Attempt:
    with reading(
        f"{ticket.uri}: its tag {ATTEMPT}", "correct it, or delete that version in MLflow"
    ):
        return from_tag(ticket.tags[ATTEMPT_KEY], ticket.tags[ATTEMPT])


def _as_number(version: Version, key: str) -> int | None:
    tag = version.tags.get(key, NONE)
    try:
        return int(tag) if tag else None
    except ValueError as error:
        raise RequestError(
            f"{version.uri}: its tag {key}={tag} is not the number of a version; correct or "
            "delete it in MLflow"
        ) from error


def _named(number: int | None) -> str:
    return f"version {number}" if number else "none"
