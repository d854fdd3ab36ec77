"""IDX, the file format of MNIST and its descendants: a big-endian header, then plain bytes.

Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", file formats.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pipeline.data.values import Array
from pipeline.system.errors import RequestError

_DIMENSIONS = {0x00000801: 1, 0x00000803: 3}  # labels, images; both of unsigned bytes
_LARGEST = 2**30  # bytes; no data set in this format comes near it
_CHUNK = 2**20  # bytes


class DamagedFile(RequestError):
    """A data file that is not what it should be; `reason` says so without its folder."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; replace it with an intact copy")
        self.reason = f"{path.name}: {reason}"


def decompressed(path: Path) -> bytes:
    """Reads a whole IDX file, gzipped or not, header included.

    The header is checked before the body is read, and no more is read than it promises, so
    neither a lying header nor a gzip bomb can take the memory.

    Raises:
        DamagedFile: not gzip or IDX, truncated, or longer than its header says.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            return _read(stream)
    except EOFError as error:
        raise DamagedFile(path, "its gzip data is truncated") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DamagedFile(path, f"its gzip data is damaged ({error})") from error
    except ValueError as error:
        raise DamagedFile(path, str(error)) from error


def array(content: bytes) -> Array:
    """The values of an IDX file: images u8[N,H,W] or labels u8[N], a read-only view.

    Raises:
        ValueError: the header is wrong or does not match the number of bytes.
    """
    shape = _shape(content)
    _check_length(content, shape)
    return np.frombuffer(content, np.uint8, offset=_offset(shape)).reshape(shape)


def _read(stream: BinaryIO) -> bytes:
    content = bytearray(stream.read(_CHUNK))
    shape = _shape(content)
    # Reading on to the end, even when all bytes are there, makes gzip check its CRC.
    while len(content) <= _offset(shape) + math.prod(shape) and (part := stream.read(_CHUNK)):
        content += part
    _check_length(content, shape)
    return bytes(content)


def _shape(content: bytes | bytearray) -> tuple[int, ...]:
    magic = int.from_bytes(content[:4], "big")
    if len(content) < 4 or magic not in _DIMENSIONS:
        raise ValueError(f"not an IDX file of images or labels (it starts with 0x{magic:08x})")
    dimensions = _DIMENSIONS[magic]
    if len(content) < 4 + 4 * dimensions:
        raise ValueError(f"its IDX header is cut off after {len(content)} bytes")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if not 0 < math.prod(shape) <= _LARGEST:
        raise ValueError(f"its IDX header gives impossible dimensions {list(shape)}")
    return shape


def _offset(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape)


def _check_length(content: bytes | bytearray, shape: tuple[int, ...]) -> None:
    expected = _offset(shape) + math.prod(shape)
    if len(content) < expected:
        raise ValueError(f"truncated: {len(content)} bytes where its header promises {expected}")
    if len(content) > expected:
        raise ValueError(f"too long: more than the {expected} bytes its header promises")
