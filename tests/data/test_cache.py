from __future__ import annotations

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pytest

from pipeline.data import cache
from tests.commands import TIMEOUT_S
from tests.stress.matrix import matrix, stressed
from tests.warm import call_warm


def build() -> cache.Content:
    return {"a": np.arange(6, dtype=np.uint8).reshape(2, 3)}, {"note": "hello"}


def never() -> cache.Content:
    raise AssertionError("built although it was there")


def build_slowly_and_count(folder: str, start: Any, reports: Any) -> None:
    def counted() -> cache.Content:
        reports.put("built")
        return {"a": np.zeros((1000, 1000))}, {}

    start.wait()
    entry = cache.load_or_build(Path(folder), counted)
    reports.put(float(entry.arrays["a"].sum()))


def test_an_entry_is_built_once_and_then_read(tmp_path: Path) -> None:
    first = cache.load_or_build(tmp_path / "entry", build)
    second = cache.load_or_build(tmp_path / "entry", never)
    assert (first.cached, second.cached) == (False, True)
    np.testing.assert_array_equal(second.arrays["a"], [[0, 1, 2], [3, 4, 5]])
    assert second.meta == {"note": "hello"}


def test_a_process_looks_at_the_content_once_while_the_files_are_as_they_were(
    tmp_path: Path,
) -> None:
    cache.load_or_build(tmp_path / "entry", build)
    second = cache.load_or_build(tmp_path / "entry", never)
    assert cache.load_or_build(tmp_path / "entry", never) is second
    flip_a_bit(tmp_path / "entry")
    assert cache.load_or_build(tmp_path / "entry", build) is not second


def test_arrays_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    array = cache.load_or_build(tmp_path / "entry", build).arrays["a"]
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 9


def test_an_array_that_is_let_go_fills_no_memory_until_it_is_read(tmp_path: Path) -> None:
    def ones() -> cache.Content:
        return {"a": np.ones((1000, 1000), np.uint8)}, {}

    def in_memory() -> int:
        maps = psutil.Process().memory_maps(grouped=True)
        return sum(one.rss for one in maps if one.path.startswith(str(tmp_path)))

    array = cache.load_or_build(tmp_path / "entry", ones).arrays["a"]
    assert array.sum() == array.size <= in_memory()
    cache.let_go(array)
    assert in_memory() == 0
    assert array.sum() == array.size


def test_an_array_of_the_process_itself_stays_where_it_is() -> None:
    array = np.ones(1000)
    cache.let_go(array)
    assert array.sum() == 1000


def test_an_empty_array_keeps_its_shape(tmp_path: Path) -> None:
    entry = cache.load_or_build(tmp_path / "e", lambda: ({"a": np.zeros((0, 8, 8, 1))}, {}))
    assert entry.arrays["a"].shape == (0, 8, 8, 1)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "a.npy").read_bytes())
    content[-1] ^= 1
    (folder / "a.npy").write_bytes(content)


def change_the_description(folder: Path) -> None:
    entry = json.loads((folder / "entry.json").read_text())
    entry["meta"]["note"] = "goodbye"
    (folder / "entry.json").write_text(json.dumps(entry))


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "a changed description": change_the_description,
    "a truncated array": lambda folder: (folder / "a.npy").write_bytes(b""),
    "a missing array": lambda folder: (folder / "a.npy").unlink(),
    "a missing description": lambda folder: (folder / "entry.json").unlink(),
    "a description that is no JSON": lambda folder: (folder / "entry.json").write_text("{"),
    "a description of another kind": lambda folder: (folder / "entry.json").write_text("[]"),
    "a description of brackets": lambda f: (f / "entry.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@matrix(34)
def test_a_damaged_entry_is_reported_and_built_again(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache.load_or_build(tmp_path / "entry", build)
    damage(tmp_path / "entry")
    with caplog.at_level(logging.WARNING):
        again = cache.load_or_build(tmp_path / "entry", build)
    assert not again.cached
    np.testing.assert_array_equal(again.arrays["a"], [[0, 1, 2], [3, 4, 5]])
    [warning] = caplog.messages
    assert warning.startswith(f"The cache {tmp_path / 'entry'} is damaged (")
    assert "\n" not in warning
    assert cache.load_or_build(tmp_path / "entry", never).cached


def test_a_failed_build_leaves_nothing_that_looks_like_an_entry(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        cache.load_or_build(tmp_path / "entry", never)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


@matrix(9)
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".entry.4711.partial"
    leftover.mkdir()
    cache.load_or_build(tmp_path / "entry", build)
    assert not leftover.exists()


@matrix(23)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        cache.load_or_build(tmp_path / "file" / "entry", build)
    assert str(tmp_path / "file") in str(caught.value.filename)


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from pipeline.data import cache
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file may grow beyond it
try:
    cache.load_or_build(Path(sys.argv[1]), lambda: ({"a": np.zeros(10_000)}, {}))
except OSError as error:
    print(error)
"""


@matrix(22)
def test_a_full_disk_is_reported_with_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    entry = str(tmp_path / "entry")
    said = subprocess.run(
        [sys.executable, "-c", FULL_DISK, entry], capture_output=True, text=True, check=True
    ).stdout
    assert said == f"[Errno 27] File too large: '{entry}'\n"
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_stream_is_written_part_by_part_as_numpy_would_save_the_whole(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.int64).reshape(4, 3, 2)
    stream = cache.Stream(
        shape=whole.shape, dtype=whole.dtype, parts=(part for part in (whole[:1], whole[1:]))
    )
    entry = cache.load_or_build(tmp_path / "entry", lambda: ({"a": stream}, {}))
    np.testing.assert_array_equal(entry.arrays["a"], whole)
    np.save(tmp_path / "whole.npy", whole)
    saved = (tmp_path / "entry" / "a.npy").read_bytes()
    assert saved == (tmp_path / "whole.npy").read_bytes()


def test_a_stream_of_another_length_is_no_entry(tmp_path: Path) -> None:
    short = cache.Stream(shape=(3,), dtype=np.dtype(np.uint8), parts=[np.zeros(2, np.uint8)])
    with pytest.raises(ValueError, match=r"a.npy: 2 bytes do not make uint8\(3,\)"):
        cache.load_or_build(tmp_path / "entry", lambda: ({"a": short}, {}))
    assert not (tmp_path / "entry").exists()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose every byte is looked at, from now on."""
    looked_at: list[str] = []
    real = hashlib.file_digest

    def digest(file: Any, kind: str) -> Any:
        looked_at.append(Path(file.name).name)
        return real(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return looked_at


def read_unchecked(folder: Path) -> list[list[int]]:
    """The values of an entry, read where no byte can be compared with its checksum."""
    with patch("hashlib.file_digest", never):
        values: list[list[int]] = cache.load_or_build(folder, never).arrays["a"].tolist()
        return values


def test_an_entry_that_was_checked_is_not_read_again_by_another_process(tmp_path: Path) -> None:
    cache.load_or_build(tmp_path / "entry", build)
    values = call_warm(read_unchecked, tmp_path / "entry", timeout=TIMEOUT_S)
    assert values == [[0, 1, 2], [3, 4, 5]]


def test_whoever_asks_for_it_has_every_byte_looked_at(tmp_path: Path, checked: list[str]) -> None:
    cache.load_or_build(tmp_path / "entry", build)
    del checked[:]
    cache.load_or_build(tmp_path / "entry", never, verify=True)
    assert cache.damage(tmp_path / "entry") is None
    assert checked == ["a.npy"] * 2


@matrix(34)
def test_a_changed_file_is_found_though_its_time_was_set_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.load_or_build(tmp_path / "entry", build)
    before = (tmp_path / "entry/a.npy").stat()
    flip_a_bit(tmp_path / "entry")
    os.utime(tmp_path / "entry/a.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not cache.load_or_build(tmp_path / "entry", build).cached
    assert "a.npy was changed" in caplog.text


def test_a_copy_of_an_entry_is_checked_anew(tmp_path: Path, checked: list[str]) -> None:
    cache.load_or_build(tmp_path / "entry", build)
    shutil.copytree(tmp_path / "entry", tmp_path / "copy")
    del checked[:]
    assert cache.load_or_build(tmp_path / "copy", never).cached
    assert checked == ["a.npy"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[[1]]", "null"])
def test_a_damaged_note_of_the_check_costs_another_check(
    tmp_path: Path, checked: list[str], text: str
) -> None:
    cache.load_or_build(tmp_path / "entry", build)
    (tmp_path / "entry/.checked.json").write_text(text)
    del checked[:]
    assert cache.load_or_build(tmp_path / "entry", never).cached
    assert checked == ["a.npy"]


def test_a_key_depends_on_values_and_not_on_their_order() -> None:
    assert cache.key(a=1, b=[2, 3]) == cache.key(b=[2, 3], a=1)
    assert cache.key(a=1) != cache.key(a=2)
    assert len(cache.key(a=1)) == 16


@pytest.mark.slow
@matrix(4)
def test_processes_that_ask_at_once_get_one_build(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    many = stressed(8, 4)
    start, reports = context.Barrier(many), context.SimpleQueue()
    arguments = (str(tmp_path / "entry"), start, reports)
    workers = [context.Process(target=build_slowly_and_count, args=arguments) for _ in range(many)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * many
    said = sorted([reports.get() for _ in range(many + 1)], key=str)
    assert said == [*[0.0] * many, "built"]
    assert reports.empty()


def test_an_entry_that_cannot_be_read_is_not_said_to_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.load_or_build(tmp_path / "entry", build)

    def failing(file: Any, kind: str) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", failing)
    with pytest.raises(OSError, match="Input/output error"):
        cache.damage(tmp_path / "entry")


def test_what_is_wrong_with_an_entry_is_said(tmp_path: Path) -> None:
    cache.load_or_build(tmp_path / "entry", build)
    assert cache.damage(tmp_path / "entry") is None
    (tmp_path / "entry" / "a.npy").write_bytes(b"something else")
    assert cache.damage(tmp_path / "entry") == "a.npy was changed"
    (tmp_path / "entry" / "a.npy").unlink()
    assert "No such file" in str(cache.damage(tmp_path / "entry"))
    with pytest.raises(FileNotFoundError):
        cache.damage(tmp_path / "nothing")
