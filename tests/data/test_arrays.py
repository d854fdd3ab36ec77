"""Published arrays: IDX files, `.npz` files and the archives of CIFAR, made tiny."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import datasets
from pipeline.data.arrays import from_cifar, from_idx, from_npz, idx_parts, plain_pickle
from pipeline.data.content import content_of
from pipeline.data.values import Array, RawData
from pipeline.system.errors import RequestError
from tests.data.test_listing import placed
from tests.stress.matrix import matrix

KINDS = ("folder", "zip", "tar.gz")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 3, 4), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)


IDX_TYPES = {"uint8": 8, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def idx_file(values: Array) -> bytes:
    """An IDX file of values whose bytes are in the order that the format wants."""
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, IDX_TYPES[values.dtype.name], values.ndim]) + shape + values.tobytes()


def idx_files(
    pattern: str, *, labels: Array = LABELS, packed: bool = False, test: str = "t10k"
) -> dict[str, bytes]:
    pack: Callable[[bytes], bytes] = gzip.compress if packed else bytes
    ending = ".gz" if packed else ""
    made = {}
    for split, part in (("train", slice(None)), (test, slice(3))):
        for what, content in (
            ("images-idx3", idx_file(IMAGES[part])),
            ("labels-idx1", idx_file(labels[part])),
        ):
            name = pattern.format(split=split, what=what)
            made[name + ending] = pack(content)
    return made


def idx(path: Path, **keys: Any) -> RawData:
    return from_idx(str(path), **{"prefix": None, "transpose": None, "class_names": None} | keys)


def refusal(call: Callable[[], Any], path: Path) -> str:
    with pytest.raises(RequestError) as refused:
        call()
    assert str(path) in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pattern", ["{split}-{what}-ubyte", "{split}-{what}.ubyte", "deep/kmnist-{split}-{what}-ubyte"]
)
def test_idx_files_are_read_whatever_they_begin_with(
    kind: str, pattern: str, tmp_path: Path
) -> None:
    raw = idx(placed(tmp_path, kind, idx_files(pattern, packed=kind != "tar.gz")))
    assert np.array_equal(raw.train.images[..., 0], IMAGES)
    assert np.array_equal(raw.test.images[..., 0], IMAGES[:3])
    assert raw.train.labels.tolist() == LABELS.tolist()
    assert raw.class_names == ("0", "1", "2")


def test_emnist_is_turned_upright_and_its_mapping_names_the_classes(tmp_path: Path) -> None:
    files = idx_files("emnist-letters-{split}-{what}-ubyte", labels=LABELS + 1, test="test")
    files["emnist-letters-mapping.txt"] = b"1 65 97\n2 66 98\n3 67 99\n"
    path = placed(tmp_path, "folder", files | idx_files("emnist-digits-{split}-{what}-ubyte"))
    raw = idx(path, prefix="emnist-letters-")
    assert np.array_equal(raw.train.images[..., 0], IMAGES.swapaxes(1, 2))
    assert raw.class_names == ("Aa", "Bb", "Cc")
    assert raw.train.labels.tolist() == LABELS.tolist()
    assert raw.source.endswith("(emnist-letters, transposed)")
    flat = idx(path, prefix="emnist-digits", transpose=False, class_names=["x", "y", "z"])
    assert flat.train.image_shape == (3, 4, 1)
    assert flat.class_names == ("x", "y", "z")
    assert "emnist-digits, emnist-letters" in refusal(lambda: idx(path), path)
    assert "there are no such files; there are emnist-digits, emnist-letters" in refusal(
        lambda: idx(path, prefix="mnist") and None, Path("dataset.prefix=mnist")
    )
    (path / "emnist-letters-mapping.txt").write_text("1 x")
    assert "mapping.txt is damaged" in refusal(lambda: idx(path, prefix="emnist-letters"), path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"t10k-labels-idx1-ubyte": None}, "the test labels are missing; there are t10k-images"),
        ({"train-images-idx3-ubyte": None}, "the train images are missing"),
        ({"t10k-labels-idx1-ubyte": idx_file(LABELS[:2])}, "3 images but 2 labels of test"),
        ({"t10k-labels-idx1-ubyte": idx_file(LABELS[:3] + 7)}, "label 7 occurs in test but not"),
        (
            {"t10k-labels-idx1-ubyte": idx_file(IMAGES)},
            "t10k-labels-idx1-ubyte has the shape [6, 3, 4]; labels are [N]",
        ),
        (
            {"train-images-idx3-ubyte": idx_file(IMAGES.astype(">f4") / 255)},
            "train-images-idx3-ubyte holds float32, not uint8 with values 0–255; convert with",
        ),
        (
            {"train-images-idx3-ubyte": idx_file(IMAGES.reshape(6, 12))},
            "has the shape [6, 12]; save x.reshape(-1, height, width)",
        ),
        ({"t10k-labels-idx1-ubyte": idx_file(LABELS)[:-1]}, "truncated"),
        ({"t10k-labels-idx1-ubyte": b""}, "not an IDX file"),
        ({"val-images-idx3-ubyte": idx_file(IMAGES)}, "the val labels are missing"),
    ],
)
@matrix(31)
def test_idx_files_that_do_not_fit_are_refused(
    change: Mapping[str, bytes | None], reason: str, tmp_path: Path
) -> None:
    files = idx_files("{split}-{what}-ubyte") | change
    path = placed(
        tmp_path,
        "folder",
        {name: content for name, content in files.items() if content is not None},
    )
    assert reason in refusal(lambda: idx(path), path)


@pytest.mark.parametrize("dtype", [">i2", ">i4", ">f8"])
def test_idx_files_may_hold_images_in_colour_and_labels_of_other_types(
    dtype: str, tmp_path: Path
) -> None:
    colour = RNG.integers(0, 256, (6, 3, 4, 3), np.uint8)
    files = {
        "emnist-train-images-idx4-ubyte": idx_file(colour),
        "emnist-train-labels-idx1-ubyte": idx_file((LABELS - 1.0).astype(dtype)),
        "emnist-test-images-idx4-ubyte.gz": gzip.compress(idx_file(colour)),
        "emnist-test-labels-idx1-ubyte": idx_file(LABELS[:, np.newaxis] * 0),
    }
    raw = idx(placed(tmp_path, "folder", files))
    assert np.array_equal(raw.train.images, colour.swapaxes(1, 2))
    assert raw.train.labels.tolist() == LABELS.tolist()
    assert raw.test.labels.tolist() == [1] * 6
    assert raw.class_names == ("-1", "0", "1")


def kept(folder: Path, kind: str, files: Mapping[str, bytes]) -> Path:
    folder.mkdir()
    return placed(folder, kind, files)


@pytest.mark.parametrize("kind", KINDS)
def test_idx_sets_of_two_folders_are_not_mixed(kind: str, tmp_path: Path) -> None:
    one, other = (idx_files(f"{name}/raw/{{split}}-{{what}}-ubyte") for name in ("KMNIST", "MNIST"))
    path = kept(tmp_path / "whole", kind, one | other)
    told = refusal(lambda: idx(path), path)
    assert "KMNIST/raw and MNIST/raw have files of the same names" in told
    assert told.endswith(f"dataset.path={path / 'KMNIST/raw'}")
    assert len(idx(path / "MNIST/raw").train) == 6
    part = {name: file for name, file in one.items() if "train" in name}
    path = kept(tmp_path / "part", kind, part | other)
    assert sorted(idx_parts(str(path), prefix=None)[2].values()) == sorted(other)
    part |= {name: file for name, file in other.items() if "images" in name}
    path = kept(tmp_path / "parts", kind, part)
    told = refusal(lambda: idx(path), path)
    assert ": no folder has a whole set, and files of the same names may be of different" in told
    assert "sets: train-images-idx3-ubyte in KMNIST/raw and MNIST/raw; bring" in told
    assert "dataset.path" not in told.removeprefix(f"dataset.path={path}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_mapping_beside_the_files_of_a_set_comes_first(kind: str, tmp_path: Path) -> None:
    mapping = b"0 %d\n1 66\n2 67\n"
    files = {"a/s-mapping.txt": mapping % 120, "a/s-train-labels-idx1-ubyte": idx_file(LABELS)}
    files |= idx_files("b/s-{split}-{what}-ubyte")
    elsewhere = kept(tmp_path / "elsewhere", kind, files)
    assert idx(elsewhere).class_names == ("x", "B", "C")
    beside = kept(tmp_path / "beside", kind, files | {"b/s-mapping.txt": mapping % 65})
    assert idx(beside).class_names == ("A", "B", "C")


def test_idx_files_may_lie_in_a_folder_each_and_those_of_the_named_folder_come_first(
    tmp_path: Path,
) -> None:
    top = idx_files("{split}-{what}-ubyte")
    apart = {f"of {name}/{name}": file for name, file in top.items()}
    assert len(idx(kept(tmp_path / "apart", "folder", apart)).test) == 3
    for number, below in enumerate((apart, idx_files("copy/{split}-{what}-ubyte"))):
        path = kept(tmp_path / f"{number}", "folder", below | top)
        assert sorted(idx_parts(str(path), prefix=None)[2].values()) == sorted(top)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_one_file_of_a_set_is_refused_with_the_folder_to_name(
    kind: str, packed: bool, tmp_path: Path
) -> None:
    place = placed(tmp_path, kind, idx_files("{split}-{what}-ubyte", packed=packed))
    path = place / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    told = refusal(lambda: idx(path), path)
    assert f"is one file of a set; name the folder of all: dataset.path={place}" in told
    assert idx(place).class_names == ("0", "1", "2")


def test_a_set_without_a_prefix_is_named_beside_a_wrong_one(tmp_path: Path) -> None:
    placed(tmp_path, "folder", idx_files("{split}-{what}-ubyte"))
    told = refusal(lambda: idx(tmp_path, prefix="emnist"), Path("dataset.prefix=emnist"))
    assert told.endswith("there are no such files; there are ''")


def test_a_folder_without_idx_files_is_refused(tmp_path: Path) -> None:
    assert (
        "no IDX files there; they are called train-images-idx3-ubyte, train-labels-idx1"
        in refusal(lambda: idx(tmp_path), tmp_path)
    )
    assert "3 labels" in refusal(
        lambda: idx(
            placed(tmp_path, "folder", idx_files("{split}-{what}-ubyte")), class_names=["a"]
        ),
        tmp_path,
    )


KERAS = ("x_train", "y_train", "x_test", "y_test")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


def npz(folder: Path, arrays: Mapping[str, Any]) -> Path:
    np.savez_compressed(folder / "a.npz", **arrays)
    return folder / "a.npz"


@pytest.mark.parametrize("names", [KERAS, MEDMNIST, ("X_train", "Y_train", "X_test", "Y_test")])
@pytest.mark.parametrize("colour", [False, True])
def test_npz_files_are_read_by_the_names_of_keras_and_medmnist(
    names: tuple[str, ...], colour: bool, tmp_path: Path
) -> None:
    images = np.repeat(IMAGES[..., np.newaxis], 3, axis=3) if colour else IMAGES
    arrays = (images, LABELS[:, np.newaxis], images[:3], LABELS[:3].astype(np.float32))
    raw = from_npz(str(npz(tmp_path, dict(zip(names, arrays, strict=True)))), class_names=None)
    assert np.array_equal(raw.train.images, images if colour else images[..., np.newaxis])
    assert raw.test.labels.tolist() == [0, 1, 2]
    assert raw.class_names == ("0", "1", "2")
    assert raw.val is None


def test_npz_files_may_have_validation_other_labels_and_texts(tmp_path: Path) -> None:
    texts = np.array(["10", "cat", "9"])[LABELS]
    arrays = dict(zip(KERAS, (IMAGES, texts, IMAGES[:3], texts[:3]), strict=True))
    raw = from_npz(
        str(npz(tmp_path, arrays | {"x_val": IMAGES[:2], "y_val": texts[:2]})), class_names=None
    )
    assert raw.class_names == ("9", "10", "cat")
    assert raw.train.labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert raw.val is not None
    assert raw.val.labels.tolist() == [1, 2]
    known = arrays | {name: arrays[name].astype("S") for name in ("y_train", "y_test")}
    again = from_npz(str(npz(tmp_path, known)), class_names=None)
    assert again.class_names == raw.class_names
    assert again.train.labels.tolist() == raw.train.labels.tolist()
    hot = dict(zip(KERAS, (IMAGES, np.eye(3)[LABELS], IMAGES[:3], np.eye(3)[:3]), strict=True))
    assert from_npz(str(npz(tmp_path, hot)), class_names=["a", "b", "c"]).class_names == (
        *("a", "b", "c"),
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x_train": IMAGES / 255}, "x_train holds float64, not uint8 with values 0–255; convert"),
        ({"x_train": IMAGES.reshape(6, 12)}, "save x.reshape(-1, height, width)"),
        ({"x_train": IMAGES.reshape(6, 12, 1)}, "save x[..., 0].reshape(-1, height, width), for"),
        ({"x_train": IMAGES.reshape(6, 1, 12)}, "save x[:, 0].reshape(-1, height, width), for"),
        ({"x_train": np.zeros((6, 25, 3), np.uint8)}, "save x.reshape(-1, height, width, 3), for"),
        ({"x_train": np.zeros((6, 1, 5, 5), np.uint8)}, "save x.transpose(0, 2, 3, 1)"),
        ({"x_train": np.zeros((6, 5, 5, 7), np.uint8)}, "[6, 5, 5, 7]; images have 1–4 channels"),
        ({"y_train": np.array([{}] * 6, object)}, "loaded; make texts by y.astype(str), one array"),
        ({"y_train": np.ones((6, 2))}, "has 2 labels per image"),
        ({"y_train": LABELS + 0.5}, "holds float64; labels are whole numbers or texts"),
        ({"y_test": LABELS[:2]}, "3 images but 2 labels of test"),
        ({"y_test": LABELS[:3] + 5}, "label 5 occurs in test but not in train"),
        ({"y_train": np.zeros(0)}, "is empty"),
        ({"train_images": IMAGES}, "several train images: "),
        ({"x_test": IMAGES[:3, 1:]}, "train images are (3, 4, 1), test (2, 4, 1)"),
        ({"x_val": IMAGES}, "the val labels are missing"),
    ],
)
@matrix(31)
def test_arrays_that_do_not_fit_are_refused(
    change: Mapping[str, Any], reason: str, tmp_path: Path
) -> None:
    arrays = dict(zip(KERAS, (IMAGES, LABELS, IMAGES[:3], LABELS[:3]), strict=True))
    path = npz(tmp_path, arrays | change)
    assert reason in refusal(lambda: from_npz(str(path), class_names=None), path)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    path = npz(tmp_path, {"arr_0": IMAGES})
    told = refusal(lambda: from_npz(str(path), class_names=None), path)
    assert "the train images are missing; there are arr_0" in told
    assert "is a folder; name a file" in refusal(
        lambda: from_npz(str(tmp_path), class_names=None), tmp_path
    )
    assert "no such file" in refusal(
        lambda: from_npz(str(tmp_path / "b.npz"), class_names=None), tmp_path
    )
    (tmp_path / "packed").mkdir()
    inside = placed(tmp_path / "packed", "zip", {"a.npz": path.read_bytes()})
    told = refusal(lambda: from_npz(str(inside / "a.npz"), class_names=None), inside)
    assert "lies in the archive" in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x93NUMPY\1\0", "this is a single array; save images and labels together, numpy.savez("),
        (b"MATLAB 5.0 MAT-file", "this is no file of numpy.savez; save images and labels together"),
        (b"", "this is no file of numpy.savez"),
        (b"PK\3\4", "the zip archive is cut off"),
    ],
)
def test_another_file_is_not_called_a_damaged_npz(
    content: bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    path = tmp_path / "a.npz"
    assert told in refusal(lambda: from_npz(str(path), class_names=None), path)


@matrix(29)
def test_a_header_that_declares_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    path = npz(tmp_path, dict(zip(KERAS, (IMAGES, LABELS, IMAGES[:3], LABELS[:3]), strict=True)))
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 2**20, 4)}
    np.lib.format.write_array_header_1_0(header, described)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"x_train.npy": header.getvalue()}).items():
            archive.writestr(name, content)
    assert "its header declares" in refusal(lambda: from_npz(str(path), class_names=None), path)


PLANES = RNG.integers(0, 256, (6, 3, 32, 32), np.uint8)
EXPECTED = PLANES.transpose(0, 2, 3, 1)
TEN = [f"class{number}" for number in range(10)]


def binary(rows: slice, *labels: Array) -> bytes:
    columns = [given[rows, np.newaxis] for given in labels]
    return np.hstack([*columns, PLANES[rows].reshape(-1, 3072)]).tobytes()


def pickled(protocol: int = 2, **entries: Any) -> bytes:
    return pickle.dumps({key.encode(): value for key, value in entries.items()}, protocol)


def cifar10_files(python: bool) -> dict[str, bytes]:
    folder = "cifar-10-batches-py" if python else "cifar-10-batches-bin"
    parts = {"data_batch_1": slice(0, 2), "data_batch_2": slice(2, 4), "test_batch": slice(4, 6)}
    if python:
        made = {
            f"{folder}/{name}": pickled(
                batch_label=b"a batch",
                labels=LABELS[rows].tolist(),
                data=PLANES[rows].reshape(-1, 3072),
                filenames=[b"1.png", b"2.png"],
            )
            for name, rows in parts.items()
        }
        names = [name.encode() for name in TEN]
        return made | {f"{folder}/batches.meta": pickled(num_cases_per_batch=2, label_names=names)}
    made = {f"{folder}/{name}.bin": binary(rows, LABELS) for name, rows in parts.items()}
    return made | {f"{folder}/batches.meta.txt": "\n".join(TEN).encode() + b"\n\n"}


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
def test_cifar10_is_read_from_both_versions(python: bool, kind: str, tmp_path: Path) -> None:
    raw = from_cifar(str(placed(tmp_path, kind, cifar10_files(python))), fine=None)
    assert np.array_equal(raw.train.images, EXPECTED[:4])
    assert np.array_equal(raw.test.images, EXPECTED[4:])
    assert raw.train.labels.tolist() == [0, 1, 2, 0]
    assert raw.class_names == tuple(TEN)


@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
def test_copies_of_some_files_of_cifar_do_not_replace_those_of_the_whole_set(
    kind: str, tmp_path: Path
) -> None:
    files = cifar10_files(python=False)
    copies = {f"old/data_batch_{number}.bin": b"" for number in (1, 3)}
    path = placed(tmp_path, kind, files | copies)
    for place in (path, path / "cifar-10-batches-bin"):
        assert np.array_equal(from_cifar(str(place), fine=None).train.images, EXPECTED[:4])


def test_of_two_whole_sets_of_cifar_one_must_be_named(tmp_path: Path) -> None:
    files = cifar10_files(python=False)
    noisy = {f"noisy/{name.rpartition('/')[2]}": content for name, content in files.items()}
    labels = LABELS[:2][::-1]
    path = placed(
        tmp_path, "zip", files | noisy | {"noisy/data_batch_1.bin": binary(slice(0, 2), labels)}
    )
    told = refusal(lambda: from_cifar(str(path), fine=None), path)
    assert "cifar-10-batches-bin and noisy have files of the same names" in told
    named = [from_cifar(f"{path}/{name}", fine=None) for name in ("cifar-10-batches-bin", "noisy")]
    assert [raw.train.labels.tolist()[:2] for raw in named] == [[0, 1], [1, 0]]


def cifar100_files(python: bool) -> dict[str, bytes]:
    coarse = (LABELS // 2).astype(np.uint8)
    parts = {"train": slice(0, 4), "test": slice(4, 6)}
    if python:
        made = {
            name: pickled(
                data=PLANES[rows].reshape(-1, 3072),
                fine_labels=LABELS[rows].tolist(),
                coarse_labels=coarse[rows].tolist(),
            )
            for name, rows in parts.items()
        }
        return made | {"meta": pickled(fine_label_names=TEN[:3], coarse_label_names=["p", "q"])}
    made = {f"{name}.bin": binary(rows, coarse, LABELS) for name, rows in parts.items()}
    names = {"fine_label_names.txt": "\n".join(TEN[:3]), "coarse_label_names.txt": "p\nq\n"}
    return made | {name: text.encode() for name, text in names.items()}


@pytest.mark.parametrize("python", [False, True])
def test_cifar100_has_fine_and_coarse_labels(python: bool, tmp_path: Path) -> None:
    path = str(placed(tmp_path, "tar.gz", cifar100_files(python)))
    fine, coarse = from_cifar(path, fine=True), from_cifar(path, fine=False)
    assert np.array_equal(fine.train.images, EXPECTED[:4])
    assert fine.train.labels.tolist() == [0, 1, 2, 0]
    assert fine.class_names == tuple(TEN[:3])
    assert coarse.train.labels.tolist() == [0, 0, 1, 0]
    assert coarse.class_names == ("p", "q")


class Caller:
    """What a hostile pickle holds: something to be called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder / "called",)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@matrix(39)
def test_a_pickle_that_calls_something_is_refused_without_a_call(
    protocol: int, tmp_path: Path
) -> None:
    files = cifar10_files(python=True)
    files["cifar-10-batches-py/test_batch"] = pickled(protocol, data=Caller(tmp_path))
    path = placed(tmp_path, "folder", files)
    told = refusal(lambda: from_cifar(str(path), fine=None), path)
    assert "is damaged or no part of CIFAR" in told
    assert not (tmp_path / "called").exists()


DEEP = b")" + b"\x85" * 300_000  # a tuple in a tuple in a tuple …


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("test_batch", b"\x80\x02}" + DEEP + b"K\x01s.", "is damaged or no part of CIFAR"),
        ("batches.meta", b"\x80\x02}U\x0blabel_names](" + DEEP + b"K\x02es.", "not hold the names"),
        (
            "test_batch",
            pickled(labels=[2**70] * 2, data=PLANES[:2].reshape(2, -1)),
            f"label {2**70}, but there are 10 classes",
        ),
    ],
    ids=["deep key", "deep name", "large label"],
)
def test_a_pickle_of_values_that_no_set_has_is_refused(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    files = cifar10_files(python=True) | {f"cifar-10-batches-py/{name}": content}
    path = placed(tmp_path, "folder", files)
    assert reason in refusal(lambda: from_cifar(str(path), fine=None), path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_a_pickle_are_those_that_were_pickled(protocol: int) -> None:
    value = {b"a": [1, -300, 2**40, True, None], "ü": (1, (2, 3)), b"b": b"\xff" * 300, "e": ()}
    assert plain_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("test_batch.bin", b"", "no multiple of 3,073"),
        ("test_batch.bin", bytes(3074), "no multiple of 3,073"),
        ("test_batch.bin", b"\x0a" + bytes(3072), "label 10, but there are 10 classes"),
        ("batches.meta.txt", b"\n", "does not hold the names of the classes"),
    ],
)
@matrix(26)
def test_damaged_files_of_cifar_are_named(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    files = cifar10_files(python=False) | {f"cifar-10-batches-bin/{name}": content}
    path = placed(tmp_path, "folder", files)
    told = refusal(lambda: from_cifar(str(path), fine=None), path)
    assert name in told
    assert reason in told


def test_another_archive_than_cifars_is_told_what_lacks(tmp_path: Path) -> None:
    path = placed(tmp_path, "tar.gz", cifar100_files(python=False))
    told = refusal(lambda: from_cifar(str(path), fine=None), path)
    assert "it lacks batches.meta.txt and test_batch.bin or batches.meta and test_batch" in told


@matrix(26)
def test_cifar_is_downloaded_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = placed(tmp_path, "tar.gz", cifar10_files(python=False))
    asked: list[tuple[str, str]] = []

    def downloaded(address: str, checksum: str) -> Any:
        asked.append((address, checksum))
        return nullcontext(published)

    monkeypatch.setattr(datasets, "downloaded", downloaded)
    raw = datasets.cifar10(path=None, download=True)
    assert np.array_equal(raw.train.images, EXPECTED[:4])
    assert asked == [datasets.CIFAR10]
    assert raw.source == datasets.CIFAR10[0]
    with pytest.raises(RequestError, match="it names the published archive, cifar-10-binary"):
        datasets.cifar10(path=None, download=False)
    given = {"path": None, "download": True}
    same = content_of(datasets.cifar10, given)
    assert same == content_of(datasets.cifar10, given | {"download": False})
    named = content_of(datasets.cifar10, given | {"path": str(published)})
    assert named != same
    published.write_bytes(b"")
    assert content_of(datasets.cifar10, given | {"path": str(published)}) != named
