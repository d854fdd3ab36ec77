"""Which process is at work on something, so that others can tell whether it still lives."""

from __future__ import annotations

import getpass
import json
import os
import platform
from functools import cache
from pathlib import Path

import psutil

# A process elsewhere cannot be asked; between its ticket and its end lie a few requests.
PATIENCE_S = 600.0


@cache
def place() -> str:
    """Where a process id means what it means here: host name, its start, and PID namespace.

    Containers may share a host's name, and look for each other's processes in vain.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return platform.node()
    return f"{platform.node()} {boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


def started(pid: int) -> str | None:
    """When a process was started; "" for one that is dead but not buried, None if it is hidden."""
    try:
        if not Path("/proc/self/stat").exists():
            return f"{psutil.Process(pid).create_time():.2f}"
        # After the name, which may hold anything: state (field 3) and ticks since the machine was
        # started (22), which setting its clock leaves alone. Source: man 5 proc.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (psutil.Error, OSError):
        return None


def lives(pid: int, since: str) -> bool | None:
    """Whether the process of this place that was `started` then still lives; None: it is hidden."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    found = started(pid)
    return None if found is None else found == since


def this_process() -> str:
    """This process as a ticket names it: JSON of `place`, `pid` and `born`."""
    pid = os.getpid()
    return json.dumps({"place": place(), "pid": pid, "born": started(pid)})


def at_work(holder: str, age_s: float) -> bool:
    """Whether the process that `this_process` named so can still act.

    One of this place is looked for; one of another counts as long as its ticket is young, `age_s`
    seconds, as does a holder that is hidden or cannot be read.
    """
    try:
        told = json.loads(holder)
        where, pid, born = told["place"], int(told["pid"]), str(told["born"])
    except (ValueError, KeyError, TypeError):
        return age_s < PATIENCE_S
    found = lives(pid, born) if where == place() else None
    return age_s < PATIENCE_S if found is None else found


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
