from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.config.schema import Config
from pipeline.data.datasets import synthetic
from pipeline.data.values import Fitted, Prepared
from pipeline.evaluation.plots import first_kernel
from pipeline.system.errors import PipelineError, RequestError
from pipeline.training.build import build_model
from pipeline.training.checkpoint import (
    Progress,
    best_checkpoint,
    newest_progress,
    progress_of,
)
from pipeline.training.train import ENOUGH_STEPS, train, xla_is_faster
from tests.commands import configured
from tests.splits import in_splits
from tests.stress.matrix import matrix, only_stressed

pytestmark = pytest.mark.slow
RAW = synthetic(train_size=60, test_size=20, classes=3, image_shape=(6, 6, 1), noise=32.0, seed=0)
PREPARED = in_splits(RAW, validation_size=20, seed=0)  # 40 training images: 5 batches of 8
WITHOUT_VALIDATION = in_splits(RAW, validation_size=0, seed=0)
SMALL = ("train.batch_size=8", "train.epochs=3", "train.tensorboard=false")


def config(*overrides: str) -> Config:
    """The validated configuration of a small network for these overrides."""
    if not any(override.startswith("model=") for override in overrides):
        overrides = ("model.hidden=[6]", *overrides)
    return configured(*SMALL, *overrides)


def trained(
    folder: Path,
    *overrides: str,
    prepared: Prepared = PREPARED,
    listener: Any = None,
    start: Progress | None = None,
) -> Fitted:
    settings = config(*overrides)
    model = build_model(settings, prepared)
    return train(model, prepared, settings, folder, [listener] if listener else [], start)


def flat(model: keras.Model) -> Any:
    """All weights of a model, one behind the other."""
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def probs(model: keras.Model) -> Any:
    return model.predict(PREPARED.test.batch(0, len(PREPARED.test)), verbose=0)


def validation_loss(model: keras.Model) -> float:
    split = PREPARED.val
    return float(
        model.evaluate(split.batch(0, len(split)), split.labels, verbose=0, return_dict=True)[
            "loss"
        ]
    )


def test_a_training_has_the_history_and_the_checkpoints_of_its_epochs(tmp_path: Path) -> None:
    heard: list[Any] = []
    fitted = trained(tmp_path, listener=lambda epoch, metrics: heard.append((epoch, metrics)))
    names = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]
    assert fitted.history.keys() == set(names)
    assert [epoch for epoch, _ in heard] == [1, 2, 3]
    for place, (_, metrics) in enumerate(heard):
        assert metrics == {name: fitted.history[name][place] for name in names}
    assert fitted.history["val/loss"][-1] == pytest.approx(validation_loss(fitted.model), rel=1e-5)

    folder = tmp_path / "checkpoints"
    names = ["best.keras", "last.keras", "previous.keras"]
    assert sorted(path.name for path in folder.iterdir()) == names
    last = keras.models.load_model(folder / "last.keras")
    np.testing.assert_allclose(probs(last), probs(fitted.model), rtol=1e-6)
    assert int(last.optimizer.iterations) == 15
    best = keras.models.load_model(folder / "best.keras")
    assert validation_loss(best) == pytest.approx(min(fitted.history["val/loss"]), rel=1e-5)


def test_training_learns(tmp_path: Path) -> None:
    history = trained(
        tmp_path, "train.epochs=10", "model.dropout=0", "optimizer.learning_rate=0.02"
    ).history
    assert history["train/loss"][-1] < 0.8 * history["train/loss"][0]
    assert history["val/accuracy"][-1] > 0.6  # chance is a third


def test_the_same_configuration_gives_the_same_weights(tmp_path: Path) -> None:
    one, same, other = (
        flat(trained(tmp_path / str(place), "train.epochs=1", f"seed={seed}").model)
        for place, seed in enumerate((1, 1, 2))
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


# A rate that overshoots makes the validation loss go up and down.
RESTLESS = ("optimizer=sgd", "optimizer.learning_rate=0.5", "train.epochs=8", "model.dropout=0")


def test_the_best_epoch_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    fitted = trained(tmp_path, *RESTLESS, "train.keep=best")
    losses = fitted.history["val/loss"]
    assert fitted.best_epoch == 1 + int(np.argmin(losses))
    assert fitted.best_epoch < 8  # else the last epoch is the best and the test shows nothing
    assert fitted.kept_epoch == fitted.best_epoch
    assert validation_loss(fitted.model) == pytest.approx(min(losses), rel=1e-5)
    saved = keras.models.load_model(tmp_path / "checkpoints" / "best.keras")
    np.testing.assert_allclose(probs(saved), probs(fitted.model), rtol=1e-6)


def test_the_best_epoch_of_averaged_weights_is_that_of_the_averages(tmp_path: Path) -> None:
    fitted = trained(tmp_path, *RESTLESS, "train.keep=best", "train.ema=0.6")
    losses = fitted.history["val/loss"]
    assert fitted.best_epoch == 1 + int(np.argmin(losses)) < 8
    assert validation_loss(fitted.model) == pytest.approx(min(losses), rel=1e-5)
    saved = keras.models.load_model(tmp_path / "checkpoints" / "best.keras")
    np.testing.assert_allclose(probs(saved), probs(fitted.model), rtol=1e-6)


def test_the_last_epoch_is_kept_otherwise_and_the_best_is_known_by_accuracy_if_that_is_asked_for(
    tmp_path: Path,
) -> None:
    fitted = trained(tmp_path, *RESTLESS, "train.monitor=val/accuracy")
    assert fitted.best_epoch == 1 + int(np.argmax(fitted.history["val/accuracy"]))
    assert fitted.kept_epoch == 8
    assert validation_loss(fitted.model) == pytest.approx(fitted.history["val/loss"][-1], rel=1e-5)


def test_training_stops_when_patience_is_at_its_end(tmp_path: Path) -> None:
    fitted = trained(tmp_path, *RESTLESS, "train.epochs=40", "train.patience=2")
    losses = fitted.history["val/loss"]
    assert len(losses) < 40
    assert fitted.best_epoch == len(losses) - 2
    assert fitted.kept_epoch == len(losses)
    assert min(losses[-2:]) >= losses[-3] == min(losses)


class PowerCut(Exception):
    pass


def cut_in(epoch: int) -> Any:
    """Ends training when an epoch is told and not yet kept."""

    def listen(now: int, metrics: Any) -> None:
        if now == epoch:
            raise PowerCut

    return listen


SLOW = "optimizer=sgd optimizer.learning_rate=0.5 model.dropout=0"


@pytest.mark.parametrize(
    ("choices", "epochs"),
    [
        # verbs/resume/test_command.py kills a run twice.
        pytest.param("train.xla=false", [2, 5], marks=only_stressed),
        pytest.param("train.xla=true schedule=cosine", [3], marks=only_stressed),
        pytest.param(  # test_teacher.py resumes augmented training
            "model=cnn model.filters=[2] augment=flip_and_shift optimizer=adamw",
            [3],
            marks=only_stressed,
        ),
        pytest.param(f"{SLOW} train.keep=best", [2, 5], marks=only_stressed),
        (f"{SLOW} train.keep=best train.patience=2 train.xla=true train.ema=0.5", [3]),
        pytest.param(
            "optimizer=rmsprop train.monitor=val/accuracy train.tensorboard=true train.ema=0.9",
            [3],
            marks=only_stressed,
        ),
    ],
)
@matrix(12)
def test_training_that_is_interrupted_once_or_twice_goes_on_to_the_same_bits(
    choices: str, epochs: list[int], tmp_path: Path
) -> None:
    overrides = ("train.epochs=8", *choices.split())
    whole = trained(tmp_path / "whole", *overrides)
    start: Progress | None = None
    for epoch in epochs:
        with pytest.raises(PowerCut):
            trained(tmp_path, *overrides, listener=cut_in(epoch), start=start)
        start = progress_of(tmp_path / "checkpoints" / "last.keras")
        assert len(start.epochs) == epoch - 1
    told: list[int] = []
    fitted = trained(
        tmp_path, *overrides, listener=lambda epoch, metrics: told.append(epoch), start=start
    )
    assert told == list(range(1, len(whole.history["val/loss"]) + 1))
    assert fitted.history == whole.history
    assert fitted.best_epoch == whole.best_epoch
    np.testing.assert_array_equal(flat(fitted.untrained()), flat(whole.untrained()))
    for one, other in zip(fitted.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    kept = [progress_of(at / "checkpoints/last.keras") for at in (tmp_path, tmp_path / "whole")]
    assert (kept[0].epochs, kept[0].seeds) == (kept[1].epochs, kept[1].seeds)


def test_training_that_was_complete_is_not_repeated(tmp_path: Path) -> None:
    overrides = ("train.epochs=20", *RESTLESS[:2], "train.keep=best", "train.patience=2")
    whole = trained(tmp_path, *overrides)
    path = tmp_path / "checkpoints" / "last.keras"
    before = path.read_bytes()
    fitted = trained(tmp_path, *overrides, start=progress_of(path))
    assert path.read_bytes() == before
    assert (fitted.history, fitted.best_epoch) == (whole.history, whole.best_epoch)
    for one, other in zip(fitted.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@matrix(10)
def test_a_kill_between_the_last_and_the_best_checkpoint_loses_nothing(tmp_path: Path) -> None:
    overrides = ("train.epochs=1", "train.keep=best")
    whole = trained(tmp_path, *overrides)
    (tmp_path / "checkpoints" / "best.keras").unlink()
    start = progress_of(tmp_path / "checkpoints" / "last.keras")
    fitted = trained(tmp_path, *overrides, start=start)
    np.testing.assert_array_equal(flat(fitted.model), flat(whole.model))


def test_the_best_checkpoint_is_made_again_before_the_next_interruption(tmp_path: Path) -> None:
    overrides = ("train.epochs=2", "train.keep=best", "optimizer.learning_rate=1e-4")
    whole = trained(tmp_path, *overrides)
    assert whole.best_epoch == 2
    folder = tmp_path / "checkpoints"
    shutil.copyfile(folder / "previous.keras", folder / "best.keras")  # killed before the copy
    resumed = trained(tmp_path, *overrides, start=progress_of(folder / "last.keras"))
    np.testing.assert_array_equal(flat(resumed.model), flat(whole.model))
    assert len(progress_of(folder / "best.keras").epochs) == 2
    (folder / "best.keras").unlink()
    assert len(progress_of(best_checkpoint(folder, 0)).epochs) == 1  # the one before the last
    with pytest.raises(RequestError, match="the best epoch, 4, are in none of the checkpoints"):
        best_checkpoint(folder, 3)


def test_the_best_checkpoint_takes_the_place_of_the_damaged_one_that_it_is_a_copy_of(
    tmp_path: Path,
) -> None:
    trained(tmp_path, "train.epochs=2", "train.keep=best", "optimizer.learning_rate=1e-4")
    folder = tmp_path / "checkpoints"
    (folder / "last.keras").write_bytes(b"torn")
    assert len(newest_progress(folder).epochs) == 2
    assert len(progress_of(folder / "last.keras").epochs) == 2


def test_without_validation_images_there_is_no_best_epoch_nor_its_checkpoint(
    tmp_path: Path,
) -> None:
    fitted = trained(tmp_path, "preprocess.validation_size=0", prepared=WITHOUT_VALIDATION)
    assert fitted.best_epoch is None
    assert fitted.history.keys() == {"train/loss", "train/accuracy"}
    assert not (tmp_path / "checkpoints" / "best.keras").exists()


@pytest.mark.parametrize(
    ("choice", "start", "end"),
    [
        ("schedule=linear schedule.end_learning_rate=0.002", 0.1, 0.002),
        ("schedule=cosine schedule.alpha=0.25", 0.1, 0.025),
        ("schedule=exponential schedule.decay_rate=0.5", 0.1, 0.05),
        ("schedule=constant", 0.1, 0.1),
    ],
)
def test_a_schedule_goes_from_the_optimizers_rate_to_its_end_value_when_all_steps_are_done(
    tmp_path: Path, choice: str, start: float, end: float
) -> None:
    overrides = (*choice.split(), "optimizer=sgd", "optimizer.learning_rate=0.1")
    model = build_model(config(*overrides), PREPARED)
    assert float(model.optimizer.learning_rate) == pytest.approx(start, rel=1e-6)
    fitted = trained(tmp_path, *overrides)
    assert int(fitted.model.optimizer.iterations) == 3 * 5
    assert float(fitted.model.optimizer.learning_rate) == pytest.approx(end, rel=1e-5)


def test_a_last_partial_batch_is_a_step_of_the_schedule(tmp_path: Path) -> None:
    overrides = ("schedule=linear", "schedule.end_learning_rate=0.0005", "train.batch_size=9")
    optimizer = trained(tmp_path, *overrides).model.optimizer
    assert int(optimizer.iterations) == 3 * 5  # 40 images: four batches of 9, one of 4
    assert float(optimizer.learning_rate) == pytest.approx(0.0005, rel=1e-5)


@pytest.mark.parametrize("choices", [(), ("model=cnn", "model.filters=[4]")])
def test_the_model_can_be_built_again_as_it_was_before_training(
    choices: tuple[str, ...], tmp_path: Path
) -> None:
    settings = config(*choices)
    model = build_model(settings, PREPARED)
    before = flat(model)
    fitted = train(model, PREPARED, settings, tmp_path, [])
    np.testing.assert_array_equal(flat(fitted.untrained()), before)
    assert not np.array_equal(flat(fitted.model), before)
    name, kernel = first_kernel(fitted.untrained()) or ("", None)
    assert (name, kernel.shape) == (("conv_1", (9, 4)) if choices else ("dense_1", (36, 6)))


def test_augmentation_sits_between_scaling_and_the_network() -> None:
    model = build_model(config("augment=flip_and_shift"), PREPARED)
    names = [layer.name for layer in model.layers]
    assert names[:5] == ["images", "scaling", "mirror", "shift", "flatten"]


def test_whitened_images_have_no_correlation_within_patches_and_the_layer_is_not_trained(
    tmp_path: Path,
) -> None:
    fitted = trained(tmp_path, "train.scaling=whitened", "train.epochs=1")
    names = [layer.name for layer in fitted.model.layers]
    assert names[:4] == ["images", "scaling", "whitening", "flatten"]
    whitening = fitted.model.get_layer("whitening")
    for before, after in zip(
        fitted.untrained().get_layer("whitening").weights, whitening.weights, strict=True
    ):
        np.testing.assert_array_equal(before, after)
    images = PREPARED.train.take(slice(None))
    maps = keras.Model(fitted.model.input, whitening.output).predict(images, verbose=0)
    values = maps[:, 1:-1, 1:-1].reshape(-1, 9)  # where no part of a patch is padding
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(values, rowvar=False), np.eye(9), atol=0.15)


def test_images_smaller_than_a_patch_cannot_be_whitened() -> None:
    raw = synthetic(
        train_size=24, test_size=10, classes=2, image_shape=(2, 5, 1), noise=8.0, seed=0
    )
    with pytest.raises(RequestError, match="whitened: the images have 2 × 5 pixels"):
        build_model(config("train.scaling=whitened"), in_splits(raw, validation_size=8, seed=0))


def test_the_optimizer_is_the_chosen_one_with_its_settings() -> None:
    optimizer = build_model(config("optimizer=sgd", "optimizer.momentum=0.5"), PREPARED).optimizer
    assert type(optimizer) is keras.optimizers.SGD
    assert (optimizer.momentum, optimizer.nesterov) == (0.5, True)


def test_the_tensorboard_log_becomes_an_artefact(tmp_path: Path) -> None:
    trained(tmp_path, "train.tensorboard=true", "train.epochs=1")
    log = tmp_path / "artifacts" / "tensorboard"
    assert {path.name for path in log.iterdir()} >= {"train", "validation"}
    trained(tmp_path / "without", "train.epochs=1")
    assert not (tmp_path / "without" / "artifacts").exists()


@matrix(25)
def test_divergence_names_the_epoch_and_gives_the_terminal_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(
        "pipeline.training.train.ProgressDisplay.close", lambda self: closed.append(True)
    )
    with pytest.raises(PipelineError, match=r"^the loss became nan in epoch 1: .*clipnorm=1$"):
        trained(tmp_path, "optimizer=sgd", "optimizer.learning_rate=1e30")
    assert closed == [True]


def pretended(*arguments: Any, **_: Any) -> None:
    """A training of three epochs that trains nothing, in place of `loop.fit`."""
    callbacks = arguments[2]
    callbacks.on_train_begin()
    for epoch in range(3):
        callbacks.on_epoch_begin(epoch)
        callbacks.on_epoch_end(epoch, {"val_loss": 1.0})


def test_speed_is_training_images_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [10.0]

    def three_epochs_in_four_seconds(*arguments: Any, **_: Any) -> None:
        pretended(*arguments)
        clock[0] += 4

    monkeypatch.setattr("pipeline.training.train.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("pipeline.training.train.loop.fit", three_epochs_in_four_seconds)
    assert trained(tmp_path).images_per_s == 3 * 40 / 4


@pytest.mark.parametrize("scaling", ["standard", "whitened"])
def test_colour_images_with_a_channel_of_one_value_can_be_trained_on(
    tmp_path: Path, scaling: str
) -> None:
    raw = synthetic(
        train_size=24, test_size=10, classes=2, image_shape=(6, 5, 3), noise=8.0, seed=0
    )
    prepared = in_splits(raw, validation_size=8, seed=0)
    one_colour = np.array(prepared.train.images)
    one_colour[..., 0] = 7
    prepared = replace(
        prepared,
        train=replace(prepared.train, images=one_colour),
        mean=np.array([7, *prepared.mean[1:]], np.float32),
        std=np.array([0, *prepared.std[1:]], np.float32),
    )
    fitted = trained(tmp_path, f"train.scaling={scaling}", prepared=prepared)
    assert np.isfinite(fitted.history["train/loss"]).all()


@pytest.mark.parametrize(
    ("choice", "enough_steps", "expected"),
    [("null", 15, True), ("null", 16, False), ("true", 16, True), ("false", 15, False)],
)
def test_xla_is_used_where_it_is_asked_for_or_known_to_be_faster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    enough_steps: int,
    expected: bool,
) -> None:
    asked: list[bool] = []

    def noted(*arguments: Any, xla: bool, **_: Any) -> None:
        asked.append(xla)
        pretended(*arguments)

    monkeypatch.setattr("pipeline.training.train.ENOUGH_STEPS", enough_steps)
    monkeypatch.setattr("pipeline.training.train.loop.fit", noted)
    trained(tmp_path, f"train.xla={choice}")  # 3 epochs of 5 steps
    assert asked == [expected]


def network(hidden: keras.layers.Layer) -> keras.Model:
    images = keras.Input((4, 4, 1), dtype="uint8")
    x = keras.layers.Flatten()(hidden(keras.layers.Rescaling(1 / 255)(images)))
    return keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))


def test_dense_networks_of_many_steps_are_known_to_be_faster_with_xla() -> None:
    dense = network(keras.layers.Dense(6, activation="relu", kernel_regularizer="l2"))
    assert xla_is_faster(dense, ENOUGH_STEPS)
    assert not xla_is_faster(dense, ENOUGH_STEPS - 1)


@pytest.mark.parametrize(
    "hidden", [keras.layers.Conv2D(2, 3), type("MyDense", (keras.layers.Dense,), {})(4)]
)
def test_convolutions_and_layers_of_ones_own_are_not_known_to_be_faster_with_xla(
    hidden: keras.layers.Layer,
) -> None:
    assert not xla_is_faster(network(hidden), ENOUGH_STEPS)
