"""Who holds a ticket of the registry, and whether that process is still at work."""

from __future__ import annotations

import getpass
import json
import os
import platform
from pathlib import Path

import psutil

# A process elsewhere cannot be asked; between its ticket and its end lie a few requests.
PATIENCE_S = 600.0
_CLOCK_S = 2.0  # the start of a process moves by as much when the clock is corrected


def this_process() -> str:
    """This process as a ticket names it: JSON of `place` (host, PID namespace), `pid`, `born`."""
    return json.dumps(
        {"place": _place(), "pid": os.getpid(), "born": psutil.Process().create_time()}
    )


def at_work(holder: str, age_s: float) -> bool:
    """Whether the process that `this_process` named so can still act.

    One of this place is looked for; one of another counts as long as its ticket is young, `age_s`
    seconds, as does a holder that cannot be read.
    """
    try:
        told = json.loads(holder)
        place, pid, born = told["place"], int(told["pid"]), float(told["born"])
    except (ValueError, KeyError, TypeError):
        return age_s < PATIENCE_S
    if place != _place():
        return age_s < PATIENCE_S
    try:
        process = psutil.Process(pid)
        return (
            abs(process.create_time() - born) < _CLOCK_S
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it is there, but another user's
        return age_s < PATIENCE_S


def shown(holder: str) -> str:
    """The process that `this_process` named so, for people."""
    try:
        told = json.loads(holder)
        return f"process {told['pid']} on {told['place'].partition(' ')[0]}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "a process that did not name itself"


def user() -> str:
    """Who runs this, as user@host."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        name = str(os.getuid())
    return f"{name}@{platform.node()}"


def _place() -> str:
    """Where a PID means what it means here: two containers may share a host's name."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()} {namespace.readlink() if namespace.exists() else ''}".strip()
