"""The main loop of a worker process of the pool."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cloudpickle

from pipeline.libraries import import_slow
from pipeline.system.errors import one_line
from pipeline.system.processes import interrupt
from pipeline.system.terminal import tell_unwritable_logs

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve_jobs(there: Connection[Any, Any], modules: Sequence[str] = ()) -> None:
    """Runs a worker: receives calls and answers each with its result.

    The modules are imported before the first call; a failing import shows when a call needs it.
    """
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # Ctrl-C and the loss of the terminal reach the whole process group; the pool decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    faulthandler.enable(2)
    tell_unwritable_logs()
    # Line-buffered, so that output survives the death of the process.
    sys.stdout = os.fdopen(1, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    _lead_output_to(Path(os.devnull))
    for module in modules:
        with suppress(Exception):
            import_slow(module)
    with suppress(EOFError, OSError):  # the pool has closed its end
        while True:
            there.send_bytes(_answer(there.recv_bytes()))


def _leave_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)


def _answer(message: bytes) -> bytes:
    """Runs a call and returns its result or error, whatever it raises."""
    # The call is pickled separately: unpickling may import, print and fail
    output, packed = pickle.loads(message)
    try:
        _lead_output_to(output)
        try:
            signal.signal(signal.SIGTERM, interrupt)
            function, arguments = cloudpickle.loads(packed)
            return cloudpickle.dumps({"result": function(*arguments)})
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except BaseException as error:
        with suppress(OSError, ValueError):
            traceback.print_exc()
        return pickle.dumps({"error": one_line(error)})
    finally:
        _lead_output_to(Path(os.devnull))


def _lead_output_to(path: Path) -> None:
    """Redirects file descriptors 1 and 2 to the end of a file, after flushing pending output."""
    with suppress(OSError, ValueError):  # a full disk may lose output, but not a result
        sys.stdout.flush()
        sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)  # output of native code
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
