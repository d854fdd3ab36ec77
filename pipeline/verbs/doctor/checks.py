"""Checks what a run needs: Python, libraries, hardware, TensorFlow, data, disk."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.filesize import decimal

from pipeline.config.messages import error_line
from pipeline.config.schema import Config
from pipeline.data import cache, datasets
from pipeline.data.load import raw_folder
from pipeline.data.sources import IdxDataset
from pipeline.system.errors import RequestError, first_line, first_of
from pipeline.system.processes import memory_limit
from pipeline.tracking import lineage
from pipeline.verbs.doctor.findings import Finding, ok, problem, warning
from pipeline.verbs.doctor.leftovers import deletion, entries_in

PROBE_S = 90.0  # to import TensorFlow: it takes 5 s, or 25 s cold and without compiled bytecode
SLOW_S = 20.0
NAMED_AT_MOST = 8  # differing libraries
LOW_GB, FULL_GB = 5.0, 0.5  # free disk space; a run of the default model writes 0.03
LOW_MEMORY_GB = 1.5  # available memory; a run of the default model needs 1.2
# Without a Python, .venv is made anew, with all that was installed by `make gpu` and the like.
SET_UP = "rm -rf .venv/bin && make setup"
# What an installed package says: there is no Makefile, and another project's .venv must stay.
INSTALL = f"pip install {lineage.PACKAGE}"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_SHOWN_GPUS = "CUDA_VISIBLE_DEVICES"  # CUDA shows those that it lists, up to the first wrong one
_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


def check_versions(root: Path = lineage.ROOT) -> Iterator[Finding]:
    """Compares Python and the installed libraries with what the project and its lock require."""
    if is_checkout(root):
        asked = tomllib.loads((root / "pyproject.toml").read_text())["project"]["requires-python"]
        wanted, named = (root / "requirements.lock").read_text(), "requirements.lock pins them"
        mend, other_python = _set_up(root), "make setup PYTHON=python3.12"
    else:
        asked = metadata(lineage.PACKAGE)["Requires-Python"]
        wanted = "\n".join(requires(lineage.PACKAGE) or ())
        named = f"{lineage.PACKAGE} {lineage.own_version()} asks for"
        mend, other_python = INSTALL, "install it with another Python, such as python3.12"
    running = f"Python {platform.python_version()} ({sys.executable})"
    if platform.python_version() in SpecifierSet(asked):
        yield ok("python", running)
    else:
        yield problem("python", f"{running}; {asked} is required", other_python)
    yield from libraries(wanted, named, mend)


def is_checkout(root: Path) -> bool:
    """Whether `make` can set up the environment; else the package is installed."""
    return (root / "requirements.lock").exists()


def _set_up(root: Path) -> str:
    """How to make `.venv` anew; the environment of another folder, which a link leads to, stays."""
    venv = root / ".venv"
    made = venv / ".ready"  # says for which folder
    if venv.is_symlink() and made.is_file() and f", for {root.resolve()}\n" not in made.read_text():
        return "rm .venv && make setup"
    return SET_UP


def libraries(
    wanted: str, named: str = "requirements.lock pins them", mend: str = SET_UP
) -> Iterator[Finding]:
    """Compares installed distributions with `wanted`: one requirement per line, as in a lock."""
    pins = [Requirement(line.rstrip(" \\")) for line in wanted.splitlines() if line[:1].isalnum()]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"extra": ""})]
    found = {pin.name: _installed(pin.name) for pin in pins}
    missing = [pin.name for pin in pins if found[pin.name] is None]
    differing = [
        f"{pin.name} {here}, {_asked(pin)}"
        for pin in pins
        if (here := found[pin.name]) and here not in pin.specifier
    ]
    if missing:
        told = first_of(missing, NAMED_AT_MOST, separator="; ")
        yield problem("libraries", f"not installed: {told}", mend)
    if differing:
        told = first_of(differing, NAMED_AT_MOST, separator="; ")
        yield warning("libraries", f"different from the tested versions: {told}", mend)
    if not missing and not differing:
        shown = ", ".join(f"{name} {found[name]}" for name in lineage.NAMED if found.get(name))
        yield ok("libraries", f"all {len(pins)} as {named}: {shown}")


def _asked(pin: Requirement) -> str:
    asked = str(pin.specifier)
    return f"pinned {asked.removeprefix('==')}" if asked.startswith("==") else f"asked for {asked}"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except (PackageNotFoundError, KeyError):  # KeyError: its metadata is damaged
        return None


def check_hardware() -> Iterator[Finding]:
    """Reports the processor, the cores that this process may use, and memory."""
    facts, memory = lineage.hardware(), psutil.virtual_memory()
    free_gb, limit = memory.available / 1e9, memory_limit()
    says = "{cpu}, {cores} cores, {memory_gb} GB of memory".format(**facts)
    says += f", {free_gb:.1f} GB of it available"
    if limit < memory.total:
        says += f"; a container or the like limits it to {limit / 1e9:.1f} GB"
    if limit / 1e9 < LOW_MEMORY_GB:
        yield warning("hardware", says, "raise that limit: a run needs 1.2 GB and its data")
    elif free_gb < LOW_MEMORY_GB:
        yield warning("hardware", says, "end other programs: a run needs 1.2 GB and its data")
    else:
        yield ok("hardware", says)


def check_threads(environment: Mapping[str, str], cores: int) -> Iterator[Finding]:
    """Compares thread settings in the environment with the cores that this process may use."""
    given = {name: environment[name] for name in _THREADS if environment.get(name)}
    says = ", ".join(f"{name}={value}" for name, value in given.items())
    wrong = [name for name, value in given.items() if not value.isdigit() or int(value) > cores]
    if wrong:
        mend = f"unset {' '.join(wrong)}"
        yield warning("threads", f"{says}; there are {cores} cores", mend)
    else:
        yield ok("threads", says or f"one per core ({cores})")


@contextmanager
def probing(
    command: Iterable[str] = ("-m", "pipeline.verbs.doctor.probe"),
) -> Iterator[subprocess.Popen[str]]:
    """Imports TensorFlow in a separate process during the block; ends that process with it."""
    path = [str(lineage.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def tensorflow(
    probe: subprocess.Popen[str], seconds: float = PROBE_S, root: Path = lineage.ROOT
) -> Iterator[Finding]:
    """Reports whether TensorFlow could be imported, and the GPUs that it sees."""
    anew = _set_up(root) if is_checkout(root) else _tensorflow_anew()
    try:
        out, err = probe.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        says = f"its import took more than {seconds:g} s"
        mend = f"end other programs and try again; if that does not help: {anew}"
        yield problem("tensorflow", says, mend)
        return
    if probe.returncode:
        told = [line for line in err.splitlines() if line.strip()] or [""]
        died = f"killed by signal {-probe.returncode}" if probe.returncode < 0 else told[-1].strip()
        yield problem("tensorflow", f"cannot be imported: {died or 'no reason given'}", anew)
        return
    facts = json.loads(first_line(out.splitlines()[-1]))
    says = f"{facts['version']} works; imported in {facts['import_s']} s"
    if facts["import_s"] > SLOW_S:
        compile_all = shlex.join([sys.executable, "-m", "compileall", "-q", sys.prefix])
        yield warning("tensorflow", f"{says}, which is slow", f"{compile_all} (if it stays slow)")
    else:
        yield ok("tensorflow", says)
    add = "make gpu" if is_checkout(root) else f"pip install '{lineage.PACKAGE}[gpu]'"
    yield from _gpus(facts["gpus"], add)


def _tensorflow_anew() -> str:
    here = _installed("tensorflow")
    return f"pip install --force-reinstall tensorflow=={here}" if here else INSTALL


def _gpus(seen: list[str], add: str) -> Iterator[Finding]:
    """The GPUs that TensorFlow has `seen`; the command `add` installs what it may lack."""
    if seen:
        yield ok("gpu", ", ".join(seen))
    elif NVIDIA_DRIVER.exists():
        yield _unseen(os.environ.get(_SHOWN_GPUS), add)
    else:
        yield ok("gpu", "none")


def _unseen(shown: str | None, add: str) -> Finding:
    """Why TensorFlow sees no GPU despite a driver, if CUDA was told to show these."""
    says = "an NVIDIA driver is installed, but TensorFlow sees no GPU"
    if shown is None or re.match(r"\s*(\d|GPU-|MIG-)", shown):
        return warning("gpu", says, add)
    hides = f"{_SHOWN_GPUS}={shown!r} hides all"
    return warning("gpu", f"{says}: {hides}", f"unset {_SHOWN_GPUS}")


def data(config: Config) -> Iterator[Finding]:
    """Checks each cached data set against its checksums, and that the chosen one is available."""
    data_dir = Path(config.data_dir)
    entries = entries_in(data_dir)
    for folder in sorted({entry.parent for entry in entries}):
        name = folder.relative_to(data_dir).as_posix()
        yield from _cached(name, folder, [entry for entry in entries if entry.parent == folder])
    yield from _chosen(config)


def _chosen(config: Config) -> Iterator[Finding]:
    """Tells where the chosen data set comes from, if it is not cached."""
    name = config.choices.dataset
    ingest = f"python -m pipeline ingest dataset={name}"
    own = "folder=/folder/of/the/four/files" if "folder" in config.dataset else "path=…"
    elsewhere = f"{ingest} dataset.{own}"
    try:
        folder = raw_folder(config, checked=True)
    except (RequestError, OSError) as error:
        yield problem("data", error_line(error), elsewhere)
        return
    if not folder.is_dir():
        yield _source(name, config.dataset, f"{ingest} (or, without a network, {elsewhere})")


def _cached(name: str, folder: Path, entries: Iterable[Path]) -> Iterator[Finding]:
    damaged, closed = dict[Path, str](), dict[Path, str]()
    for entry in entries:
        try:
            if reason := cache.damage(entry):
                damaged[entry] = reason
        except OSError as error:
            closed[entry] = error.strerror or str(error)
    if not damaged and not closed:
        yield ok("data", f"{name} is cached and intact ({folder})")
    if damaged:
        mend = f"{deletion(damaged)} (a run that needs them makes them again)"
        yield warning("data", f"damaged: {_told(damaged)}", mend)
    if closed:
        mend = "see who may read them and whether the disk is sound, or choose another data_dir=…"
        yield warning("data", f"cannot be read: {_told(closed)}", mend)


def _told(reasons: Mapping[Path, str]) -> str:
    return "; ".join(f"{entry}: {reason}" for entry, reason in reasons.items())


def _source(name: str, dataset: Mapping[str, Any], fetch: str) -> Finding:
    """Where a data set that is available comes from; the command `fetch` downloads it."""
    known = {key.lower(): v for key, v in vars(datasets).items() if isinstance(v, IdxDataset)}
    system = known[name].system_folder if name in known else None
    if system and not _has_all(system, known[name]):
        system = None
    if there := dataset.get("folder") or dataset.get("path") or system:
        return ok("data", f"{name} is not cached yet; {there} has it")
    if dataset.get("download"):
        says = f"{name} is neither cached nor installed; it is downloaded on first use"
        return warning("data", says, fetch)
    return ok("data", f"{name} is not cached; it is built without a download on first use")


def _has_all(folder: Path, dataset: IdxDataset) -> bool:
    return all(
        (folder / name).exists() or (folder / f"{name}.gz").exists() for name in dataset.checksums
    )


def disk(*folders: Path) -> Iterator[Finding]:
    """Checks whether each folder can be written, and the free space on its disk."""
    nearest = {
        next(one for one in (path, *path.parents) if one.exists())
        for path in (folder.absolute() for folder in folders)
    }
    for folder in sorted(nearest):
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            mend = "make it writable, or choose another folder (data_dir=…)"
            yield problem("disk", f"{folder} cannot be written: {error.strerror}", mend)
    for folder in {one.stat().st_dev: one for one in sorted(nearest, reverse=True)}.values():
        if shutil.disk_usage(folder).total:  # /proc and the like have no size
            yield _space(folder)


def _space(folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    free_gb = usage.free / 1e9
    says = f"{decimal(usage.free)} of {decimal(usage.total)} free on the disk of {folder}"
    if free_gb < FULL_GB:
        return problem("disk", says, "free some space; below, what can be deleted")
    if free_gb < LOW_GB:
        return warning("disk", says, "free some space; below, what can be deleted")
    return ok("disk", says)
