"""The ledger: one line per attempt to change the champion, as values, text and table. Pure.

Each line is a tag of the registered model with a key of its own, so that writing a line needs no
lock and reading all of them needs one request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.verbs.promote.gates import Gate, failed

PREFIX = "ledger."
LONGEST = 5000  # characters that MLflow 3.17's column for such a tag holds
PROMOTED, FORCED, REFUSED = "promoted", "forced", "refused"
ROLLED_BACK, ABANDONED = "rolled back", "abandoned"
UNCHANGED = "unchanged"  # not recorded in the ledger
MOVES = (PROMOTED, FORCED, ROLLED_BACK)  # decisions that change the champion
_STYLES = {PROMOTED: "green", ROLLED_BACK: "green", FORCED: "yellow", REFUSED: "red"}


@dataclass(frozen=True, kw_only=True)
class Entry:
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
    return f"{PREFIX}{now.astimezone(UTC):%Y%m%dT%H%M%S%fZ}.{token}"


def to_text(entry: Entry) -> str:
    """The line as JSON of at most `LONGEST` characters; long texts are shortened."""
    whole = {key: value for key, value in asdict(entry).items() if key != "key"}
    for longest in (LONGEST, 1000, 400, 150, 60, 20):
        text = json.dumps(_cut(whole, longest), ensure_ascii=False, separators=(",", ":"))
        if len(text) <= LONGEST:
            return text
    raise ValueError(
        f"a line of the ledger has {len(text)} characters; at most {LONGEST} are allowed"
    )


def from_text(key: str, text: str) -> Entry:
    """Parses the line stored under `key`."""
    values = json.loads(text)
    gates = [Gate(**gate) for gate in values.pop("gates")]
    return Entry(key=key, gates=gates, **values)


def entries(tags: Mapping[str, str]) -> list[Entry]:
    """All lines among the tags of a registered model, oldest first."""
    keys = sorted(key for key in tags if key.startswith(PREFIX))
    return [from_text(key, tags[key]) for key in keys]


def line_of_champions(lines: Sequence[Entry]) -> list[int]:
    """The line of champions up to the current one, oldest first.

    Each of them passed the gates against its predecessor. A person who overrules the gates begins a
    new line (`force`) or goes back in it (`rollback`).
    """
    champions: list[int] = []
    for entry in lines:
        if entry.version is None or entry.decision not in MOVES:
            continue
        before = champions[: champions.index(entry.version)] if entry.version in champions else []
        if entry.decision == PROMOTED:
            before = [number for number in champions if number != entry.version]
        champions = [*before, entry.version]
    return champions


def decided(entry: Entry, decision: str, note: str) -> Entry:
    """The entry with another decision, and the reason."""
    return replace(entry, decision=decision, note=note)


def history_table(lines: Sequence[Entry], name: str, champion: int | None) -> Table:
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
    for entry in lines:
        style = _STYLES.get(entry.decision, "")
        change = f"{entry.replaces or '–'} → {entry.version}" if entry.version else ""
        table.add_row(
            f"{entry.when:%Y-%m-%d %H:%M:%S}",
            Text(entry.who),
            Text(entry.decision, style=style),
            change,
            entry.run_id[:8],
            Text("\n".join(_why(entry))),
        )
    table.caption = f"champion: version {champion}" if champion else "no champion"
    return table


def history_document(
    lines: Sequence[Entry], name: str, aliases: Mapping[str, int]
) -> dict[str, Any]:
    """The ledger of the registered model `name` as a JSON document, newest last; times are UTC."""
    return {
        "model": name,
        "aliases": dict(aliases),
        "entries": [{"when": entry.when.isoformat(), **asdict(entry)} for entry in lines],
    }


def gates_table(gates: Sequence[Gate]) -> Table:
    """The gates with their numbers, as a table for the terminal."""
    table = Table("gate", "value", "limit", "", "")
    for gate in gates:
        mark = Text("passed", style="green") if gate.passed else Text("failed", style="red")
        value, limit, says = Text(number(gate.value)), Text(number(gate.limit)), Text(gate.says)
        table.add_row(gate.name, value, limit, mark, says)
    return table


def complaint(gate: Gate) -> str:
    """A failed gate with its numbers, in one line."""
    value, limit = gate.value, gate.limit
    beyond = "not"
    if isinstance(value, float) and isinstance(limit, float):
        beyond = "below" if value < limit else "above"
    return f"{gate.name}: {number(value)}, {beyond} {number(limit)} ({gate.says})"


def number(value: float | str) -> str:
    """Formats a number with four digits; returns text unchanged."""
    return value if isinstance(value, str) else f"{value:.4g}"


def _why(entry: Entry) -> list[str]:
    lines = [complaint(gate) for gate in failed(entry.gates)]
    accuracy = next((g for g in entry.gates if g.name == "test accuracy"), None)
    if accuracy and accuracy.passed:
        lines.insert(0, f"test accuracy {number(accuracy.value)}")
    return [*([f"“{entry.reason}”"] if entry.reason else []), *filter(None, [entry.note]), *lines]


def _cut(value: Any, longest: int) -> Any:
    """The value with every text in it shortened to `longest` characters."""
    if isinstance(value, dict):
        return {key: _cut(part, longest) for key, part in value.items()}
    if isinstance(value, list):
        return [_cut(part, longest) for part in value]
    if isinstance(value, str) and len(value) > longest:
        return value[: longest - 1] + "…"
    return value
