"""Archives that are damaged or hostile: refused by name, before memory is taken for them."""

from __future__ import annotations

import gzip
import io
import random
import re
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import archives
from pipeline.data.archives import place_at
from pipeline.data.cache import TICK_S
from pipeline.data.listing import listed
from pipeline.system.errors import RequestError
from tests.data.test_listing import placed, refusal
from tests.stress.matrix import matrix

FILES = {f"{name}/{number}.png": f"{name}{number}".encode() for name in "ab" for number in range(3)}


def zipped(path: Path, *names: str, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (*FILES, *names):
            archive.writestr(name, content)
    return path


def tarred(path: Path, *infos: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in infos:
            archive.addfile(info)
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/x.png", "C:/x.png", "..\\x.png"])
@matrix(43)
def test_a_member_outside_its_archive_refuses_it(name: str, tmp_path: Path) -> None:
    paths = [zipped(tmp_path / "photos.zip", name)]
    if "\\" not in name:
        paths += [tarred(tmp_path / "photos.tar", info(name))]
        paths += [tarred(tmp_path / "photos.tar", info("a/x.png", tarfile.LNKTYPE, name))]
    for path in paths:
        told = refusal(path)
        assert told.startswith(f"{path}: its member ")
        assert "lies outside the archive" in told


@matrix(43)
def test_links_and_devices_in_an_archive_are_left_out(tmp_path: Path) -> None:
    kinds = [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    infos = [info(f"a/{kind!r}.png", kind, "/etc/passwd") for kind in kinds]
    listing = listed(tarred(tmp_path / "photos.tar", *infos))
    assert set(listing.files) == set(FILES)
    assert dict(listing.left_out) == {"link": 1, "device or pipe": 3}
    path = zipped(tmp_path / "photos.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert dict(listed(path).left_out) == {"link": 1}


def test_a_second_name_of_a_file_in_a_tar_is_that_file(tmp_path: Path) -> None:
    path = tarred(tmp_path / "photos.tar", info("b/again.png", tarfile.LNKTYPE, "a/1.png"))
    listing = listed(path)
    assert listing.read(listing.files.index("b/again.png")) == b"a1"


def test_the_last_of_several_members_of_a_name_counts_and_the_others_are_said(
    tmp_path: Path,
) -> None:
    path = zipped(tmp_path / "photos.zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/0.png", b"second")
    listing = listed(path)
    assert listing.read(listing.files.index("a/0.png")) == b"second"
    assert dict(listing.left_out) == {"repeated member": 1}


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "photos.zip").read_bytes())
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(magic) + flags] |= 1
    (tmp_path / "photos.zip").write_bytes(content)
    assert "a/0.png is encrypted; unpack it yourself" in refusal(tmp_path / "photos.zip")


def test_an_unknown_method_of_compression_is_named(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "photos.zip").read_bytes())
    content[content.index(b"PK\1\2") + 10] = 98
    (tmp_path / "photos.zip").write_bytes(content)
    assert "a method that cannot be read (PPMd)" in refusal(tmp_path / "photos.zip")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
@matrix(29)
def test_an_archive_that_unpacks_to_far_more_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LARGEST", 2**16)
    path = placed(tmp_path, kind, FILES | {"a/large.png": bytes(2**20)})
    assert "over 100 times its size" in refusal(path)


@matrix(29)
def test_a_header_of_many_bytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    long = tarfile.TarInfo("long")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2**30
    path = tmp_path / "photos.tar.gz"
    path.write_bytes(gzip.compress(long.tobuf() + bytes(2**21)))
    assert "a header of 1,073,741,824 bytes" in refusal(path)


@matrix(29)
def test_an_archive_of_too_many_members_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 5)
    for path in (zipped(tmp_path / "photos.zip"), tarred(tmp_path / "photos.tar")):
        assert "it has more than 5 members" in refusal(path)


@matrix(29)
def test_a_member_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = [listed(placed(tmp_path, kind, FILES)) for kind in ("zip", "tar", "tar.gz")]
    monkeypatch.setattr(archives, "LARGEST", 1)
    for listing in listings:
        with pytest.raises(ValueError, match="has 2 bytes; a picture has 1 at most"):
            listing.read(0)


def test_damaged_content_in_a_zip_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = placed(tmp_path, "zip", dict.fromkeys(FILES, b"0123456789" * 9))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x2d\x07", b"\x2d\x08").replace(b"3034", b"3o34"))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("a/0.png").header_offset + 30 + len("a/0.png")
    path.write_bytes(content[:start] + b"\xff\xff" + content[start + 2 :])
    listing = listed(path)
    with pytest.raises(ValueError, match="is damaged in its archive"):
        listing.read(listing.files.index("a/0.png"))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_an_archive_that_is_cut_off_is_refused(kind: str, tmp_path: Path) -> None:
    path = placed(tmp_path, kind, FILES)
    content = path.read_bytes()
    end = len(content) if kind != "tar" else content.index(b"a/0.png") + 1024  # the last member
    for cut in (600, end // 2 // 512 * 512, end - 1):
        if cut < end:
            path.write_bytes(content[:cut])
            assert refusal(path).startswith(f"{path}: the ")


def test_two_tar_archives_in_one_file_are_refused(tmp_path: Path) -> None:
    path = placed(tmp_path, "tar", FILES)
    path.write_bytes(path.read_bytes() * 2)
    assert "several follow one another" in refusal(path)


def test_a_damaged_header_in_a_tar_does_not_end_it_silently(tmp_path: Path) -> None:
    path = placed(tmp_path, "tar", FILES)
    content = bytearray(path.read_bytes())
    content[content.index(b"./b/0.png")] ^= 1
    path.write_bytes(content)
    assert "the archive is damaged" in refusal(path)


def test_names_that_old_programs_wrote_are_read(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("Ü/1.png", "b\\2.png"):
            archive.writestr(name, b"")
    content = bytearray(path.read_bytes())
    for magic, flags in ((b"PK\3\4", 7), (b"PK\1\2", 9)):  # the name is UTF-8, but not said to be
        at = content.index(magic)
        content[at + flags] &= ~8
    path.write_bytes(content)
    assert listed(path).files == ("b/2.png", "Ü/1.png")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_threads_read_members_in_any_order(kind: str, tmp_path: Path) -> None:
    files = {f"{'ab'[n % 2]}/{n}.png": random.Random(n).randbytes(5000) for n in range(40)}
    listing = listed(placed(tmp_path, kind, files))
    assert sorted(listing.order.tolist()) == list(range(40))
    found: dict[str, bytes] = {}

    def read(rows: list[int]) -> None:
        for row in rows:
            found[listing.files[row]] = listing.read(row)

    threads = [
        threading.Thread(target=read, args=(listing.order[n::4].tolist(),)) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == files


def test_a_compressed_archive_is_unpacked_once_however_often_it_is_listed_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    unpack = gzip.GzipFile.read

    def counted(file: gzip.GzipFile, size: int | None = -1) -> bytes:
        nonlocal read
        content = unpack(file, size)
        read += len(content)
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    files = {f"{'ab'[n % 2]}/{n}.png": random.Random(n).randbytes(90_000) for n in range(40)}
    path = placed(tmp_path, "tar.gz", files)
    whole = len(gzip.decompress(path.read_bytes()))
    for _ in range(2):
        listing = listed(path)
        for row in (0, 39, 5, 38, 37, 1, 20):
            assert listing.read(row) == files[listing.files[row]]
    place = place_at(path)
    assert place is not None
    with place.opened("b/1.png") as file:
        assert file.read() == files["b/1.png"]
    assert read == whole
    path.write_bytes(path.read_bytes())  # touched
    listed(path)
    assert read == 2 * whole


def test_an_archive_that_cannot_be_unpacked_for_lack_of_space_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = placed(tmp_path, "tar.gz", FILES)
    full = Path("/dev/full")
    monkeypatch.setattr(archives.tempfile, "TemporaryFile", lambda **_: full.open("wb"))
    told = "No space left on device); set TMPDIR to a folder with more space"
    assert told in refusal(path)
    np.savez(tmp_path / "a.npz", x=np.zeros(9))
    with pytest.raises(RequestError, match=re.escape(told)) as refused:
        archives.arrays_at(str(tmp_path / "a.npz"), "dataset.path").array("x.npy")
    assert "savez" not in str(refused.value)


def test_arrays_are_unpacked_to_the_folder_for_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(9))
    folders = []
    real = archives.tempfile.TemporaryFile

    def noted(**given: Any) -> Any:
        folders.append(given["dir"])
        return real()

    for variable in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(archives.tempfile, "TemporaryFile", noted)
    monkeypatch.setattr(archives.os, "access", lambda *_: True)
    array = archives.arrays_at(str(tmp_path / "a.npz"), "dataset.path").array("x.npy")
    assert array.tolist() == [*range(9)]
    assert folders == ["/var/tmp"]


def test_stamps_of_members_stay_when_others_are_added_to_a_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "photos.zip")
    before = listed(path).stamps()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("c/1.png", b"other")
    after = listed(path).stamps()
    assert (after[: len(before)] == before).all()
    assert len({*map(tuple, after.tolist())}) == 2


def test_stamps_of_members_change_when_a_tar_is_written_again(tmp_path: Path) -> None:
    path = placed(tmp_path, "tar", FILES)
    before = listed(path).stamps()
    assert (listed(path).stamps() == before).all()
    time.sleep(TICK_S)
    placed(tmp_path, "tar", {name: content[::-1] for name, content in FILES.items()})
    assert (listed(path).stamps() != before).any(axis=1).all()


def test_members_of_a_tar_may_be_of_any_time(tmp_path: Path) -> None:
    late = info("a/late.png")
    late.mtime = 2**70
    assert (listed(tarred(tmp_path / "photos.tar", late)).stamps() >= 0).all()
