from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.config.sweep import JobSettings, Sweep

GIVEN: dict[str, Any] = {
    "params": {"seed": "0,1"},
    "objective": ["val/accuracy"],
    "direction": None,
    "n_trials": 3,
    "sampler": "tpe",
    "sampler_options": {},
    "pruner": "none",
    "pruner_options": {},
    "seed": 0,
    "storage": None,
    "study": None,
    "keep_models": 0,
    "on_failure": "continue",
    "max_failures": None,
    "timeout_s": None,
    "memory_mb": 0.5,
    "preview": False,
    "resume": None,
    "job": dict.fromkeys(field.name for field in fields(JobSettings)),
}
SETTINGS = TypeAdapter(Sweep)


def test_settings_of_a_sweep_are_taken_as_they_are() -> None:
    found = SETTINGS.validate_python(GIVEN)
    assert GIVEN.keys() == {field.name for field in fields(Sweep)}
    assert (found.objective, found.memory_mb, found.job.parent) == (["val/accuracy"], 0.5, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective", []),
        ("objective", ["val/acuracy"]),
        ("direction", ["up"]),
        ("n_trials", 0),
        ("sampler", "tpe2"),
        ("pruner", "None"),
        ("keep_models", -1),
        ("on_failure", "ignore"),
        ("max_failures", 0),
        ("timeout_s", 0),
        ("memory_mb", -1),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_range_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=key):
        SETTINGS.validate_python(GIVEN | {key: value})
