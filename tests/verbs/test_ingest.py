from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.system.errors import RequestError
from pipeline.verbs.ingest import ingested, show_ingested
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
