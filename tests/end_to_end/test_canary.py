"""A secret in every place a user can put one is in no file, row or printed byte afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import DRAWN, free_port, pipeline

pytestmark = pytest.mark.slow

CANARY = "c4n4ry-5ecret-0f-the-test"
WORDS = (
    f"+tracking.tags.token={CANARY}",
    f"+tracking.tags.home=https://me:{CANARY}@host/x",
    f"+tracking.tags.link='https://host/x?api_key={CANARY}'",
    f"sweep.storage=sqlite:///study.db?password={CANARY}",
)
ENVIRONMENT = {"MLFLOW_TRACKING_PASSWORD": CANARY, "MLFLOW_TRACKING_USERNAME": "me"}
LEAN = (*DRAWN, "train.plots=[]", "evaluate.plots=[]", "train.tensorboard=false")


def assert_nowhere(folder: Path, *printed: str) -> None:
    found = [text for text in printed if CANARY in text]
    assert not found, found
    for path in folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
        assert CANARY not in path.name


def test_a_run_and_what_is_made_of_it_leave_no_secret(tmp_path: Path) -> None:
    ran = pipeline(*LEAN, *WORDS[:3], cwd=tmp_path, **ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "mlflow.db").exists()
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)
    kept = next(tmp_path.rglob("overrides.yaml")).read_text()
    assert "tracking.tags.token=***" in kept


def test_a_sweep_leaves_no_secret(tmp_path: Path) -> None:
    ran = pipeline("-m", *LEAN, *WORDS[:3], "seed=0,1", "sweep.keep_models=0", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)


@pytest.mark.parametrize("user", [f"me:{CANARY}", CANARY])
def test_a_store_that_is_down_is_told_without_the_secret(user: str, tmp_path: Path) -> None:
    address = f"http://{user}@127.0.0.1:{free_port()}"
    ran = pipeline(*LEAN, f"tracking.uri={address}", cwd=tmp_path)
    assert ran.returncode == 2
    assert "127.0.0.1" in ran.stderr
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)
    by_environment = pipeline(*LEAN, cwd=tmp_path, MLFLOW_TRACKING_URI=address)
    assert_nowhere(tmp_path, by_environment.stdout, by_environment.stderr)


def test_a_refused_word_is_told_without_the_secret(tmp_path: Path) -> None:
    ran = pipeline(*LEAN, f"dataset.password={CANARY}", f"api_key={CANARY}", cwd=tmp_path)
    assert ran.returncode == 2
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)
