from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.training.programs import keep_programs
from tests.commands import QUICK, pipeline

pytestmark = pytest.mark.slow


def trained(data: Path) -> None:
    """With XLA and in a process of its own, for TensorFlow heeds the place only once."""
    arguments = (*QUICK, "train.xla=true", "train.plots=[]", f"data_dir={data}")
    done = pipeline("train", *arguments, cwd=data.parent)
    assert done.returncode == 0, done.stderr


def programs(data: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in data.glob("xla/*/*.pb")}


def test_programs_are_kept_beside_the_data_and_used_again_and_rebuilt_when_damaged(
    tmp_path: Path,
) -> None:
    data = tmp_path / "my data"
    trained(data)
    first = programs(data)
    assert first
    assert all(path.parent.stat().st_mode & 0o777 == 0o700 for path in first)
    trained(data)
    assert programs(data) == first
    for path in first:
        path.write_bytes(b"damaged")
    trained(data)
    assert len(programs(data)) == len(first)
    assert b"damaged" not in programs(data).values()


def test_programs_into_which_others_could_write_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    keep_programs(tmp_path)
    [folder] = tmp_path.iterdir()
    assert os.environ["TF_XLA_FLAGS"].endswith(f'="{folder}"')
    folder.chmod(0o777)
    monkeypatch.delenv("TF_XLA_FLAGS")
    keep_programs(tmp_path)
    assert "TF_XLA_FLAGS" not in os.environ


def test_without_a_place_for_programs_xla_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    (tmp_path / "taken").write_text("")
    keep_programs(tmp_path / "taken")
    assert "TF_XLA_FLAGS" not in os.environ


def test_a_place_for_programs_that_the_user_chose_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = "--tf_xla_persistent_cache_directory=/elsewhere"
    monkeypatch.setenv("TF_XLA_FLAGS", chosen)
    keep_programs(tmp_path)
    assert os.environ["TF_XLA_FLAGS"] == chosen
