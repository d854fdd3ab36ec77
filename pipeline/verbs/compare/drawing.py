"""Draws a comparison in a process of its own, which gets ready while the runs are looked for.

MLflow takes seconds to import and matplotlib another; on two cores the second costs nothing.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

from pipeline.verbs.compare.comparison import Comparison
from pipeline.verbs.compare.plots import class_changes, forest

DPI = 120
Pictures = dict[str, bytes]  # PNGs by name
Draw = Callable[[Comparison], Callable[[], Pictures]]


@contextmanager
def drawing() -> Iterator[Draw]:
    """Yields what begins to draw a comparison, and returns what waits for the pictures.

    Where MLflow is imported already there is nothing to overlap with, and its threads make forking
    unsafe: there it is drawn on the spot.
    """
    if sys.platform != "linux" or "mlflow" in sys.modules:
        yield lambda comparison: lambda: draw(comparison)
        return
    context = get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(here, there), daemon=True)
    process.start()
    there.close()

    def begin(comparison: Comparison) -> Callable[[], Pictures]:
        here.send(comparison)
        return lambda: _received(here)

    try:
        yield begin
    finally:
        here.close()
        process.join()


def draw(comparison: Comparison) -> Pictures:
    """The pictures as PNGs: `compare`, and for two runs of the same images `classes`."""
    figures = {"compare": forest(comparison)}
    if comparison.pair:
        one, other = (compared.label for compared in comparison.rows)
        figures["classes"] = class_changes(comparison.pair, (one, other))
    pictures = {}
    for name, figure in figures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=DPI)
        pictures[name] = image.getvalue()
    return pictures


def _serve(parents: Connection, own: Connection) -> None:
    """Answers until the other end is closed, as it is when the parent ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both; the parent then closes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parents.close()
    _get_ready()
    try:
        while True:
            comparison = own.recv()
            try:
                own.send(draw(comparison))
            except Exception as error:
                own.send(error)
    except (EOFError, BrokenPipeError):
        return


def _get_ready() -> None:
    """Imports matplotlib, and draws once, for the first time takes twice as long as any other."""
    import matplotlib.backends.backend_agg  # noqa: F401
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    figure.subplots().plot([0, 1], [0, 1], label="0")
    figure.savefig(io.BytesIO(), format="png", dpi=DPI)


def _received(end: Connection) -> Pictures:
    answer: Pictures | Exception = end.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer
