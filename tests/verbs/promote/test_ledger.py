from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from pipeline.system import secrets
from pipeline.system.errors import RequestError
from pipeline.tracking.values import LONGEST_MODEL_TAG
from pipeline.verbs.promote.gates import Gate
from pipeline.verbs.promote.ledger import (
    ABANDONED,
    FORCED,
    PROMOTED,
    REFUSED,
    ROLLED_BACK,
    Attempt,
    attempts_in,
    complaint,
    decided,
    from_tag,
    from_text,
    gates_table,
    history_document,
    history_table,
    line_of_champions,
    new_key,
    to_tag,
    to_text,
)

WHEN = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
ACCURACY = Gate(name="test accuracy", value=0.9, limit=0.85, passed=True, says="on 8 test images")
SLOW = Gate(name="latency, ms", value=20.04, limit=10.0, passed=False, says="median [here]")
STATUS = Gate(name="run finished", value="KILLED", limit="FINISHED", passed=False, says="it was")
ATTEMPT = Attempt(
    key=new_key(WHEN, "00c0ffee"),
    who="ada@engine",
    decision=PROMOTED,
    run_id="1234567890abcdef",
    version=3,
    replaces=2,
    gates=[ACCURACY],
    reason="it is [better]",
)


def shown(table: Table) -> str:
    console = Console(file=StringIO(), width=200, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_key_is_the_time_in_utc_and_a_token() -> None:
    assert ATTEMPT.key == "ledger.20260504T030201123456Z.00c0ffee"
    assert new_key(WHEN.astimezone(timezone(timedelta(hours=9))), "00c0ffee") == ATTEMPT.key
    assert ATTEMPT.when == WHEN


@pytest.mark.parametrize(
    ("moves", "line"),
    [
        ([], []),
        ([(PROMOTED, 1), (REFUSED, None), (PROMOTED, 2), (PROMOTED, 4)], [1, 2, 4]),
        ([(PROMOTED, 1), (PROMOTED, 2), (FORCED, 3), (PROMOTED, 4)], [3, 4]),
        ([(PROMOTED, 1), (PROMOTED, 2), (PROMOTED, 3), (ROLLED_BACK, 2)], [1, 2]),
        ([(PROMOTED, 1), (FORCED, 2), (ROLLED_BACK, 1), (PROMOTED, 3)], [1, 3]),
        ([(PROMOTED, 1), (ABANDONED, 2), (PROMOTED, 3)], [1, 3]),
    ],
)
def test_a_champion_is_measured_by_those_since_a_person_overruled_the_gates(
    moves: list[tuple[str, int | None]], line: list[int]
) -> None:
    attempts = [replace(ATTEMPT, decision=decision, version=version) for decision, version in moves]
    assert line_of_champions(attempts) == line


def test_an_attempt_comes_back_as_it_was() -> None:
    assert from_text(ATTEMPT.key, to_text(ATTEMPT)) == ATTEMPT


@given(st.text(max_size=1000), st.lists(st.text(max_size=3000), max_size=14))
def test_whatever_it_says_an_attempt_fits_the_column_of_the_store(
    reason: str, says: list[str]
) -> None:
    gates = [replace(SLOW, says=text) for text in says]
    attempt = replace(ATTEMPT, reason=reason, gates=gates)
    kept = to_text(attempt)
    assert len(kept) <= LONGEST_MODEL_TAG
    back = from_text(ATTEMPT.key, kept)
    assert [(gate.value, gate.passed) for gate in back.gates] == [(20.04, False)] * len(says)


def test_a_long_text_is_cut_no_more_than_it_must_be() -> None:
    kept = from_text(ATTEMPT.key, to_text(replace(ATTEMPT, reason="x" * 1000, note="y" * 4000)))
    assert (kept.reason, len(kept.note), kept.note[-2:]) == ("x" * 1000, 1000, "y…")


def test_an_attempt_that_cannot_be_made_to_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="5000 are allowed"):
        to_text(replace(ATTEMPT, gates=[SLOW] * 100))


@pytest.mark.parametrize(
    "attempt",
    [
        ATTEMPT,
        replace(ATTEMPT, decision=REFUSED, version=None, reason=None),
        replace(
            ATTEMPT, decision="rolled back", replaces=None, who='a "b", by c', reason="\\ \n, run"
        ),
        replace(ATTEMPT, reason=None, note='it was "late"'),
        replace(ATTEMPT, decision="abandoned", reason=' "x" ', note="n"),
    ],
)
def test_an_attempt_comes_back_from_its_short_tag_without_its_gates(attempt: Attempt) -> None:
    assert from_tag(attempt.key, to_tag(attempt)) == replace(attempt, gates=[])


def test_a_known_secret_is_hidden_in_what_people_write_and_leaves_the_rest_readable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrets, "known_secrets", {"engine", "promoted", "90abcd"})
    attempt = replace(ATTEMPT, reason="promoted by the engine", note="engine")
    back = from_tag(attempt.key, to_tag(attempt))
    assert (back.who, back.reason, back.note) == ("ada@***", "*** by the ***", "***")
    assert replace(back, who="", reason="", note="") == replace(
        attempt, gates=[], who="", reason="", note=""
    )
    # As earlier versions wrote it.
    assert from_tag(attempt.key, to_tag(ATTEMPT).replace("engine", "***")).who == "ada@***"


@given(st.text(), st.text(), st.text(max_size=9000))
def test_whatever_people_write_a_short_tag_is_read_again(who: str, reason: str, note: str) -> None:
    attempt = replace(ATTEMPT, who=who, reason=reason or None, note=note)
    kept = to_tag(attempt)
    assert len(kept) <= LONGEST_MODEL_TAG
    back = from_tag(attempt.key, kept)
    assert (back.decision, back.version, back.replaces, back.run_id) == (
        *(attempt.decision, attempt.version, attempt.replaces, attempt.run_id),
    )
    if len(who + reason + note) < 300:
        assert back == replace(attempt, gates=[])


def test_a_short_tag_reads_as_a_sentence() -> None:
    short = replace(ATTEMPT, reason=None)
    assert to_tag(short) == "promoted version 3 in place of 2, run 1234567890abcdef, by ada@engine"
    assert to_tag(ATTEMPT).endswith(', by ada@engine: "it is [better]"')


def test_a_ledger_reads_tags_of_earlier_versions_and_refuses_what_is_none() -> None:
    assert from_tag(ATTEMPT.key, to_text(ATTEMPT)) == ATTEMPT
    with pytest.raises(ValueError, match="cannot be read"):
        from_tag(ATTEMPT.key, "promoted, they say")


def test_the_attempts_among_other_tags_are_found_oldest_first() -> None:
    later = replace(ATTEMPT, key=new_key(WHEN + timedelta(seconds=1), "00000000"))
    tags = {later.key: to_text(later), "team": "vision", ATTEMPT.key: to_text(ATTEMPT)}
    assert attempts_in(tags, "digits") == [ATTEMPT, later]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (ATTEMPT.key, "promoted, they say"),
        (ATTEMPT.key, '{"who": "ada@engine"}'),
        (ATTEMPT.key, to_text(ATTEMPT).replace('"version":3', '"version":"three"')),
        (ATTEMPT.key, to_text(ATTEMPT)[:-1]),
        ("ledger.mine", to_tag(ATTEMPT)),
        ("ledger.mine", to_text(ATTEMPT)),
        ("ledger.yesterday.1", to_tag(ATTEMPT)),
    ],
)
def test_a_tag_that_somebody_has_changed_is_named_in_a_line(key: str, text: str) -> None:
    with pytest.raises(RequestError) as refused:
        attempts_in({ATTEMPT.key: to_tag(ATTEMPT), key: text}, "digits")
    assert str(refused.value) == (
        f"registered model digits: its tag {key} cannot be read as an attempt in the ledger; "
        "correct or delete it in MLflow"
    )


def test_another_end_keeps_all_else() -> None:
    ended = decided(ATTEMPT, REFUSED, "too late")
    assert ended == replace(ATTEMPT, decision="refused", note="too late")


@pytest.mark.parametrize(
    ("gate", "line"),
    [
        (SLOW, "latency, ms: 20.04, above 10 (median [here])"),
        (
            replace(SLOW, value=0.80221, limit=0.85),
            "latency, ms: 0.8022, below 0.85 (median [here])",
        ),
        (STATUS, "run finished: KILLED, not FINISHED (it was)"),
    ],
)
def test_a_complaint_has_the_number_and_the_limit(gate: Gate, line: str) -> None:
    assert complaint(gate) == line


def test_the_history_shows_when_who_what_and_why() -> None:
    refused = replace(ATTEMPT, decision=REFUSED, version=None, gates=[SLOW], reason=None)
    text = shown(history_table([ATTEMPT, refused], "digits", 3))
    first, second = (line for line in text.splitlines() if "ada@engine" in line)
    for part in ("2026-05-04 03:02:01", "promoted", "2 → 3", "12345678", "“it is [better]”"):
        assert part in first
    assert "refused" in second
    assert "latency, ms: 20.04, above 10 (median [here])" in second
    assert "→" not in second
    assert "test accuracy 0.9" in text
    assert "champion: version 3" in text


def test_the_ledger_as_json_has_all_that_a_line_says() -> None:
    document = history_document([ATTEMPT], "digits", {"champion": 3})
    assert json.loads(json.dumps(document)) == document
    assert (document["model"], document["aliases"]) == ("digits", {"champion": 3})
    [attempt] = document["entries"]
    assert attempt.pop("when") == "2026-05-04T03:02:01.123456+00:00"
    assert from_text(attempt.pop("key"), json.dumps(attempt)) == ATTEMPT


def test_the_gates_are_shown_with_their_verdicts() -> None:
    text = shown(gates_table([ACCURACY, SLOW]))
    first, second = (line for line in text.splitlines() if "ed" in line)
    assert ["passed" in first, "failed" in second, "median [here]" in second] == [True] * 3
