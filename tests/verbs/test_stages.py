from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.system.errors import RequestError
from pipeline.verbs.stages import (
    ingested,
    preprocessed,
    show_ingested,
    show_preprocessed,
)
from tests.commands import configured

SMALL = (
    *("dataset=synthetic", "model=linear", "dataset.train_size=40", "dataset.test_size=20"),
    *("dataset.classes=4", "dataset.image_shape=[8,6,3]", "preprocess.validation_size=10"),
)


def test_a_data_set_is_ingested_checked_and_shown_on_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(*SMALL, f"data_dir={tmp_path}/data")
    result = ingested(config, tmp_path)
    assert result.page == tmp_path / "data.html"
    assert "synthetic" in result.page.read_text(encoding="utf-8")
    assert (tmp_path / "data/synthetic").is_dir()
    show_ingested(result, None)
    assert capsys.readouterr().out.splitlines()[-1] == f"page={tmp_path}/data.html"


def test_a_data_set_that_a_check_refuses_is_shown_and_then_refused(tmp_path: Path) -> None:
    refusing = ("smallest_class.action=refuse", "smallest_class.limit=30")
    words = [f"ingest.checks.{word}" for word in refusing]
    result = ingested(configured(*SMALL, *words, f"data_dir={tmp_path}/data"), tmp_path)
    assert result.page.exists()
    with pytest.raises(RequestError, match=r"fewer than 30 training images"):
        show_ingested(result, None)


def test_the_splits_are_cached_and_their_sizes_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(*SMALL, f"data_dir={tmp_path}/data")
    for where in ("cached in", "taken from"):
        result = preprocessed(config, tmp_path)
        assert result.cache == tmp_path / "data/synthetic"
        assert [len(one) for one in (result.prepared.train, result.prepared.val)] == [30, 10]
        show_preprocessed(result, None)
        printed = " ".join(capsys.readouterr().out.split())
        assert "train │ 30" in printed
        assert "test │ 20" in printed
        assert where in printed
