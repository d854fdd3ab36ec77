"""Saves models; finds saved ones by address and loads them with class names and image shape.

TensorFlow is imported only when a model is loaded.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import mlflow
import numpy as np
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from pipeline.config.schema import Tracking
from pipeline.data.pictures import FITS, PAD
from pipeline.data.polarity import dark_border_share, sample
from pipeline.data.values import Array, Prepared, shown_shape
from pipeline.system.errors import RequestError, first_line
from pipeline.system.folders import MODEL, owner
from pipeline.tracking.client import (
    STORE_ERRORS,
    address_of,
    connect,
    is_passing,
    quiet_client,
    store_away,
    whole_store,
)
from pipeline.tracking.values import CHAMPION, SAVED_MODEL, RecordedRun, champion_uri, dataset_of

if TYPE_CHECKING:
    import keras

ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")
_SHOWN = 3  # models named in the message if the requested one is missing

# The parts of a saved model that are read; anything else in `data` is refused.
KERAS_FILE, _EXAMPLE = "data/model.keras", "input_example.json"
_PARTS = {"MLmodel", KERAS_FILE, "data/keras_module.txt", "data/save_format.txt", _EXAMPLE}
PICKLES = (".pkl", ".pickle", ".cloudpickle", ".joblib", ".pt", ".pth")
KERAS_MODULES, LOADER = ("keras", "tensorflow.keras"), "mlflow.tensorflow"
_FLAT = ("tensorflow",)  # mappings in MLmodel whose values must be texts and numbers
_MOST_TEXT, MOST_EXAMPLE = 16_000_000, 64_000_000  # bytes
_JSON_BYTES = 9  # of a pixel value as JSON, at most: `[[255]], ` of a grey image one pixel wide
MOST_BYTES = 8_000_000_000  # of all files of a model


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """The model that an address referred to when it was looked up.

    `uri` always refers to the same model, even if aliases move; `version` is the version of the
    registered model, None if the address does not name one; `run_id` is the run that saved the
    model.
    """

    uri: str
    version: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadedModel:
    """A Keras model for predicting (not compiled): u8[N,H,W,C] → probabilities f32[N,K].

    `uri` is the requested address; `logged_uri` (`models:/m-…`) is the model it referred to, which
    does not change when an alias moves. `image_shape` is height, width, channels. `example` are a
    few images u8[N,H,W,C] that the model was saved with, or None. `dark_border` is the share of
    training images with a dark border (`data/polarity.py`), or of the example's images if it was
    not recorded; None if there is neither. `fit` says how pictures are fitted to the model's size
    (`data/pictures.py`). `megabytes` (10⁶ bytes) is the size of all its files.
    """

    model: keras.Model
    uri: str
    logged_uri: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    example: Array | None
    dark_border: float | None
    fit: str = PAD
    megabytes: float = float("nan")

    def __repr__(self) -> str:
        images, classes = shown_shape(self.image_shape), len(self.class_names)
        return f"LoadedModel({self.uri}: images {images} → {classes:,} classes)"


def save_model(model: keras.Model, prepared: Prepared, path: Path) -> None:
    """Writes a folder with a model of images u8[N,H,W,C] that MLflow's clients can load."""
    import keras  # imported here: the parent of a sweep records its run without TensorFlow

    keras.config.disable_interactive_logging()  # MLflow predicts the example, with a bar
    images = TensorSpec(np.dtype("uint8"), (-1, *prepared.image_shape))
    probabilities = TensorSpec(np.dtype("float32"), (-1, len(prepared.class_names)))
    about = {
        "class_names": list(prepared.class_names),
        # Pictures for predicting are read as those of the training were: none is inverted.
        "dark_border": None if prepared.fit else dark_border_share(sample(prepared.train)),
        "fit": prepared.fit or PAD,
    }
    with _nothing_registered():
        mlflow.tensorflow.save_model(
            model,
            path,
            mlflow_model=Model(metadata=about),
            signature=ModelSignature(inputs=Schema([images]), outputs=Schema([probabilities])),
            input_example=_example_of(prepared),
            # MLflow would take many seconds to infer these.
            pip_requirements=[
                f"{name}=={version_of(name)}" for name in ("mlflow", "tensorflow", "keras", "numpy")
            ],
        )


def _example_of(prepared: Prepared) -> Array | None:
    """Two test images u8[2,H,W,C], or as many as their file, JSON, may hold; None if none."""
    most = MOST_EXAMPLE // (_JSON_BYTES * max(1, math.prod(prepared.image_shape)))
    return np.asarray(prepared.test.batch(0, min(2, most))) if most else None


@contextmanager
def _nothing_registered() -> Iterator[None]:
    """Hides the classes registered with Keras, which MLflow would pickle beside the model.

    A pickle runs code when it is loaded, so this pipeline writes none and loads none.
    """
    import keras

    registered = keras.saving.get_custom_objects()
    kept = dict(registered)
    registered.clear()
    try:
        yield
    finally:
        registered.update(kept)


def follows_alias(uri: str) -> bool:
    """Whether the address may refer to another model later."""
    return ALIAS.fullmatch(uri) is not None


def find_version(client: mlflow.MlflowClient, uri: str, dataset: str | None = None) -> ModelVersion:
    """Looks up `models:/<name>@<alias>`, `models:/<name>/<version>` or `models:/m-…`.

    Other addresses that MLflow can load are returned unchanged. `dataset` is the chosen data set,
    for the advice: registered models of `mine/birds` and `mine--birds` have one name.

    Raises:
        RequestError: there is no such model, version or alias.
        StoreAway: the store does not answer.
    """
    try:
        if alias := ALIAS.fullmatch(uri):
            return _registered(client.get_model_version_by_alias(alias["name"], alias["alias"]))
        if version := _VERSION.fullmatch(uri):
            return _registered(client.get_model_version(version["name"], version["version"]))
        if logged := SAVED_MODEL.fullmatch(uri):
            model = client.get_logged_model(logged["model_id"])
            return ModelVersion(uri=uri, run_id=model.source_run_id)
    except (MlflowException, SQLAlchemyError) as error:
        if is_passing(error):
            raise store_away(client, error) from error
        store = address_of(client)
        raise RequestError(f"model_uri={uri}: not in {store}; {_way_out(uri, dataset)}") from error
    return ModelVersion(uri=uri)


def finder(uri: str, tracking: Tracking, dataset: str | None = None) -> Callable[[], ModelVersion]:
    """A function that looks an address up as `find_version` does; asks no store about a folder.

    Raises:
        RequestError: the store cannot be used.
    """
    client = _store_of(uri, tracking)
    if client is None:
        return partial(ModelVersion, uri=uri)
    return partial(find_version, client, uri, dataset)


def model_of_run(run: RecordedRun) -> keras.Model:
    """Loads the model that a run has saved, not compiled, from the store of the run.

    One that is still in the folder of the run needs no store.

    Raises:
        RequestError: as `load_model` and `require_own_model`.
    """
    client = None if _is_at_home(run) else quiet_client(whole_store(run.store))
    if client:
        require_own_model(client, run)
    return _load(client, str(run.model_uri)).model


def _is_at_home(run: RecordedRun) -> bool:
    """Whether the run's model is the one in its own folder on this machine."""
    folder = run.folder
    if folder is None or run.model_uri != str(folder.absolute() / MODEL):
        return False
    return owner(folder) == run.id


def load_model(uri: str, tracking: Tracking) -> LoadedModel:
    """Loads a model: `models:/<name>@<alias>`, `models:/<name>/<version>`, `models:/m-…`, a folder.

    MLflow's loader is not used, because it would run code from the folder. Only models in the
    form in which this pipeline saves them are accepted, and each is inspected first.

    Raises:
        RequestError: there is no such model, or this pipeline has not saved it.
    """
    return _load(_store_of(uri, tracking), uri)


def _store_of(uri: str, tracking: Tracking) -> mlflow.MlflowClient | None:
    """The store that knows the address; None for a folder, which needs none."""
    is_folder = "://" not in uri and Path(uri).is_dir()
    return None if is_folder else connect(tracking.uri)


def _load(client: mlflow.MlflowClient | None, uri: str) -> LoadedModel:
    with _fetched(client, uri) as saved:
        return load_fetched(saved, uri)


def load_fetched(saved: SavedModel, uri: str) -> LoadedModel:
    """Loads a model that was fetched from that address; asks no store.

    Raises:
        RequestError: this pipeline has not saved it.
    """
    from pipeline.training.saved import load_saved

    called = f"model_uri={uri}"
    model = load_saved(saved.folder / KERAS_FILE, called=called)
    shape = _image_shape(model, uri)
    if model.output_shape != (None, len(saved.class_names)):
        raise RequestError(
            f"{called}: gives {model.output_shape}, not a probability of each of its "
            f"{len(saved.class_names)} classes"
        )
    example = saved.example(shape)
    return LoadedModel(
        model=model,
        uri=uri,
        logged_uri=f"models:/{saved.model_id}" if saved.model_id else uri,
        class_names=saved.class_names,
        image_shape=shape,
        example=example,
        dark_border=saved.dark_border if saved.says_border else _share(example),
        fit=saved.fit,
        megabytes=saved.megabytes,
    )


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """The checked description of a saved model; the model itself is not built yet.

    `dark_border` is only valid if `says_border`; earlier versions did not record it.
    """

    folder: Path
    megabytes: float
    model_id: str | None
    class_names: tuple[str, ...]
    says_border: bool
    dark_border: float | None
    fit: str

    def example(self, shape: tuple[int, int, int]) -> Array | None:
        """The images u8[N,H,W,C] that it was saved with, None if there are none.

        Raises:
            RequestError: they are not such images.
        """
        file = self.folder / _EXAMPLE
        if not file.exists():
            return None
        try:
            images = np.asarray(json.loads(_read(file, MOST_EXAMPLE)))
            if images.shape[1:] != shape or images.dtype.kind not in "iu":
                raise ValueError(f"holds {images.dtype}{list(images.shape)}, not images {shape}")
            if images.min() < 0 or images.max() > 255:
                raise ValueError("holds values beyond 0–255")
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{_EXAMPLE} of the model {first_line(str(error))}") from error
        return images.astype(np.uint8)


@contextmanager
def fetched(uri: str, tracking: Tracking) -> Iterator[SavedModel]:
    """The saved model at an address, on this machine while the block runs.

    Raises:
        RequestError: there is no such model, or this pipeline has not saved it.
        StoreAway: the store does not answer.
    """
    with _fetched(_store_of(uri, tracking), uri) as saved:
        yield saved


@contextmanager
def _fetched(client: mlflow.MlflowClient | None, uri: str) -> Iterator[SavedModel]:
    with TemporaryDirectory(prefix="pipeline-fetched-") as temporary:
        try:
            location, store = (
                (_location(client, uri), client.tracking_uri) if client else (uri, None)
            )
            folder, sizes = _fetch(location, Path(temporary), store)
        except (MlflowException, OSError) as error:
            if client and is_passing(error):
                raise store_away(client, error) from error
            hint = _present(client) if client else "the folder has no saved model"
            raise RequestError(f"model_uri={uri}: no such model; {hint}") from error
        except ValueError as error:
            raise RequestError(f"model_uri={uri}: cannot be loaded: {error}") from error
        yield _described(uri, folder, sum(sizes.values()) / 1e6)


def require_own_model(client: mlflow.MlflowClient, run: RecordedRun) -> None:
    """Refuses a run whose tag `model_uri` does not name a model of this run.

    Anybody who can write to the store can set a tag: it is only trusted if it names a model that
    this run logged, or one among its artefacts.

    Raises:
        RequestError: it names another model or place.
        StoreAway: the store does not answer.
    """
    uri = run.model_uri or ""
    if logged := SAVED_MODEL.fullmatch(uri):
        try:
            if client.get_logged_model(logged["model_id"]).source_run_id == run.id:
                return
        except STORE_ERRORS as error:
            if not is_passing(error):
                raise RequestError(f"run_id={run.id}: its model {uri} is gone") from error
            raise store_away(client, error) from error
    own = (f"runs:/{run.id}/", f"{run.artifacts}/")
    if uri.startswith(own) and ".." not in unquote(uri).split("/"):
        return
    raise RequestError(
        f"run_id={run.id}: its tag model_uri={uri} is not a model of this run; nothing is loaded"
    )


def _location(client: mlflow.MlflowClient, uri: str) -> str:
    """The location of a model's files, according to the store and not to the files themselves.

    Raises:
        ValueError: a registered version, or a logged model, points elsewhere.
        MlflowException: there is none.
    """
    if not uri.startswith("models:"):
        return _of_a_run(client, uri) if uri.startswith("runs:") else uri
    if registered := (ALIAS.fullmatch(uri) or _VERSION.fullmatch(uri)):
        named = registered.groupdict()
        if "alias" in named:
            version = client.get_model_version_by_alias(named["name"], named["alias"])
        else:
            version = client.get_model_version(named["name"], named["version"])
        uri = str(version.source)
        if not SAVED_MODEL.fullmatch(uri):
            raise ValueError(f"version {version.version} is from {uri}, which no run has logged")
    logged = SAVED_MODEL.fullmatch(uri)
    if logged is None:
        raise ValueError("it is no address of a model")
    model_id = logged["model_id"]
    model = client.get_logged_model(model_id)
    root = client.get_experiment(model.experiment_id).artifact_location
    location = str(model.artifact_location)
    expected = f"{root.partition('?')[0].rstrip('/')}/models/{model_id}/artifacts"
    if location.partition("?")[0] != expected:
        raise ValueError(f"the store has it at {location}, outside of its experiment's {root}")
    return location


def _of_a_run(client: mlflow.MlflowClient, uri: str) -> str:
    run_id, _, path = uri.removeprefix("runs:/").partition("/")
    if not path or ".." in unquote(path).split("/"):
        raise ValueError("it is no address of a model")
    return f"{client.get_run(run_id).info.artifact_uri}/{path}"


def _fetch(location: str, target: Path, store: str | None) -> tuple[Path, dict[str, int]]:
    """Fetches the folder with a model's parts; returns it and the size of each file by path.

    Raises:
        ValueError: it holds files that models of this pipeline never have.
        OSError, MlflowException: it is missing or incomplete.
    """
    local = urlsplit(location)
    if local.scheme in ("", "file"):
        folder = Path(unquote(local.path) if local.scheme else location)
        sizes = _listed(folder)
        _require_ours(sizes)
        return folder, sizes
    repository = get_artifact_repository(location, tracking_uri=store)
    parts = [*repository.list_artifacts(), *repository.list_artifacts("data")]
    sizes = {part.path: int(part.file_size or 0) for part in parts if not part.is_dir}
    folders = [part.path for part in parts if part.is_dir]
    _require_ours(sizes | {f"{folder}/": 0 for folder in folders if folder != "data"})
    for name in _PARTS & sizes.keys():
        (target / name).parent.mkdir(exist_ok=True)
        repository.download_artifacts(name, str(target))  # type: ignore[no-untyped-call]
    return target, sizes


def _listed(folder: Path) -> dict[str, int]:
    """The files of a local folder with their sizes; folders other than `data` end in a slash."""
    sizes = {}
    for part in [*os.scandir(folder), *os.scandir(folder / "data")]:
        name = Path(part.path).relative_to(folder).as_posix()
        if part.is_file(follow_symlinks=False):
            sizes[name] = part.stat().st_size
        elif not part.is_dir(follow_symlinks=False):
            raise ValueError(f"{name[:80]} is a link or not a file")
        elif name != "data":
            sizes[f"{name}/"] = 0
    return sizes


def _require_ours(sizes: Mapping[str, int]) -> None:
    """Refuses a folder with code, pickles or other files that our models never have."""
    for name in sorted(sizes):
        is_foreign = name.startswith("data/") and name not in _PARTS
        if is_foreign or name.endswith(("/", ".py", *PICKLES)):
            raise ValueError(f"it holds {name[:80]}, which models of this pipeline never do")
    if sum(sizes.values()) > MOST_BYTES:
        raise ValueError(f"it has {sum(sizes.values()) / 1e9:.1f} GB")
    for name in ("MLmodel", KERAS_FILE):
        if name not in sizes:
            raise FileNotFoundError(f"{name} is missing")


def _described(uri: str, folder: Path, megabytes: float) -> SavedModel:
    """Reads the description in the folder of a model, which nothing has checked yet."""
    try:
        model = _understood(_read(folder / "MLmodel", _MOST_TEXT), folder, megabytes)
        module = folder / "data" / "keras_module.txt"
        if module.exists() and _read(module, _MOST_TEXT).strip() not in KERAS_MODULES:
            raise ValueError("data/keras_module.txt names a module other than keras")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = first_line(str(error))[:200]
        raise RequestError(f"model_uri={uri}: cannot be loaded: MLmodel: {told}") from error
    if model is None:
        raise RequestError(f"model_uri={uri}: not a model of this pipeline, it has no class names")
    return model


def _understood(text: str, folder: Path, megabytes: float) -> SavedModel | None:
    """Reads `MLmodel` as data: names of modules in it are compared, never imported.

    None for a model of another program.

    Raises:
        YAMLError, ValueError, RecursionError: it is damaged, or not to be trusted.
    """
    document = yaml.safe_load(text)
    flavors, metadata = _mapping(document, "flavors"), _mapping(document, "metadata")
    names = metadata.get("class_names")
    if "tensorflow" not in flavors or names is None:
        return None
    _require_keras(flavors)
    border, model_id = metadata.get("dark_border"), document.get("model_id")
    if not isinstance(names, list) or not names or not all(type(n) is str for n in names):
        raise ValueError("class_names is not a list of texts")
    is_share = isinstance(border, int | float) and not isinstance(border, bool) and 0 <= border <= 1
    if border is not None and not is_share:
        raise ValueError("dark_border is not a share")
    if (fit := metadata.get("fit", PAD)) not in FITS:
        raise ValueError("fit is not a known way to fit pictures")
    if model_id is not None and not re.fullmatch(r"m-\w+", str(model_id)):
        raise ValueError("model_id is not valid")
    return SavedModel(
        folder=folder,
        megabytes=megabytes,
        model_id=model_id,
        class_names=tuple(names),
        says_border="dark_border" in metadata,
        dark_border=border,
        fit=fit,
    )


def _require_keras(flavors: Mapping[str, Any]) -> None:
    """Refuses a model that MLflow would load with code from the model."""
    if other := sorted(map(str, flavors.keys() - {"tensorflow", "python_function"})):
        raise ValueError(f"it has the flavor {other[0][:40]}")
    keras, generic = _mapping(flavors, "tensorflow"), _mapping(flavors, "python_function")
    told = {
        "code": {keras.get("code"), generic.get("code")} <= {None},
        "data": {keras.get("data"), generic.get("data", "data")} <= {"data"},
        "model_type": keras.get("model_type") == "keras",
        "keras_module": keras.get("keras_module", "keras") in KERAS_MODULES,
        "loader_module": generic.get("loader_module", LOADER) == LOADER,
    }
    for key, is_ours in told.items():
        if not is_ours:
            raise ValueError(f"its {key} is not that of a model of this pipeline")


def _mapping(document: Any, key: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ValueError("it is not a mapping")
    found = document.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{key} is not a mapping")
    if any(isinstance(value, dict | list) for value in found.values() if key in _FLAT):
        raise ValueError(f"{key} is nested")
    return found


def _read(file: Path, most: int) -> str:
    if file.stat().st_size > most:
        raise ValueError(f"{file.name} has more than {most / 1e6:g} MB")
    return file.read_text(encoding="utf-8")


def _image_shape(model: keras.Model, uri: str) -> tuple[int, int, int]:
    shape = model.input_shape[1:]
    if len(shape) != 3 or None in shape:
        raise RequestError(f"model_uri={uri}: takes {shape}, not images of one size [H,W,C]")
    height, width, channels = shape
    return height, width, channels


def _share(example: Array | None) -> float | None:
    return None if example is None else dark_border_share(example)


def _present(client: mlflow.MlflowClient) -> str:
    """Lists the models that exist, as advice."""
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
        for model in client.search_logged_models(experiments, max_results=_SHOWN)
        if str(model.status) == "READY"
    ]
    if logged:
        return f"none is promoted yet; the newest saved are {', '.join(logged)}"
    return "none is saved yet; train one with `python -m pipeline`"


def _registered(found: Any) -> ModelVersion:
    pinned = f"models:/{found.name}/{found.version}"
    return ModelVersion(uri=pinned, version=str(found.version), run_id=found.run_id or None)


def _way_out(uri: str, dataset: str | None) -> str:
    if (alias := ALIAS.fullmatch(uri)) and alias["alias"] == CHAMPION:
        is_chosen = dataset is not None and uri == champion_uri(dataset)
        named = dataset if is_chosen else dataset_of(alias["name"])
        command = f"python -m pipeline promote dataset={named} run_id=best"
        return f"promote a run first, `{command}`; or choose another data set or model"
    return "the models of runs are their model_uri, registered ones models:/<name>/<version>"
