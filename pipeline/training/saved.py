"""Loads untrusted `.keras` files: inspects them as data first.

A `.keras` file is a ZIP archive of `config.json`, which names the classes to build, and
`model.weights.h5`. Keras alone does not protect enough: layers such as `TFSMLayer` or
`StringLookup` read files that their configuration names, HDF5 files can point to other files, and a
few bytes of either can request terabytes of memory. So everything is inspected before anything is
built, and Keras opens the inspected copy.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.trusted import import_trusted, is_trusted
from pipeline.data.values import Array
from pipeline.system.errors import RequestError, first_line

if TYPE_CHECKING:
    import h5py
    import keras

_CONFIG, WEIGHTS, PROGRESS = "config.json", "model.weights.h5", "progress.json"
MEMBERS = {"metadata.json", _CONFIG, WEIGHTS, PROGRESS}
MOST_JSON = 16_000_000  # bytes of config.json or metadata.json
MOST_WEIGHTS = 8_000_000_000  # bytes
MOST_EXPANSION = 8  # of a member; weights hardly shrink, and Keras does not compress them
MOST_OBJECTS = 50_000  # in a configuration; EfficientNet-B7 has about 5,000
MOST_LINKS = 200_000  # in a file of weights
MOST_VALUES = 2**27  # outputs of a layer for one image: half a gigabyte

# Layers that only compute from inputs, weights and numbers. The others run code (Lambda,
# TorchModuleWrapper, JaxLayer, FlaxLayer) or read files (TFSMLayer, lookups, texts).
_LAYERS = """
Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D
AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CategoryEncoding CenterCrop
Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D
Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D
Cropping3D CutMix Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU
EinsumDense Embedding Equalization Flatten GRU GRUCell GaussianDropout GaussianNoise
GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D
GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer
LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D
Maximum Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute Pipeline
RMSNormalization RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter
RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur
RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom ReLU RepeatVector
Rescaling Reshape Resizing ReversibleEmbedding SeparableConv1D SeparableConv2D SimpleRNN
SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D
SpectralNormalization StackedRNNCells Subtract TimeDistributed UnitNormalization UpSampling1D
UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
LAYERS = frozenset(_LAYERS.split())
# From these modules every class of that kind is allowed: they only hold numbers and allowed
# objects.
_KINDS = {
    "keras.initializers": "Initializer",
    "keras.regularizers": "Regularizer",
    "keras.constraints": "Constraint",
    "keras.optimizers": "Optimizer",
    "keras.optimizers.schedules": "LearningRateSchedule",
    "keras.losses": "Loss",
    "keras.metrics": "Metric",
    "keras.dtype_policies": "DTypePolicy",
}
_NAMED = {
    ("keras", "Sequential"),
    ("keras", "Functional"),
    ("keras", "DTypePolicy"),
    ("keras.models", "Sequential"),
    ("keras.models", "Functional"),
    ("keras.src.models.sequential", "Sequential"),
    ("keras.src.models.functional", "Functional"),
    ("keras.dtype_policies", "DTypePolicyMap"),
}
# Modules of the operations between layers (`x + y` in a functional model). None of the operations
# takes a function.
OPERATIONS = tuple(f"keras.src.ops.{name}" for name in ("numpy", "nn", "math", "image", "linalg"))
OF_THE_CORE = {"Cast", "SaturateCast", "Slice", "SliceUpdate", "StopGradient", "Unstack"}
FUNCTIONS = ("keras.activations", "keras.losses", "keras.metrics")  # whose functions may be named
PLAIN = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}


def load_saved(file: Path, *, called: str, compile: bool = False) -> keras.Model:
    """Loads the Keras model in a `.keras` file, after checking that it runs no code of its own.

    `called` names the file in messages, such as `model_uri=…`; `compile` also restores its
    optimizer, loss and metrics, or none of them if the optimizer is not of Keras' own classes.

    Raises:
        RequestError: it is damaged, too large, or holds anything other than a model of Keras' own
            layers with its weights.
    """
    import keras

    with inspected(file, called=called) as folder, _refused_as(called):
        config = _json(folder / _CONFIG)
        compile = compile and _has_optimizer_of_keras(config)
        used = uncompiled(config)
        if compile:
            used["compile_config"] = _compilation(config)
        _check_objects(used)
        _check_sizes(used, stored=_check_weights(folder / WEIGHTS))
        (folder / _CONFIG).write_text(json.dumps(used))
        return keras.saving.load_model(folder, compile=compile, safe_mode=True)


def load_layers(file: Path, *, called: str) -> list[list[Array]]:
    """The weights of each layer that has any, in order, from an HDF5 file of Keras' older format.

    Each has the shape of the layer's weight and any dtype, usually f32. Keras publishes the
    weights of `keras.applications` in this format.

    Raises:
        RequestError: it is damaged, or holds anything other than weights.
    """
    import h5py

    with _refused_as(called):
        _check_weights(file)
        with h5py.File(file, "r") as opened:
            root = opened.get("model_weights", opened)
            groups = [root[name] for name in _names(root, "layer_names")]
            layers = [
                [np.asarray(group[name]) for name in _names(group, "weight_names")]
                for group in groups
            ]
    return [layer for layer in layers if layer]


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names in an HDF5 file, which Keras divides if it is too long."""
    parts = [attribute] if attribute in group.attrs else []
    while (part := f"{attribute}{len(parts)}") in group.attrs:
        parts.append(part)
    if not parts:
        raise ValueError(
            f"it has no {attribute}: Keras 3 writes .weights.h5 files in another format; name a "
            ".keras file, which model.save writes"
        )
    names = [name for part in parts for name in group.attrs[part]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


@contextmanager
def inspected(file: Path, *, called: str) -> Iterator[Path]:
    """Yields a temporary folder with `config.json` and `model.weights.h5` of a `.keras` file.

    Both are of bounded size, and the weights refer to no other file.

    Raises:
        RequestError: as `load_saved`.
    """
    with TemporaryDirectory(prefix="pipeline-model-") as temporary:
        folder = Path(temporary)
        with _refused_as(called):
            _unpack(file, folder)
            _check_weights(folder / WEIGHTS)
        yield folder


def check_archive(archive: zipfile.ZipFile) -> None:
    """Checks the list of members of an open `.keras` file.

    Raises:
        ValueError: one is not part of a Keras model, or is too large when decompressed.
    """
    names = [member.filename for member in archive.infolist()]
    if foreign := sorted(set(names) - MEMBERS):
        raise ValueError(f"it holds {foreign[0]!r}, which is not part of a Keras model")
    if len(names) != len(set(names)):
        raise ValueError("it holds a file twice")
    for member in archive.infolist():
        most = MOST_WEIGHTS if member.filename == WEIGHTS else MOST_JSON
        expanded = member.file_size > MOST_EXPANSION * member.compress_size + 1_000_000
        if member.file_size > most or expanded:
            size = f"{member.file_size / 1e6:,.0f} MB"
            raise ValueError(f"its {member.filename} would decompress to {size}")


@contextmanager
def _refused_as(called: str) -> Iterator[None]:
    """Turns any exception of a library for an untrusted file into a RequestError of one line."""
    try:
        yield
    except RequestError:
        raise
    except RecursionError as error:
        raise RequestError(f"{called}: cannot be loaded: it is nested too deeply") from error
    except Exception as error:
        told = first_line(str(error), otherwise=type(error).__name__)[:300]
        raise RequestError(f"{called}: cannot be loaded: {told}") from error


def _unpack(file: Path, folder: Path) -> None:
    if file.is_symlink() or not file.is_file():
        raise ValueError(f"{file.name} is a link or not a file")
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file.name} is damaged, or not a file of Keras 3")
    with zipfile.ZipFile(file) as archive:
        check_archive(archive)
        for name in (_CONFIG, WEIGHTS):
            if name not in archive.namelist():
                raise ValueError(f"{file.name} has no {name}")
            with archive.open(name) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _json(file: Path) -> Any:
    return json.loads(file.read_bytes())


def _check_objects(config: Any) -> None:
    """Checks every object that Keras would build from a configuration.

    Raises:
        ValueError: one is not allowed.
    """
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError(f"its {_CONFIG} describes no model")
    for described in _objects(config):
        _check_object(described)


def _has_optimizer_of_keras(config: Any) -> bool:
    """Whether Keras' own classes suffice to build the optimizer that a configuration describes."""
    described = [*_objects(_compilation(config).get("optimizer"))]
    try:
        for one in described:
            _check_object(one)
    except ValueError:
        return False
    return not any(_has_registered(one.get("registered_name")) for one in described)


def uncompiled(config: Any) -> Any:
    """The configuration of a model without how it, and networks nested in it, were compiled.

    Predictions do not need it, and it may name a loss or an optimizer of the user's own.
    """
    if isinstance(config, dict):
        return {key: uncompiled(one) for key, one in config.items() if key != "compile_config"}
    if isinstance(config, list):
        return [uncompiled(one) for one in config]
    return config


def _compilation(config: Any) -> dict[str, Any]:
    found = config.get("compile_config") if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def _objects(config: Any) -> Iterator[Mapping[str, Any]]:
    """The descriptions of all objects in a configuration.

    Raises:
        ValueError: there are too many.
    """
    waiting, seen = [config], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            if "class_name" in value:
                seen += 1
                yield value
        if seen > MOST_OBJECTS:
            raise ValueError(f"its {_CONFIG} describes more than {MOST_OBJECTS:,} objects")


def _check_object(described: Mapping[str, Any]) -> None:
    name, module = described["class_name"], described.get("module")
    registered = described.get("registered_name")
    if name in PLAIN and module is None and registered is None:
        return
    if not isinstance(name, str) or not isinstance(module, str):
        raise ValueError(f"it has an object {str(name)[:80]!r} that does not name its module")
    if name == "function":
        told = described.get("config")
        allowed = isinstance(told, str) and _is_function(module, told)
        allowed, name = allowed and registered in (None, told), str(told)
    else:
        allowed = _is_allowed(module, name) and registered in (None, name)
    if not allowed and not _is_registered(registered, module):
        raise ValueError(
            f"it needs {module[:80]}.{name[:80]}, which is not among Keras' own layers and "
            f"operations that are allowed in a file{_advice(module, registered)}"
        )


def _advice(module: str, registered: Any) -> str:
    """What to do about a class that somebody has registered and whose module is not trusted."""
    is_own = isinstance(registered, str) and ">" in registered
    named = re.fullmatch(r"(?!(keras|pipeline|builtins|__main__)\b)[^\W\d]\w*(\.\w+)*", module[:80])
    if not is_own or not named or is_trusted(f"{module}."):
        return ""
    return f"; if you trust the module {module}, add trusted_modules=[{module}]"


def _is_allowed(module: str, name: str) -> bool:
    import keras

    if (module, name) in _NAMED or (module == "keras.layers" and name in LAYERS):
        return True
    if module in _KINDS:
        public = importlib.import_module(module)
        found = getattr(public, name, None)
        return inspect.isclass(found) and issubclass(found, getattr(public, _KINDS[module]))
    if module == "keras.src.ops.core":
        return name in OF_THE_CORE
    if module in OPERATIONS:
        found = vars(importlib.import_module(module)).get(name)
        return inspect.isclass(found) and issubclass(found, keras.Operation)
    return False


def _is_function(module: str, name: str) -> bool:
    """Whether it names an activation, loss or metric; Keras looks up `builtins` in all three."""
    places = FUNCTIONS if module == "builtins" else (module,) if module in FUNCTIONS else ()
    return name not in ("get", "serialize", "deserialize") and any(
        inspect.isfunction(getattr(importlib.import_module(place), name, None)) for place in places
    )


def _is_registered(name: Any, module: str) -> bool:
    """Whether trusted code registers a class of that name, which the file says is in `module`.

    Imports the trusted modules if none has been registered in this process.
    """
    if isinstance(name, str) and name.startswith("pipeline>"):
        own = importlib.import_module("pipeline.training.optimizers")
        getattr(own, name.removeprefix("pipeline>"), None)  # defines and registers it
    elif not _has_registered(name):
        import_trusted(module, until=lambda: _has_registered(name))
    return _has_registered(name)


def _has_registered(name: Any) -> bool:
    import keras

    found = keras.saving.get_custom_objects().get(name) if isinstance(name, str) else None
    return found is not None and not found.__module__.startswith("keras.")


def _check_weights(file: Path) -> int:
    """Checks every link and array of an HDF5 file; returns how many numbers it holds.

    Raises:
        ValueError: one points to another file, or declares more than it stores.
    """
    import h5py

    numbers, seen = 0, set()
    with h5py.File(file, "r") as opened:
        waiting: list[h5py.Group] = [opened]
        links = 0
        while waiting:
            group = waiting.pop()
            for name in group:
                links += 1
                if links > MOST_LINKS:
                    raise ValueError("its weights have too many parts")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"its weights link {name[:80]!r} to another place")
                part = group[name]
                address = h5py.h5o.get_info(part.id).addr
                if address in seen:
                    continue
                seen.add(address)
                if isinstance(part, h5py.Group):
                    waiting.append(part)
                else:
                    _check_array(part)
                    numbers += part.size
    return numbers


def _check_array(array: h5py.Dataset | h5py.Datatype) -> None:
    from h5py import Dataset, h5d, h5t

    if not isinstance(array, Dataset):
        raise ValueError("its weights hold something other than arrays")
    plain = {h5t.INTEGER, h5t.FLOAT, h5t.ENUM, h5t.OPAQUE, h5t.BITFIELD}
    made = array.id.get_create_plist()
    if array.id.get_type().get_class() not in plain:
        raise ValueError("its weights hold something other than numbers")
    if made.get_layout() == h5d.VIRTUAL or made.get_external_count():
        raise ValueError("its weights are in another file")
    if made.get_nfilters() or array.id.get_storage_size() != array.nbytes:
        raise ValueError("its weights declare more numbers than they store")


def _check_sizes(config: dict[str, Any], *, stored: int) -> None:
    """Builds the model without weights and compares its size with the `stored` numbers.

    Raises:
        ValueError: it has more parameters than the file, or layers with huge outputs.
    """
    import keras
    from keras.src.backend.common import global_state  # the only way to release these variables

    plain = uncompiled(config)  # a copy: Keras modifies what it reads
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = keras.saving.deserialize_keras_object(plain, safe_mode=True)
    finally:
        global_state.set_global_attribute("uninitialized_variables", [])
    if not isinstance(model, keras.Model):
        raise ValueError(f"its {_CONFIG} describes no model")
    parameters = sum(math.prod(weight.shape) for weight in model.weights)
    if parameters > stored:
        raise ValueError(f"it describes {parameters:,} parameters but holds {stored:,}")
    if (largest := largest_output(model)) > MOST_VALUES:
        raise ValueError(
            f"one of its layers gives {largest:,} numbers for one image; at most {MOST_VALUES:,} "
            "are allowed"
        )


def largest_output(model: keras.Model) -> int:
    """The most numbers that any layer of a model gives for one image."""
    return max((math.prod(shape) for shape in _shapes(model)), default=0)


def _shapes(model: keras.Model) -> Iterator[tuple[int, ...]]:
    """The shapes of all intermediate outputs, without the number of images."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _shapes(layer)
    for step in getattr(model, "operations", model.layers):
        for node in step._inbound_nodes:
            for tensor in node.output_tensors:
                yield tuple(size for size in tensor.shape[1:] if size is not None)
