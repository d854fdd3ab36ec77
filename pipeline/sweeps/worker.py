"""A worker process of the pool, from the inside."""

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

from pipeline.system.errors import one_line
from pipeline.system.imports import load

STOPS = (signal.SIGINT, signal.SIGTERM)


def serve(there: Connection[Any, Any], modules: Sequence[str] = ()) -> None:
    """A worker's life: each message it gets is a call, and answered.

    The modules are imported before the first comes; what is wrong with one, a call will tell.
    """
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pool decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    faulthandler.enable(2)
    # By line, so that what was printed is kept when the process dies.
    sys.stdout = os.fdopen(1, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    _lead_output_to(Path(os.devnull))
    for module in modules:
        with suppress(Exception):
            load(module)
    with suppress(EOFError, OSError):  # the pool has closed its end
        while True:
            there.send_bytes(_carried_out(there.recv_bytes()))


def _leave_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)


def _carried_out(message: bytes) -> bytes:
    """Result or error of a call, whatever it does short of ending the process."""
    output, packed = pickle.loads(
        message
    )  # the call apart: to unpack it may import, print and fail
    try:
        _lead_output_to(output)
        try:
            signal.signal(signal.SIGTERM, _interrupt)
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


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another would interrupt the tidying up
    raise KeyboardInterrupt


def _lead_output_to(path: Path) -> None:
    """Leads file descriptors 1 and 2 to the end of a file, after what is still to be written."""
    with suppress(OSError, ValueError):  # a full disk costs lines, not a result
        sys.stdout.flush()
        sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)  # what native code has printed
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
