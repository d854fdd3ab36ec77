from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

from pipeline.config.search_path import CONF, extend, files_of, project_folder, searching


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model in its conf/."""
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def extended(main: str) -> list[tuple[str, str]]:
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("main", main)
    extend(path)
    return [(one.provider, one.path) for one in path.get_path()]


def test_the_conf_of_the_current_folder_is_the_users_unless_it_is_the_packaged_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project_folder() == project / "conf"
    monkeypatch.chdir(CONF.parent)
    assert project_folder() is None
    monkeypatch.chdir(project / "conf")
    assert project_folder() is None


def test_the_files_of_a_group_are_those_of_all_folders_once_each(project: Path) -> None:
    (project / "more/model").mkdir(parents=True)
    (project / "more/model/cnn.yaml").touch()
    (project / "more/model/other.yaml").touch()
    names = files_of("model", [project / "more"])
    assert {"cnn", "mine", "other"} <= set(names)
    assert names == sorted(set(names))
    assert files_of("no such group") == []


def test_the_users_folders_are_searched_before_and_after_the_packaged_one(project: Path) -> None:
    hydra, main = ("hydra", "pkg://hydra.conf"), ("main", f"file://{CONF}")
    own, more = ("project", f"file://{project}/conf"), ("command-line", "file:///more")
    with searching(Path("/more")):
        assert extended(f"file://{CONF}") == [hydra, own, main, more]
    assert extended(f"file://{CONF}") == [hydra, own, main]


def test_the_search_path_of_another_application_stays_as_it_is(project: Path) -> None:
    with searching(Path("/more")):
        assert [provider for provider, _ in extended("file:///elsewhere")] == ["hydra", "main"]
