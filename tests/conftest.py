"""What every test begins with."""

import os

import pytest

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it: tables are as wide as a user would see them

# Files that take long: begun last, one of them would keep a single core busy at the end.
LONGEST = ("sweep_stress", "sweep", "tour", "resume", "switch", "promote", "xla", "train", "main")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first; `make test` keeps to this order."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
