"""Knowledge distillation: a model learns from the probabilities of a recorded run's model too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.datasets import synthetic
from pipeline.data.values import Fitted
from pipeline.system.errors import RequestError
from pipeline.tracking import runs
from pipeline.tracking.values import Query
from pipeline.training import precision
from pipeline.training.batches import changed_batches, softened
from pipeline.training.build import build_model
from pipeline.training.checkpoint import progress_of
from pipeline.training.features import head_of
from pipeline.training.precision import computes_in_float32
from pipeline.training.train import train
from tests.commands import QUICK, configured, pipeline, results
from tests.splits import in_splits

pytestmark = pytest.mark.slow

RAW = synthetic(train_size=60, test_size=20, classes=3, image_shape=(6, 6, 1), noise=32.0, seed=0)
PREPARED = in_splits(RAW, validation_size=20, seed=0)
TAUGHT = ("train.teacher=abcd", "train.teacher_weight=0.3", "train.teacher_temperature=4")


def config(*overrides: str) -> Any:
    small = ("train.batch_size=8", "train.epochs=3", "train.tensorboard=false", "model=linear")
    return configured(*small, *overrides)


def teacher(seed: int = 5) -> keras.Model:
    model = build_model(config(f"seed={seed}"), PREPARED)
    model.set_weights([weight / 4 for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("seeds", [(5,), (5, 6, 7)])
def test_the_loss_is_that_of_the_classes_and_of_the_teachers_in_their_shares(
    seeds: tuple[int, ...],
) -> None:
    model, teachers = build_model(config(), PREPARED), [teacher(seed) for seed in seeds]
    taught = (*TAUGHT, f"train.teacher=[{','.join(f'abc{seed}' for seed in seeds)}]")
    images, labels = PREPARED.train.batch(0, 8), PREPARED.train.labels[:8]
    batch = (tf.constant(images), tf.constant(labels))
    before, *answers = (one(images).numpy().astype(float) for one in (model, *teachers))
    by_teacher = np.mean(answers, axis=0)
    with changed_batches(model, PREPARED, config(*taught), teachers):
        validated = {key: float(value) for key, value in model.test_step(batch).items()}
        model.reset_metrics()
        trained = {key: float(value) for key, value in model.train_step(batch).items()}
    true = -np.log(before[np.arange(8), labels])

    def at_4(probabilities: Any) -> Any:
        powers = probabilities ** (1 / 4)
        return powers / powers.sum(axis=1, keepdims=True)

    distance = (at_4(by_teacher) * np.log(at_4(by_teacher) / at_4(before))).sum(axis=1)
    assert validated["loss"] == pytest.approx(true.mean(), rel=1e-4)
    expected = 0.7 * true.mean() + 0.3 * 16 * distance.mean()
    assert trained["loss"] == pytest.approx(expected, rel=1e-3)
    assert trained["accuracy"] == validated["accuracy"] == (before.argmax(1) == labels).mean()
    np.testing.assert_allclose(softened(by_teacher, 4.0), at_4(by_teacher), rtol=1e-5)


def test_a_teacher_alone_is_imitated_and_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    class PowerCut(Exception):
        pass

    def cut(epoch: int, metrics: Any) -> None:
        if epoch == 2:
            raise PowerCut

    settings = config(*TAUGHT, "train.teacher_weight=1", "augment=flip_crop")

    def fitted(folder: Path, *listeners: Any, resumed: bool = False) -> Fitted:
        start = progress_of(folder / "checkpoints" / "last.keras") if resumed else None
        model = build_model(settings, PREPARED)
        return train(model, PREPARED, settings, folder, listeners, start, [teacher()])

    whole = fitted(tmp_path / "whole")
    with pytest.raises(PowerCut):
        fitted(tmp_path / "cut", cut)
    resumed = fitted(tmp_path / "cut", resumed=True)
    assert resumed.history == whole.history
    for one, other in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.history["train/loss"][-1] < whole.history["train/loss"][0]
    assert isinstance(whole.model.loss, keras.losses.SparseCategoricalCrossentropy)
    images = PREPARED.test.batch(0, 20)
    distances = [
        np.abs(teacher()(images) - one(images)).mean()
        for one in (build_model(settings, PREPARED), whole.model)
    ]
    assert distances[1] < 0.95 * distances[0]


def test_a_teacher_computes_in_the_precision_of_the_training_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "processor_features", lambda: f"flags : {precision.MEASURED}")
    wide = ("model=cnn", "model.filters=[16,32]", "model.dense=16", "train.scaling=whitened")

    def used(by: str, *network: str) -> keras.Model:
        taught = build_model(config(*network), PREPARED)
        model = build_model(config(f"train.precision={by}"), PREPARED)
        with changed_batches(model, PREPARED, config(*TAUGHT, f"train.precision={by}"), [taught]):
            return taught

    images = PREPARED.test.batch(0, 20)
    quick, exact = used("bfloat16", *wide), used("float32", *wide)
    computed = {layer.name: layer.compute_dtype for layer in quick.layers}
    assert computed["conv_1"] == computed["pool_2"] == computed["dense_1"] == "bfloat16"
    assert {computed[one] for one in ("scaling", "whitening", "probabilities")} == {"float32"}
    assert {weight.dtype for weight in quick.weights} == {"float32"}
    assert 0 < np.abs(quick(images) - exact(images)).max() < 0.01
    assert all(computes_in_float32(one) for one in (exact, used("bfloat16")))


def test_a_head_sees_the_images_if_it_has_a_teacher() -> None:
    settings = replace(config(*TAUGHT), model={"weights": "x", "trainable": "head"})
    assert head_of(build_model(config(), PREPARED), settings) is None


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            "train.teacher_weight=0.3",
            "train.teacher_weight=0.3 has no effect without a teacher;",
        ),
        ("train.teacher_temperature=3", "train.teacher_temperature=3 has no effect without"),
        ("train.teacher=abcd evaluate.leakage=true", "test images train.teacher has seen"),
        ("train.teacher=abcd train.teacher_weight=2", "train.teacher_weight: must be at most 1"),
        ("train.teacher=abcd train.teacher_temperature=1e6", "temperature: must be at most 1000"),
    ],
)
def test_settings_that_cannot_work_are_refused(choices: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        config(*choices.split())


def test_a_teacher_is_the_own_model_of_a_run_with_the_same_classes_and_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = SimpleNamespace(id="abcd" * 8, model_uri="models:/m-1")
    names, asked, tags = PREPARED.class_names, list[str](), dict[str, str]()
    loaded = SimpleNamespace(class_names=names, image_shape=(6, 6, 1), model="the model")
    monkeypatch.setattr(runs, "connect", lambda uri: None)
    monkeypatch.setattr(runs, "by_id", lambda client, given, key: run)
    monkeypatch.setattr(runs, "require_own_model", lambda client, run: asked.append(run.id))
    monkeypatch.setattr(runs, "load_model", lambda uri, tracking: loaded)
    assert runs.load_teachers(config(), PREPARED) == []
    assert runs.load_teachers(config(*TAUGHT), PREPARED, tags.update) == ["the model"]
    assert (asked, tags) == ([run.id], {"teacher": run.id})
    loaded.class_names = tuple(reversed(names))
    with pytest.raises(RequestError, match="needs the same classes in the same order"):
        runs.load_teachers(config(*TAUGHT), PREPARED)
    loaded.class_names, loaded.image_shape = names, (6, 5, 1)
    with pytest.raises(RequestError, match=r"takes images \(6, 5, 1\), not \(6, 6, 1\)"):
        runs.load_teachers(config(*TAUGHT), PREPARED)
    with pytest.raises(RequestError, match=r"train\.teacher=abcd and 1234: these name a run twice"):
        runs.require_named_runs(config("train.teacher=[abcd,1234]"))

    def gone(uri: str, tracking: Any) -> None:
        raise RequestError(f"model_uri={uri}: no such model")

    monkeypatch.setattr(runs, "load_model", gone)
    with pytest.raises(
        RequestError, match=r"^train.teacher=abcd: model_uri=models:/m-\S+: no such"
    ):
        runs.load_teachers(config(*TAUGHT), PREPARED)
    run.model_uri = None
    with pytest.raises(RequestError, match="has no saved model"):
        runs.load_teachers(config(*TAUGHT), PREPARED)


def test_a_run_is_repeated_with_the_whole_ids_of_its_teachers() -> None:
    ids = ["abcd" + "0" * 28, "1234" + "0" * 28]
    run: Any = SimpleNamespace(tags={"teacher": ", ".join(ids)})
    again = runs.as_trained(config("train.teacher=[abcd,1234]"), run)
    assert again == config(f"train.teacher=[{','.join(ids)}]")
    run.tags = {"teacher": ids[0]}
    assert runs.as_trained(config("train.teacher=abcd"), run).train.teacher == ids[0]
    run.tags = {}
    assert runs.as_trained(config("train.teacher=abcd"), run) == config("train.teacher=abcd")


def test_a_run_names_its_teacher_and_is_reproduced_with_it(tmp_path: Path) -> None:
    first = results(pipeline(*QUICK, cwd=tmp_path).stdout)["run_id"]
    taught = [f"train.teacher={first[:12]}", "seed=1"]
    second = results(pipeline(*QUICK, *taught, cwd=tmp_path).stdout)["run_id"]
    third = pipeline(*QUICK, f"train.teacher=[{first},{second[:12]}]", cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    run_id = results(third.stdout)["run_id"]
    again = pipeline("reproduce", f"run_id={run_id}", "dataset=synthetic", cwd=tmp_path)
    assert again.stdout.splitlines()[-1].endswith("verdict=bit-identical"), again.stderr
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    store.delete_run(second)
    untaught = pipeline("reproduce", f"run_id={run_id}", "dataset=synthetic", cwd=tmp_path)
    assert (untaught.returncode, f"={second} was deleted" in untaught.stderr) == (2, True)
    store.restore_run(second)
    other = ("dataset.classes=2", f"train.teacher={first}")
    refused = pipeline(*QUICK, *other, cwd=tmp_path)
    assert refused.returncode == 2
    assert "its classes are" in refused.stderr
    nobody = pipeline(*QUICK, "train.teacher=nobody", cwd=tmp_path)
    assert (nobody.returncode, "train.teacher=nobody" in nobody.stderr) == (2, True)
    tracking = config(f"tracking.uri=sqlite:///{tmp_path}/mlflow.db").tracking
    assert len(runs.find_runs(Query(), tracking)) == 5  # none of nobody's pupil
    found = runs.find_runs(Query(tags={"teacher": f"{first}, {second}"}), tracking)
    assert [run.id for run in found][-1:] == [run_id]
