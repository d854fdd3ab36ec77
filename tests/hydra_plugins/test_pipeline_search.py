from __future__ import annotations

from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from hydra_plugins.pipeline_search import PipelineSearchPath
from pipeline.config.search_path import CONF, searching


def test_hydra_finds_the_plugin() -> None:
    found = {kind.__name__ for kind in Plugins.instance().discover(SearchPathPlugin)}
    assert PipelineSearchPath.__name__ in found  # Hydra imports the file a second time


def test_the_users_folders_join_the_search_path_of_the_pipeline() -> None:
    path = ConfigSearchPathImpl()
    path.append("main", f"file://{CONF}")
    with searching(CONF.parent / "more"):
        PipelineSearchPath().manipulate_search_path(path)
    assert path.get_path()[-1].path == f"file://{CONF.parent / 'more'}"
