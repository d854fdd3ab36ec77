from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.verbs.history import History
from pipeline.verbs.history import command as module
from pipeline.verbs.history.command import Ledger, history, show_history
from tests.verbs.rollback.test_command import CONFIG, Registry


def test_the_history_is_shown_as_a_table_as_json_or_as_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "settle", lambda registry: None)
    monkeypatch.setattr(module, "open_registry", lambda tracking, name: Registry(champion=3))
    ledger = history(CONFIG, History(format="table"), Path())
    assert [one.version for one in ledger.attempts] == [3]
    show_history(ledger, History(format="table"))
    assert "champion: version 3" in capsys.readouterr().out
    show_history(ledger, History(format="json"))
    document = json.loads(capsys.readouterr().out)
    assert (document["model"], document["aliases"]) == ("digits", {"champion": 3})
    assert document["entries"][0]["replaces"] == 2
    show_history(Ledger(name="digits", aliases={}, attempts=[]), History(format="table"))
    assert capsys.readouterr().out == (
        "digits has no ledger yet; it begins with the first `promote`\n"
    )
