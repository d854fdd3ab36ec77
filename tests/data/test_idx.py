from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import idx
from pipeline.system.errors import RequestError

IMAGES = struct.pack(">4I", 0x803, 2, 1, 3) + bytes([0, 1, 2, 253, 254, 255])
LABELS = struct.pack(">2I", 0x801, 3) + bytes([7, 0, 9])


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_images_are_read_with_their_shape() -> None:
    np.testing.assert_array_equal(idx.array(IMAGES), [[[0, 1, 2]], [[253, 254, 255]]])
    assert idx.array(IMAGES).dtype == np.uint8


def test_labels_are_read_as_a_vector() -> None:
    np.testing.assert_array_equal(idx.array(LABELS), [7, 0, 9])


def test_gzipped_and_plain_files_decompress_to_the_same_bytes(tmp_path: Path) -> None:
    packed = written(tmp_path / "a.gz", gzip.compress(IMAGES))
    plain = written(tmp_path / "a", IMAGES)
    assert idx.decompressed(packed) == idx.decompressed(plain) == IMAGES


def test_a_file_longer_than_one_chunk_is_read_whole(tmp_path: Path) -> None:
    size = 3 * 2**20 + 5
    content = struct.pack(">2I", 0x801, size) + bytes(size)
    assert idx.decompressed(written(tmp_path / "a.gz", gzip.compress(content))) == content


DAMAGED = {
    "truncated gzip": (gzip.compress(IMAGES)[:-9], "gzip data is truncated"),
    "damaged gzip": (gzip.compress(IMAGES)[:-8] + bytes(8), "gzip data is damaged"),
    "garbage": (b"<html>sign in to the network</html>", "not an IDX file"),
    "wrong magic": (b"\0\0\x08\x04" + IMAGES[4:], "not an IDX file .*0x00000804"),
    "empty": (b"", "not an IDX file"),
    "half a header": (IMAGES[:10], "header is cut off after 10 bytes"),
    "too short": (IMAGES[:-1], "truncated: 21 bytes where its header promises 22"),
    "too long": (IMAGES + b"\0", "too long: more than the 22 bytes"),
    "no images": (struct.pack(">4I", 0x803, 0, 1, 3), r"impossible dimensions \[0, 1, 3\]"),
    "lying header": (struct.pack(">4I", 0x803, *[2**32 - 1] * 3), "impossible dimensions"),
}


@pytest.mark.parametrize(("content", "rule"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes, rule: str) -> None:
    path = written(tmp_path / "train-images-idx3-ubyte.gz", content)
    with pytest.raises(RequestError, match=rule) as caught:
        idx.decompressed(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; replace it with an intact copy")
    assert "\n" not in message


def test_a_gzip_bomb_is_not_unpacked_beyond_what_its_header_promises(tmp_path: Path) -> None:
    bomb = gzip.compress(LABELS + bytes(64 * 2**20))
    with pytest.raises(RequestError, match="too long"):
        idx.decompressed(written(tmp_path / "bomb.gz", bomb))


def test_a_missing_file_is_an_os_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        idx.decompressed(tmp_path / "nowhere")
    assert caught.value.filename == str(tmp_path / "nowhere")
