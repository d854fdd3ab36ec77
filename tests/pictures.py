"""Folders of tiny pictures, and the leaf of a configuration that reads them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pipeline.data.load import ingest
from pipeline.data.values import Array, RawData
from tests.commands import of_data

FILE = Path(__file__).parents[1] / "conf/dataset/folder.yaml"
LEAF: dict[str, Any] = {
    key: value for key, value in yaml.safe_load(FILE.read_text()).items() if key != "defaults"
} | {"test_fraction": 0.2, "max_bad": 0.5}

# Of a picture that is read although Pillow warns of it, as it does of those of some cameras.
ODD_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0cut off"


def noise(seed: int, size: tuple[int, ...] = (12, 12)) -> Array:
    """Pixels u8[H,W] or u8[H,W,C] that no other seed gives."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def put(path: Path, pixels: Array, **options: Any) -> Path:
    """Saves pixels as a picture of the format that the ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def blank_png(path: Path, side: int, colour: int, *, bits: int = 8, whole: bool = True) -> Path:
    """A PNG of zeros, written without having it in memory; without its pixels unless `whole`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    packer = zlib.compressobj(1)
    row = bytes(1 - (-side * bits * {0: 1, 6: 4}[colour] // 8))
    pixels = b"".join(packer.compress(row) for _ in range(side if whole else 1)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
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
    return ingest(of_data({**LEAF, "path": str(folder), **changes}, "folder", data_dir))
