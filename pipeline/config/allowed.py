"""Checks what a configuration would make Hydra do, before Hydra acts on it.

Hydra instantiates callbacks, a sweeper and a launcher, configures logging and sets environment
variables before it calls the pipeline's own function, and it imports a package named in
`hydra.searchpath` while it composes the configuration. Every name that any of these may import is
on a list here; those of the groups (`model._target_`) are in `builders.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from pipeline.config import search_path
from pipeline.config.builders import GROUPS
from pipeline.config.compose import known_to_hydra
from pipeline.config.schema import TRUNK
from pipeline.config.words import words_of
from pipeline.system.errors import RequestError, one_line

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
    "pipeline.system.terminal.LinesFormatter",
)
LOGGING_FACTORIES = ("colorlog.ColoredFormatter",)  # from the plugin hydra-colorlog
STREAMS = ("ext://sys.stderr", "ext://sys.stdout")
SEARCHED_PACKAGES = ("hydra", "hydra_plugins", "pipeline")
# These let a configuration choose what code runs in the processes of a job.
KEPT_VARIABLES = re.compile(r"(LD_|DYLD_|PYTHON|PIPELINE_|HYDRA_|GIT_|BASH_ENV$|PATH$)")
# One opens a pickle, the other removes the package's own files from the search path.
REFUSED_FLAGS = ("--experimental-rerun", "--config-path")
_NAME = "config"  # of the primary configuration file, unless a flag names another
DEEPEST = 40  # levels of nesting; a configuration that contains itself is infinite

Key = tuple[Any, ...]


def check_words(words: Sequence[str], *, multirun: bool) -> None:
    """Composes and checks what Hydra is about to act on, including every file that a sweep tries.

    Flags among the words are written as `words.flags_apart` returns them: `--config-dir=more`.
    Without files of the user and overrides of Hydra's keys this is skipped, because Hydra then acts
    only on the package's own files.

    Raises:
        RequestError: Hydra would import or call something not allowed; names each key. Or the
            user's `conf/` is that of another application.
        HydraException: it cannot be composed.
    """
    name, folder, overrides = _flags_and_overrides(words)
    own = _folders_of_user(folder)
    if not own and not any("hydra" in word or "_target_" in word for word in overrides):
        return
    try:
        with (
            search_path.searching(*own[-1:] if folder else []),
            initialize_config_dir(config_dir=str(search_path.CONF), **search_path.VERSION_BASE),
        ):
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            parsed = parser.parse_overrides(overrides)
            _check_search_path(_searched_by_file(name, [*own, search_path.CONF]), parsed)
            _require_ours()
            fixed = [one for one in parsed if not (multirun and one.is_sweep_override())]
            composed = _composed(name, fixed)
            check_composed(composed)
            if not multirun and composed.hydra.mode is RunMode.MULTIRUN:
                raise RequestError("hydra.mode in a file: leave it out; -m asks for a sweep")
            if multirun:
                kept: Any = OmegaConf.to_container(OmegaConf.select(composed, "sweep.params"))
                tried = parser.parse_overrides([*words_of(kept).values()])
                for one in filter(_chooses_files, [*tried, *parsed]):
                    for value in one.sweep_string_iterator():
                        choice = parser.parse_override(f"{one.get_key_element()}={value}")
                        check_composed(_composed(name, [*fixed, choice]))
    except (UnicodeDecodeError, YAMLError) as error:
        raise RequestError(_damaged(own, error)) from error


def _damaged(folders: Iterable[Path], error: UnicodeDecodeError | YAMLError) -> str:
    """Which configuration file cannot be read, and where."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: this is no YAML: {error.problem}"
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return f"{path}: this is no text in UTF-8; save it as such"
        except OSError:
            continue
    return f"a configuration file cannot be read: {one_line(error)}"


def check_search_path() -> None:
    """Checks only the search path, for a configuration that is composed but not acted on.

    Raises:
        RequestError: `hydra.searchpath` names a package, which Hydra would import.
    """
    _check_search_path(_searched_by_file(_NAME, [*_folders_of_user(None), search_path.CONF]), ())


def check_composed(composed: DictConfig) -> None:
    """Checks a composed configuration, including Hydra's own part.

    Raises:
        RequestError: Hydra would import or call something not allowed; names each key.
    """
    known = composed.copy()
    with read_write(known), open_dict(known):  # these values exist only once a job has started
        known.hydra.runtime.output_dir = known.hydra.runtime.cwd
        known.hydra.job.id, known.hydra.job.num = "0", 0
    with known_to_hydra(known):
        plain = OmegaConf.to_container(known, resolve=False)
        refused = [_refusal(key, value) for key, value in _items(known, plain)]
    if reasons := [reason for reason in refused if reason]:
        raise RequestError("\n".join(reasons))


def _flags_and_overrides(words: Sequence[str]) -> tuple[str, Path | None, list[str]]:
    """The configuration's name, `--config-dir`, and the words that are not flags."""
    flags = dict(word.partition("=")[::2] for word in words if word.startswith("-"))
    if refused := [flag for flag in REFUSED_FLAGS if flag in flags]:
        raise RequestError(f"{refused[0]}: not here; --config-dir=… adds configuration files")
    folder = Path(flags["--config-dir"]).absolute() if "--config-dir" in flags else None
    overrides = [word for word in words if not word.startswith("-")]
    return flags.get("--config-name", _NAME), folder, overrides


def _folders_of_user(given: Path | None) -> list[Path]:
    """The folders of the user's configuration files; `given` is `--config-dir`."""
    if given is not None and not given.is_dir():
        raise RequestError(f"--config-dir={given}: no such folder")
    return [place for place in (search_path.project_folder(), given) if place is not None]


def _composed(name: str, overrides: Sequence[Override]) -> DictConfig:
    """The whole configuration, without overrides that do not fit these files."""
    try:
        return compose(name, [str(one.input_line) for one in overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        about = [one for one in overrides if not _is_value(one)]
        return compose(name, [str(one.input_line) for one in about], return_hydra_config=True)


def _is_value(override: Override) -> bool:
    """Whether it sets a value of ours, rather than choosing a file or setting a key of Hydra."""
    key = override.key_or_group
    return not override.is_hydra_override() and ("." in key or override.is_sweep_override())


def _chooses_files(override: Override) -> bool:
    loader = GlobalHydra.instance().config_loader()
    known = loader.get_group_options(override.key_or_group) or override.package is not None
    return bool(known) and override.is_discrete_sweep()


def _require_ours() -> None:
    """Refuses a `conf/config.yaml` that would be read in place of ours, but lacks its keys."""
    own = search_path.project_folder()
    if own is not None and (file := own / "config.yaml").is_file():
        _require_trunk(file, OmegaConf.select(OmegaConf.load(file), "defaults") or ())


def _require_trunk(file: Path, defaults: Iterable[Any]) -> None:
    if not {TRUNK, f"/{TRUNK}"} & {one for one in defaults if isinstance(one, str)}:
        raise RequestError(
            f"{file}: it is another application's, and would be read in place of the pipeline's; "
            "rename it, or work in another folder. Your own defaults are read from "
            f"{file.parent / 'project' / 'default.yaml'}"
        )


def _searched_by_file(name: str, folders: Iterable[Path]) -> Any:
    """The value of `hydra.searchpath` in the primary configuration file."""
    files = [folder / f"{name.removesuffix('.yaml')}.yaml" for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    return found and OmegaConf.select(OmegaConf.load(found), "hydra.searchpath")


def _check_search_path(by_file: Any, overrides: Iterable[Override]) -> None:
    """Checks that `hydra.searchpath`, in words and in the primary file, names only folders."""
    by_words = [
        one.value()
        for one in overrides
        if one.key_or_group == "hydra.searchpath" and not one.is_delete()
    ]
    wanted = [by_file, *by_words]
    for place in (str(place) for places in wanted if places is not None for place in places):
        scheme, separator, rest = place.partition("://")
        package = re.split(r"[./]", rest)[0]
        if separator and scheme != "file" and package not in SEARCHED_PACKAGES:
            raise RequestError(
                f"hydra.searchpath: {place} would be imported; name a folder instead"
            )


def _items(composed: DictConfig, value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yields every value with its key; references are resolved."""
    if len(key) > DEEPEST:
        raise RequestError(f"{_dotted(key[:3])}: is nested without end; does it refer to itself?")
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
        return value  # Hydra does not act on it before it is resolved
    return OmegaConf.to_container(found, resolve=False) if OmegaConf.is_config(found) else found


def _refusal(key: Key, value: Any) -> str | None:
    """Why a value is refused, None if it is allowed."""
    name, last = _dotted(key), key[-1]
    allowed: Iterable[str] | None = None
    if key[:2] == ("hydra", "callbacks") and len(key) == 3:
        return f"{name}: a callback has a _target_; choose one of {', '.join(CALLBACKS)}"
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
        return f"{name}: cannot be set by a configuration; set it where you start the command"
    if allowed is None or value in allowed:
        return None
    return f"{name}: {value!r} is not allowed; " + (
        f"choose one of {', '.join(allowed)}" if allowed else "take it out"
    )


def _allowed_targets(place: Key) -> list[str]:
    """The targets allowed under a key of the configuration outside our groups."""
    kinds: dict[Key, Any] = {("hydra", "sweeper"): Sweeper, ("hydra", "launcher"): Launcher}
    if place in kinds:
        plugins = Plugins.instance().discover(kinds[place])
        return sorted(f"{plugin.__module__}.{plugin.__name__}" for plugin in plugins)
    return [*CALLBACKS] if len(place) == 3 and place[:2] == ("hydra", "callbacks") else []


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))
