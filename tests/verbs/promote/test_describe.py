from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.system.errors import RequestError
from pipeline.tracking.values import SIGNED, Present, RecordedRun, Status
from pipeline.verbs.promote.describe import note_of_model, note_of_version, whole_ledger
from pipeline.verbs.promote.gates import Gate
from pipeline.verbs.promote.ledger import (
    FORCED,
    PROMOTED,
    REFUSED,
    Attempt,
    artifact,
    new_key,
    to_tag,
    to_text,
)
from tests.commands import configured

GATE = Gate(name="test accuracy", value=0.9, limit=0.85, passed=True, says="on 8 images")
ATTEMPT = Attempt(
    key=new_key(datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC), "00c0ffee"),
    who="ada@engine",
    decision=PROMOTED,
    run_id="1234567890abcdef",
    version=3,
    replaces=2,
    gates=[GATE],
)


def attempt(decision: str, **changes: Any) -> Attempt:
    return Attempt(**{**vars(ATTEMPT), "decision": decision, **changes})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> RecordedRun:
    config = configured("model=mlp", "dataset=digits", "train.epochs=2")
    monkeypatch.setattr(RecordedRun, "config", config)
    monkeypatch.setattr(RecordedRun, "has", lambda self, name: name == "report.html")
    return RecordedRun(
        id="1234567890abcdef",
        name="calm-fox",
        experiment="digits",
        experiment_id="7",
        status=Status.FINISHED,
        started=0,
        tags={"command": "python -m pipeline", "mlflow.source.git.commit": "c0ffee0000"},
        logged={"test/accuracy": 0.75, "model/parameters": 1000.0},
        sizes={"test": 4},
    )


def test_a_version_is_described_by_its_run_its_gates_and_how_it_came(run: RecordedRun) -> None:
    what, accuracies, how, gates, command, place = note_of_version(run, ATTEMPT).split("\n\n")
    assert what == "**mlp on digits**: 1,000 parameters, 2 epochs, seed 0."
    assert "**0.7500** | &ensp;0.3006 to 0.9544 | &ensp;4 |" in accuracies
    assert how == (
        "Judged 2026-05-04 03:02 UTC by ada@engine, promoted in place of version 2 "
        "through the gates."
    )
    assert "| test accuracy | &ensp;0.9 | &ensp;0.85 | &ensp;passed |" in gates
    assert command == "```sh\npython -m pipeline\n```"
    page = "#/experiments/7/runs/1234567890abcdef"
    assert place == (
        f"[Run calm-fox]({page}), [its report]({page}/artifacts/report.html); code c0ffee0"
    )


def test_it_is_told_who_overruled_the_gates_and_why_and_what_was_refused(run: RecordedRun) -> None:
    forced = note_of_version(run, attempt(FORCED, reason="it's *urgent*", replaces=None, gates=[]))
    assert f"ada@engine, {FORCED} with the gates overruled: it's &#42;urgent&#42;." in forced
    assert "| gate |" not in forced
    refused = note_of_version(run, attempt(REFUSED))
    assert "A challenger: refused 2026-05-04 03:02 UTC, by ada@engine." in refused


def registry(texts: dict[str, str]) -> Any:
    return SimpleNamespace(name="digits", attached=lambda run_id, name: texts.get(name))


def test_a_model_is_described_by_its_champion_and_its_ledger(run: RecordedRun) -> None:
    note = note_of_model(registry({}), Present(aliases={"champion": 3}), [ATTEMPT], run)
    assert "Its champion is version 3, `models:/digits@champion`." in note
    assert "**0.7500**" in note
    assert "2 → 3" in note
    none = note_of_model(registry({}), Present(), [], None)
    assert "It has no champion yet." in none
    assert "| accuracy |" not in none


def test_of_a_long_ledger_the_newest_attempts_that_fit_are_in_the_description() -> None:
    long = [attempt(REFUSED, reason=f"number {n} " + "long " * 100) for n in range(30)]
    note = note_of_model(registry({}), Present(), long, None)
    assert 4_000 < len(note) <= 5_000 - len(SIGNED)
    assert "number 29" in note
    assert note.endswith(" |")
    assert "number 0 " not in note
    short = [attempt(REFUSED, reason=f"number {n}") for n in range(30)]
    note = note_of_model(registry({}), Present(), short, None)
    assert ("number 10" in note, "number 9" in note) == (True, False)
    huge = attempt(REFUSED, reason="long " * 2_000)
    assert "long long" in note_of_model(registry({}), Present(), [huge, huge], None)


def test_the_ledger_has_the_gates_that_are_artefacts_of_its_runs() -> None:
    older = attempt(REFUSED, key=new_key(datetime(2026, 5, 3, tzinfo=UTC), "01"), version=None)
    tags = {one.key: to_tag(one) for one in (ATTEMPT, older)}
    texts = {artifact(one.key): to_text(one) for one in (ATTEMPT, older)}
    first, second = whole_ledger(registry(texts), Present(tags=tags))
    assert (first.decision, first.gates) == (REFUSED, [GATE])
    assert (second.decision, second.gates) == (PROMOTED, [GATE])
    first, second = whole_ledger(registry(texts), Present(tags=tags), newest=1)
    assert (first.gates, second.gates) == ([], [GATE])
    with pytest.raises(RequestError) as refused:
        whole_ledger(registry(texts | {artifact(older.key): "[]"}), Present(tags=tags))
    assert str(refused.value) == (
        f"run {older.run_id}: its artefact {artifact(older.key)} cannot be read as an attempt in "
        "the ledger; restore or delete it"
    )
    [lost] = whole_ledger(registry({}), Present(tags={ATTEMPT.key: to_tag(ATTEMPT)}))
    assert (lost.version, lost.gates) == (3, [])
