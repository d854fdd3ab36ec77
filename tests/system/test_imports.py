from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pipeline.system.errors import RequestError
from pipeline.system.imports import ALWAYS, DEFAULTS, configure_libraries, import_slow, uncollected
from tests.commands import QUICK, ROOT, environment, fresh_pipeline


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_of_keras_is_refused_with_the_variable_to_unset(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", backend)
    with pytest.raises(RequestError, match=f"^KERAS_BACKEND={backend}: .*; unset KERAS_BACKEND$"):
        import_slow("pipeline.run")


@pytest.mark.slow
def test_a_run_with_another_backend_ends_before_tensorflow_is_imported(tmp_path: Path) -> None:
    ended = fresh_pipeline("run", *QUICK, cwd=tmp_path, KERAS_BACKEND="jax")
    assert ended.returncode == 2
    assert ended.stderr == (
        "KERAS_BACKEND=jax: models are trained with TensorFlow here; unset KERAS_BACKEND\n"
    )
    assert not (tmp_path / "mlflow.db").exists()


def test_what_a_user_has_set_stays_but_for_what_would_spoil_the_terminal_or_the_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")  # as JAX sets it when it is imported
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "true")
    monkeypatch.setenv("KERAS_BACKEND", "")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    configure_libraries()
    assert os.environ["MLFLOW_LOGGING_LEVEL"] == "DEBUG"
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
    assert os.environ["MLFLOW_TRUNCATE_LONG_VALUES"] == "false"
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


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


def test_characters_that_a_font_lacks_are_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*DEFAULTS, *ALWAYS):
        monkeypatch.setenv(name, "")  # restores it at the end
    figure = Figure()
    figure.suptitle("猫")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        configure_libraries()
        figure.savefig(io.BytesIO())
