from __future__ import annotations

import json
import logging
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.data import cache


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
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
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


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".entry.4711.partial"
    leftover.mkdir()
    cache.load_or_build(tmp_path / "entry", build)
    assert not leftover.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        cache.load_or_build(tmp_path / "file" / "entry", build)
    assert str(tmp_path / "file") in str(caught.value.filename)


def test_a_full_disk_is_reported_with_the_folder_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("1000 requested and 0 written")  # numpy's words, without an errno

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="cannot write .1000 requested and 0 written") as caught:
        cache.load_or_build(tmp_path / "entry", build)
    assert caught.value.filename == str(tmp_path / "entry")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_key_depends_on_values_and_not_on_their_order() -> None:
    assert cache.key(a=1, b=[2, 3]) == cache.key(b=[2, 3], a=1)
    assert cache.key(a=1) != cache.key(a=2)
    assert len(cache.key(a=1)) == 16


def test_processes_that_ask_at_once_get_one_build(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, reports = context.Barrier(4), context.SimpleQueue()
    arguments = (str(tmp_path / "entry"), start, reports)
    workers = [context.Process(target=build_slowly_and_count, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted([reports.get() for _ in range(5)], key=str) == [0.0, 0.0, 0.0, 0.0, "built"]
    assert reports.empty()


def test_what_is_wrong_with_an_entry_is_said(tmp_path: Path) -> None:
    cache.load_or_build(tmp_path / "entry", build)
    assert cache.damage(tmp_path / "entry") is None
    (tmp_path / "entry" / "a.npy").write_bytes(b"something else")
    assert cache.damage(tmp_path / "entry") == "a.npy was changed"
    with pytest.raises(FileNotFoundError):
        cache.damage(tmp_path / "nothing")
