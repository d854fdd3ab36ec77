"""Experiment-tracked image classification: ingest → preprocess → train → evaluate → tracking.

From Python:

    import pipeline

    config = pipeline.compose("model=cnn", "train.epochs=5")
    run = pipeline.run(config)
    model = pipeline.load_champion("fashion_mnist")

Each public name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import (
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
    from pipeline.data.values import Fitted, Predictions, Prepared, RawData, Report, Split
    from pipeline.system.errors import PipelineError, RequestError
    from pipeline.tracking.models import LoadedModel
    from pipeline.tracking.values import RecordedRun
    from pipeline.verbs.compare.comparison import Comparison
    from pipeline.verbs.promote.promote import Decision

_HOMES = {
    "pipeline.api": (
        *("build_model", "compare", "compose", "evaluate", "find_run", "find_runs"),
        *("load_champion", "load_data", "predict", "promote", "run", "train"),
    ),
    "pipeline.config.schema": ("Config",),
    "pipeline.data.values": ("Fitted", "Predictions", "Prepared", "RawData", "Report", "Split"),
    "pipeline.system.errors": ("PipelineError", "RequestError"),
    "pipeline.tracking.models": ("LoadedModel",),
    "pipeline.tracking.values": ("RecordedRun",),
    "pipeline.verbs.compare.comparison": ("Comparison",),
    "pipeline.verbs.promote.promote": ("Decision",),
}

__all__ = [
    "Comparison",
    "Config",
    "Decision",
    "Fitted",
    "LoadedModel",
    "PipelineError",
    "Predictions",
    "Prepared",
    "RawData",
    "RecordedRun",
    "Report",
    "RequestError",
    "Split",
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


def __getattr__(name: str) -> Any:
    """Imports the module of a public name on first use."""
    for home, names in _HOMES.items():
        if name in names:
            from pipeline.system.imports import load

            value = globals()[name] = getattr(load(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*__all__, *globals()})
