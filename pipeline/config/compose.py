"""Configurations that Hydra would compose more often than is needed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.hydra import Hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from pipeline.system.secrets import hide_files, learn, learn_environment


def compose_once() -> None:
    """Keeps Hydra from composing all of the configuration to ask only whether it is a sweep: 0.2 s.

    For commands that are none, whatever `hydra.mode` a file may hold.
    """
    Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]


class Composer:
    """Composes what `ConfigLoader.load_sweep_config` would, in a fifth of the time.

    Jobs of a sweep mostly have other values, not other files. So what chooses files is composed by
    Hydra once, and the values are set in a copy, as Hydra sets them.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._parser = OverridesParser.create(config_loader=loader)
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, words: Sequence[str]) -> DictConfig:
        """The configuration for the words of a command line.

        Raises:
            HydraException: Hydra cannot compose it.
        """
        overrides = self._parser.parse_overrides(list(words))
        if any(override.type != OverrideType.CHANGE for override in overrides):
            return self._loader.load_sweep_config(self._master, list(words))
        files = tuple(str(one.input_line) for one in overrides if self.chooses_a_file(one))
        if files not in self._bases:
            self._bases[files] = self._loader.load_sweep_config(self._master, list(files))
        composed = copy.deepcopy(self._bases[files])
        values = [override for override in overrides if not self.chooses_a_file(override)]
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        self._note(composed, overrides)
        return composed

    def chooses_a_file(self, override: Override) -> bool:
        """Whether an override chooses a file of a group, wherever on the search path that lies."""
        key = override.key_or_group
        if "." in key:
            return False
        return key not in self._master or OmegaConf.is_dict(self._master[key])

    def _note(self, composed: DictConfig, overrides: Sequence[Override]) -> None:
        """Notes in the configuration which words made it, as Hydra does."""
        own = [override for override in overrides if not override.is_hydra_override()]
        about_hydra = [one.input_line for one in overrides if one.is_hydra_override()]
        job, words = composed.hydra.job, composed.hydra.overrides
        words.hydra = [*self._master.hydra.overrides.hydra, *about_hydra]
        words.task = [override.input_line for override in own]
        job.override_dirname = get_overrides_dirname(
            overrides=own,
            kv_sep=job.config.override_dirname.kv_sep,
            item_sep=job.config.override_dirname.item_sep,
            exclude_keys=job.config.override_dirname.exclude_keys,
        )


def hide_composed(composed: DictConfig) -> None:
    """Finds what is secret in the configuration, and takes it out of the files of Hydra's."""
    about = HydraConfig.get()
    learn_environment()
    learn(OmegaConf.to_container(composed, resolve=True))
    learn(list(about.overrides.task))
    kept = Path(about.runtime.output_dir, about.output_subdir or ".hydra")
    hide_files([*kept.glob("*.yaml"), Path(about.sweep.dir, "multirun.yaml")])
