"""A run's artefacts come from that run only, also where `hydra.run.dir` is used again."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.system.errors import RequestError
from pipeline.tracking.client import artifact_names
from pipeline.tracking.lifecycle import record
from pipeline.tracking.recording import reopen
from pipeline.tracking.runs import find_run
from tests.commands import QUICK, configured, inside

pytestmark = pytest.mark.slow


def names(run_id: str) -> set[str]:
    return artifact_names(find_run(run_id, configured(*QUICK)).artifacts)


def test_a_run_in_the_folder_of_another_has_none_of_its_artefacts(tmp_path: Path) -> None:
    with inside(tmp_path):
        config, folder = configured(*QUICK), tmp_path / "out" / "exp"
        with record(config, folder) as first:
            first.save_text("code.patch", "+ a line")
            first.save_text("class_report.txt", "of the first")
            (first.artifacts / "tensorboard").mkdir()
            (first.artifacts / "tensorboard" / "events").write_text("of the first")
        with pytest.raises(RuntimeError), record(config, folder) as second:
            raise RuntimeError("the data is not there")
        assert {"class_report.txt", "tensorboard"} <= names(first.id)
        assert names(second.id) <= {"config.yaml", "environment.txt", "code.patch"}
        assert not find_run(second.id, config).has("class_report.txt")


def test_a_folder_with_artefacts_of_nobody_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    with inside(tmp_path):
        (tmp_path / "out" / "artifacts").mkdir(parents=True)
        with pytest.raises(RequestError, match="was not made by a run"):
            record(configured(*QUICK), tmp_path / "out").__enter__()
        with pytest.raises(RequestError, match="experiment synthetic has no run"):
            find_run("latest", configured(*QUICK))


def test_what_is_added_to_a_run_brings_nothing_of_the_run_whose_folder_it_is(
    tmp_path: Path,
) -> None:
    with inside(tmp_path):
        config = configured(*QUICK)
        with record(config, tmp_path / "one") as one:
            one.save_text("class_report.txt", "of the first")
        with record(config, tmp_path / "two") as two:
            pass
        recording = reopen(two.id, config.tracking, tmp_path / "one")
        assert recording.written("class_report.txt") is None
        with pytest.raises(RequestError, match=f"is the folder of run {one.id}"):
            recording.save_text("data.txt", "of the second")
        recording.upload()
        assert "class_report.txt" not in names(two.id)
