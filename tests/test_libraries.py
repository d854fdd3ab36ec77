from __future__ import annotations

import gc
import getpass
import io
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pipeline.libraries import ALWAYS, DEFAULTS, configure_libraries, import_slow
from pipeline.system.errors import RequestError
from pipeline.system.processes import user_name
from tests.commands import QUICK, fresh_pipeline


def test_objects_are_exempt_from_collection_before_there_can_be_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    (tmp_path / "imported_once.py").write_text("made = [[]]\n")
    import_slow("imported_once")
    frozen = gc.get_freeze_count()
    made = [[number] for number in range(100_000)]
    assert import_slow("imported_once") is sys.modules.pop("imported_once")
    assert gc.get_freeze_count() <= frozen
    monkeypatch.setitem(sys.modules, "tensorflow", sys)
    assert import_slow("imported_once") is sys.modules.pop("imported_once")
    assert gc.get_freeze_count() <= frozen
    monkeypatch.delitem(sys.modules, "tensorflow")
    assert import_slow("imported_once").made == [[]]
    # Other objects that were exempt may have gone since.
    assert gc.get_freeze_count() >= frozen + len(made) // 2


def test_windows_is_refused_with_what_to_use_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(RequestError, match=r"WSL"):
        import_slow("pipeline.run")


def test_mlflow_gets_a_name_of_the_user_where_no_variable_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*DEFAULTS, *ALWAYS, "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
    configure_libraries()
    assert getpass.getuser() == DEFAULTS["LOGNAME"] == user_name()


def test_a_font_without_an_ordinary_weight_is_used_without_a_word() -> None:
    log = logging.getLogger("matplotlib.font_manager")
    log.setLevel(logging.NOTSET)
    configure_libraries()
    assert not log.isEnabledFor(logging.WARNING)


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


def test_characters_that_a_font_lacks_are_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*DEFAULTS, *ALWAYS):
        monkeypatch.setenv(name, "")  # restores it at the end
    figure = Figure()
    figure.suptitle("猫")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        configure_libraries()
        figure.savefig(io.BytesIO())
