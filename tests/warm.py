"""The command line in processes forked from one that has imported all slow libraries.

A call takes only the time of the command, without the seconds to import TensorFlow and MLflow.
That one process is multiprocessing's fork server, in which TensorFlow has not done any work yet.
The workers that such a command spawns are forked from it too.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Environment variable: where a fork server listens that pytest-xdist's workers share.
SERVER = "PIPELINE_TESTS_FORK_SERVER"


@dataclass(frozen=True)
class WarmProcess:
    """A running command, with the methods of `subprocess.Popen`."""

    args: list[str]
    process: ForkServerProcess
    out: Path
    """The file that it prints to."""
    err: Path

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; returns its exit code.

        Raises:
            TimeoutExpired: it is still running.
        """
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ended(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Waits for its end, and kills it if that takes too long."""
        try:
            code = self.wait(timeout)
        finally:
            self.kill()
            self.process.join()
        said = [path.read_bytes().decode("utf-8") for path in (self.out, self.err)]
        return subprocess.CompletedProcess(self.args, code, *said)


def start_warm(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: dict[str, str],
    printed: Path,
    before: Callable[[], object] | None = None,
    module: str = "pipeline",
) -> WarmProcess:
    """Starts `python -m pipeline …`, which prints to the files `out` and `err` of a folder.

    `before` is called in the process first, for example to limit or patch something there. `module`
    is run instead of the pipeline.
    """
    command = [sys.executable, "-m", module, *arguments]
    files = [printed / name for name in ("out", "err")]
    for file in files:
        file.write_bytes(b"")
    process = fork(_become, command, cwd, env, files, before)
    return WarmProcess(command, process, *files)


def run_warm(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: dict[str, str],
    timeout: float,
    before: Callable[[], object] | None = None,
    module: str = "pipeline",
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m pipeline …` and waits for it, like `subprocess.run`.

    Raises:
        TimeoutExpired: it took too long, and was killed.
    """
    with TemporaryDirectory() as folder:
        started = start_warm(
            arguments, cwd=cwd, env=env, printed=Path(folder), before=before, module=module
        )
        return started.ended(timeout)


def fork(function: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Forks a process that calls a function."""
    given = (function, arguments, dict(os.environ))
    process = _forks().Process(target=_with_environment, args=given)
    process.start()
    return process


def call_warm(function: Callable[..., Any], *arguments: Any, timeout: float) -> Any:
    """Calls a function in such a process, where it may fork and kill; returns its result.

    Raises:
        AssertionError: it failed, or took too long.
    """
    receiver, sender = _forks().Pipe(duplex=False)
    process = fork(_answer, sender, function, arguments)
    sender.close()
    try:
        assert receiver.poll(timeout), "it takes too long"
        value, error = receiver.recv()
    finally:
        process.kill()
        process.join()
    assert not error, error
    return value


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((function(*arguments), ""))
    except BaseException:
        sender.send((None, traceback.format_exc()))


def share_forks() -> None:
    """Starts the fork server here, for the child processes as well: it takes ten seconds once."""
    _forks()
    forkserver.ensure_running()
    os.environ[SERVER] = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]


@cache
def _forks() -> ForkServerContext:
    forks = multiprocessing.get_context("forkserver")
    if address := os.environ.get(SERVER):
        server: Any = forkserver._forkserver  # type: ignore[attr-defined]
        server._forkserver_address = address
        server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)  # its own parent keeps it
        server.ensure_running = resource_tracker.ensure_running
    else:
        os.environ["PYTHONPATH"] = str(ROOT)  # where the fork server finds what to import
        forks.set_forkserver_preload(["pytest", "tests.warm_libraries"])
    return forks


def _become(
    command: list[str],
    cwd: Path,
    env: dict[str, str],
    printed: Sequence[Path],
    before: Callable[[], object] | None,
) -> None:
    places = [Path(os.devnull), *printed]
    flags = [os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT | os.O_APPEND] * 2]
    for stream, (place, flag) in enumerate(zip(places, flags, strict=True)):
        file = os.open(place, flag)
        os.dup2(file, stream)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(stream, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        for stream, mode, errors in ((0, "r", None), (1, "w", None), (2, "w", "backslashreplace"))
    )
    # What is started in the background ignores Ctrl-C; a command does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.orig_argv[:] = command
    sys.argv[:] = command[2:]
    sys.path[:] = [str(cwd), *dict.fromkeys(place for place in sys.path if place)]
    multiprocessing.get_context = _get_context  # type: ignore[assignment]
    # Its own forks come from the same server, whose address it has, instead of from another one.
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running  # type: ignore[attr-defined]
    if before:
        before()
    runpy.run_module(command[2], run_name="__main__", alter_sys=True)


def _get_context(method: str | None = None) -> Any:
    return _WarmContext() if method == "spawn" else multiprocessing.context._default_context


class _WarmContext(ForkServerContext):
    """Forks instead of spawning; a process gets the environment of the one that starts it."""

    def Process(  # type: ignore[override]  # noqa: N802
        self, *, target: Callable[..., None], args: tuple[Any, ...], name: str
    ) -> ForkServerProcess:
        given = (target, args, dict(os.environ))
        return ForkServerProcess(target=_as_if_spawned, args=given, name=name)


def _as_if_spawned(target: Callable[..., Any], *given: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _with_environment(target, *given)


def _with_environment(
    target: Callable[..., Any], args: tuple[Any, ...], env: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(env)
    target(*args)
