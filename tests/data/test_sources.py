from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import sources
from pipeline.system.errors import RequestError
from tests.stress.matrix import matrix

FILES = {
    "train-images-idx3-ubyte": struct.pack(">4I", 0x803, 2, 1, 2) + bytes([1, 2, 3, 4]),
    "train-labels-idx1-ubyte": struct.pack(">2I", 0x801, 2) + bytes([0, 1]),
    "t10k-images-idx3-ubyte": struct.pack(">4I", 0x803, 1, 1, 2) + bytes([5, 6]),
    "t10k-labels-idx1-ubyte": struct.pack(">2I", 0x801, 1) + bytes([1]),
}
TINY = sources.IdxDataset(
    checksums={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
    mirrors=(),
)
OTHER_IMAGES = gzip.compress(FILES["train-images-idx3-ubyte"].replace(b"\x01\x02", b"\x01\x01"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "published"
    made.mkdir()
    for name, content in FILES.items():
        (made / f"{name}.gz").write_bytes(gzip.compress(content))
    return made


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        self.asked.append(self.path)


@pytest.fixture
def mirror(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a real server of `folder`, and the paths it was asked for."""
    asked: list[str] = []
    handler = type("Recorded", (Quiet,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_named_folder_may_hold_packed_and_plain_files(folder: Path) -> None:
    packed = folder / "t10k-images-idx3-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    found = sources.retrieve(TINY, folder=str(folder), download=False)
    assert found.source == str(folder)
    np.testing.assert_array_equal(found.arrays["t10k-images-idx3-ubyte"], [[[5, 6]]])
    np.testing.assert_array_equal(found.arrays["train-labels-idx1-ubyte"], [0, 1])


def test_a_file_missing_from_a_named_folder_is_an_error_at_once(
    folder: Path, mirror: tuple[str, list[str]]
) -> None:
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(RequestError, match=r"dataset.folder=.*train-images-idx3-ubyte.gz is miss"):
        sources.retrieve(replace(TINY, mirrors=(mirror[0],)), folder=str(empty), download=True)
    assert mirror[1] == []


def test_a_named_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="dataset.folder=.*nowhere: no such folder; it must"):
        sources.retrieve(TINY, folder=str(tmp_path / "nowhere"), download=True)


def test_a_tampered_file_in_a_named_folder_is_refused_by_name(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(OTHER_IMAGES)
    with pytest.raises(
        RequestError, match="published/train-images-idx3-ubyte.gz: not the .*SHA-256"
    ):
        sources.retrieve(TINY, folder=str(folder), download=False)


def test_the_system_copy_comes_before_the_mirrors(
    folder: Path, mirror: tuple[str, list[str]]
) -> None:
    dataset = replace(TINY, system_folder=folder, mirrors=(mirror[0],))
    assert sources.retrieve(dataset, folder=None, download=True).source == str(folder)
    assert mirror[1] == []


def test_a_mirror_is_read_when_there_is_no_copy(mirror: tuple[str, list[str]]) -> None:
    found = sources.retrieve(replace(TINY, mirrors=(mirror[0],)), folder=None, download=True)
    assert found.source == mirror[0]
    assert list(found.arrays) == list(FILES)
    assert mirror[1] == [f"/{name}.gz" for name in FILES]


@matrix(26)
def test_a_tampered_system_copy_is_passed_over_with_a_warning(
    folder: Path, mirror: tuple[str, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "train-images-idx3-ubyte.gz").write_bytes(OTHER_IMAGES)
    dataset = replace(TINY, system_folder=copy, mirrors=(mirror[0],))
    assert sources.retrieve(dataset, folder=None, download=True).source == mirror[0]
    [warning] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"skipping {copy}: train-images-idx3-ubyte.gz: not the publ")


@matrix(26)
def test_a_mirror_that_lacks_a_file_is_left_at_once(
    folder: Path, mirror: tuple[str, list[str]]
) -> None:
    (folder / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(RequestError, match="HTTP 404 for train-images-idx3-ubyte.gz"):
        sources.retrieve(replace(TINY, mirrors=(mirror[0],)), folder=None, download=True)
    assert len(mirror[1]) <= 2  # the request and the server's own remark about the 404


@matrix(26)
def test_a_sign_in_page_in_place_of_the_files_is_told_apart(
    folder: Path, mirror: tuple[str, list[str]]
) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_text("<html>please sign in</html>")
    with pytest.raises(RequestError, match="not an IDX file"):
        sources.retrieve(replace(TINY, mirrors=(mirror[0],)), folder=None, download=True)


@matrix(26)
def test_every_source_is_named_with_its_reason_when_all_fail(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        dataset = replace(TINY, system_folder=tmp_path / "system", mirrors=(address,))
        with pytest.raises(RequestError) as caught:
            sources.retrieve(dataset, folder=None, download=True)
    what, mend = str(caught.value).split("\n")
    assert f"{tmp_path}/system: no such folder; {address}: cannot be reached" in what
    assert mend.startswith("Name a folder that holds train-images-idx3-ubyte, ")
    assert mend.endswith("dataset.folder=…")


@matrix(26)
def test_a_mirror_that_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        start = time.monotonic()
        with pytest.raises(RequestError, match="no answer in time"):
            sources.retrieve(replace(TINY, mirrors=(address,)), folder=None, download=True)
    assert time.monotonic() - start < 2


def test_nothing_is_fetched_without_leave(mirror: tuple[str, list[str]]) -> None:
    with pytest.raises(RequestError, match="dataset.download=false"):
        sources.retrieve(replace(TINY, mirrors=(mirror[0],)), folder=None, download=False)
    assert mirror[1] == []


def test_a_download_shows_nothing_when_stderr_is_no_terminal(
    mirror: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    sources.retrieve(replace(TINY, mirrors=(mirror[0],)), folder=None, download=True)
    assert stderr.getvalue() == ""


def test_a_machine_without_apt_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    dataset = replace(TINY, system_folder=tmp_path / "system", debian_package="dataset-tiny")
    with pytest.raises(RequestError, match="Debian package dataset-tiny: apt-get is not installed"):
        sources.retrieve(dataset, folder=None, download=True)


def test_a_failing_command_is_quoted_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho noise >&2; echo no such thing >&2; exit 3\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    dataset = replace(TINY, system_folder=tmp_path / "system", debian_package="dataset-tiny")
    with pytest.raises(RequestError, match="dataset-tiny: apt-get failed: no such thing[)]"):
        sources.retrieve(dataset, folder=None, download=True)


@pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="needs apt-get and dpkg-deb"
)
def test_the_files_of_a_debian_package_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "usr/share/datasets/tiny"  # where the package would put its files
    packed, repository = tmp_path / "packed", tmp_path / "repository"
    shutil.copytree(folder, packed / installed.relative_to("/"))
    (packed / "DEBIAN").mkdir()
    control = (
        "Package: dataset-tiny\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@localhost>\nDescription: four files\n"
    )
    (packed / "DEBIAN/control").write_text(control)
    repository.mkdir()
    archive = repository / "dataset-tiny.deb"
    subprocess.run(["dpkg-deb", "--build", packed, archive], check=True, capture_output=True)
    content = archive.read_bytes()
    (repository / "Packages").write_text(
        f"{control}Filename: ./{archive.name}\nSize: {len(content)}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    )
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{repository} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    dataset = replace(TINY, system_folder=installed, debian_package="dataset-tiny")
    found = sources.retrieve(dataset, folder=None, download=True)
    assert found.source == "Debian package dataset-tiny"
    np.testing.assert_array_equal(found.arrays["train-images-idx3-ubyte"], [[[1, 2]], [[3, 4]]])
    np.testing.assert_array_equal(found.arrays["t10k-labels-idx1-ubyte"], [1])


IMAGES = struct.pack(">4I", 0x803, 2, 1, 3) + bytes([0, 1, 2, 253, 254, 255])
LABELS = struct.pack(">2I", 0x801, 3) + bytes([7, 0, 9])


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_images_are_read_with_their_shape() -> None:
    np.testing.assert_array_equal(sources.decoded(IMAGES), [[[0, 1, 2]], [[253, 254, 255]]])
    assert sources.decoded(IMAGES).dtype == np.uint8


def test_labels_are_read_as_a_vector() -> None:
    np.testing.assert_array_equal(sources.decoded(LABELS), [7, 0, 9])


def test_gzipped_and_plain_files_decompress_to_the_same_bytes(tmp_path: Path) -> None:
    packed = written(tmp_path / "a.gz", gzip.compress(IMAGES))
    plain = written(tmp_path / "a", IMAGES)
    assert sources.decompressed(packed) == sources.decompressed(plain) == IMAGES


def test_a_file_longer_than_one_chunk_is_read_whole(tmp_path: Path) -> None:
    size = 3 * 2**20 + 5
    content = struct.pack(">2I", 0x801, size) + bytes(size)
    assert sources.decompressed(written(tmp_path / "a.gz", gzip.compress(content))) == content


DAMAGED = {
    "truncated gzip": (gzip.compress(IMAGES)[:-9], "gzip data is truncated"),
    "damaged gzip": (gzip.compress(IMAGES)[:-8] + bytes(8), "gzip data is damaged"),
    "garbage": (b"<html>sign in to the network</html>", "not an IDX file"),
    "wrong magic": (b"\0\0\x0f\x03" + IMAGES[4:], "not an IDX file .*0x00000f03"),
    "too many dimensions": (b"\0\0\x08\xff" + bytes(2000), "not an IDX file .*0x000008ff"),
    "empty": (b"", "not an IDX file"),
    "half a header": (IMAGES[:10], "header is truncated after 10 bytes"),
    "too short": (IMAGES[:-1], "truncated: 21 bytes, but its header declares 22"),
    "too long": (IMAGES + b"\0", "too long: more than the 22 bytes"),
    "no images": (struct.pack(">4I", 0x803, 0, 1, 3), r"impossible dimensions \[0, 1, 3\]"),
    "lying header": (struct.pack(">4I", 0x803, *[2**32 - 1] * 3), "impossible dimensions"),
}


@pytest.mark.parametrize(("content", "rule"), DAMAGED.values(), ids=DAMAGED)
@matrix(29)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes, rule: str) -> None:
    path = written(tmp_path / "train-images-idx3-ubyte.gz", content)
    with pytest.raises(RequestError, match=rule) as caught:
        sources.decompressed(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; replace it with an intact copy")
    assert "\n" not in message


@matrix(29)
def test_a_gzip_bomb_is_not_unpacked_beyond_what_its_header_promises(tmp_path: Path) -> None:
    bomb = gzip.compress(LABELS + bytes(64 * 2**20))
    with pytest.raises(RequestError, match="too long"):
        sources.decompressed(written(tmp_path / "bomb.gz", bomb))


@matrix(29)
def test_a_header_that_a_small_file_cannot_hold_is_refused_before_memory_is_taken(
    tmp_path: Path,
) -> None:
    promises = struct.pack(">2I", 0x801, 2**30) + bytes(64 * 2**20)
    bomb = written(tmp_path / "bomb.gz", gzip.compress(promises))
    tracemalloc.start()
    with pytest.raises(RequestError, match="declares 1,073,741,824 bytes, more than 100 times"):
        sources.decompressed(bomb)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**23


def test_a_missing_file_is_an_os_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        sources.decompressed(tmp_path / "nowhere")
    assert caught.value.filename == str(tmp_path / "nowhere")


@matrix(26)
def test_a_file_is_downloaded_only_if_it_is_the_published_one(
    folder: Path, mirror: tuple[str, list[str]]
) -> None:
    name = "train-labels-idx1-ubyte.gz"
    content = (folder / name).read_bytes()
    with sources.downloaded(mirror[0] + name, hashlib.sha256(content).hexdigest()) as path:
        assert path.read_bytes() == content
    assert not path.exists()
    mend = f"fetch it yourself, and type dataset.path=<folder>/{name}"
    for address, reason in (
        (mirror[0] + name, "is not the published file"),
        (f"{mirror[0]}nowhere/{name}", "HTTP 404"),
        (f"http://127.0.0.1:1/{name}", "cannot be reached"),
    ):
        with pytest.raises(RequestError) as refused, sources.downloaded(address, "0" * 64):
            pass
        assert str(refused.value).startswith(address)
        assert reason in str(refused.value)
        assert str(refused.value).endswith(mend)
