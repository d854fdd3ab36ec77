"""The command line in processes forked from one that has imported all slow libraries.

A call costs what the command does, not the seconds in which TensorFlow and MLflow are imported.
Multiprocessing's fork server is that one process; it has begun no work of TensorFlow's.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from multiprocessing import context, get_context
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]


@cache
def _forks() -> context.ForkServerContext:
    forks = get_context("forkserver")
    forks.set_forkserver_preload(["pytest", "tests.warm_libraries"])
    return forks


def run_warm(
    arguments: Sequence[str], *, cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline …`, waited for, as `subprocess.run` would.

    Raises:
        TimeoutExpired: it took too long, and was killed.
    """
    command = [sys.executable, "-m", "pipeline", *arguments]
    with TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        os.environ["PYTHONPATH"] = str(ROOT)  # where the fork server finds what to import
        process = _forks().Process(target=_become, args=(command, cwd, env, printed))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        out, err = (path.read_bytes().decode("utf-8") for path in printed)
        return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _become(command: list[str], cwd: Path, env: dict[str, str], printed: Sequence[Path]) -> None:
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
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.orig_argv[:] = command
    sys.argv[:] = command[2:]
    sys.path[:] = [str(cwd), *dict.fromkeys(place for place in sys.path if place)]
    runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
