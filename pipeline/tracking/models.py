"""Loads a saved model with what it takes to use it: class names, the shape of its images."""

from __future__ import annotations

from dataclasses import dataclass
from tempfile import TemporaryDirectory

import keras  # before mlflow.tensorflow asks for it half way through its own import
import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from pipeline.config.schema import Tracking
from pipeline.data.polarity import dark_border_share
from pipeline.data.values import Array
from pipeline.system.errors import RequestError, first_line
from pipeline.tracking.client import connect

SHOWN = 3  # models that are named when the one asked for is not there


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
