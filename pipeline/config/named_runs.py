"""The recorded runs that a configuration names: teachers, and a run whose weights it takes.

Does not look into the store.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.config.builders import has_backbone
from pipeline.config.schema import Config


def weights_run(config: Config) -> str | None:
    """The run that `model.weights` names, by its id or the beginning of it.

    None if the model starts from a file, from ImageNet's weights or from random ones.
    """
    source = config.model.get("weights") if has_backbone(config.model) else None
    if not isinstance(source, str) or not re.fullmatch(r"[0-9a-f]{4,32}", source):
        return None
    return None if Path(source).exists() else source


def teacher_runs(config: Config) -> tuple[str, ...]:
    """The runs that `train.teacher` names, by their ids or the beginnings of these."""
    named = config.train.teacher
    return (named,) if isinstance(named, str) else tuple(named or ())


def names_runs(config: Config) -> bool:
    """Whether training needs a recorded run, from the store."""
    return bool(teacher_runs(config)) or weights_run(config) is not None
