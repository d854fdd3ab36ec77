"""Sets up every test."""

import gc
import os
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pipeline.libraries import configure_libraries
from pipeline.system.imports import exempt
from tests.commands import choose_once, compile_plainly, parse_once, trace_plainly
from tests.stores import MADE_ONCE, copy_tables
from tests.stress.matrix import SHARE
from tests.warm import share_forks

gc.disable()  # until all tests are collected
compile_plainly()  # before XLA reads the variable, once
configure_libraries()  # the tests import modules of ours by themselves
parse_once()
choose_once()
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it: tables are as wide as a user would see them

# A slow machine is no failure. `make test` tries the same inputs each time, `make stress` new ones
# and twice as many.
settings.register_profile(
    "project",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=SHARE not in os.environ,
    max_examples=100 if SHARE in os.environ else 50,
)
settings.load_profile("project")

EMPTY_STORE = "empty_store.db"

# Files that take long: begun last, one of them would keep a single core busy at the end.
LONGEST = (
    *("sweeps.test_sweep", "verbs.promote.test_promote", "training.test_train", "test_main"),
    *("training.test_models", "verbs.resume.test_command", "verbs.promote.test_switch"),
    *("verbs.serve.test_command", "end_to_end.test_canary", "end_to_end.test_experiments"),
    *("training.test_loop", "end_to_end.test_installed", "end_to_end.test_backbones", "test_run"),
    *("sweeps.test_plots", "end_to_end.test_ui"),
    *("verbs.doctor.test_command", "end_to_end.test_own_pictures", "end_to_end.test_tour"),
    *("tracking.test_recording", "training.test_pretrained", "verbs.test_hostile_models"),
    *("verbs.compare.test_command", "reports.test_write", "end_to_end.test_notebook"),
    *("config.test_trusted", "verbs.promote.test_served", "verbs.predict.test_command"),
    *("verbs.reproduce.test_command", "stress.test_kills"),
)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Forks pytest-xdist's workers from one fork server, which imports the libraries once."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        # The fork server makes the store that all of them copy.
        folder = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        os.environ[MADE_ONCE] = str(folder / EMPTY_STORE)
        share_forks()
        python = f"{shlex.quote(sys.executable)} -m tests.forked_worker"
        config.option.tx = [f"popen//python={python}" for _ in config.option.tx]


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Puts the files that take longest first; `make test` keeps to this order."""
    order = {f"tests.{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.module.__name__, len(order)))


def pytest_collection_finish() -> None:
    """Exempts TensorFlow's objects from garbage collection, which took half a second each."""
    exempt()
    gc.enable()
    gc.set_threshold(10_000)  # rarer by far, which takes 5 % off a training


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pytest-xdist's workers share, for what is made once in a session."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _one_empty_store(shared_folder: Path) -> None:
    os.environ[MADE_ONCE] = str(shared_folder / EMPTY_STORE)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Speeds MLflow up as soon as a test has imported it, and fixes what weights are drawn."""
    copy_tables()
    trace_plainly()
    if keras := sys.modules.get("keras"):
        keras.utils.set_random_seed(0)  # a test fails always or never
    os.environ.pop("HYDRA_FULL_ERROR", None)  # left behind by a `main()` called in this process
