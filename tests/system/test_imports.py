from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from pipeline.system.imports import uncollected
from tests.commands import ROOT, environment


def test_the_search_for_cycles_is_on_or_off_afterwards_as_it_was_before() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


EVERY_MODULE = """
import gc, importlib, logging, os, pkgutil, signal, sys
gc.disable()  # a fifth of the time
import sqlalchemy as sa

def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    listeners = len(list(sa.create_engine("sqlite://").dialect.dispatch.handle_error))
    return [dict(os.environ), sys.excepthook, logging.root.handlers[:], handlers, listeners,
            gc.get_freeze_count()]

import keras, mlflow, optuna  # what these change themselves
before = state()
import pipeline
modules = [found.name for found in pkgutil.walk_packages(pipeline.__path__, "pipeline.")]
modules.remove("pipeline.__main__")
for name in modules:
    importlib.import_module(name)
print(len(modules) > 50, [one for one, other in zip(before, state()) if one != other])
"""


@pytest.mark.slow
def test_importing_every_module_changes_nothing_of_the_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", EVERY_MODULE],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "True []\n"
