from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.system.errors import RequestError
from pipeline.tracking.values import DONE, PENDING, REPLACES, STATE, Present, Version
from pipeline.verbs.promote.ledger import ROLLED_BACK, UNCHANGED, to_tag
from pipeline.verbs.promote.promote import concluded
from pipeline.verbs.promote.switch import Change
from pipeline.verbs.rollback import Rollback
from pipeline.verbs.rollback import command as module
from pipeline.verbs.rollback.command import rollback
from tests.verbs.promote.test_describe import ATTEMPT

CONFIG: Any = SimpleNamespace(tracking=None, choices=SimpleNamespace(dataset="digits"))


def version(number: int, state: str = DONE, replaces: int | None = None) -> Version:
    return Version(
        number=number,
        uri=f"models:/digits/{number}",
        source=f"file:///{number}",
        run_id=f"run{number}",
        tags={STATE: state} | ({REPLACES: str(replaces)} if replaces else {}),
        age_s=1.0,
    )


class Registry:
    """A registered model: version 3 is pending, 4 has replaced 2, and 5 one that was deleted."""

    name = "digits"

    def __init__(self, **aliases: int) -> None:
        self.aliases = aliases
        self.versions = {1: version(1), 2: version(2, replaces=1), 3: version(3, PENDING)}
        self.versions |= {4: version(4, replaces=2), 5: version(5, replaces=9)}

    def present(self) -> Present:
        return Present(aliases=self.aliases, tags={ATTEMPT.key: to_tag(ATTEMPT)})

    def find(self, number: int) -> Version | None:
        return self.versions.get(number)

    def attached(self, run_id: str, name: str) -> None:
        return None


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[Change]:
    """The changes that were made, of whatever registry is opened."""
    made: list[Change] = []
    monkeypatch.setattr(module, "settle", lambda registry: None)
    monkeypatch.setattr(module, "fetched", lambda uri, tracking: nullcontext())
    monkeypatch.setattr(module, "switch", lambda registry, change: made.append(change))
    monkeypatch.setattr(module, "concluded", lambda registry, decision, says="": (decision, says))
    return made


def rolled_back(monkeypatch: pytest.MonkeyPatch, to: int | None = None, **aliases: int) -> Any:
    monkeypatch.setattr(module, "open_registry", lambda tracking, name: Registry(**aliases))
    return rollback(CONFIG, Rollback(to=to, reason="it drifts"), Path())


def test_the_version_that_the_champion_replaced_takes_its_place(
    moves: list[Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rolled_back(monkeypatch, champion=2, previous=1) == (ROLLED_BACK, "")
    [move] = moves
    assert (move.target, move.source, move.run_id) == (1, "file:///1", "run1")
    attempt = move.attempt
    assert (attempt.decision, attempt.version, attempt.replaces) == (ROLLED_BACK, 1, 2)
    assert (attempt.run_id, attempt.reason) == ("run1", "it drifts")


def test_the_version_that_the_champion_replaced_is_known_though_somebody_moved_its_alias(
    moves: list[Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled_back(monkeypatch, champion=4, previous=1)  # as 2 had it, before 4 was made champion
    assert [(move.target, move.attempt.replaces) for move in moves] == [(2, 4)]


@pytest.mark.parametrize(("champion", "previous"), [(4, 2), (1, None), (5, None)])
def test_the_version_that_a_rollback_goes_to_is_shown_though_somebody_moved_its_alias(
    champion: int, previous: int | None
) -> None:
    registry: Any = Registry(champion=champion, previous=3)
    assert concluded(registry, UNCHANGED).previous == previous


def test_a_former_champion_can_be_gone_back_to_when_there_is_none(
    moves: list[Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rolled_back(monkeypatch, 1) == (ROLLED_BACK, "")
    assert [(move.target, move.attempt.replaces) for move in moves] == [(1, None)]


def test_a_champion_stays_what_it_is(moves: list[Change], monkeypatch: pytest.MonkeyPatch) -> None:
    decision, says = rolled_back(monkeypatch, 2, champion=2)
    assert (decision, says) == (
        UNCHANGED,
        "version 2 is the champion already; nothing was changed",
    )
    assert moves == []


@pytest.mark.parametrize(
    ("to", "aliases", "said"),
    [
        (None, {}, "digits has no champion to go back from; promote a run first"),
        (None, {"champion": 1}, "there is nothing to go back to"),
        (None, {"champion": 5}, "there is nothing to go back to"),
        (9, {"champion": 2}, "to=9: digits has no such version"),
        (3, {"champion": 2}, "to=3: that version was never champion; promote run_id=run3"),
    ],
)
def test_what_cannot_be_gone_back_to_is_refused(
    to: int | None,
    aliases: dict[str, int],
    said: str,
    moves: list[Change],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RequestError, match=f"^{said}"):
        rolled_back(monkeypatch, to, **aliases)
    assert moves == []


def test_a_version_whose_model_is_gone_is_refused(
    moves: list[Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(uri: str, tracking: Any) -> Any:
        raise RequestError(f"{uri} is not there")

    monkeypatch.setattr(module, "fetched", fetched)
    with pytest.raises(RequestError, match=r"^to=1: its model is gone: models:/digits/1 is not"):
        rolled_back(monkeypatch, champion=2, previous=1)
    assert moves == []
