"""Where a store is and where its experiments keep their artefacts. Imports no MLflow."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from pipeline.system.errors import RequestError

DEFAULT_URI = "sqlite:///mlflow.db"
ARTIFACTS = "mlartifacts"
_PLAIN = re.compile(r"[\w-][\w. -]{0,59}")  # what any file system and any address can hold
_ENCODED = re.compile(r"%[0-9a-fA-F]{2}")


def store_address(uri: str | None) -> str:
    """The address of the tracking store: `tracking.uri`, MLFLOW_TRACKING_URI, or the default."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def folder_name(experiment: str) -> str:
    """The name of an experiment's folder: its own, or one like it that leads nowhere else.

    `../a b` → `_a b-5f70bf18`. Names that differ have folders that differ.
    """
    if _PLAIN.fullmatch(experiment):
        return experiment
    words = re.sub(r"[^\w. -]+", "_", experiment).lstrip(". ")[:50]
    return f"{words}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"


def artifact_location(address: str, experiment: str) -> str | None:
    """Where a new experiment keeps its artefacts; None: the store's owner says where.

    Raises:
        RequestError: MLflow could not read them there.
    """
    if not address.startswith("sqlite:"):
        return None
    return (artifact_root(address) / folder_name(experiment)).as_uri()


def artifact_root(address: str) -> Path:
    """The folder below which a local store's experiments keep their artefacts.

    Raises:
        RequestError: it holds what MLflow takes for an encoded character (`%20`), and decodes once
            too often: what is written there is not found again.
    """
    folder = Path(ARTIFACTS).absolute()
    if address.startswith("sqlite:") and (found := _ENCODED.search(str(folder))):
        raise RequestError(
            f"{folder.parent}: MLflow takes the {found[0]} in this folder's name for an encoded "
            "character and would not find its artefacts again; rename the folder, or work in "
            "another"
        )
    return folder
