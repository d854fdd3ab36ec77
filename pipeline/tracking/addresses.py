"""Addresses of stores and of their experiments' artefacts. Does not import MLflow."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from pipeline.system.errors import RequestError

DEFAULT_URI = "sqlite:///mlflow.db"
ARTIFACTS = "mlartifacts"
_PLAIN = re.compile(r"[\w-][\w. -]{0,59}")  # valid in any file system and any address
_ENCODED = re.compile(r"%[0-9a-fA-F]{2}")


def store_address(uri: str | None) -> str:
    """The address of the tracking store: `tracking.uri`, MLFLOW_TRACKING_URI, or the default."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def folder_name(experiment: str) -> str:
    """The name of an experiment's folder: the experiment's name, or a safe variant of it.

    `../a b` → `_a b-5f70bf18`. Different names have different folders.
    """
    if _PLAIN.fullmatch(experiment):
        return experiment
    words = re.sub(r"[^\w. -]+", "_", experiment).lstrip(". ")[:50]
    return f"{words}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"


def artifact_location(address: str, experiment: str) -> str | None:
    """Where a new experiment keeps its artefacts; None if the server decides.

    Raises:
        RequestError: MLflow could not read them there.
    """
    if not address.startswith("sqlite:"):
        return None
    return (artifact_root(address) / folder_name(experiment)).as_uri()


def artifact_root(address: str) -> Path:
    """The folder below which a local store's experiments keep their artefacts.

    Raises:
        RequestError: its path has what looks like an encoded character (`%20`); MLflow decodes it
            once too often and would not find the artefacts again.
    """
    folder = Path(ARTIFACTS).absolute()
    if address.startswith("sqlite:") and (found := _ENCODED.search(str(folder))):
        raise RequestError(
            f"{folder.parent}: MLflow reads the {found[0]} in this folder's name as an encoded "
            "character and would not find its artefacts again; rename the folder, or work in "
            "another"
        )
    return folder
