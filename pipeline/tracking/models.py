"""Finds saved models by their addresses and loads them with class names and image shape.

TensorFlow is imported only when a model is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from sqlalchemy.exc import SQLAlchemyError

from pipeline.config.schema import Tracking
from pipeline.data.polarity import dark_border_share
from pipeline.data.values import Array
from pipeline.system.databases import without_password
from pipeline.system.errors import RequestError, first_line
from pipeline.tracking.client import connect

if TYPE_CHECKING:
    import keras

ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")
LOGGED = re.compile(r"models:/(?P<model_id>[^/@]+)")
SHOWN = 3  # models that are named when the one asked for is not there


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


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A Keras model for predicting (not compiled): u8[N,H,W,C] → probabilities f32[N,K].

    `uri` is the one asked for; `logged_uri` (`models:/m-…`) the model it stood for, which stays
    the same when an alias moves on. `image_shape` is height, width, channels. `example` are a few
    images u8[N,H,W,C] that the model was saved with, None where it was saved without.
    `dark_border` is the share of the training images with a dark border (`data/polarity.py`), of
    the example where that was not recorded, None where there is neither.
    """

    model: keras.Model
    uri: str
    logged_uri: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    example: Array | None
    dark_border: float | None


def follows_alias(uri: str) -> bool:
    """Whether what the address stands for can change."""
    return ALIAS.fullmatch(uri) is not None


def find_version(client: mlflow.MlflowClient, uri: str) -> ModelVersion:
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


def load_saved(uri: str) -> keras.Model:
    """The Keras model that a run of this pipeline saved."""
    import keras  # noqa: F401 - before mlflow.tensorflow asks for it half way through its import

    return mlflow.tensorflow.load_model(uri)


def load_model(uri: str, tracking: Tracking) -> LoadedModel:
    """The model at `models:/<name>@<alias>`, `models:/<name>/<version>`, `models:/m-…`, a folder.

    Raises:
        RequestError: there is no such model, or it is none that this pipeline has saved.
    """
    client = connect(tracking.uri)
    with TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
            saved = Model.load(path)
        except (MlflowException, OSError) as error:
            raise RequestError(f"model_uri={uri}: no such model; {_present(client)}") from error
        return _loaded(uri, saved, path)


def _loaded(uri: str, saved: Model, folder: str) -> LoadedModel:
    metadata = saved.metadata or {}
    if "tensorflow" not in saved.flavors or "class_names" not in metadata:
        raise RequestError(f"model_uri={uri}: not a model of this pipeline, it has no class names")
    model = _keras_model(folder, uri)
    example = _example(saved, folder)
    return LoadedModel(
        model=model,
        uri=uri,
        logged_uri=f"models:/{saved.model_id}" if saved.model_id else uri,
        class_names=tuple(metadata["class_names"]),
        image_shape=_image_shape(model, uri),
        example=example,
        dark_border=metadata["dark_border"] if "dark_border" in metadata else _share(example),
    )


def _keras_model(folder: str, uri: str) -> keras.Model:
    import keras  # noqa: F401 - before mlflow.tensorflow asks for it half way through its import

    try:
        return mlflow.tensorflow.load_model(folder, keras_model_kwargs={"compile": False})
    except (MlflowException, OSError, ValueError, TypeError) as error:
        said = first_line(str(error))
        raise RequestError(f"model_uri={uri}: cannot be loaded: {said}") from error


def _image_shape(model: keras.Model, uri: str) -> tuple[int, int, int]:
    shape = model.input_shape[1:]
    if len(shape) != 3 or None in shape:
        raise RequestError(f"model_uri={uri}: takes {shape}, not images of one size [H,W,C]")
    height, width, channels = shape
    return height, width, channels


def _example(saved: Model, folder: str) -> Array | None:
    example = saved.load_input_example(folder)
    return None if example is None else np.asarray(example, np.uint8)


def _share(example: Array | None) -> float | None:
    return None if example is None else dark_border_share(example)


def _present(client: mlflow.MlflowClient) -> str:
    """Which models could have been asked for, as an advice."""
    registered = [
        f"models:/{model.name}@{alias}"
        for model in client.search_registered_models()
        for alias in model.aliases
    ]
    if registered:
        return f"registered are {', '.join(registered)}"
    experiments = [found.experiment_id for found in client.search_experiments()]
    logged = [
        model.model_uri
        for model in client.search_logged_models(experiments, max_results=SHOWN)
        if str(model.status) == "READY"
    ]
    if logged:
        return f"none is promoted yet; the newest saved are {', '.join(logged)}"
    return "none is saved yet; train one with `python -m pipeline`"


def _registered(found: Any) -> ModelVersion:
    pinned = f"models:/{found.name}/{found.version}"
    return ModelVersion(uri=pinned, version=str(found.version), run_id=found.run_id or None)


def _way_out(uri: str) -> str:
    if uri.endswith("@champion"):
        return "promote a run first, `python -m pipeline promote run_id=best`, or name a model"
    return "the models of runs are their model_uri, registered ones models:/<name>/<version>"
