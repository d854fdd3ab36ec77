"""What every test begins with."""

import os

import pytest

from pipeline.system.imports import configure_libraries

configure_libraries()  # the tests import modules of ours by themselves
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it: tables are as wide as a user would see them

# Files that take long: begun last, one of them would keep a single core busy at the end.
LONGEST = (
    *(
        "sweeps.test_stress",
        "sweeps.test_sweep",
        "end_to_end.test_tour",
        "verbs.resume.test_command",
    ),
    *("verbs.promote.test_switch", "verbs.promote.test_promote", "training.test_xla"),
    *("training.test_train", "test_main"),
)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Puts the files that take longest first; `make test` keeps to this order."""
    order = {f"tests.{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.module.__name__, len(order)))
