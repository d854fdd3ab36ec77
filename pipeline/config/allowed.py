"""What a configuration may make Hydra do: checked before Hydra acts on it.

Hydra instantiates callbacks, a sweeper and a launcher, sets up logging and sets environment
variables before the pipeline's own function is called, and a package named in `hydra.searchpath` is
imported while the configuration is still composed. Every name that any of these would import stands
on a list here; those of the groups (`model._target_`) stand in `builders.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import search
from pipeline.config.builders import GROUPS
from pipeline.system.errors import RequestError

CALLBACKS = ("hydra.experimental.callbacks.LogJobReturnCallback",)
LOGGING = ("hydra.hydra_logging", "hydra.job_logging")
LOGGING_CLASSES = (
    "logging.Formatter",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.StreamHandler",
    "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
    "logging.handlers.WatchedFileHandler",
    "rich.logging.RichHandler",
)
LOGGING_FACTORIES = ("colorlog.ColoredFormatter",)  # of the plugin hydra-colorlog
STREAMS = ("ext://sys.stderr", "ext://sys.stdout")
SEARCHED_PACKAGES = ("hydra", "hydra_plugins", "pipeline")
# With these, whoever writes the configuration chooses what is run in the processes of a job.
KEPT_VARIABLES = re.compile(r"(LD_|DYLD_|PYTHON|PIPELINE_|HYDRA_|GIT_|BASH_ENV$|PATH$)")
# One opens a pickle, the other takes the package's own files out of the search.
REFUSED_FLAGS = ("--experimental-rerun", "--config-path", "-cp")
DEEPEST = 40  # groups within groups; a configuration that holds itself goes on for ever

Key = tuple[Any, ...]


def check_words(words: Sequence[str], *, multirun: bool) -> None:
    """Composes what Hydra is about to act on and checks it, with every file that a sweep tries.

    Nothing is composed where nothing could be wrong: without files of the user's own and without a
    word about Hydra, all that Hydra acts on is the package's own.

    Raises:
        RequestError: naming each key that would have Hydra import or call what is not allowed.
        HydraException: it cannot be composed.
    """
    name, folder, overrides = _flags_and_overrides(words)
    own = [place for place in (search.project_folder(), folder) if place is not None]
    if not own and not any("hydra" in word or "_target_" in word for word in overrides):
        return
    with (
        search.searching(*own[-1:] if folder else []),
        initialize_config_dir(config_dir=str(search.CONF), version_base="1.3"),
    ):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(overrides)
        _check_search_path(name, [*own, search.CONF], parsed)
        fixed = [one for one in parsed if not (multirun and one.is_sweep_override())]
        composed = _composed(name, fixed)
        check_composed(composed)
        if multirun:
            kept = OmegaConf.select(composed, "sweep.params") or {}
            tried = parser.parse_overrides([f"{key}={value}" for key, value in kept.items()])
            for one in filter(_chooses_files, [*tried, *parsed]):
                for value in one.sweep_string_iterator():
                    choice = parser.parse_override(f"{one.get_key_element()}={value}")
                    check_composed(_composed(name, [*fixed, choice]))


def check_search_path(words: Sequence[str]) -> None:
    """Checks alone what is imported while a configuration is composed that is not acted on.

    Raises:
        RequestError: `hydra.searchpath` names a package.
    """
    name, folder, overrides = _flags_and_overrides(words)
    own = [place for place in (search.project_folder(), folder) if place is not None]
    parsed = OverridesParser.create().parse_overrides(overrides)
    _check_search_path(name, [*own, search.CONF], parsed)


def check_composed(composed: DictConfig) -> None:
    """Checks a composed configuration, Hydra's own part of it included.

    Raises:
        RequestError: naming each key that would have Hydra import or call what is not allowed.
    """
    before = HydraConfig.instance().cfg
    known = composed.copy()
    with read_write(known), open_dict(known):  # what is known only when a job starts
        known.hydra.runtime.output_dir = known.hydra.runtime.cwd
        known.hydra.job.id, known.hydra.job.num = "0", 0
    HydraConfig.instance().set_config(known)
    try:
        plain = OmegaConf.to_container(known, resolve=False)
        refused = [_refusal(key, value) for key, value in _items(known, plain)]
    finally:
        HydraConfig.instance().cfg = before
    if reasons := [reason for reason in refused if reason]:
        raise RequestError("\n".join(reasons))


def _flags_and_overrides(words: Sequence[str]) -> tuple[str, Path | None, list[str]]:
    """Config's name, `--config-dir`, and the words that are no flags."""
    name, folder, overrides = "config", None, []
    remaining = iter(words)
    for word in remaining:
        flag, equals, value = word.partition("=")
        if flag in REFUSED_FLAGS:
            raise RequestError(f"{flag}: not here; --config-dir=… adds configuration files")
        if flag in ("--config-name", "-cn", "--config-dir", "-cd"):
            value = value if equals else next(remaining, "")
            if flag in ("--config-name", "-cn"):
                name = value
            else:
                folder = Path(value).absolute()
        elif flag in ("--cfg", "-c", "--package", "-p") and not equals:
            next(remaining, None)
        elif (not word.startswith("-") and "=" in word) or word.startswith("~"):
            overrides.append(word)
    if folder is not None and not folder.is_dir():
        raise RequestError(f"--config-dir={folder}: no such folder")
    return name, folder, overrides


def _composed(name: str, overrides: Sequence[Override]) -> DictConfig:
    """All of the configuration; without the values of it that do not fit these files."""
    try:
        return compose(name, [str(one.input_line) for one in overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        about = [one for one in overrides if not _is_value(one)]
        return compose(name, [str(one.input_line) for one in about], return_hydra_config=True)


def _is_value(override: Override) -> bool:
    """Whether it sets a value of ours, rather than choosing a file or saying what Hydra does."""
    key = override.key_or_group
    return not override.is_hydra_override() and ("." in key or override.is_sweep_override())


def _chooses_files(override: Override) -> bool:
    loader = GlobalHydra.instance().config_loader()
    known = loader.get_group_options(override.key_or_group) or override.package is not None
    return bool(known) and override.is_discrete_sweep()


def _check_search_path(name: str, folders: Iterable[Path], overrides: Iterable[Override]) -> None:
    """`hydra.searchpath`, on the command line and in the primary file, names folders alone."""
    wanted: list[Any] = []
    files = [folder / f"{name.removesuffix('.yaml')}.yaml" for folder in folders]
    if found := next((file for file in files if file.is_file()), None):
        wanted.append(OmegaConf.select(OmegaConf.load(found), "hydra.searchpath"))
    wanted += [
        one.value()
        for one in overrides
        if one.key_or_group == "hydra.searchpath" and not one.is_delete()
    ]
    for place in (str(place) for places in wanted if places is not None for place in places):
        scheme, separator, rest = place.partition("://")
        package = re.split(r"[./]", rest)[0]
        if separator and scheme != "file" and package not in SEARCHED_PACKAGES:
            raise RequestError(
                f"hydra.searchpath: {place} would be imported; name a folder instead"
            )


def _items(composed: DictConfig, value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value by its key; where one refers to another, what it refers to."""
    if len(key) > DEEPEST:
        raise RequestError(f"{_dotted(key[:3])}: goes on for ever; does it refer to itself?")
    if isinstance(value, str) and "${" in value:
        value = _resolved(composed, value, key)
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for name, one in inside:
            yield from _items(composed, one, (*key, name))
    else:
        yield key, value


def _resolved(composed: DictConfig, value: str, key: Key) -> Any:
    try:
        found = reduce(lambda inside, name: inside[name], key, composed)
    except OmegaConfBaseException as error:
        if _dotted(key).startswith((*LOGGING, "hydra.callbacks")) or key[-1] == "_target_":
            raise RequestError(f"{_dotted(key)}: {value} cannot be resolved: {error}") from error
        return value  # nobody acts on it before it is asked for
    return OmegaConf.to_container(found, resolve=False) if OmegaConf.is_config(found) else found


def _refusal(key: Key, value: Any) -> str | None:
    """Why a value is refused, if it is."""
    name, last = _dotted(key), key[-1]
    allowed: Iterable[str] | None = None
    if last == "_target_" and not (len(key) == 2 and key[0] in GROUPS):  # theirs are checked later
        allowed = _allowed_targets(key[:-1])
    elif name.startswith(LOGGING):
        if last == "class":
            allowed = LOGGING_CLASSES
        elif last == "()":
            allowed = LOGGING_FACTORIES
        elif isinstance(value, str) and value.startswith("ext://"):
            allowed = STREAMS
        elif "." in key:
            allowed = ()
    elif key[:3] == ("hydra", "job", "env_set") and KEPT_VARIABLES.match(str(last)):
        return f"{name}: is not set by a configuration; set it where you start the command"
    if allowed is None or value in allowed:
        return None
    return f"{name}: {value!r} is not allowed; " + (
        f"choose one of {', '.join(allowed)}" if allowed else "take it out"
    )


def _allowed_targets(place: Key) -> list[str]:
    """The targets that may stand at a place of the configuration other than a group of ours."""
    kinds: dict[Key, Any] = {("hydra", "sweeper"): Sweeper, ("hydra", "launcher"): Launcher}
    if place in kinds:
        plugins = Plugins.instance().discover(kinds[place])
        return sorted(f"{plugin.__module__}.{plugin.__name__}" for plugin in plugins)
    return [*CALLBACKS] if len(place) == 3 and place[:2] == ("hydra", "callbacks") else []


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))
