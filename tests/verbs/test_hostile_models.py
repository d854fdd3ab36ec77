"""Hostile models, by every way to load one: refused in a line, and nothing of them runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest

from pipeline.api import load_data
from pipeline.config.schema import Tracking
from pipeline.run import run
from pipeline.sweeps.one_job import run_one
from pipeline.system.errors import PipelineError, RequestError
from pipeline.tracking import runs
from pipeline.tracking.models import load_model
from pipeline.tracking.runs import find_trained, load_teachers
from pipeline.training.pretrained import FEATURES, prepare_backbone
from tests.commands import carried_out, configured, inside
from tests.hostile import IN_THE_FILE, IN_THE_FOLDER, KERAS_FILE, Doctor
from tests.stress.matrix import matrix

pytestmark = pytest.mark.slow

QUICK = ("dataset=synthetic", "model=linear", "train.epochs=1", "evaluate.report=false")
QUICK += ("evaluate.plots=[]", "train.plots=[]", "train.tensorboard=false")
FORCED = ("promote.force=true", "promote.reason=x")


@dataclass(frozen=True)
class Store:
    """A store with a run whose model is version 1 and the champion."""

    folder: Path
    run_id: str
    model: Path
    """The folder of the run's model."""

    @property
    def uri(self) -> str:
        return f"models:/{self.model.parent.name}"

    def run(self) -> mlflow.entities.Run:
        return mlflow.MlflowClient().get_run(self.run_id)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with inside(tmp_path_factory.mktemp("store")) as folder:
        run_id = run(configured(*QUICK), folder / "outputs" / "one").run_id
        [found] = folder.rglob("MLmodel")
        carried_out("promote", *QUICK, f"run_id={run_id}", *FORCED, folder=folder)
        np.save("images.npy", np.zeros((2, 28, 28), np.uint8))
        yield Store(folder=folder, run_id=run_id, model=found.parent)


@pytest.fixture
def kept(store: Store, tmp_path: Path) -> Iterator[Store]:
    """The store; its model, checkpoints, tag and status are put right again afterwards."""
    places = (store.model, store.folder / "outputs" / "one" / "checkpoints")
    copies = [Path(shutil.copytree(place, tmp_path / f"{n}")) for n, place in enumerate(places)]
    yield store
    for place, copy in zip(places, copies, strict=True):
        shutil.rmtree(place)
        shutil.copytree(copy, place)
    client = mlflow.MlflowClient()
    client.set_tag(store.run_id, "model_uri", store.uri)
    client.set_terminated(store.run_id, "FINISHED")


def by(uri: str) -> Callable[[Store], None]:
    def route(store: Store) -> None:
        named = uri.format(store=store)
        words = ("predict.images=images.npy", f"predict.model_uri='{named}'")
        carried_out("predict", *QUICK, *words, folder=store.folder / "log")

    return route


def of_the_run(store: Store) -> None:
    words = ("predict.images=images.npy", f"run_id={store.run_id}")
    carried_out("predict", *QUICK, *words, folder=store.folder / "log")


def evaluated(store: Store) -> None:
    carried_out("evaluate", *QUICK, f"run_id={store.run_id}", folder=store.folder / "log")


def promoted(store: Store) -> None:
    client = mlflow.MlflowClient()
    client.delete_registered_model_alias("synthetic", "champion")
    try:
        carried_out(
            "promote", *QUICK, f"run_id={store.run_id}", *FORCED, folder=store.folder / "log"
        )
    finally:
        client.set_registered_model_alias("synthetic", "champion", "1")


def served(store: Store) -> None:
    carried_out("serve", *QUICK, "serve.port=0", folder=store.folder / "log")


LOADING: dict[str, Callable[[Store], None]] = {
    "predict by folder": by("{store.model}"),
    "predict by file address": by("file://{store.model}"),
    "predict by model": by("{store.uri}"),
    "predict by alias": by("models:/synthetic@champion"),
    "predict by version": by("models:/synthetic/1"),
    "predict by run": of_the_run,
    "evaluate": evaluated,
    "promote": promoted,
    "serve": served,
}
IN_A_FILE = ("a Lambda layer", "a SavedModel from a folder", "a link to another HDF5 file")


def in_the_model(way: str) -> Doctor:
    if way in IN_THE_FOLDER:
        return IN_THE_FOLDER[way][0]
    return lambda folder, marker: IN_THE_FILE[way][0](folder / KERAS_FILE, marker)


@pytest.mark.parametrize("way", ["custom objects", "code in MLmodel", "another Keras", *IN_A_FILE])
@pytest.mark.parametrize("route", LOADING)
@matrix(38)
def test_a_hostile_model_is_refused_on_every_way(
    route: str, way: str, kept: Store, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    in_the_model(way)(kept.model, marker)
    kind = PipelineError if route == "promote" else RequestError
    told = "model loads" if route == "promote" else "cannot be loaded"
    with pytest.raises(kind, match=told):
        LOADING[route](kept)
    assert not marker.exists()
    assert not Path("predictions.csv").exists()


def its_weights(store: Store, weights: str) -> None:
    config = replace(configured(*QUICK), model={"weights": weights, "trainable": "head"})
    given = runs.with_weights(config)
    images = keras.Input((28, 28, 1))
    model = keras.Model(images, keras.layers.Flatten(name=FEATURES)(images))
    prepare_backbone(model, given.model)


def by_teaching(store: Store) -> None:
    config = configured(*QUICK, f"train.teacher={store.run_id}", "train.teacher_weight=0.5")
    load_teachers(config, load_data(config))


LEARNING: dict[str, Callable[[Store], None]] = {
    "weights of a file": lambda store: its_weights(store, str(store.model / KERAS_FILE)),
    "weights of a run": lambda store: its_weights(store, store.run_id),
    "teacher": by_teaching,
}


WAYS_OF_LEARNING = [(route, way) for route in LEARNING for way in IN_A_FILE]
WAYS_OF_LEARNING += [("weights of a run", "custom objects"), ("teacher", "another Keras")]


@pytest.mark.parametrize(("route", "way"), WAYS_OF_LEARNING)
def test_nothing_is_learnt_from_a_hostile_model(
    route: str, way: str, kept: Store, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    in_the_model(way)(kept.model, marker)
    with pytest.raises(RequestError, match="cannot be loaded"):
        LEARNING[route](kept)
    assert not marker.exists()


@pytest.mark.parametrize("way", IN_THE_FOLDER)
@matrix(38)
def test_whatever_is_wrong_in_the_folder_of_a_model_is_refused_in_a_line(
    way: str, kept: Store, tmp_path: Path
) -> None:
    doctor, told = IN_THE_FOLDER[way]
    doctor(kept.model, tmp_path / "marker")
    with pytest.raises(RequestError, match=rf"^model_uri=.*cannot be loaded: .*{told}") as refusal:
        load_model(str(kept.model), Tracking(uri=None))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "marker").exists()


@matrix(38)
def test_links_and_pipes_in_the_folder_of_a_model_are_refused(kept: Store, tmp_path: Path) -> None:
    moved = Path(shutil.move(kept.model / "MLmodel", tmp_path))
    (kept.model / "MLmodel").symlink_to(moved)
    with pytest.raises(RequestError, match="MLmodel is a link or not a file"):
        load_model(kept.uri, Tracking(uri=None))
    (kept.model / "MLmodel").unlink()
    os.mkfifo(kept.model / "MLmodel")
    with pytest.raises(RequestError, match="MLmodel is a link or not a file"):
        load_model(kept.uri, Tracking(uri=None))


@pytest.mark.parametrize(
    "elsewhere", ["{other}", "file://{other}", "runs:/{run_id}/../../x", "s3://evil/x"]
)
@matrix(40)
def test_a_tag_that_points_elsewhere_is_not_followed(
    elsewhere: str, kept: Store, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(kept.model, tmp_path / "other"))
    uri = elsewhere.format(other=other, run_id=kept.run_id)
    mlflow.MlflowClient().set_tag(kept.run_id, "model_uri", uri)
    with pytest.raises(RequestError, match="is not a model of this run; nothing is loaded"):
        find_trained(kept.run_id, configured(*QUICK))


@matrix(40)
def test_a_tag_that_names_another_runs_model_is_not_followed(kept: Store) -> None:
    client = mlflow.MlflowClient()
    experiment = kept.run().info.experiment_id
    other = client.create_run(experiment)
    config = Path(
        mlflow.artifacts.download_artifacts(run_id=kept.run_id, artifact_path="config.yaml")
    )
    client.log_artifact(other.info.run_id, str(config))
    client.set_tag(other.info.run_id, "model_uri", kept.uri)
    with pytest.raises(RequestError, match="is not a model of this run"):
        find_trained(other.info.run_id, configured(*QUICK))


@matrix(40)
def test_a_version_registered_from_any_folder_is_not_followed(kept: Store, tmp_path: Path) -> None:
    other = Path(shutil.copytree(kept.model, tmp_path / "other"))
    client = mlflow.MlflowClient()
    made = client.create_model_version("synthetic", other.as_uri(), kept.run_id)
    client.set_registered_model_alias("synthetic", "stray", made.version)
    try:
        for uri in (f"models:/synthetic/{made.version}", "models:/synthetic@stray"):
            with pytest.raises(RequestError, match="which no run has logged"):
                load_model(uri, Tracking(uri=None))
        client.set_model_version_tag("synthetic", made.version, "promotion", "done")
        with pytest.raises(RequestError, match="which no run has logged"):
            carried_out("rollback", *QUICK, f"rollback.to={made.version}", folder=kept.folder)
    finally:
        client.delete_model_version("synthetic", made.version)


@matrix(40)
def test_a_logged_model_whose_files_lie_elsewhere_is_not_followed(
    kept: Store, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(kept.model, tmp_path / "other"))
    before = kept.model.as_uri()
    with sqlite3.connect(kept.folder / "mlflow.db") as database:
        database.execute("UPDATE logged_models SET artifact_location = ?", [other.as_uri()])
    try:
        with pytest.raises(RequestError, match="outside of its experiment's"):
            load_model(kept.uri, Tracking(uri=None))
    finally:
        with sqlite3.connect(kept.folder / "mlflow.db") as database:
            database.execute("UPDATE logged_models SET artifact_location = ?", [before])


@pytest.mark.parametrize("way", ["a link to another HDF5 file", "a member outside of its folder"])
@matrix(38)
def test_a_hostile_checkpoint_is_not_resumed(way: str, kept: Store, tmp_path: Path) -> None:
    mlflow.MlflowClient().set_terminated(kept.run_id, "FAILED")
    for name in ("last.keras", "best.keras"):
        IN_THE_FILE[way][0](kept.folder / "outputs/one/checkpoints" / name, tmp_path / "marker")
    words = ("dataset=synthetic", f"run_id={kept.run_id}", "resume.force=true")
    with pytest.raises(RequestError, match="last.keras"):
        carried_out("resume", *words, folder=kept.folder / "log")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("way", IN_A_FILE)
@matrix(38)
def test_a_hostile_checkpoint_is_not_kept_by_a_sweep(way: str, kept: Store, tmp_path: Path) -> None:
    folder = kept.folder / "outputs" / "one"
    IN_THE_FILE[way][0](folder / "checkpoints" / "last.keras", tmp_path / "marker")
    config = configured(*QUICK, "train.keep=last")
    job = replace(config.sweep.job, completes=kept.run_id)
    config = replace(config, sweep=replace(config.sweep, job=job))
    with pytest.raises(RequestError, match="last.keras: cannot be loaded"):
        run_one(config, folder)
    assert not (tmp_path / "marker").exists()


@matrix(38)
def test_a_sound_model_is_still_loaded_on_every_way(kept: Store) -> None:
    for route in LOADING.keys() - {"serve", "promote"}:
        LOADING[route](kept)
    loaded = load_model(kept.uri, Tracking(uri=None))
    images = np.zeros((2, 28, 28, 1), np.uint8)
    as_mlflow = mlflow.pyfunc.load_model(kept.uri).predict(images)
    np.testing.assert_array_equal(np.asarray(loaded.model(images)), as_mlflow)
    assert mlflow.tensorflow.load_model(kept.uri).output_shape == (None, 10)
    Path("predictions.csv").unlink()
