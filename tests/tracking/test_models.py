from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import keras
import mlflow
import pytest

from pipeline.data.datasets import synthetic
from pipeline.system.errors import RequestError
from pipeline.tracking import models
from pipeline.tracking.client import connect
from pipeline.tracking.models import ModelVersion, find_version, finder, follows_alias, save_model
from tests.commands import configured, inside
from tests.splits import in_splits


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow.MlflowClient]:
    """A store in which version 2 of two has the alias `champion`."""
    with inside(tmp_path_factory.mktemp("versions")) as folder:
        client = connect(None)
        client.create_registered_model("lamp")
        for run_id in ("first", None):
            client.create_model_version("lamp", (folder / "model").as_uri(), run_id)
        client.set_registered_model_alias("lamp", "champion", "2")
        yield client


def test_an_alias_stands_for_the_version_that_has_it(client: mlflow.MlflowClient) -> None:
    found = find_version(client, "models:/lamp@champion")
    assert found == ModelVersion(uri="models:/lamp/2", version="2", run_id=None)


def test_a_version_stands_for_itself_and_names_its_run(client: mlflow.MlflowClient) -> None:
    found = find_version(client, "models:/lamp/1")
    assert found == ModelVersion(uri="models:/lamp/1", version="1", run_id="first")


def test_an_address_outside_the_registry_stays_as_it_is(client: mlflow.MlflowClient) -> None:
    assert find_version(client, "/some/folder") == ModelVersion(uri="/some/folder")


def test_a_folder_is_found_without_a_store_and_the_rest_in_the_store(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    champion = finder("models:/lamp@champion", configured().tracking)
    assert champion() == ModelVersion(uri="models:/lamp/2", version="2")
    with inside(tmp_path):
        (tmp_path / "model").mkdir()
        assert finder("model", configured().tracking)() == ModelVersion(uri="model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("models:/no--thing@champion", "promote a run first, `python .* dataset=no/thing run_id="),
        ("models:/lamp@challenger", "models:/<name>/<version>"),
        ("models:/lamp/3", "models:/<name>/<version>"),
        ("models:/m-0123", "their model_uri"),
    ],
)
def test_what_is_not_there_is_refused_with_the_way_to_what_is(
    client: mlflow.MlflowClient, uri: str, advice: str
) -> None:
    with pytest.raises(RequestError, match=f"^model_uri={uri}: not in sqlite:.*{advice}"):
        find_version(client, uri)


@pytest.mark.parametrize(
    ("chosen", "named"), [("no--thing", "no--thing"), ("no/thing", "no/thing"), ("it", "no/thing")]
)
def test_the_advice_to_promote_names_the_data_set_as_it_was_chosen(
    client: mlflow.MlflowClient, chosen: str, named: str
) -> None:
    find = finder("models:/no--thing@champion", configured().tracking, chosen)
    with pytest.raises(RequestError, match=f"promote dataset={named} run_id=best"):
        find()


def test_only_an_alias_may_come_to_stand_for_another_version() -> None:
    assert follows_alias("models:/lamp@champion")
    for uri in ("models:/lamp/1", "models:/m-0123", "/some@folder", "runs:/abc/model"):
        assert not follows_alias(uri), uri


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_an_example_has_as_many_images_as_its_file_may_hold(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (20, 20, channels)
    raw = synthetic(train_size=20, test_size=4, classes=2, image_shape=shape, noise=9.0, seed=0)
    raw.test.images[:] = 255  # the longest in JSON
    images = keras.Input(shape, dtype="uint8")
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(images))
    model, prepared = keras.Model(images, outputs), in_splits(raw, validation_size=4, seed=0)
    one = 9 * math.prod(shape)
    for most, count in ((10**6, 2), (one, 1), (one - 1, 0)):
        monkeypatch.setattr(models, "MOST_EXAMPLE", most)
        save_model(model, prepared, tmp_path / str(most))
        file = tmp_path / str(most) / "input_example.json"
        assert file.exists() == (count > 0)
        if count:
            assert file.stat().st_size <= most
            assert len(json.loads(file.read_text())) == count
