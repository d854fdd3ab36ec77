from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.verbs.preprocess import preprocessed, show_preprocessed
from tests.commands import configured
from tests.verbs.test_ingest import SMALL


def test_the_splits_are_cached_and_their_sizes_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")  # of a narrow terminal, which wraps the lines itself
    config = configured(*SMALL, f"data_dir={tmp_path}/data")
    for where in ("cached in", "taken from"):
        result = preprocessed(config, tmp_path)
        assert result.cache == tmp_path / "data/synthetic"
        assert [len(one) for one in (result.prepared.train, result.prepared.val)] == [30, 10]
        show_preprocessed(result, None)
        lines = capsys.readouterr().out.splitlines()
        printed = " ".join(" ".join(lines).split())
        assert "train │ 30" in printed
        assert "test │ 20" in printed
        assert lines[-1] == f"{where} {result.cache}"
