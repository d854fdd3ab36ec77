"""The ledger: all attempts to change the champion, as values, text and table. Pure.

Each attempt is a tag of the registered model with a key of its own, so that writing one needs no
lock and reading all of them needs one request. Its gates are an artefact of its run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from pipeline.reports.notes import escaped, markdown_table
from pipeline.system.errors import RequestError
from pipeline.system.secrets import hide
from pipeline.tracking.values import LEDGER, LONGEST_MODEL_TAG
from pipeline.verbs.promote.gates import TEST_ACCURACY, Gate, failed

PROMOTED, FORCED, REFUSED = "promoted", "forced", "refused"
ROLLED_BACK, ABANDONED = "rolled back", "abandoned"
UNCHANGED = "unchanged"  # not recorded in the ledger
MOVES = (PROMOTED, FORCED, ROLLED_BACK)  # decisions that change the champion
_WORD, _TEXT = r"[\w@.+*-]+", r'"(?:[^"\\]|\\.)*"'
_TAG = re.compile(
    r"(?P<decision>[a-z ]+?)(?: version (?P<version>\d+))?(?: in place of (?P<replaces>\d+))?"
    rf", run (?P<run_id>\w*), by (?P<who>{_WORD}|{_TEXT})"
    rf"(?:: (?P<reason>{_TEXT}))?(?: (?P<note>{_TEXT}))?"
)
_STYLES = {PROMOTED: "green", ROLLED_BACK: "green", FORCED: "yellow", REFUSED: "red"}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt to change the champion: when, by whom, for which run, and how it ended.

    `key` is `ledger.<UTC time>.<8 hex>`; `who` is user@host. `version` is the new or intended
    champion, `replaces` the previous one; None if there is none. `reason` was given by the user,
    `note` was added by the pipeline.
    """

    key: str
    who: str
    decision: str
    run_id: str
    version: int | None
    replaces: int | None
    gates: list[Gate] = field(default_factory=list)
    reason: str | None = None
    note: str = ""

    @property
    def when(self) -> datetime:
        """The time in the key."""
        return datetime.strptime(self.key.split(".")[1], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)


def new_key(now: datetime, token: str) -> str:
    """A unique key that sorts by time; `token` is random hex."""
    return f"{LEDGER}{now.astimezone(UTC):%Y%m%dT%H%M%S%fZ}.{token}"


def to_text(attempt: Attempt) -> str:
    """The attempt as JSON of at most `LONGEST_MODEL_TAG` characters; long texts are shortened."""
    whole = {key: value for key, value in asdict(attempt).items() if key != "key"}
    for longest in (LONGEST_MODEL_TAG, 1000, 400, 150, 60, 20):
        text = json.dumps(_cut(whole, longest), ensure_ascii=False, separators=(",", ":"))
        if len(text) <= LONGEST_MODEL_TAG:
            return text
    raise ValueError(
        f"an attempt in the ledger has {len(text)} characters; "
        f"at most {LONGEST_MODEL_TAG} are allowed"
    )


def from_text(key: str, text: str) -> Attempt:
    """Parses the attempt stored under `key`.

    Raises:
        ValueError: it is none.
    """
    attempt = TypeAdapter(Attempt).validate_python(json.loads(text) | {"key": key})
    attempt.when  # noqa: B018 - read now, or refused
    return attempt


def to_tag(attempt: Attempt) -> str:
    """The attempt as a short text for people, without its gates, which are an artefact of the run.

    `promoted version 3 in place of 2, run 1234567890abcdef, by ada@engine: "reason" "note"`

    Known secrets are hidden in who, reason and note alone: the rest is read back.
    """
    free = [hide(text) for text in (attempt.who, attempt.reason or "", attempt.note)]
    for longest in (LONGEST_MODEL_TAG, 1000, 400):
        texts = [_cut(text, longest) for text in free]
        who, reason, note = (json.dumps(text, ensure_ascii=False) for text in texts)
        who = texts[0] if re.fullmatch(_WORD, texts[0]) else who
        text = (
            attempt.decision
            + (f" version {attempt.version}" if attempt.version else "")
            + (f" in place of {attempt.replaces}" if attempt.replaces else "")
            + f", run {attempt.run_id}, by {who}"
            + (f": {reason}" if attempt.reason or attempt.note else "")
            + (f" {note}" if attempt.note else "")
        )
        if len(text) <= LONGEST_MODEL_TAG:
            return text
    raise ValueError(f"an attempt in the ledger has {len(text)} characters")


def from_tag(key: str, text: str) -> Attempt:
    """The attempt in a tag under `key`: text or, if recorded by earlier versions, JSON.

    Raises:
        ValueError: it is none.
    """
    if text.startswith("{"):
        return from_text(key, text)
    found = _TAG.fullmatch(text)
    if found is None:
        raise ValueError(f"{key}: cannot be read as an attempt in the ledger")
    named = found.groupdict()
    who, reason, note = (
        json.loads(value) if (value := named[name] or "").startswith('"') else value
        for name in ("who", "reason", "note")
    )
    version, replaces = (
        int(named[name]) if named[name] else None for name in ("version", "replaces")
    )
    attempt = Attempt(
        key=key,
        who=who,
        decision=named["decision"],
        run_id=named["run_id"],
        version=version,
        replaces=replaces,
        reason=reason or None,
        note=note,
    )
    attempt.when  # noqa: B018 - read now, or refused
    return attempt


@contextmanager
def reading(place: str, mend: str) -> Iterator[None]:
    """Names the place of an attempt that somebody has changed so that it cannot be read.

    Raises:
        RequestError: with that place, and how to mend it.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{place} cannot be read as an attempt in the ledger; {mend}") from error


def artifact(key: str) -> str:
    """The artefact of the judged run that has the whole attempt, with its gates."""
    return f"promotion/{key.removeprefix(LEDGER)}.json"


def attempts_in(tags: Mapping[str, str], name: str) -> list[Attempt]:
    """All attempts among the tags of the registered model `name`, oldest first.

    Raises:
        RequestError: one of them cannot be read.
    """
    attempts = []
    for key in sorted(key for key in tags if key.startswith(LEDGER)):
        with reading(f"registered model {name}: its tag {key}", "correct or delete it in MLflow"):
            attempts.append(from_tag(key, tags[key]))
    return attempts


def line_of_champions(attempts: Sequence[Attempt]) -> list[int]:
    """The line of champions up to the current one, oldest first.

    Each of them passed the gates against its predecessor. `force`, which overrules the gates,
    begins a new line; `rollback` goes back along it.
    """
    champions: list[int] = []
    for attempt in attempts:
        version = attempt.version
        if version is None or attempt.decision not in MOVES:
            continue
        before = champions[: champions.index(version)] if version in champions else []
        if attempt.decision == PROMOTED:
            before = [number for number in champions if number != version]
        champions = [*before, version]
    return champions


def decided(attempt: Attempt, decision: str, note: str) -> Attempt:
    """The attempt with another decision, and the reason."""
    return replace(attempt, decision=decision, note=note)


def history_markdown(attempts: Sequence[Attempt], most: int) -> str:
    """The newest attempts, at most that many, as a table for a description, newest first."""
    rows = [
        (
            f"{attempt.when:%Y-%m-%d %H:%M}",
            attempt.decision,
            f"{attempt.replaces or '–'} → {attempt.version}" if attempt.version else "",
            f"`{attempt.run_id[:8]}`",
            escaped(attempt.who),
            escaped("; ".join(_why(attempt))),
        )
        for attempt in reversed(attempts[-most:])
    ]
    return markdown_table(("when (UTC)", "decision", "version", "run", "who", "why"), rows)


def history_table(attempts: Sequence[Attempt], name: str, champion: int | None) -> Table:
    """The ledger of the registered model `name` for the terminal, newest last."""
    table = Table(
        "when (UTC)",
        "who",
        "decision",
        "version",
        "run",
        "why",
        title=Text(f"{name}: ledger", style="table.title"),
    )
    for attempt in attempts:
        style = _STYLES.get(attempt.decision, "")
        change = f"{attempt.replaces or '–'} → {attempt.version}" if attempt.version else ""
        table.add_row(
            f"{attempt.when:%Y-%m-%d %H:%M:%S}",
            Text(attempt.who),
            Text(attempt.decision, style=style),
            change,
            attempt.run_id[:8],
            Text("\n".join(_why(attempt))),
        )
    table.caption = f"champion: version {champion}" if champion else "no champion"
    return table


def history_document(
    attempts: Sequence[Attempt], name: str, aliases: Mapping[str, int]
) -> dict[str, Any]:
    """The ledger of the registered model `name` as a JSON document, newest last; times are UTC."""
    return {
        "model": name,
        "aliases": dict(aliases),
        "entries": [{"when": attempt.when.isoformat(), **asdict(attempt)} for attempt in attempts],
    }


def gate_rows(gates: Sequence[Gate]) -> list[tuple[str, str, str, str]]:
    """The gates with their numbers, as rows of a Markdown table."""
    return [
        (
            escaped(gate.name),
            escaped(gate_value(gate.value)),
            escaped(gate_value(gate.limit)),
            "passed" if gate.passed else "**failed**",
        )
        for gate in gates
    ]


def gates_table(gates: Sequence[Gate]) -> Table:
    """The gates with their numbers, as a table for the terminal."""
    table = Table("gate", "value", "limit", "", "")
    for gate in gates:
        mark = Text("passed", style="green") if gate.passed else Text("failed", style="red")
        value, limit, says = (
            Text(gate_value(gate.value)),
            Text(gate_value(gate.limit)),
            Text(gate.says),
        )
        table.add_row(gate.name, value, limit, mark, says)
    return table


def complaint(gate: Gate) -> str:
    """A failed gate with its numbers, in one line."""
    value, limit = gate.value, gate.limit
    beyond = "not"
    if isinstance(value, float) and isinstance(limit, float):
        beyond = "below" if value < limit else "above" if value > limit else "not above"
    return f"{gate.name}: {gate_value(value)}, {beyond} {gate_value(limit)} ({gate.says})"


def gate_value(value: float | str) -> str:
    """Formats a number with four digits; returns text unchanged."""
    return value if isinstance(value, str) else f"{value:.4g}"


def _why(attempt: Attempt) -> list[str]:
    reasons = [f"“{attempt.reason}”"] if attempt.reason else []
    reasons += [attempt.note] if attempt.note else []
    accuracy = next((gate for gate in attempt.gates if gate.name == TEST_ACCURACY), None)
    if accuracy and accuracy.passed:
        reasons.append(f"test accuracy {gate_value(accuracy.value)}")
    return reasons + [complaint(gate) for gate in failed(attempt.gates)]


def _cut(value: Any, longest: int) -> Any:
    """The value with every text in it shortened to `longest` characters."""
    if isinstance(value, dict):
        return {key: _cut(part, longest) for key, part in value.items()}
    if isinstance(value, list):
        return [_cut(part, longest) for part in value]
    if isinstance(value, str) and len(value) > longest:
        return value[: longest - 1] + "…"
    return value
