from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout
from PIL import Image

from pipeline.data import packing
from pipeline.data.load import ingest
from pipeline.data.pictures import FITS, load_picture
from pipeline.data.values import Identity, RawData
from pipeline.system.errors import PipelineError, RequestError
from tests.commands import of_data
from tests.pictures import LEAF, class_folders, noise, put, read
from tests.stress.matrix import matrix, stressed, tally


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "photos")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry per picture that is decoded from now on."""
    found: list[Any] = []
    original = packing.open_picture

    def opened(*given: Any, **named: Any) -> Any:
        found.append(given)
        return original(*given, **named)

    monkeypatch.setattr(packing, "open_picture", opened)
    return found


def names(raw: RawData) -> list[str]:
    assert raw.index is not None
    return list(raw.index.files)


def test_an_image_is_what_predict_makes_of_its_file(folder: Path, tmp_path: Path) -> None:
    raw = read(folder, tmp_path / "data", size=7, channels=3)
    for row, name in enumerate(names(raw)):
        image = load_picture(folder / name, (7, 7, 3))
        np.testing.assert_array_equal(raw.train.images[row], image)


@pytest.mark.parametrize("fit", FITS)
def test_each_way_to_fit_is_that_of_predict(tmp_path: Path, fit: str) -> None:
    folder = class_folders(tmp_path / "photos", 2)
    put(folder / "cat/wide.png", noise(7, (20, 90)))
    put(folder / "cat/tall.jpg", noise(8, (900, 40, 3)))
    raw = read(folder, tmp_path / "data", size=[8, 10], fit=fit)
    for row, name in enumerate(names(raw)):
        image = load_picture(folder / name, (8, 10, 3), fit=fit)
        np.testing.assert_array_equal(raw.train.images[row], image)
    assert raw.fit == fit


def test_the_index_tells_of_each_file(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", 3)
    turned = Image.Exif()
    turned[0x112] = 6
    put(folder / "dog/turned.jpg", noise(9, (40, 20, 3)), exif=turned)
    index = read(folder, tmp_path / "data").index
    assert index is not None
    row = list(index.files).index("dog/turned.jpg")
    assert index.sizes[row].tolist() == [20, 40]
    assert (index.modes[row], index.modes[0]) == ("RGB", "L")
    content = (folder / "dog/turned.jpg").read_bytes()
    assert index.sha256[row].tobytes() == __import__("hashlib").sha256(content).digest()
    assert index.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_images_are_grey_only_if_all_pictures_are(folder: Path, tmp_path: Path) -> None:
    put(folder / "cat/grey.png", np.repeat(noise(3)[..., None], 3, axis=2))  # as RGB
    assert read(folder, tmp_path / "data").train.image_shape == (12, 12, 1)
    grey = read(folder, tmp_path / "data").train.images
    put(folder / "dog/colour.png", noise(4, (12, 12, 3)))
    both = read(folder, tmp_path / "data").train.images
    assert both.shape[1:] == (12, 12, 3)
    np.testing.assert_array_equal(both[: len(grey), ..., 0], grey[..., 0])
    (folder / "dog/colour.png").unlink()
    np.testing.assert_array_equal(read(folder, tmp_path / "data").train.images, grey)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(12, 12)] * 3, (12, 12)),
        ([(20, 14)] * 3, (20, 14)),
        ([(500, 300), (200, 400), (90, 90)], (96, 96)),
        ([(70, 60), (64, 80), (300, 300)], (64, 64)),
        ([(3, 3), (4, 4), (5, 5)], (8, 8)),
    ],
)
def test_the_size_is_chosen_by_the_pictures_and_said(
    tmp_path: Path, sizes: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    for number, size in enumerate(sizes):
        for name in ("cat", "dog"):
            put(tmp_path / f"photos/{name}/{number}.png", noise(number + len(name), size))
            put(tmp_path / f"photos/{name}/{number}b.png", noise(number + 50, size))
    raw = read(tmp_path / "photos", tmp_path / "data")
    assert raw.train.image_shape[:2] == expected
    assert raw.index is not None
    assert f"images of {expected[0]}×{expected[1]}, chosen by the pictures" in str(raw.index.notes)


def test_the_second_time_no_file_is_read(folder: Path, tmp_path: Path, decoded: list[Any]) -> None:
    first = read(folder, tmp_path / "data")
    assert len(decoded) == 20
    second = read(folder, tmp_path / "data")
    assert (len(decoded), second.cached) == (20, True)
    assert first.fingerprint == second.fingerprint


def test_other_splits_and_groups_share_one_packed_copy(
    folder: Path, tmp_path: Path, decoded: list[Any]
) -> None:
    first = read(folder, tmp_path / "data")
    second = read(folder, tmp_path / "data", seed=1, group=r"(\d)\.png")
    assert len(decoded) == 20
    assert len(list(tmp_path.glob("data/folder/*/images.npy"))) == 1
    assert first.fingerprint != second.fingerprint


def test_only_files_that_are_new_or_changed_are_read_again(
    folder: Path, tmp_path: Path, decoded: list[Any]
) -> None:
    read(folder, tmp_path / "data")
    put(folder / "cat/0000.png", noise(5000))
    put(folder / "dog/003.png", noise(5001))
    (folder / "dog/004.png").unlink()
    raw = read(folder, tmp_path / "data")
    assert len(decoded) == 22
    assert names(raw)[:2] == ["cat/000.png", "cat/0000.png"]
    assert "dog/004.png" not in names(raw)
    anew = read(folder, tmp_path / "elsewhere")
    np.testing.assert_array_equal(raw.train.images, anew.train.images)
    assert raw.fingerprint == anew.fingerprint


def test_two_folders_of_the_same_names_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    first = read(class_folders(tmp_path / "a"), tmp_path / "data")
    other = class_folders(tmp_path / "b")
    put(other / "cat/000.png", noise(77))
    assert read(other, tmp_path / "data").fingerprint != first.fingerprint


@matrix(34)
def test_a_damaged_copy_is_made_again(folder: Path, tmp_path: Path) -> None:
    before = read(folder, tmp_path / "data").fingerprint
    [path] = tmp_path.glob("data/folder/pixels-*/images.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    raw = read(folder, tmp_path / "data")
    assert raw.fingerprint == before
    np.testing.assert_array_equal(
        raw.train.images[-1], load_picture(folder / "dog/009.png", (12, 12, 1))
    )


BAD = {"empty.jpg": b"", "page.jpg": b"<!doctype html>404", "null.png": b"\0" * 100}


def test_files_that_cannot_be_read_are_named_and_never_replaced(
    folder: Path, tmp_path: Path, decoded: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in BAD.items():
        (folder / "cat" / name).write_bytes(content)
    raw = read(folder, tmp_path / "data")
    assert raw.index is not None
    assert [file for file, _ in raw.index.unreadable] == [f"cat/{name}" for name in sorted(BAD)]
    assert [reason for _, reason in raw.index.unreadable] == [
        "is empty",
        "not an image in a readable format",
        "is a web page instead of the picture; fetch it again",
    ]
    assert "3 of 23 files cannot be read: cat/empty.jpg: is empty; cat/null.png" in caplog.text
    assert len(raw.train) + len(raw.test) == 20
    put(folder / "dog/new.png", noise(44))
    assert len(decoded) == 23
    read(folder, tmp_path / "data")
    assert len(decoded) == 24 + 3  # the unreadable ones are tried again


def test_files_that_can_be_read_now_are_taken_and_a_recorded_run_keeps_its_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[Any]
) -> None:
    original = packing.open_picture

    def refused(source: Any, **named: Any) -> Any:
        if source.getvalue() in closed:
            raise PermissionError(13, "Permission denied")
        return original(source, **named)

    closed = {(folder / name).read_bytes() for name in ("cat/003.png", "dog/004.png")}
    with monkeypatch.context() as patch:
        patch.setattr(packing, "open_picture", refused)
        before = read(folder, tmp_path / "data")
        closed.remove((folder / "cat/003.png").read_bytes())
        between = read(folder, tmp_path / "data")
    assert [len(raw.train.images) for raw in (before, between)] == [18, 19]
    decoded.clear()
    after, again = (read(folder, tmp_path / "data") for _ in range(2))
    assert after.fingerprint == again.fingerprint == read(folder, tmp_path / "new").fingerprint
    # One is tried and taken, as a copy has the other; the next time, none; those in the new folder.
    assert len(decoded) == 1 + 1 + 0 + 20
    config = of_data({**LEAF, "path": str(folder)}, "folder", tmp_path / "data")
    for raw in (before, between, after):
        recorded = ingest(config, identity=Identity(fingerprint=raw.fingerprint))
        np.testing.assert_array_equal(recorded.train.images, raw.train.images)


def test_pointers_of_git_lfs_are_told_from_damaged_files(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", 2)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n"
    (folder / "cat/a.jpg").write_bytes(pointer)
    raw = read(folder, tmp_path / "data")
    assert raw.index is not None
    [(_, reason)] = raw.index.unreadable
    assert reason == "is a pointer of Git LFS instead of the picture; type git lfs pull"
    with pytest.raises(ValueError, match="git lfs pull"):
        load_picture(folder / "cat/a.jpg", (8, 8, 1))


def test_bad_files_are_refused_if_asked_for_or_too_many(folder: Path, tmp_path: Path) -> None:
    (folder / "cat/empty.jpg").write_bytes(b"")
    told = "1 of 21 files cannot be read: cat/empty.jpg: is empty"
    with pytest.raises(RequestError, match=f"dataset.on_bad=refuse: {told}"):
        read(folder, tmp_path / "data", on_bad="refuse")
    with pytest.raises(RequestError, match=f"dataset.max_bad=0.01: {told}"):
        read(folder, tmp_path / "data", max_bad=0.01)
    assert len(read(folder, tmp_path / "data", max_bad=0.05).train.images) == 20


def test_a_folder_without_any_readable_file_is_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "a.png").write_bytes(b"no")
    with pytest.raises(RequestError, match="none of the 2 files can be read, cat/a.png: not an"):
        read(tmp_path / "photos", tmp_path / "data")


@matrix(22)
def test_a_failing_disk_is_no_bad_file_and_nothing_is_read_twice_afterwards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[Any]
) -> None:
    monkeypatch.setattr(packing, "CHUNK", 1)
    original = packing.open_picture

    def failing(*given: Any, **named: Any) -> Any:
        if len(decoded) > 9:
            raise OSError(5, "Input/output error")
        return original(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "open_picture", failing)
        with pytest.raises(PipelineError, match="Input/output error; what was read so far is kept"):
            read(folder, tmp_path / "data")
    before = len(decoded)
    read(folder, tmp_path / "data")
    assert len(decoded) - before <= 20 - before + 2 * packing.THREADS


def test_a_disk_that_takes_no_more_is_told_with_the_file(folder: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*/\.packing-\w{16}/images\.npy"):
            read(folder, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_other_processes_wait_until_the_copy_is_in_place_and_the_working_folder_removed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, refused = packing.cache.load_or_build, []

    def other_wants_then(place: Path, build: Any, **named: Any) -> Any:
        entry = original(place, build, **named)
        for there in tmp_path.glob("data/folder/.packing-????????????????"):
            with pytest.raises(Timeout):
                FileLock(there.with_name(f"{there.name}.lock")).acquire(timeout=0)
            refused.append(there)
        return entry

    monkeypatch.setattr(packing.cache, "load_or_build", other_wants_then)
    read(folder, tmp_path / "data")
    assert len(refused) == 1
    assert not refused[0].exists()


def test_a_torn_journal_or_array_costs_what_is_torn(
    folder: Path, tmp_path: Path, decoded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read(folder, tmp_path / "data")
    [place] = tmp_path.glob("data/folder/.packing-????????????????")
    size = 12 * 12 * 3
    with (place / "images.npy").open("r+b") as file:
        file.seek(128 + 17 * size)
        file.write(b"\0" * size)  # a row that never reached the disk
        file.truncate(128 + 19 * size + 5)
    with (place / "journal").open("a") as file:
        file.write('[21, [["cat/x')
    decoded.clear()
    raw = read(folder, tmp_path / "data")
    assert len(decoded) == 3
    assert raw.fingerprint == read(folder, tmp_path / "elsewhere").fingerprint


PACK = """
import sys
from pathlib import Path
from pipeline.data import packing
from tests.pictures import read
original = packing.open_picture
def opened(*given, **named):
    with open(sys.argv[3], "a") as file:
        file.write("x\\n")
    return original(*given, **named)
packing.open_picture, packing.CHUNK = opened, 2
print(read(Path(sys.argv[1]), Path(sys.argv[2])).fingerprint)
"""


@pytest.mark.slow
@matrix(9)
def test_packing_goes_on_after_kills_and_decodes_nothing_twice_but_what_was_in_flight(
    tmp_path: Path,
) -> None:
    folder, count = class_folders(tmp_path / "photos", 150), 300
    log, kills = tmp_path / "decoded.txt", 0
    tally(stressed(20, 2))
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PACK, str(folder), str(tmp_path / "data"), str(log)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for stop in np.linspace(20, 220, stressed(20, 2)).astype(int).tolist():
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not log.exists() or log.stat().st_size < 2 * stop):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert kills == stressed(20, 2)
    in_flight = 2 * (2 * packing.THREADS + 1)  # pictures
    assert count <= log.stat().st_size / 2 <= count + kills * in_flight
    assert done.stdout.strip() == read(folder, tmp_path / "elsewhere").fingerprint
    assert not list(tmp_path.glob("data/folder/.packing-*/"))


@matrix(10)
def test_a_kill_while_the_copy_is_put_in_place_costs_no_decoding(
    folder: Path, tmp_path: Path, decoded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: 1 / 0)
        patch.setattr("pipeline.system.files.remove", lambda path: None)  # as if killed
        with pytest.raises(ZeroDivisionError):
            read(folder, tmp_path / "data")
    decoded.clear()
    put(folder / "dog/new.png", noise(44))
    assert len(read(folder, tmp_path / "data").train.images) == 21
    assert len(decoded) == 1


def test_large_images_are_decoded_in_small_chunks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK_BYTES", 2 * 12 * 12 * 3)
    monkeypatch.setattr(packing, "remove", lambda path, **_: None)  # as if killed at the end
    read(folder, tmp_path / "data")
    [journal] = (tmp_path / "data").glob("folder/.packing-*/journal")
    _, *chunks = map(json.loads, journal.read_text().splitlines())
    assert [len(records) for _, records in chunks] == [2] * 10


def test_similar_pictures_have_similar_hashes_and_others_do_not(tmp_path: Path) -> None:
    photo = np.asarray(Image.fromarray(noise(1, (6, 6, 3))).resize((64, 64)))
    other = np.asarray(Image.fromarray(noise(2, (6, 6, 3))).resize((64, 64)))
    put(tmp_path / "a.jpg", photo, quality=50)
    saved = np.asarray(Image.open(tmp_path / "a.jpg"))
    lighter = np.clip(photo * 0.8 + 40, 0, 255).astype(np.uint8)
    of = packing.perceptual_hash
    assert max((of(photo) ^ of(copy)).bit_count() for copy in (saved, lighter)) <= 4
    assert (of(photo) ^ of(other)).bit_count() > 10


def test_the_description_of_a_copy_is_plain_json(folder: Path, tmp_path: Path) -> None:
    read(folder, tmp_path / "data")
    [path] = tmp_path.glob("data/folder/pixels-*/entry.json")
    assert json.loads(path.read_text())["meta"]["settings"]["fit"] == "pad"


def test_pillow_keeps_memory_only_while_pictures_are_packed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    original = packing.fitted
    count = Image.core.get_blocks_max

    def fitted(*given: Any, **named: Any) -> Any:
        kept.append(count())
        return original(*given, **named)

    before = count()
    monkeypatch.setattr(packing, "fitted", fitted)
    read(folder, tmp_path / "data")
    assert min(kept) > before == count()


def test_a_new_copy_is_not_checked_again_by_the_next_command(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", colour=True)
    read(folder, tmp_path / "data", size=12)
    [checked] = tmp_path.glob("data/folder/pixels-*/.checked.json")
    before = checked.stat().st_mtime_ns
    assert read(folder, tmp_path / "data", size=12).cached
    assert checked.stat().st_mtime_ns == before
