"""Stands for Python where pytest-xdist starts a worker: forks it from a process that is warm.

Importing the libraries takes each worker six seconds otherwise.
"""

import os
import sys
from multiprocessing.connection import Connection

from tests.warm import fork


def work(program: str, *streams: Connection) -> None:
    """Runs a program with these streams as standard input and output."""
    for place, stream in enumerate(streams):
        os.dup2(stream.fileno(), place)
        stream.close()
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    exec(program, {"__name__": "__main__"})


if __name__ == "__main__":
    from tests.forked_worker import work as function

    own = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    worker = fork(function, sys.argv[-1], *own)
    for stream in own:
        stream.close()
    nothing = os.open(os.devnull, os.O_RDWR)
    for place in (0, 1):
        os.dup2(nothing, place)  # its end is seen as soon as the worker's is
    worker.join()
    sys.exit(worker.exitcode)
