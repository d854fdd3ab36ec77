"""Moves the alias `champion` so that of two at once one wins, and a kill leaves no half state.

MLflow sets an alias without looking: the last writer wins. But it gives every new version a number
that no other has, so these serve as tickets (Lamport, "A New Solution of Dijkstra's Concurrent
Programming Problem", 1974). Whoever wants to move the alias makes a version tagged `pending` that
says who holds it and what for; the lowest ticket with a living holder goes first, all others
give up. Setting the alias is the moment that counts; what follows it can be done again by anybody,
who finds all that it takes on the ticket.

A holder on another host counts as dead after a while. If it is not, it finds its ticket gone when
it comes to act, and gives up. It looks before it sets the alias and, as a request may be under way
for long, after: MLflow refuses a ticket that is gone, but not the version that a rollback goes to.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pipeline.system.errors import PipelineError
from pipeline.system.processes import at_work, shown, this_process
from pipeline.tracking.registry import DONE, PENDING, STATE, Registry, Version
from pipeline.verbs.promote.ledger import (
    ABANDONED,
    MOVES,
    REFUSED,
    Entry,
    decided,
    entries,
    from_text,
    to_text,
)

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
# Tags of a ticket; those of a promotion stay on its version.
HOLDER, REPLACES = "promotion.holder", "promotion.replaces"
TARGET, KEY, LINE = "promotion.target", "promotion.key", "promotion.line"
NONE = ""  # as a tag: no version
BROKEN_OFF = "it was broken off before the champion had changed"
LATE = (
    "this took so long that another promotion or rollback counted it as dead; nothing was changed, "
    "try again"
)


class Outrun(PipelineError):
    """Another promotion or rollback came first; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A wanted move of the alias `champion` and the line that the ledger is to have of it.

    `source` and `run_id` are those of the model that is to be champion, `tags` its version's.
    `target` is the version to go back to; None makes the ticket itself the champion.
    The move is right as long as `line.replaces` is the champion.
    """

    line: Entry
    source: str
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    target: int | None = None


def switch(registry: Registry, change: Change) -> int:
    """Makes the move, records it in the ledger, and returns the version that is champion now.

    Raises:
        Outrun: another came first; the ledger has that as a refusal.
    """
    try:
        ticket = _take(registry, change)
        try:
            _await_nobody(registry, ticket, change)
            target = _move(registry, ticket, change)
        except Outrun as outrun:
            _record(registry, decided(change.line, REFUSED, note=str(outrun)))
            registry.drop(ticket.number)
            raise
        _complete(registry, ticket)
        return target
    except BaseException:  # as Ctrl-C: left behind, the ticket would keep other hosts waiting
        with suppress(Exception):
            own = [one for one in registry.pending() if one.tags.get(KEY) == change.line.key]
            _settle(registry, own)
        raise


def settle(registry: Registry) -> None:
    """Completes or undoes what killed processes left; leaves alone what living ones are at."""
    dead = [ticket for ticket in registry.pending() if not _alive(ticket)]
    if not dead:
        return
    # The work is done under a ticket too, or two at it might undo what a third has done since.
    tags = {STATE: PENDING, HOLDER: this_process()}
    own = registry.add(dead[0].source, dead[0].run_id, tags)
    lower = [ticket for ticket in registry.pending() if ticket.number < own.number]
    if not any(map(_alive, lower)):
        _settle(registry, lower)
    registry.drop(own.number)


def _take(registry: Registry, change: Change) -> Version:
    registry.ensure()
    ticket = {
        STATE: PENDING,
        HOLDER: this_process(),
        REPLACES: _as_tag(change.line.replaces),
        TARGET: _as_tag(change.target),
        KEY: change.line.key,
        LINE: to_text(change.line),
    }
    return registry.add(change.source, change.run_id, {**change.tags, **ticket})


def _await_nobody(registry: Registry, ticket: Version, change: Change) -> None:
    """Returns if it is this ticket's turn and the champion is the one the move was meant for."""
    lower = [other for other in registry.pending() if other.number < ticket.number]
    # A request that got lost on its way back was sent again: that ticket is ours as well.
    twice = [other for other in lower if other.tags.get(KEY) == change.line.key]
    others = [other for other in lower if other not in twice]
    for other in others:
        if _alive(other):
            raise Outrun(
                f"another promotion is under way ({shown(other.tags.get(HOLDER, NONE))}); "
                "nothing was changed, try again when it has ended"
            )
    for other in twice:
        registry.drop(other.number)
    _settle(registry, others)
    champion = registry.present().aliases.get(CHAMPION)
    if champion != change.line.replaces:
        raise Outrun(
            f"the champion has become {_named(champion)} meanwhile, but was "
            f"{_named(change.line.replaces)} when this was judged; nothing was changed, try again"
        )


def _move(registry: Registry, ticket: Version, change: Change) -> int:
    """Sets the alias, unless others took this process for dead and did away with its ticket."""
    target = change.target or ticket.number
    if registry.find(ticket.number) is None:
        raise Outrun(LATE)
    registry.point(CHAMPION, target)
    if registry.find(ticket.number) is None:
        rightful = _last_move(registry) or change.line.replaces
        if rightful != target:
            registry.point(CHAMPION, rightful)
            raise Outrun(LATE)
    return target


def _last_move(registry: Registry) -> int | None:
    """The version that is champion by the ledger."""
    moves = [line.version for line in entries(registry.present().tags) if line.decision in MOVES]
    return moves[-1] if moves else None


def _settle(registry: Registry, dead: list[Version]) -> None:
    """The holder of the lowest living ticket calls this with the dead ones below it, or its own."""
    for ticket in dead:
        if KEY not in ticket.tags:  # somebody who wanted to settle
            registry.drop(ticket.number)
        elif registry.present().aliases.get(CHAMPION) == _target(ticket):
            _complete(registry, ticket)
        else:
            _record(registry, decided(_line(ticket), ABANDONED, BROKEN_OFF))
            registry.drop(ticket.number)


def _complete(registry: Registry, ticket: Version) -> None:
    """What follows once the champion is the ticket's target; may be done twice."""
    target = _target(ticket)
    present = registry.present().aliases
    champion = ticket if target == ticket.number else registry.find(target)
    before = _as_number(champion.tags.get(REPLACES, NONE)) if champion else None
    before = before if before and registry.find(before) else None
    if present.get(PREVIOUS) != before and present.get(CHAMPION) == target:
        registry.point(PREVIOUS, before)
    challenger = present.get(CHALLENGER)
    if challenger and champion and _run_of(registry, challenger) == champion.run_id:
        registry.point(CHALLENGER, None)  # it is the champion now
    _record(registry, replace(_line(ticket), version=target))
    if target == ticket.number:
        registry.mark(ticket.number, DONE)
    else:
        registry.drop(ticket.number)


def _record(registry: Registry, line: Entry) -> None:
    """Writes a line of the ledger unless it stands there already."""
    if line.key not in registry.present().tags:
        registry.keep(line.key, to_text(line))


def _run_of(registry: Registry, number: int) -> str | None:
    version = registry.find(number)
    return version.run_id if version else None


def _alive(ticket: Version) -> bool:
    return at_work(ticket.tags.get(HOLDER, NONE), ticket.age_s)


def _target(ticket: Version) -> int:
    return _as_number(ticket.tags.get(TARGET, NONE)) or ticket.number


def _line(ticket: Version) -> Entry:
    return from_text(ticket.tags[KEY], ticket.tags[LINE])


def _as_tag(number: int | None) -> str:
    return NONE if number is None else str(number)


def _as_number(tag: str) -> int | None:
    return int(tag) if tag else None


def _named(number: int | None) -> str:
    return f"version {number}" if number else "none"
