"""Composes configurations from the words of a command line, through Hydra's public interface."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase, getbase
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.schema import PROVIDER
from pipeline.config.search_path import CONF, VERSION_BASE
from pipeline.system.secrets import hide_files, learn, learn_environment

# Hydra keeps its state per process.
one_at_a_time = RLock()


def compose(words: Sequence[str]) -> DictConfig:
    """Composes the whole configuration for these words, including Hydra's own part.

    This works in any folder, in any thread, repeatedly, and inside another Hydra application.

    Raises:
        HydraException: Hydra cannot compose it.
    """
    with (
        apart(),
        initialize_config_dir(config_dir=str(CONF), **VERSION_BASE, job_name="pipeline"),
    ):
        return hydra_compose("config", list(words), return_hydra_config=True)


@contextmanager
def apart() -> Iterator[None]:
    """Sets aside what another application has told Hydra, which keeps it per process.

    Its application, the names of its job and version, and the configurations in its store: Hydra
    would take one of the same name (`config`, `model/mlp`) for the schema of ours.
    """
    with one_at_a_time:
        running, store = GlobalHydra.instance().hydra, ConfigStore.instance()
        stored, job, version = store.repo, JobRuntime.instance().get("name"), getbase()
        store.repo = {name: part for name, part in stored.items() if _is_needed(name, part)}
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = running  # Hydra has replaced the instance
            store.repo, VersionBase.instance().version_base = stored, version
            JobRuntime.instance().set("name", job)


def _is_needed(name: str, stored: Any) -> bool:
    """Whether an entry of Hydra's store is Hydra's own, of its plugins, or the trunk."""
    return name == "hydra" or getattr(stored, "provider", None) in ("hydra", PROVIDER)


@contextmanager
def known_to_hydra(composed: DictConfig) -> Iterator[None]:
    """Makes `${hydra:…}` refer to this configuration, one thread at a time."""
    with one_at_a_time:
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(composed)
        try:
            yield
        finally:
            HydraConfig.instance().cfg = before


class Composer:
    """Composes jobs like `ConfigLoader.load_sweep_config`, in a fifteenth of the time.

    Jobs of a sweep mostly differ in values, not in files. So Hydra composes each choice of files
    once, and the values are set in a copy, as Hydra would set them.
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
        try:
            with read_write(composed):
                for override in overrides:
                    if not self.chooses_a_file(override):
                        OmegaConf.update(composed, override.key_or_group, override.value())
        except OmegaConfBaseException:  # let Hydra raise its own error
            return self._loader.load_sweep_config(self._master, list(words))
        self._note(composed, overrides)
        return composed

    def chooses_a_file(self, override: Override) -> bool:
        """Whether an override chooses a file of a group, anywhere on the search path."""
        key = override.key_or_group
        if override.package is not None:
            return True
        if "." in key:
            return False
        return key not in self._master or OmegaConf.is_dict(self._master[key])

    def _note(self, composed: DictConfig, overrides: Sequence[Override]) -> None:
        """Records the words in the configuration, as Hydra does."""
        own = [str(one.input_line) for one in overrides if not one.is_hydra_override()]
        about_hydra = [one.input_line for one in overrides if one.is_hydra_override()]
        with read_write(composed), open_dict(composed):
            job, noted = composed.hydra.job, composed.hydra.overrides
            noted.hydra = [*self._master.hydra.overrides.hydra, *about_hydra]
            noted.task = own
            form = job.config.override_dirname
            named = (word for word in own if word.partition("=")[0] not in form.exclude_keys)
            line = form.item_sep.join(sorted(named))
            job.override_dirname = line.replace("=", form.kv_sep)


def hide_composed(composed: DictConfig) -> None:
    """Learns the secrets in the configuration, and hides them in the files that Hydra wrote."""
    about = HydraConfig.get()
    learn_environment()
    learn(OmegaConf.to_container(composed, resolve=True))
    learn(list(about.overrides.task))
    kept = Path(about.runtime.output_dir, about.output_subdir or ".hydra")
    hide_files([*kept.glob("*.yaml"), Path(about.sweep.dir, "multirun.yaml")])
