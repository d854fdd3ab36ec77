from __future__ import annotations

import pytest

from pipeline.system.errors import RequestError
from pipeline.verbs import verbs
from tests.commands import configured


def test_a_run_of_our_own_is_checked_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    verb, config = verbs()["run"], configured("dataset=npz")
    with pytest.raises(RequestError, match=r"^dataset\.path is missing"):
        verb.require_possible(config)
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123abcd")
    verb.require_possible(config)  # that run is open already, and records why it fails
