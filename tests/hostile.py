"""Malicious saved models, as anyone with access to a store could make; each leaves a marker."""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import yaml

Doctor = Callable[[Path, Path], None]
KERAS_FILE = Path("data") / "model.keras"


class Evil:
    """Unpickled, it makes the file that it was given."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def rewritten(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Rewrites a `.keras` file after `change` was applied to its members by name."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def with_config(change: Callable[[dict[str, Any]], None]) -> Doctor:
    """Makes a function that changes the configuration inside the `.keras` file."""

    def doctor(file: Path, marker: Path) -> None:
        def edit(members: dict[str, bytes]) -> None:
            config = json.loads(members["config.json"].replace(b"MARKER", bytes(marker)))
            change(config)
            text = json.dumps(config).replace("MARKER", str(marker))
            members["config.json"] = text.encode()

        rewritten(file, edit)

    return doctor


def with_layer(**layer: Any) -> Doctor:
    """Makes a function that inserts a layer between the first two."""

    def change(config: dict[str, Any]) -> None:
        layers = config["config"]["layers"]
        before = layers[1]
        added = {
            "module": "keras.layers",
            "registered_name": None,
            "name": "added",
            "inbound_nodes": before["inbound_nodes"],
            **layer,
        }
        added["config"] = {"name": "added", "trainable": True, **layer.get("config", {})}
        layers.insert(1, added)
        history = before["inbound_nodes"][0]["args"][0]["config"]["keras_history"]
        before["inbound_nodes"] = json.loads(json.dumps(before["inbound_nodes"]))
        assert history[0] == layers[0]["name"]
        before["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = "added"

    return with_config(change)


def with_value(key: str, value: Any) -> Doctor:
    """Makes a function that sets another value in the last layer."""
    return with_config(lambda config: config["config"]["layers"][-1]["config"].update({key: value}))


def with_weights(change: Callable[[h5py.File, Path], None]) -> Doctor:
    """Makes a function that changes the HDF5 file inside the `.keras` file."""

    def doctor(file: Path, marker: Path) -> None:
        def edit(members: dict[str, bytes]) -> None:
            path = file.with_suffix(".h5")
            path.write_bytes(members["model.weights.h5"])
            with h5py.File(path, "a") as weights:
                change(weights, file)
            members["model.weights.h5"] = path.read_bytes()
            path.unlink()

        rewritten(file, edit)

    return doctor


def arrays(weights: h5py.File) -> list[str]:
    """The names of all arrays in a file of weights."""
    found: list[str] = []
    weights.visititems(lambda name, part: found.append(name) if hasattr(part, "dtype") else None)
    return found


def _external_link(weights: h5py.File, file: Path) -> None:
    [name, *_] = arrays(weights)
    other = file.with_name("elsewhere.h5")
    with h5py.File(other, "w") as target:
        target["secret"] = weights[name][...]
    del weights[name]
    weights[name] = h5py.ExternalLink(str(other), "secret")


def _external_storage(weights: h5py.File, file: Path) -> None:
    [name, *_] = arrays(weights)
    shape, kind = weights[name].shape, weights[name].dtype
    other = file.with_name("elsewhere.bin")
    other.write_bytes(bytes(weights[name].nbytes))
    del weights[name]
    size = other.stat().st_size
    weights.create_dataset(name, shape, kind, external=[(str(other), 0, size)])


def _virtual(weights: h5py.File, file: Path) -> None:
    [name, *_] = arrays(weights)
    shape, kind = weights[name].shape, weights[name].dtype
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource(str(file.with_name("elsewhere.h5")), "secret", shape)
    del weights[name]
    weights.create_virtual_dataset(name, layout)


def _soft_link(weights: h5py.File, file: Path) -> None:
    first, second, *_ = arrays(weights)
    del weights[first]
    weights[first] = h5py.SoftLink(f"/{second}")


def _hollow(weights: h5py.File, file: Path) -> None:
    [name, *_] = arrays(weights)
    del weights[name]
    weights.create_dataset(name, (10**6, 10**5), "f4", chunks=(1000, 1000))


def _lambda(marker: Path) -> dict[str, Any]:
    import keras

    layer = keras.layers.Lambda(lambda x: (__import__("os").mkdir("MARKER"), x)[1])
    described: dict[str, Any] = keras.saving.serialize_keras_object(layer)["config"]
    return described


def _function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def _twice(file: Path, marker: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("config.json", archive.read("config.json"))


def _member(name: str, content: bytes = b"x") -> Doctor:
    return lambda file, marker: rewritten(file, lambda members: members.update({name: content}))


def _bomb(file: Path, marker: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            filled = bytes(200_000_000) if name == "model.weights.h5" else content
            archive.writestr(name, filled)


def _deep(file: Path, marker: Path) -> None:
    rewritten(file, lambda members: members.update({"config.json": b"[" * 200_000}))


def _linked(file: Path, marker: Path) -> None:
    moved = file.rename(file.with_name("moved"))
    file.symlink_to(moved)


# Each way with what the one line must say.
IN_THE_FILE: dict[str, tuple[Doctor, str]] = {
    "a Lambda layer": (
        lambda file, marker: with_layer(class_name="Lambda", config=_lambda(marker))(file, marker),
        "Lambda",
    ),
    "a SavedModel from a folder": (
        with_layer(class_name="TFSMLayer", config={"filepath": "MARKER"}),
        "TFSMLayer",
    ),
    "a pickled PyTorch module": (
        with_layer(class_name="TorchModuleWrapper", config={"module": "AAAA"}),
        "TorchModuleWrapper",
    ),
    "a lookup that reads a file": (
        with_layer(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}),
        "StringLookup",
    ),
    "a class of another module": (
        with_layer(module="subprocess", class_name="Popen", config={"args": ["mkdir", "MARKER"]}),
        "subprocess.Popen",
    ),
    "a registered name that is another class": (
        with_layer(class_name="Flatten", registered_name="builtins>exec"),
        "keras.layers.Flatten",
    ),
    "a class without a module": (
        with_layer(module=None, class_name="Lambda", config={"function": "MARKER"}),
        "does not name its module",
    ),
    "a function that fetches a file": (
        with_value("activation", _function("keras.utils", "get_file")),
        "keras.utils.get_file",
    ),
    "a function that allows unsafe loading": (
        with_value("activation", _function("keras.config", "enable_unsafe_deserialization")),
        "enable_unsafe_deserialization",
    ),
    "a function of the system": (
        with_value("activation", _function("os", "system")),
        "os.system",
    ),
    "a built-in function": (
        with_value("activation", _function("builtins", "exec")),
        "builtins.exec",
    ),
    "a class as an activation": (
        with_value(
            "kernel_initializer",
            {"module": "keras.src.utils.file_utils", "class_name": "get_file", "config": {}},
        ),
        "get_file",
    ),
    "a marshalled lambda": (
        with_value("activation", {"class_name": "__lambda__", "config": {"value": "4wEAAAA="}}),
        "__lambda__",
    ),
    "a thousand million units": (with_value("units", 10**9), "describes|incompatible|expected"),
    "an output of 10^10 numbers": (
        with_layer(class_name="ZeroPadding2D", config={"padding": [50_000, 50_000]}),
        "numbers for one image|incompatible|expected",
    ),
    "no model": (with_config(lambda config: config.update(class_name="Dense")), "."),
    "brackets beyond count": (_deep, "nested too deeply|describes no model"),
    "a link to another HDF5 file": (with_weights(_external_link), "link '.*' to another place"),
    "weights in another file": (with_weights(_external_storage), "are in another file"),
    "weights that are a view of another file": (with_weights(_virtual), "are in another file"),
    "a link within the weights": (with_weights(_soft_link), "to another place"),
    "weights that are declared only": (with_weights(_hollow), "declare more"),
    "a bomb in the archive": (_bomb, "would decompress to"),
    "a member outside of its folder": (_member("../evil"), "not part of a Keras model"),
    "an absolute member": (_member("/tmp/evil"), "not part of a Keras model"),
    "assets": (_member("assets/vocabulary.txt"), "not part of a Keras model"),
    "a file twice": (_twice, "twice"),
    "no archive": (lambda file, marker: file.write_bytes(b"damaged"), "damaged"),
    "a link to a file": (_linked, "link"),
}


def pickled(name: str) -> Doctor:
    """Makes a function that puts a pickle, which MLflow would load, beside the `.keras` file."""

    def doctor(folder: Path, marker: Path) -> None:
        import cloudpickle

        (folder / "data" / name).write_bytes(cloudpickle.dumps({"x": Evil(marker)}))

    return doctor


def with_mlmodel(change: Callable[[dict[str, Any]], object]) -> Doctor:
    """Makes a function that changes `MLmodel`; modules that this names leave the marker."""

    def doctor(folder: Path, marker: Path) -> None:
        code = folder / "code"
        code.mkdir()
        (code / "evilmod.py").write_text(f"import os; os.mkdir({str(marker)!r})")
        path = folder / "MLmodel"
        document = yaml.safe_load(path.read_text())
        change(document)
        path.write_text(yaml.safe_dump(document))

    return doctor


def _without_code(doctor: Doctor) -> Doctor:
    def both(folder: Path, marker: Path) -> None:
        doctor(folder, marker)
        shutil.rmtree(folder / "code")

    return both


def _text(name: str, content: str) -> Doctor:
    return lambda folder, marker: (folder / name).write_text(content) and None


def _yaml(folder: Path, marker: Path) -> None:
    (folder / "MLmodel").write_text(f"!!python/object/apply:os.mkdir ['{marker}']\n")


# In the folder of a model: what MLflow's own loader would follow.
IN_THE_FOLDER: dict[str, tuple[Doctor, str]] = {
    "custom objects": (pickled("custom_objects.cloudpickle"), "custom_objects.cloudpickle"),
    "global custom objects": (pickled("global_custom_objects.cloudpickle"), "global_custom"),
    "code in MLmodel": (
        with_mlmodel(lambda d: d["flavors"]["tensorflow"].update(code="code")),
        "code",
    ),
    "code that is not there": (
        _without_code(with_mlmodel(lambda d: d["flavors"]["tensorflow"].update(code="/tmp"))),
        "code",
    ),
    "another Keras": (
        _without_code(
            with_mlmodel(lambda d: d["flavors"]["tensorflow"].update(keras_module="evilmod"))
        ),
        "keras_module",
    ),
    "another loader": (
        _without_code(
            with_mlmodel(lambda d: d["flavors"]["python_function"].update(loader_module="evilmod"))
        ),
        "loader_module",
    ),
    "another flavor": (
        _without_code(with_mlmodel(lambda d: d["flavors"].update(sklearn={"pickled_model": "m"}))),
        "sklearn",
    ),
    "data outside of the folder": (
        _without_code(with_mlmodel(lambda d: d["flavors"]["tensorflow"].update(data="../../x"))),
        "data",
    ),
    "a SavedModel": (
        _without_code(
            with_mlmodel(lambda d: d["flavors"]["tensorflow"].update(model_type="tf2-module"))
        ),
        "model_type",
    ),
    "a module in keras_module.txt": (_text("data/keras_module.txt", "evilmod"), "keras_module.txt"),
    "an object in YAML": (_yaml, "MLmodel"),
    "no mapping in YAML": (_text("MLmodel", "- 1\n"), "not a mapping"),
    "class names that are none": (
        _without_code(with_mlmodel(lambda d: d["metadata"].update(class_names={"a": 1}))),
        "class_names",
    ),
    "a folder for a file": (
        lambda folder, marker: (folder / "data" / "tf2model").mkdir(),
        "tf2model",
    ),
    "a Python file": (_text("sitecustomize.py", "1/0"), "sitecustomize"),
}
