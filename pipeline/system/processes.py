"""Identifies a process that is at work, so that others can tell whether it lives; stops one."""

from __future__ import annotations

import getpass
import json
import os
import platform
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

# A process elsewhere cannot be looked up; its work takes a few requests after its ticket.
STALE_AFTER_S = 600.0


# Control groups: where a process reads its own, and where those of both versions are.
OWN_CONTROL_GROUPS, CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
DESCRIPTORS = Path("/dev/fd")  # of the files that this process has open


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or fewer in a control group.

    Containers, `systemd-run` and Slurm limit memory by such groups, which may be nested.
    """
    limits = [psutil.virtual_memory().total]
    for path in _limits():
        with suppress(OSError, ValueError):  # the group is that of the host, or it has "max"
            limits.append(int(path.read_text()))
    return min(limits)


def _limits() -> Iterator[Path]:
    """The files that may limit this process, of its control groups and those above them."""
    with suppress(OSError):  # no such system
        for line in OWN_CONTROL_GROUPS.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            for above in (Path(group), *Path(group).parents):
                if not controllers:
                    yield CONTROL_GROUPS / above.relative_to("/") / "memory.max"
                elif "memory" in controllers.split(","):
                    yield (
                        CONTROL_GROUPS / "memory" / above.relative_to("/") / "memory.limit_in_bytes"
                    )


def cores() -> int:
    """Cores that this process may use, which a batch system or `taskset` may limit."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def process_place() -> str:
    """The scope in which this process' id is valid: host name, boot id and PID namespace.

    Containers may share a host name but cannot see each other's processes.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return platform.node()
    return f"{platform.node()} {boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


def started(pid: int) -> str | None:
    """When a process was started; "" for a zombie, None if it is hidden."""
    try:
        if not Path("/proc/self/stat").exists():
            return f"{psutil.Process(pid).create_time():.2f}"
        # After the name, which may hold any character: state (field 3) and ticks since boot (22),
        # which do not change when the clock is set. Source: man 5 proc.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (psutil.Error, OSError):
        return None


def lives(pid: int, since: str) -> bool | None:
    """Whether a process of this machine, which `started` at `since`, is alive; None if hidden."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    found = started(pid)
    return None if found is None else found == since


def this_process(**more: str) -> str:
    """Identifies this process for a ticket: JSON with `place`, `pid`, `born` and what is given."""
    pid = os.getpid()
    return json.dumps({"place": process_place(), "pid": pid, "born": started(pid)} | more)


def has_open(file: Path) -> bool:
    """Whether this process has the file of that path open, not one that was there before.

    It is not opened to find out: closing it would release SQLite's locks on it.
    """
    present = file.stat()
    for descriptor in DESCRIPTORS.iterdir() if DESCRIPTORS.is_dir() else ():
        with suppress(OSError):  # that of the list itself is closed
            if os.path.samestat(os.fstat(int(descriptor.name)), present):
                return True
    return False


def at_work(holder: str, age_s: float) -> bool:
    """Whether the process that `this_process` identified may still be working.

    A process of this machine is looked up. One of another machine, or one that is hidden or whose
    ticket cannot be read, counts while the ticket, `age_s` seconds old, is young.
    """
    try:
        told = json.loads(holder)
        where, pid, born = told["place"], int(told["pid"]), str(told["born"])
    except (ValueError, KeyError, TypeError):
        return age_s < STALE_AFTER_S
    found = lives(pid, born) if where == process_place() else None
    return age_s < STALE_AFTER_S if found is None else found


def process_name(holder: str) -> str:
    """A readable name of the process that `this_process` identified."""
    try:
        told = json.loads(holder)
        return f"process {told['pid']} on {told['place'].partition(' ')[0]}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "a process that did not name itself"


def left_unset(defaults: Mapping[str, str]) -> dict[str, str]:
    """Those of the defaults whose variable has no value in the environment: the user's stay."""
    return {name: value for name, value in defaults.items() if not os.environ.get(name)}


def user() -> str:
    """The user of this process, as user@host."""
    return f"{user_name()}@{platform.node()}"


def user_name() -> str:
    """The name of this process' user, or the number where it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # ImportError: Windows
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def interrupt(*_: object) -> None:
    """A handler of SIGTERM that interrupts the program once, so that it can clean up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
