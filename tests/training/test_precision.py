from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.datasets import synthetic
from pipeline.data.values import Array
from pipeline.system.errors import RequestError
from pipeline.training import precision
from pipeline.training.build import build_model, kept
from pipeline.training.checkpoint import progress_of
from pipeline.training.saved import load_saved
from pipeline.training.train import train
from tests.commands import configured
from tests.splits import in_splits
from tests.stress.matrix import matrix, only_stressed

pytestmark = pytest.mark.slow
RAW = synthetic(train_size=60, test_size=20, classes=3, image_shape=(6, 6, 1), noise=32.0, seed=0)
PREPARED = in_splits(RAW, validation_size=20, seed=0)
IMAGES = PREPARED.test.batch(0, 20)
SMALL = ("train.batch_size=8", "train.epochs=3", "train.tensorboard=false")
CNN = ("model=cnn", "model.filters=[4]", "model.dense=8")
SEPARABLE = ("model=depthwise", "model.widths=[16]", "model.blocks=1")
WIDE = ("model=cnn", "model.filters=[16,32]", "model.dense=8")
MLP = ("model.hidden=[6]",)


def fitted(
    folder: Path, *overrides: str, cut: Path | None = None, resumed: bool = False
) -> keras.Model:
    """Trains for three epochs; `cut` gets the checkpoints as they are after one of them."""

    def keep(epoch: int, metrics: Any) -> None:
        if cut and epoch == 2:  # whose checkpoint is not written yet
            shutil.copytree(folder / "checkpoints", cut / "checkpoints")

    config = configured(*SMALL, *overrides)
    start = progress_of(folder / "checkpoints" / "last.keras") if resumed else None
    return train(build_model(config, PREPARED), PREPARED, config, folder, [keep], start).model


def flat(model: keras.Model) -> Array:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def types_of(model: keras.Model) -> set[str]:
    return {layer.compute_dtype for layer in model.layers}


def test_only_the_network_computes_in_16_bits_and_its_weights_and_answers_do_not() -> None:
    config = configured(*SMALL, *CNN, "augment=flip_and_shift", "train.precision=bfloat16")
    model = build_model(config, PREPARED)
    computed = {layer.name: layer.compute_dtype for layer in model.layers}
    assert computed["conv_1"] == computed["dense_1"] == "bfloat16"
    assert computed["scaling"] == computed["shift"] == computed["probabilities"] == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model.outputs[0].dtype == "float32"


def test_the_precision_of_one_model_is_not_that_of_the_next() -> None:
    build_model(configured(*SMALL, *CNN, "train.precision=bfloat16"), PREPARED)
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(ZeroDivisionError), precision.computing_in("bfloat16"):
        raise ZeroDivisionError
    assert types_of(build_model(configured(*SMALL, *CNN), PREPARED)) == {"float32"}


def test_training_in_bfloat16_is_near_float32_with_xla_too(tmp_path: Path) -> None:
    wide = flat(fitted(tmp_path / "wide", *MLP))
    narrow = flat(fitted(tmp_path, *MLP, "train.xla=true", "train.precision=bfloat16"))
    assert 0 < np.abs(narrow - wide).max() < 0.05


def test_the_trained_model_is_saved_in_float32_and_answers_alike_everywhere(tmp_path: Path) -> None:
    model = fitted(tmp_path, *CNN, "train.precision=bfloat16")
    assert types_of(model) == {"float32"}
    model.save(tmp_path / "model.keras")
    saved = load_saved(tmp_path / "model.keras", called="model", compile=True)
    assert types_of(saved) == {"float32"}
    np.testing.assert_array_equal(saved(IMAGES), model(IMAGES))
    assert int(saved.optimizer.iterations) == 3 * 5
    narrow = load_saved(tmp_path / "checkpoints" / "last.keras", called="last", compile=True)
    assert "bfloat16" in types_of(narrow)
    np.testing.assert_array_equal(kept(narrow)(IMAGES), model(IMAGES))  # as a sweep completes a job
    np.testing.assert_allclose(narrow(IMAGES), model(IMAGES), atol=0.02)


@only_stressed  # float16 is resumed below, with what scales its loss
@matrix(12)
def test_interrupted_training_in_bfloat16_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    narrow = (*MLP, "train.precision=bfloat16")
    whole = flat(fitted(tmp_path / "whole", *narrow))
    fitted(tmp_path, *narrow, "train.epochs=2")
    np.testing.assert_array_equal(flat(fitted(tmp_path, *narrow, resumed=True)), whole)


def test_float16_is_refused_without_a_gpu() -> None:
    with pytest.raises(RequestError, match=r"^train.precision=float16 needs a GPU"):
        build_model(configured(*SMALL, *CNN, "train.precision=float16"), PREPARED)


def with_gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow says that it sees so many GPUs."""
    devices = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: ["a GPU"] * count if kind == "GPU" else devices(kind),
    )


def test_float16_scales_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(1, monkeypatch)
    narrow = (*MLP, "train.precision=float16", "train.keep=best")
    whole = fitted(tmp_path / "whole", *narrow, cut=tmp_path)
    assert isinstance(whole.optimizer, keras.optimizers.Adam)
    assert int(whole.optimizer.iterations) == 3 * 5
    assert len(progress_of(tmp_path / "checkpoints" / "last.keras").epochs) == 1
    np.testing.assert_array_equal(flat(fitted(tmp_path, *narrow, resumed=True)), flat(whole))
    best = kept(load_saved(tmp_path / "checkpoints" / "best.keras", called="best"))
    np.testing.assert_array_equal(flat(best), flat(whole))
    assert types_of(best) == {"float32"}


@pytest.mark.parametrize(
    ("network", "flags", "gpu", "expected"),
    [
        (WIDE, "fma avx512_bf16", False, "bfloat16"),
        (("model=cnn", "model.filters=[16,24]"), "fma avx512_bf16", False, "float32"),  # slower
        (WIDE, "fma avx512f", False, "float32"),
        (WIDE, "fma avx512_bf16", True, "float32"),  # not measured
        (MLP, "fma avx512_bf16", False, "float32"),  # not measured
        (SEPARABLE, "fma avx512_bf16", False, "float32"),  # nor this
        ((*MLP, "train.scaling=whitened"), "fma avx512_bf16", False, "float32"),  # nor this
    ],
)
def test_auto_is_bfloat16_only_where_that_was_measured(
    network: tuple[str, ...],
    flags: str,
    gpu: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_gpus(int(gpu), monkeypatch)
    monkeypatch.setattr(precision, "processor_features", lambda: f"flags : {flags}")
    model = build_model(configured(*SMALL, *network, "train.precision=auto"), PREPARED)
    assert (types_of(model) == {"float32"}) == (expected == "float32")


def test_a_layer_of_ones_own_may_need_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x * tf.constant(2.0)

    with_gpus(0, monkeypatch)
    monkeypatch.setattr(precision, "processor_features", lambda: f"flags : {precision.MEASURED}")
    for layer, expected in ((keras.layers.ReLU(), "bfloat16"), (Doubled(), "float32")):
        images = keras.Input((6, 6, 1))
        maps = layer(keras.layers.Conv2D(16, 3)(images))
        model = keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(maps)))
        assert precision.best_for(model) == expected
