"""Finds out which model an address of MLflow's stands for at present."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.system.databases import without_password
from pipeline.system.errors import RequestError

ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")
LOGGED = re.compile(r"models:/(?P<model_id>[^/@]+)")


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """What an address stood for when it was looked up.

    `uri` goes on meaning the same model whatever happens to aliases; `version` is that of the
    registered model, None where the address names no registered one; `run_id` is the run that
    saved the model.
    """

    uri: str
    version: str | None = None
    run_id: str | None = None


def follows_alias(uri: str) -> bool:
    """Whether what the address stands for can change."""
    return ALIAS.fullmatch(uri) is not None


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The model that `models:/<name>@<alias>`, `models:/<name>/<version>` or `models:/m-…` names.

    Any other address that MLflow can load stays as it is.

    Raises:
        RequestError: there is no such model, version or alias.
    """
    try:
        if alias := ALIAS.fullmatch(uri):
            return _registered(client.get_model_version_by_alias(alias["name"], alias["alias"]))
        if version := VERSION.fullmatch(uri):
            return _registered(client.get_model_version(version["name"], version["version"]))
        if logged := LOGGED.fullmatch(uri):
            model = client.get_logged_model(logged["model_id"])
            return ModelVersion(uri=uri, run_id=model.source_run_id)
    except (MlflowException, SQLAlchemyError) as error:
        store = without_password(client.tracking_uri)
        raise RequestError(f"model_uri={uri}: not in {store}; {_way_out(uri)}") from error
    return ModelVersion(uri=uri)


def _registered(found: Any) -> ModelVersion:
    pinned = f"models:/{found.name}/{found.version}"
    return ModelVersion(uri=pinned, version=str(found.version), run_id=found.run_id or None)


def _way_out(uri: str) -> str:
    if uri.endswith("@champion"):
        return "promote a run first, `python -m pipeline promote run_id=best`, or name a model"
    return "the models of runs are their model_uri, registered ones models:/<name>/<version>"
