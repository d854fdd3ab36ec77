from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError

from pipeline.config import builders as leaves
from pipeline.config import rules
from pipeline.config.schema import register
from pipeline.data import datasets
from pipeline.data.values import RawData
from pipeline.system.errors import RequestError
from pipeline.verbs import requests

CONF = Path(__file__).parents[2] / "conf"
LEAVES = sorted((CONF / "dataset").glob("*.yaml"))
IDX_FILES = (
    struct.pack(">4I", 0x803, 2, 1, 2) + bytes([1, 2, 3, 4]),
    struct.pack(">2I", 0x801, 2) + bytes([0, 1]),
    struct.pack(">4I", 0x803, 1, 1, 2) + bytes([5, 6]),
    struct.pack(">2I", 0x801, 1) + bytes([1]),
)
SYNTHETIC: dict[str, Any] = {
    "train_size": 40,
    "test_size": 20,
    "classes": 4,
    "image_shape": (8, 6, 3),
    "noise": 10.0,
    "seed": 0,
}


@pytest.fixture
def composed() -> Iterator[Any]:
    register(requests(), of=())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: compose("config", overrides=list(overrides))


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.stem)
def test_a_file_holds_exactly_the_parameters_of_its_function(path: Path) -> None:
    leaf = yaml.safe_load(path.read_text())
    function = getattr(datasets, path.stem)
    assert leaf["_target_"] == f"pipeline.data.datasets.{path.stem}"
    hints = leaves.leaf_parameters(function)
    assert leaf.keys() - {"_target_", "defaults"} == hints.keys()
    for name, hint in hints.items():
        TypeAdapter(hint).validate_python(leaf[name])


def test_every_public_function_has_a_file() -> None:
    functions = rules.public_functions("pipeline.data.datasets")
    assert functions.keys() == {path.stem for path in LEAVES}


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_a_small_data_set_needs_no_other_override(composed: Any, name: str) -> None:
    chosen = composed(f"dataset={name}")
    leaf = OmegaConf.to_container(chosen.dataset)
    assert isinstance(leaf, dict)
    raw: RawData = leaves.build({str(key): value for key, value in leaf.items()})
    assert chosen.preprocess.validation_size == 150
    assert len(raw.train) > 2 * chosen.preprocess.validation_size
    assert "defaults" not in leaf


def test_the_command_line_wins_over_what_a_small_data_set_chooses(composed: Any) -> None:
    by_value = composed("dataset=digits", "preprocess.validation_size=77")
    by_choice = composed("dataset=digits", "preprocess=default")
    assert by_value.preprocess.validation_size == 77
    assert by_choice.preprocess.validation_size == 5000


def test_fashion_mnist_keeps_the_default_preprocessing(composed: Any) -> None:
    chosen = composed().preprocess
    assert (chosen.validation_size, chosen.seed) == (5000, 0)


@pytest.mark.parametrize(("name", "classes"), [("fashion_mnist", 10), ("mnist", 10)])
def test_idx_data_sets_are_read_from_a_named_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int
) -> None:
    published = getattr(datasets, name.upper())
    checksums = {}
    for file, content in zip(published.checksums, IDX_FILES, strict=True):
        (tmp_path / file).write_bytes(content)
        checksums[file] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(datasets, name.upper(), replace(published, checksums=checksums))
    raw = getattr(datasets, name)(folder=str(tmp_path), download=False)
    np.testing.assert_array_equal(raw.train.images, [[[[1], [2]]], [[[3], [4]]]])
    np.testing.assert_array_equal(raw.train.labels, [0, 1])
    np.testing.assert_array_equal(raw.test.images, [[[[5], [6]]]])
    np.testing.assert_array_equal(raw.test.labels, [1])
    assert len(raw.class_names) == classes
    assert raw.source == str(tmp_path)


def test_digits_are_all_there_and_span_the_byte_range() -> None:
    raw = datasets.digits(test_fraction=0.2, seed=0)
    assert raw.train.images.shape == (1437, 8, 8, 1)
    assert raw.test.images.shape == (360, 8, 8, 1)
    assert set(np.unique(raw.train.images)) == set(np.rint(np.arange(17) * 255 / 16).astype(int))
    assert np.bincount(raw.test.labels).min() >= 34


def test_digits_split_by_their_seed() -> None:
    first, again, other = (datasets.digits(test_fraction=0.2, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_synthetic_images_have_the_shape_asked_for_and_balanced_classes() -> None:
    raw = datasets.synthetic(**SYNTHETIC)
    assert raw.train.images.shape == (40, 8, 6, 3)
    np.testing.assert_array_equal(np.bincount(raw.train.labels), [10, 10, 10, 10])
    np.testing.assert_array_equal(np.bincount(raw.test.labels), [5, 5, 5, 5])
    assert raw.class_names == ("class_0", "class_1", "class_2", "class_3")


def test_synthetic_images_follow_their_seed() -> None:
    first, again = datasets.synthetic(**SYNTHETIC), datasets.synthetic(**SYNTHETIC)
    other = datasets.synthetic(**{**SYNTHETIC, "seed": 1})
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_synthetic_classes_can_be_told_apart_by_the_nearest_class_mean() -> None:
    raw = datasets.synthetic(**{**SYNTHETIC, "noise": 64.0})
    train = raw.train.images.reshape(40, -1).astype(float)
    means = np.stack([train[raw.train.labels == label].mean(axis=0) for label in range(4)])
    test = raw.test.images.reshape(20, 1, -1).astype(float)
    nearest = ((test - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == raw.test.labels).mean() == 1.0


def test_without_noise_the_images_of_a_class_are_equal() -> None:
    raw = datasets.synthetic(**{**SYNTHETIC, "noise": 0.0})
    assert len(np.unique(raw.train.images.reshape(40, -1), axis=0)) == 4


def test_a_synthetic_split_smaller_than_its_classes_is_refused() -> None:
    with pytest.raises(RequestError, match=r"dataset.test_size must be at least dataset.classes=4"):
        datasets.synthetic(**{**SYNTHETIC, "test_size": 3})


@pytest.mark.parametrize(
    ("name", "value"), [("train_size", 9), ("classes", 1), ("noise", -1), ("image_shape", [28, 28])]
)
def test_a_parameter_out_of_range_is_refused(name: str, value: Any) -> None:
    hint = leaves.leaf_parameters(datasets.synthetic)[name]
    with pytest.raises(ValidationError):
        TypeAdapter(hint).validate_python(value)


@pytest.mark.slow
def test_importing_the_module_loads_none_of_the_heavy_libraries() -> None:
    heavy = "{'sklearn.base', 'scipy', 'tensorflow', 'urllib3', 'mlflow'}"
    code = f"import sys, pipeline.data.datasets; print({heavy} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=CONF.parent, check=True
    )
    assert done.stdout.strip() == "set()"
