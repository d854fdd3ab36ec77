"""The search path of configuration files: the current folder's `conf/`, then the packaged one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery

# In a checkout conf/ is beside the package; when installed, it is inside the package.
_PLACES = (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf")
CONF = next((place for place in _PLACES if place.is_dir()), _PLACES[0]).resolve()

# Hydra 1.4 deprecates `version_base`; without it, 1.3 would behave like 1.1.
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}

_more: list[Path] = []


def project_folder() -> Path | None:
    """The `conf/` of the current folder, unless it is the packaged one or does not exist."""
    own = Path.cwd() / "conf"
    return own if own.is_dir() and own.resolve() != CONF else None


def files_of(group: str, more: Iterable[Path] = ()) -> list[str]:
    """The names of a group's files, in `conf/`, in the project's own and in `more` folders."""
    places = [CONF, project_folder(), *more]
    found = (place.glob(f"{group}/*.yaml") for place in places if place is not None)
    return sorted({file.stem for files in found for file in files})


@contextmanager
def searching(*folders: Path) -> Iterator[None]:
    """Searches `folders` after all others, like Hydra's `--config-dir`."""
    _more.extend(folders)
    try:
        yield
    finally:
        del _more[len(_more) - len(folders) :]


def extend(search_path: ConfigSearchPath) -> None:
    """Adds the user's folders to Hydra's search path, if it is the one of this package."""
    main = [one.path for one in search_path.get_path() if one.provider == "main"]
    if not main or Path(main[0].removeprefix("file://")) != CONF:
        return  # another application's
    if own := project_folder():
        anchor = SearchPathQuery(provider="main")
        search_path.prepend("project", f"file://{own}", anchor=anchor)
    for folder in _more:
        search_path.append("command-line", f"file://{folder}")
