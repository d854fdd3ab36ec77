from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.named_runs import names_runs, teacher_runs, weights_run
from pipeline.system.errors import RequestError
from tests.commands import configured

LITE = "model=efficientnet_lite0"


@pytest.mark.parametrize(
    ("words", "run", "needs"),
    [
        ("model=linear", None, False),
        (LITE, None, False),
        (f"{LITE} model.weights=abcd1234", "abcd1234", True),
        (f"{LITE} model.weights=abcd1234.keras", None, False),
        (f"{LITE} model.weights=abc", None, False),
        (f"{LITE} model.weights=null model.trainable=all", None, False),
        ("train.teacher=abcd1234", None, True),
    ],
)
def test_a_run_is_named_by_its_id(words: str, run: str | None, needs: bool) -> None:
    config = configured(*words.split())
    assert (weights_run(config), names_runs(config)) == (run, needs)


def test_teachers_are_one_run_or_several() -> None:
    assert teacher_runs(configured()) == ()
    assert teacher_runs(configured("train.teacher=12e4")) == ("12e4",)
    assert teacher_runs(configured("train.teacher=[12e4,abcd]")) == ("12e4", "abcd")
    for wrong in ("[]", "[abcd,[abce]]"):
        with pytest.raises(RequestError, match=r"^train.teacher: must be a text, or a list of"):
            configured(f"train.teacher={wrong}")


def test_a_file_whose_name_could_be_an_id_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abcd1234").touch()
    assert weights_run(configured(LITE, "model.weights=abcd1234")) is None
