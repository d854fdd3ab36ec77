"""Experiment-tracked image classification: ingest → preprocess → train → evaluate → tracking.

From Python:

    import pipeline

    config = pipeline.compose("model=cnn", "train.epochs=5")
    run = pipeline.run(config)
    model = pipeline.load_champion("fashion_mnist")

Each public name is imported when it is first used.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import (
        audit,
        build_model,
        compare,
        compose,
        evaluate,
        find_run,
        find_runs,
        load_champion,
        load_data,
        predict,
        promote,
        run,
        train,
    )
    from pipeline.config.schema import Config
    from pipeline.data.values import Evaluation, Fitted, Predictions, Prepared, RawData, Split
    from pipeline.system.errors import PipelineError, RequestError
    from pipeline.tracking.models import LoadedModel
    from pipeline.tracking.values import RecordedRun
    from pipeline.verbs.compare.comparison import Comparison
    from pipeline.verbs.promote.promote import Decision

_HOMES = {
    "pipeline.api": (
        *("audit", "build_model", "compare", "compose", "evaluate", "find_run", "find_runs"),
        *("load_champion", "load_data", "predict", "promote", "run", "train"),
    ),
    "pipeline.config.schema": ("Config",),
    "pipeline.data.values": (
        *("Evaluation", "Fitted", "Predictions", "Prepared", "RawData", "Split"),
    ),
    "pipeline.system.errors": ("PipelineError", "RequestError"),
    "pipeline.tracking.models": ("LoadedModel",),
    "pipeline.tracking.values": ("RecordedRun",),
    "pipeline.verbs.compare.comparison": ("Comparison",),
    "pipeline.verbs.promote.promote": ("Decision",),
}
_FORMER = {"Report": "Evaluation"}  # names of earlier versions

__all__ = [
    "Comparison",
    "Config",
    "Decision",
    "Evaluation",
    "Fitted",
    "LoadedModel",
    "PipelineError",
    "Predictions",
    "Prepared",
    "RawData",
    "RecordedRun",
    "RequestError",
    "Split",
    "audit",
    "build_model",
    "compare",
    "compose",
    "evaluate",
    "find_run",
    "find_runs",
    "load_champion",
    "load_data",
    "predict",
    "promote",
    "run",
    "train",
]


class _Package(ModuleType):
    """This package, whose public names are imported on first use."""

    def __getattr__(self, name: str) -> Any:
        now = _FORMER.get(name, name)
        for home, names in _HOMES.items():
            if now in names:
                from pipeline.libraries import import_slow

                value = getattr(import_slow(home), now)
                super().__setattr__(name, value)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        # Importing the module `pipeline.run` must not hide the function of the same name.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*__all__, *super().__dir__()})


sys.modules[__name__].__class__ = _Package
