"""Foreign `.keras` files: what the product saves is loaded, all else is refused unharmed."""

from __future__ import annotations

import importlib
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.config.trusted import trust
from pipeline.system.errors import RequestError
from pipeline.training.precision import in_float32
from pipeline.training.saved import LAYERS, inspected, load_saved
from tests.hostile import IN_THE_FILE, with_config, with_value
from tests.stress.matrix import matrix
from tests.warm import call_warm


def tiny() -> keras.Model:
    """A model with most kinds of objects that a configuration can describe."""
    layers = keras.layers
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255, name="scaling")(images)
    x = layers.RandomFlip(seed=1, name="flip")(x)
    y = layers.Conv2D(4, 3, padding="same", kernel_regularizer="l2", name="conv")(x)
    y = layers.BatchNormalization(name="norm")(y)
    x = keras.ops.mean(y * 2 + keras.ops.relu(y), axis=(1, 2))
    x = keras.Sequential([layers.Dense(4, activation="gelu"), layers.Dropout(0.1)], name="sub")(x)
    outputs = layers.Dense(3, activation="softmax", dtype="float32", name="probabilities")(x)
    model = keras.Model(images, outputs, name="tiny")
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 100)
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "model.keras"
    tiny().save(path)
    return path


@pytest.fixture
def copied(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound, tmp_path / "model.keras"))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float16"])
def test_a_saved_model_gives_the_same_answers_once_loaded(policy: str, tmp_path: Path) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = tiny()
        model.save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy(before)
    loaded = load_saved(tmp_path / "model.keras", called="it", compile=True)
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    assert np.array_equal(loaded(images, training=False), model(images, training=False))
    assert type(loaded.optimizer) is type(model.optimizer)


@pytest.mark.parametrize("way", IN_THE_FILE)
@matrix(38)
def test_a_hostile_file_is_refused_in_a_line_and_runs_nothing(
    way: str, copied: Path, tmp_path: Path
) -> None:
    doctor, told = IN_THE_FILE[way]
    marker = tmp_path / "marker"
    doctor(copied, marker)
    with pytest.raises(RequestError, match=rf"^models:/m-1: cannot be loaded: .*({told})") as told_:
        load_saved(copied, called="models:/m-1")
    assert "\n" not in str(told_.value)
    assert not marker.exists()


def test_a_hostile_loss_is_refused_where_it_would_be_built(copied: Path, tmp_path: Path) -> None:
    loss = {"module": "os", "class_name": "function", "config": "system"}
    with_config(lambda config: config["compile_config"].update(loss=loss))(copied, tmp_path)
    assert not load_saved(copied, called="it").compiled
    with pytest.raises(RequestError, match=r"os\.system"):
        load_saved(copied, called="it", compile=True)


@matrix(38)
def test_weights_alone_are_inspected_too(copied: Path, tmp_path: Path) -> None:
    doctor, told = IN_THE_FILE["a link to another HDF5 file"]
    doctor(copied, tmp_path)
    with pytest.raises(RequestError, match=told), inspected(copied, called="it"):
        pass


def test_what_was_inspected_is_gone_afterwards(copied: Path) -> None:
    with inspected(copied, called="it") as folder:
        assert {file.name for file in folder.iterdir()} == {"config.json", "model.weights.h5"}
    assert not folder.exists()


def refusal_in_little_memory(path: Path) -> str:
    """Why a model is refused where it may take a gigabyte besides what the process has already."""
    used = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    most = (int(used[1]) << 10 if used else 1 << 30) + (1 << 30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with pytest.raises(RequestError) as refused:
        load_saved(path, called="it")
    return str(refused.value)


@pytest.mark.slow
@matrix(29)
def test_a_model_that_asks_for_terabytes_is_refused_within_two_gigabytes(copied: Path) -> None:
    with_value("units", 10**12)(copied, copied)
    assert call_warm(refusal_in_little_memory, copied, timeout=60).startswith(
        "it: cannot be loaded"
    )


def test_every_layer_of_the_list_is_one_of_keras() -> None:
    for name in LAYERS:
        assert issubclass(getattr(keras.layers, name), keras.layers.Layer), name


def test_an_ordinary_class_that_the_user_has_registered_is_loaded(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable(package="tests")
    class Doubled(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
            return 2 * x

    images = keras.Input((2, 2, 1))
    model = keras.Model(images, Doubled()(images))
    path = tmp_path / "model.keras"
    model.save(path)
    try:
        assert load_saved(path, called="it")(np.ones((1, 2, 2, 1)))[0, 0, 0, 0] == 2
    finally:
        del keras.saving.get_custom_objects()["tests>Doubled"]
    with pytest.raises(RequestError, match="Doubled"):
        load_saved(path, called="it")


class Slow(keras.optimizers.SGD):  # type: ignore[misc]
    """An optimizer that is not registered."""


class Steady(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A schedule that is not registered."""

    def __call__(self, step: int) -> float:
        return 0.1

    def get_config(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(
    "optimizer",
    [Slow, lambda: keras.optimizers.SGD(Steady())],
    ids=["optimizer", "schedule"],
)
def test_a_checkpoint_with_an_optimizer_of_ones_own_is_loaded_without_it(
    optimizer: Callable[[], keras.optimizers.Optimizer], tmp_path: Path
) -> None:
    images = keras.Input((2,), dtype="uint8")
    model = keras.Model(images, keras.layers.Dense(2)(keras.layers.Rescaling(1.0)(images)))
    model.compile(optimizer=optimizer(), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "last.keras")
    for compiled in (True, False):
        loaded = load_saved(tmp_path / "last.keras", called="it", compile=compiled)
        assert not loaded.compiled
        np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


def test_how_a_model_and_the_networks_in_it_were_compiled_is_not_asked(tmp_path: Path) -> None:
    def own(labels: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.mean(labels - outputs)

    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    images = keras.Input((2,), dtype="uint8")
    model = keras.Model(images, inner(keras.layers.Rescaling(1.0)(images)))
    for one in (inner, model):
        one.compile(optimizer="adam", loss=own, metrics=[own])
    model.save(tmp_path / "model.keras")
    loaded = load_saved(tmp_path / "model.keras", called="it")
    assert not loaded.compiled
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
    np.testing.assert_array_equal(in_float32(model).get_weights()[0], model.get_weights()[0])


OWN = """
import keras


@keras.saving.register_keras_serializable("{package}")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""


@pytest.fixture
def own_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules of one's own that nothing has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    inner = tmp_path / "own_package" / "layers.py"
    inner.parent.mkdir()
    inner.with_name("__init__.py").write_text("")
    inner.write_text(OWN.format(package="own_package"))
    (tmp_path / "own_layers.py").write_text(OWN.format(package="own_layers"))
    yield tmp_path
    trust([])
    forget("own_layers", "own_package", "own_package.layers")


def forget(*modules: str) -> None:
    """Makes modules as unknown to Python and Keras as they are to a new process."""
    for module in modules:
        sys.modules.pop(module, None)
        keras.saving.get_custom_objects().pop(f"{module.partition('.')[0]}>Doubled", None)


@pytest.mark.parametrize("module", ["own_layers", "own_package.layers"])
def test_a_layer_that_a_trusted_module_registers_is_loaded_by_a_process_that_never_imported_it(
    module: str, own_layers: Path
) -> None:
    path = own_layers / "model.keras"
    images = keras.Input((2, 2, 1))
    layer = importlib.import_module(module).Doubled()
    keras.Model(images, layer(images)).save(path)
    forget(module)
    told = f"it needs {module}.Doubled, which is not among Keras"
    with pytest.raises(RequestError, match=rf"{told}.*; .*, add trusted_modules=\[{module}\]$"):
        load_saved(path, called="it")
    assert module not in sys.modules
    trust([module.partition(".")[0]])
    assert load_saved(path, called="it")(np.ones((1, 2, 2, 1)))[0, 0, 0, 0] == 2


def test_a_trusted_module_that_fails_is_named_when_a_model_needs_it(own_layers: Path) -> None:
    path = own_layers / "model.keras"
    images = keras.Input((2, 2, 1))
    layer = importlib.import_module("own_layers").Doubled()
    keras.Model(images, layer(images)).save(path)
    forget("own_layers")
    (own_layers / "own_layers.py").write_text("1 / 0\n")
    trust(["own_layers"])
    with pytest.raises(RequestError, match="own_layers cannot be imported: ZeroDivisionError"):
        load_saved(path, called="it")
