"""Hydra's view of where configuration files are searched; see `pipeline/config/search_path.py`."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PipelineSearchPath(SearchPathPlugin):
    """The `conf/` of the current folder comes before the packaged one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds the user's own folders, if the search path is the pipeline's."""
        from pipeline.config.search_path import extend

        extend(search_path)
