from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.data import pictures, reading, values
from pipeline.data.files import DAMAGED
from pipeline.data.reading import Block, find_images, read_blocks
from pipeline.system.errors import RequestError

SHAPE = (3, 3, 1)


def picture(path: Path, value: int) -> Path:
    Image.new("L", (3, 3), value).save(path)
    return path


def stack(path: Path, *values: int, side: int = 3) -> Path:
    np.save(path, np.concatenate([np.full((1, side, side), value, np.uint8) for value in values]))
    return path


def blocks_of(files: list[Path], at_once: int = 100) -> tuple[list[Block], list[Block]]:
    """The blocks that come, and the parts that the listener was told of."""
    told: list[Block] = []
    return list(read_blocks(files, SHAPE, at_once=at_once, listener=told.append)), told


def rows(blocks: list[Block]) -> list[tuple[str, int | None, int]]:
    """File, index and first pixel of each image."""
    return [
        (file.name, index, int(image[0, 0, 0]))
        for block in blocks
        for file, index, image in zip(block.files, block.indices, block.images, strict=True)
    ]


def test_pictures_and_arrays_come_in_the_order_of_their_files(tmp_path: Path) -> None:
    files = [
        picture(tmp_path / "a.png", 1),
        stack(tmp_path / "b.npy", 2, 3),
        picture(tmp_path / "c.png", 4),
    ]
    blocks, _ = blocks_of(files)
    assert rows(blocks) == [
        ("a.png", None, 1),
        ("b.npy", 0, 2),
        ("b.npy", 1, 3),
        ("c.png", None, 4),
    ]


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 100])
def test_blocks_hold_at_most_as_many_as_are_wanted_and_lose_none(
    at_once: int, tmp_path: Path
) -> None:
    files = [picture(tmp_path / f"{value}.png", value) for value in range(40)]
    files += [stack(tmp_path / "z.npy", *range(40, 47))]
    blocks, _ = blocks_of(files, at_once)
    assert max(map(len, blocks)) <= at_once
    assert [value for _, _, value in rows(blocks)] == list(range(47))


def test_an_array_of_another_size_is_resized_image_by_image(tmp_path: Path) -> None:
    blocks, _ = blocks_of([stack(tmp_path / "a.npy", 7, 8, side=9)])
    assert blocks[0].images.shape == (2, *SHAPE)
    assert [value for _, _, value in rows(blocks)] == [7, 8]


def test_an_array_of_the_models_size_is_read_where_it_lies(tmp_path: Path) -> None:
    blocks, _ = blocks_of([stack(tmp_path / "a.npy", 7, 8)])
    assert isinstance(blocks[0].images.base, np.memmap)


def test_the_listener_is_told_of_every_file_and_part_of_one(tmp_path: Path) -> None:
    files = [picture(tmp_path / "a.png", 1), stack(tmp_path / "b.npy", 2, 3, 4, 5)]
    (tmp_path / "c.png").write_text("no image")
    _, told = blocks_of([*files, tmp_path / "c.png"], at_once=1)
    assert [part.files_done for part in told] == [1, 0.25, 0.25, 0.25, 0.25, 1]


HEADERS = (
    (b"(2, 3, 3)", b"(-2, 3,3)"),
    (b"False", b"len()"),
    (b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
)


def damaged(folder: Path) -> Iterator[tuple[Path, str]]:
    whole = picture(folder / "whole.jpg", 9).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[:-20])
    yield folder / "truncated.jpg", "truncated"
    (folder / "text.png").write_text("no image")
    yield folder / "text.png", "not an image in a readable format"
    (folder / "empty.gif").touch()
    yield folder / "empty.gif", "is empty"
    Image.new("1", (14_000, 14_000)).save(folder / "bomb.png")
    yield folder / "bomb.png", "has 196,000,000 pixels; make it smaller"
    yield folder / "gone.png", "no such file or directory"
    (folder / "folder.png").mkdir()
    yield folder / "folder.png", "is not a file"
    np.save(folder / "floats.npy", np.zeros((2, 3, 3)))
    yield folder / "floats.npy", "holds float64"
    array = stack(folder / "whole.npy", 1, 2).read_bytes()
    (folder / "cut.npy").write_bytes(array[:-1])
    yield folder / "cut.npy", "is truncated: its header declares more bytes than the file has"
    (folder / "folder.npy").mkdir()
    yield folder / "folder.npy", "is not a file"
    (folder / "text.npy").write_text("no array")
    yield folder / "text.npy", "not an array as numpy.save writes it"
    for number, (there, then) in enumerate(HEADERS):
        (folder / f"{number}.npy").write_bytes(array.replace(there, then))
        yield folder / f"{number}.npy", DAMAGED
    (folder / "empty.npy").touch()
    yield folder / "empty.npy", ""


@pytest.mark.slow
def test_what_cannot_be_read_is_told_with_the_reason_and_the_rest_comes(
    tmp_path: Path,
) -> None:
    reasons = dict(damaged(tmp_path))
    good = [picture(tmp_path / "a.png", 1), stack(tmp_path / "z.npy", 2)]
    blocks, told = blocks_of([good[0], *reasons, good[1]])
    assert [value for _, _, value in rows(blocks)] == [1, 2]
    unreadable = {one.file: one.reason for part in told for one in part.unreadable}
    assert unreadable.keys() == reasons.keys()
    for file, reason in reasons.items():
        assert reason in unreadable[file].lower()
        assert len(unreadable[file].splitlines()) == 1


def test_nothing_readable_gives_no_block(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert blocks_of([tmp_path / "a.png"] * 50)[0] == []


def test_only_a_few_files_are_read_ahead_of_who_takes_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "THREADS", 1)
    opened: list[Path] = []

    @contextmanager
    def noted(file: Path) -> Iterator[Path]:
        opened.append(file)
        yield file

    files = [picture(tmp_path / f"{value}.png", 0) for value in range(200)]
    blocks = read_blocks(files, SHAPE, at_once=2, listener=lambda _: None, opened=noted)
    next(blocks)
    blocks.close()
    assert files[:2] == opened[:2]
    assert len(opened) <= 10


def test_what_pillow_warns_of_is_logged_with_the_name_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    files = []
    for number in range(3):
        picture(tmp_path / f"{number}.tif", number)
        content = (tmp_path / f"{number}.tif").read_bytes()
        (tmp_path / f"{number}.tif").write_bytes(content[:60])  # within its directory
        files.append(tmp_path / f"{number}.tif")
    with caplog.at_level(logging.INFO):
        blocks_of(files)
    for file in files:
        assert any(f"{file}: Corrupt EXIF data" in message for message in caplog.messages)
    assert len(recwarn) == 0


@pytest.mark.slow
def test_of_a_large_array_only_the_blocks_at_work_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "THREADS", 1)
    monkeypatch.setattr(values, "BLOCK_BYTES", 2**20)
    np.save(tmp_path / "a.npy", np.ones((40, 1024, 1024), np.uint8))

    def in_memory() -> int:
        maps = psutil.Process().memory_maps(grouped=True)
        return sum(one.rss for one in maps if one.path.startswith(str(tmp_path)))

    most = total = 0
    for block in read_blocks(
        [tmp_path / "a.npy"], (1024, 1024, 1), at_once=99, listener=lambda _: None
    ):
        total += int(block.images.sum())
        most = max(most, in_memory())
    assert total == 40 * 2**20
    assert 2**20 <= most <= 10 * 2**20


def test_an_array_of_images_too_large_to_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "AT_WORK", 100_000)
    large = stack(tmp_path / "large.npy", 7, side=60)
    small = stack(tmp_path / "small.npy", 7, side=50)
    blocks, told = blocks_of([large, small])
    [one] = [one for part in told for one in part.unreadable]
    assert one.file == large
    assert one.reason == "has 3,600 pixels, which take 0 MB to decode; make it smaller"
    assert rows(blocks) == [("small.npy", 0, 7)]


def test_of_an_array_of_large_images_few_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "BLOCK_BYTES", 200)
    _, told = blocks_of([stack(tmp_path / "a.npy", 1, 2, 3, 4, 5, side=9)])  # 81 bytes each
    assert [len(part) for part in told] == [2, 2, 1]


def test_a_file_of_several_arrays_is_refused_with_the_way_to_save_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_test=np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(RequestError, match=r"holds several arrays; save one of them: numpy\.save"):
        find_images(str(tmp_path / "data.npz"))


def test_as_many_threads_read_as_there_are_cores_for_the_process() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from pipeline.data.reading import THREADS; print(THREADS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize("name", ["labels.csv", "labels.JSONL"])
def test_a_list_is_not_taken_for_a_picture_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("path,label\na.png,cat\n")
    with pytest.raises(RequestError, match="lists are not read; name the folder of the pictures"):
        find_images(str(tmp_path / name))
