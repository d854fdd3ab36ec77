from __future__ import annotations

import pytest

from pipeline.config.builders import build
from pipeline.config.schema import validate
from tests.commands import composed

pytestmark = pytest.mark.slow


def rates(schedule: str, *steps: int) -> list[float]:
    leaf = validate(composed(*schedule.split())).schedule  # `compose` refuses a constant one
    built = build(leaf, initial_learning_rate=0.1, decay_steps=100)
    return [float(built(step)) for step in steps]


def test_one_cycle_rises_to_the_rate_and_falls_along_a_cosine() -> None:
    found = rates("schedule=one_cycle schedule.warmup=0.2 schedule.start=0.04", 0, 10, 20, 60, 100)
    assert found == pytest.approx([0.004, 0.052, 0.1, 0.05, 0], abs=1e-7)


def test_flat_cosine_stays_and_falls() -> None:
    found = rates("schedule=flat_cosine schedule.end=0.01", 0, 35, 70, 85, 100)
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.0505, 0.001], abs=1e-7)


def test_warmup_rises_and_stays() -> None:
    found = rates("schedule=warmup schedule.warmup=0.1", 0, 5, 10, 11, 100)
    assert found == pytest.approx([0, 0.05, 0.1, 0.1, 0.1], abs=1e-7)


@pytest.mark.parametrize("name", ["one_cycle", "warmup"])
def test_a_schedule_without_warmup_begins_with_the_rate(name: str) -> None:
    assert rates(f"schedule={name} schedule.warmup=0", 0) == pytest.approx([0.1])
