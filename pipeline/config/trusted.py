"""The user's own modules, whose builders, metrics and plots a configuration may name.

`trusted_modules=[my_models]` allows `model._target_=my_models.tiny`. Trust belongs to this process,
and each of its threads has its own: it comes from the command line, the `conf/` of the current
folder or PIPELINE_TRUSTED_MODULES, never from a recorded run. A module is imported only when it is
trusted and used, or when a saved model needs a class that trusted modules may define.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import operator
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pipeline.system.errors import RequestError, one_line
from pipeline.system.imports import exempting
from pipeline.system.terminal import native_messages_to

VARIABLE = "PIPELINE_TRUSTED_MODULES"
SETTING = "trusted_modules"

_own = threading.local()  # `modules` that the thread trusts
_latest: list[str] = []  # those of the thread that said so last, for threads that have not
_ever: set[str] = set()
# Of each module that was imported: its specification and those within it, and the source then.
_read: dict[str, tuple[list[ModuleSpec | None], dict[str, bytes]]] = {}


def trust(modules: Iterable[str]) -> list[str]:
    """Trusts only these modules and those of PIPELINE_TRUSTED_MODULES; returns all of them.

    A trusted package includes its modules.

    Raises:
        RequestError: one is not a valid name of a module, is found neither in the current folder
            nor among the installed packages, or is the program itself.
    """
    more = re.split(r"[\s,]+", os.environ.get(VARIABLE, ""))
    named = [*dict.fromkeys([*modules, *filter(None, more)])]
    for name in named:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            raise RequestError(f"{SETTING}: {name!r} is not a valid module name; write [my_models]")
        if _top(name) == "__main__":
            raise RequestError(
                f"{SETTING}: the source of a notebook or program cannot be recorded; move its "
                "functions to a module, my_models.py, and name that"
            )
        if _top(name) not in sys.modules and not _found(_top(name)):
            here = sorted(path.stem for path in Path.cwd().glob("[!_]*.py"))
            raise RequestError(
                f"{SETTING}: no module {name} in {Path.cwd()} or installed; "
                f"{'modules here: ' + ', '.join(here) if here else 'there is no module here'}"
            )
    _trust_now(named)
    _ever.update(named)
    return named


def trust_again(modules: Iterable[str]) -> None:
    """Trusts, beside those that are trusted now, the modules that this process has trusted before.

    Another configuration may have been composed since; one that was recorded cannot add any.
    """
    known = (name for name in modules if any(_is_within(name, one) for one in _ever))
    _trust_now(dict.fromkeys([*trusted(), *known]))


def _trust_now(modules: Iterable[str]) -> None:
    _own.modules = _latest[:] = [*modules]


def trusted() -> list[str]:
    """The modules that are trusted now, by this thread or, if it has not said, by the latest."""
    return [*getattr(_own, "modules", _latest)]


def is_trusted(target: str) -> bool:
    """Whether a dotted name belongs to a trusted module."""
    return any(target.startswith(f"{module}.") for module in trusted())


def checked_function(target: str) -> Callable[..., Any]:
    """As `trusted_function`, for the check of a configuration: the import shows nothing.

    A module may import TensorFlow, whose native library prints messages. Its source is read at
    once, since the file may be edited before a run records it.
    """
    module = target.rpartition(".")[0]
    loaded = "tensorflow" in sys.modules or module in sys.modules
    with nullcontext() if loaded else native_messages_to(Path(os.devnull)):
        function = trusted_function(target)
    sources(one for one in trusted() if _is_within(module, one))
    return function


def trusted_function(target: str) -> Callable[..., Any]:
    """The function with that dotted name; imports its module unless that has been done.

    Raises:
        RequestError: its module is not trusted or cannot be imported, or defines no such function.
    """
    module, _, name = target.rpartition(".")
    if not is_trusted(target):
        raise RequestError(untrusted(target))
    known = _defined_in(_imported(module))
    if name not in known:
        raise RequestError(
            f"{target}: {module} defines no function {name}; it has {', '.join(known) or 'none'}"
        )
    return known[name]


def untrusted(target: str) -> str:
    """Advice on how to use a dotted name whose module is not trusted."""
    module = target.rpartition(".")[0]
    return (
        f"{target} is code that is not part of the pipeline; if you trust the module {module}, "
        f"add {SETTING}=[{module}]"
    )


def public_functions(module: str) -> dict[str, Callable[..., Any]]:
    """The public functions that a module of the pipeline defines itself."""
    if _top(module) != _top(__name__):
        raise ValueError(f"{module} is no module of the pipeline")
    return _defined_in(importlib.import_module(module))


def _defined_in(module: ModuleType) -> dict[str, Callable[..., Any]]:
    # Not inspect.getmembers, whose isinstance check would load a lazy Keras.
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) is FunctionType and value.__module__ == module.__name__ and name[0] != "_"
    }


def checksums(modules: Iterable[str]) -> dict[str, str]:
    """SHA-256 (hex) of the source of each module; for a package, of all its files."""
    sums = {}
    for module in modules:
        digest = hashlib.sha256()
        for name, content in sorted(sources([module]).items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        sums[module] = digest.hexdigest()
    return sums


def sources(modules: Iterable[str]) -> dict[str, bytes]:
    """The source of modules by path: `my_models.py`, `my_package/models.py`.

    Of a module that is imported, it is what was read then: the file may have been edited since, and
    its code runs only after `importlib.reload`.
    """
    files: dict[str, bytes] = {}
    for module in modules:
        loaded = {k: one for k, one in sys.modules.copy().items() if _is_within(k, module)}
        specs = [loaded[name].__spec__ for name in sorted(loaded)]
        known, source = _read.get(module, ([], {}))
        if not specs or len(known) != len(specs) or any(map(operator.is_not, known, specs)):
            source = _files_of(module)
            _read[module] = specs, source  # a reload makes another specification
        files |= source
    return files


def _files_of(module: str) -> dict[str, bytes]:
    with _current_folder_on_path():
        try:
            spec = importlib.util.find_spec(module)
        except ValueError:  # made by a program, without a file
            return {}
    path = Path(spec.origin) if spec and spec.origin else None
    if path is None or path.suffix != ".py":
        return {}  # built in, compiled, or a package without an __init__
    base = module.replace(".", "/")
    if spec and spec.submodule_search_locations:
        inside = path.parent.rglob("*.py")
        return {f"{base}/{one.relative_to(path.parent)}": one.read_bytes() for one in inside}
    return {f"{base}.py": path.read_bytes()}


def _is_within(name: str, module: str) -> bool:
    """Whether a dotted name is that of a module, or begins with it."""
    return f"{name}.".startswith(f"{module}.")


def import_trusted(module: str, *, until: Callable[[], bool]) -> None:
    """Imports trusted modules, first that of the name `module`, until a condition is met.

    Modules register classes of Keras when they are imported; only then can these be loaded.

    Raises:
        RequestError: `module` cannot be imported, and the condition is not met.
    """
    runs = module.endswith("__main__")  # the program, when it is imported
    named = [module] if is_trusted(f"{module}.") and not runs else []
    failed: dict[str, RequestError] = {}
    for one in dict.fromkeys([*named, *trusted()]):
        if until():
            return
        try:
            _imported(one)
        except RequestError as error:  # another may define it
            failed[one] = error
    if not until() and module in failed:
        raise failed[module]


def _imported(module: str) -> ModuleType:
    if not is_trusted(f"{module}."):
        raise RequestError(untrusted(f"{module}."))
    try:
        with _current_folder_on_path(), nullcontext() if module in sys.modules else exempting():
            return importlib.import_module(module)
    except Exception as error:
        raise RequestError(f"{SETTING}: {module} cannot be imported: {one_line(error)}") from error


def _found(module: str) -> bool:
    with _current_folder_on_path():
        return importlib.util.find_spec(module) is not None


def _top(module: str) -> str:
    return module.partition(".")[0]


@contextmanager
def _current_folder_on_path() -> Iterator[None]:
    """Puts the current folder on sys.path; `python -m` does so itself."""
    here = ""  # Python's name for it
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # files may be new since the last import
    try:
        yield
    finally:
        sys.path.remove(here)
