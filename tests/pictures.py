"""Folders of tiny pictures, and the leaf of a configuration that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pipeline.data.load import ingest
from pipeline.data.values import Array, RawData

FILE = Path(__file__).parents[1] / "conf/dataset/folder.yaml"
LEAF: dict[str, Any] = {
    key: value for key, value in yaml.safe_load(FILE.read_text()).items() if key != "defaults"
} | {"test_fraction": 0.2, "max_bad": 0.5}


def noise(seed: int, size: tuple[int, ...] = (12, 12)) -> Array:
    """Pixels u8[H,W] or u8[H,W,C] that no other seed gives."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def put(path: Path, pixels: Array, **options: Any) -> Path:
    """Saves pixels as a picture of the format that the ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def class_folders(
    folder: Path, count: int = 10, classes: tuple[str, ...] = ("cat", "dog"), colour: bool = False
) -> Path:
    """A folder with `count` different pictures of noise per class."""
    for number, name in enumerate(classes):
        for index in range(count):
            pixels = noise(1000 * number + index, (12, 12, 3) if colour else (12, 12))
            put(folder / name / f"{index:03d}.png", pixels)
    return folder


def read(folder: Path, data_dir: Path, **changes: Any) -> RawData:
    """The pictures of a folder as a data set, cached in `data_dir`."""
    return ingest({**LEAF, "path": str(folder), **changes}, name="folder", data_dir=data_dir)
