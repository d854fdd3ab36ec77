from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.system.errors import RequestError
from pipeline.tracking.values import DONE, PENDING, STATE, Present, Version
from pipeline.verbs.promote.ledger import ROLLED_BACK, UNCHANGED, to_tag
from pipeline.verbs.promote.switch import Change
from pipeline.verbs.rollback import Rollback
from pipeline.verbs.rollback import command as module
from pipeline.verbs.rollback.command import rollback
from tests.verbs.promote.test_describe import ATTEMPT

CONFIG: Any = SimpleNamespace(tracking=None, choices=SimpleNamespace(dataset="digits"))


def version(number: int, state: str = DONE) -> Version:
    return Version(
        number=number,
        uri=f"models:/digits/{number}",
        source=f"file:///{number}",
        run_id=f"run{number}",
        tags={STATE: state},
        age_s=1.0,
    )


class Registry:
    """A registered model of versions 1 to 3, the last of which is pending."""

    name = "digits"

    def __init__(self, **aliases: int) -> None:
        self.aliases = aliases
        self.versions = {1: version(1), 2: version(2), 3: version(3, PENDING)}

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
        (None, {"champion": 2}, "there is nothing to go back to"),
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
