from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.data import datasets
from pipeline.data.content import determined_by
from pipeline.data.load import (
    cached,
    data_folder,
    ingest,
    ingest_recorded,
    load_data,
    preprocess,
    raw_folder,
    require_data,
)
from pipeline.data.own_pictures import Pictures
from pipeline.data.pictures import FITS
from pipeline.data.values import Array, Identity, RawData, Split
from pipeline.system.errors import RequestError
from pipeline.verbs import verbs
from tests.commands import configured, of_data
from tests.pictures import LEAF as PICTURES
from tests.pictures import class_folders, read
from tests.stress.matrix import matrix

LEAF: dict[str, Any] = {
    "_target_": "pipeline.data.datasets.synthetic",
    "train_size": 30,
    "test_size": 12,
    "classes": 3,
    "image_shape": [8, 8, 1],
    "noise": 10.0,
    "seed": 0,
}
SPLIT = {"validation_size": 6, "seed": 0}
SPLITS = ("train", "val", "test")


def synthetic(data_dir: Path, **changes: Any) -> RawData:
    return ingest(of_data({**LEAF, **changes}, "synthetic", data_dir))


def pixels(split: Split) -> Array:
    return split.batch(0, len(split))


@pytest.fixture
def known() -> RawData:
    """Two of the three test images are in the training split; trailing zeros matter."""
    train = np.array([[1, 0], [0, 0], [3, 3], [4, 4]], np.uint8).reshape(4, 1, 2, 1)
    test = np.array([[1, 0], [0, 1], [3, 3]], np.uint8).reshape(3, 1, 2, 1)
    return RawData(
        train=Split(images=train, labels=np.array([0, 0, 0, 1], np.int32)),
        test=Split(images=test, labels=np.array([1, 1, 1], np.int32)),
        class_names=("cat", "dog"),
        source="a test",
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dataset=folder", "dataset.path is missing"),
        ("dataset=folder dataset.path=empty", "no pictures there"),
        ("dataset=folder dataset.path=nowhere", "no such file or folder"),
        ("dataset=npz", r"dataset.path is missing: a .npz file"),
        ("dataset=npz dataset.path=text", "this is no file of numpy.savez"),
        ("dataset=npz dataset.path=empty", "is a folder; name a file that numpy.savez wrote"),
        ("dataset=npz dataset.path=half.npz", "the test images are missing; there are x_train"),
        ("dataset=idx dataset.path=empty", "no IDX files there"),
        ("dataset=cifar10 dataset.path=empty", "is not the published archive"),
        ("dataset=cifar100 dataset.download=false", "dataset.download=false, and dataset.path is"),
        ("dataset=mnist dataset.folder=empty", "train-images-idx3-ubyte.gz is missing"),
        ("dataset=mnist dataset.download=false", "No source has the data set"),
        ("dataset=synthetic dataset.classes=500", "must be at least dataset.classes=500"),
        ("dataset=digits dataset.exclude=nowhere.csv", "No such file"),
        ("dataset=digits dataset.exclude=text.csv", "needs the columns split and index"),
    ],
)
def test_a_data_set_that_is_not_there_is_refused_before_it_is_read(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("text", "text.csv"):
        Path(name).write_text("a,b\n1,2\n")
    np.savez("half.npz", x_train=np.zeros((2, 4, 4), np.uint8), y_train=np.arange(2))
    with pytest.raises(RequestError, match=said):
        require_data(configured(*line.split()))


def test_what_is_there_or_cached_or_may_be_fetched_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {f"{part}_{split}" for part in "xy" for split in ("train", "test")}
    np.savez("all.npz", **dict.fromkeys(places, np.zeros((2, 4, 4), np.float32)))
    for line in ("dataset=npz dataset.path=all.npz", "dataset=cifar10", "dataset=mnist"):
        require_data(configured(*line.split()))
    config = configured("dataset=cifar10", "dataset.download=false", "data_dir=cache")
    raw_folder(config).mkdir(parents=True)
    require_data(config)


def test_picture_files_are_listed_once_for_the_check_and_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[object]()
    itself = datasets.listed
    monkeypatch.setattr(
        datasets, "listed", lambda *args, **keys: made.append(args) or itself(*args, **keys)
    )
    photos = class_folders(tmp_path / "photos")
    config = configured(
        "dataset=folder", f"dataset.path={photos}", f"data_dir={tmp_path}", "dataset.size=8"
    )
    first = ingest(config, pictures=require_data(config))
    assert len(made) == 1
    assert ingest(config).fingerprint == first.fingerprint
    assert len(made) == 2  # later, files may have changed
    verb = verbs()["run"]
    seen: list[Pictures | None] = []
    run = SimpleNamespace(run=lambda config, folder, pictures: seen.append(pictures))
    monkeypatch.setitem(sys.modules, "pipeline.run", run)
    pictures = verb.require_possible(config)
    verb.carry_out(config, None, tmp_path, pictures)
    assert len(made) == 3
    assert pictures is not None
    assert seen[0] is pictures


def test_the_second_time_the_data_comes_from_the_cache(tmp_path: Path) -> None:
    first, second = synthetic(tmp_path), synthetic(tmp_path)
    assert (first.cached, second.cached) == (False, True)
    assert first.fingerprint == second.fingerprint
    assert second.source == "generated from dataset.seed"
    assert second.class_names == ("class_0", "class_1", "class_2")


def test_the_cached_data_is_what_the_function_returns(tmp_path: Path) -> None:
    made = datasets.synthetic(**{key: value for key, value in LEAF.items() if key[0] != "_"})
    assert synthetic(tmp_path).fingerprint == made.fingerprint


def test_arrays_are_memory_mapped(tmp_path: Path) -> None:
    assert isinstance(synthetic(tmp_path).train.images, np.memmap)


def test_another_parameter_is_another_entry(tmp_path: Path) -> None:
    synthetic(tmp_path)
    assert not synthetic(tmp_path, seed=1).cached
    assert len(list((tmp_path / "synthetic").glob("raw-*"))) == 2


def test_where_to_look_for_the_files_does_not_change_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: RawData
) -> None:
    @determined_by(lambda _: "pinned by checksums")
    def found(*, folder: str | None, download: bool) -> RawData:
        return replace(known, source=f"{folder}, {download}")

    monkeypatch.setattr(datasets, "mnist", found)
    leaf = {"_target_": "pipeline.data.datasets.mnist", "folder": "here", "download": False}
    first = ingest(of_data(leaf, "mnist", tmp_path))
    moved = ingest(of_data({**leaf, "folder": None}, "mnist", tmp_path))
    assert (first.cached, moved.cached) == (False, True)
    assert first.source == moved.source == "here, False"


@matrix(34)
def test_a_tampered_cache_is_reported_and_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = synthetic(tmp_path).fingerprint
    [path] = tmp_path.glob("synthetic/raw-*/images.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with caplog.at_level(logging.WARNING):
        again = synthetic(tmp_path)
    assert "images.npy was changed" in caplog.text
    assert not again.cached
    assert again.fingerprint == original


@pytest.mark.parametrize("kind", ["folder", "digits"])
def test_whoever_asks_for_it_has_every_cached_byte_looked_at(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = class_folders(tmp_path / "photos"), tmp_path / "exclude.csv"
    out.write_text("split,index\ntrain,0\n")
    config = {
        "folder": of_data({**PICTURES, "path": str(photos)}, "folder", tmp_path / "data"),
        "digits": configured(
            "dataset=digits", f"dataset.exclude={out}", f"data_dir={tmp_path}/data"
        ),
    }[kind]
    ingest(config)
    looked_at = set()
    real = hashlib.file_digest

    def digest(file: Any, kind: str) -> Any:
        looked_at.add(Path(file.name))
        return real(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    ingest(config, verify=True)
    assert looked_at == {*(tmp_path / "data").rglob("*.npy")}
    assert len({path.parent for path in looked_at}) == 2


@matrix(31)
def test_content_that_is_no_data_set_is_refused_with_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @functools.wraps(datasets.synthetic)
    def broken(**_: Any) -> RawData:
        images = np.zeros((2, 4, 4, 1), np.uint8)
        wrong = Split(images=images, labels=np.array([0, 9], np.int32))
        return RawData(train=wrong, test=wrong, class_names=("a", "b"), source="test")

    monkeypatch.setattr(datasets, "synthetic", broken)
    with pytest.raises(RequestError, match="dataset=synthetic: train labels span 0–9, but .* 2 cl"):
        synthetic(tmp_path)


@matrix(31)
def test_a_class_without_images_in_a_split_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @functools.wraps(datasets.synthetic)
    def lacking(**_: Any) -> RawData:
        images = np.zeros((2, 4, 4, 1), np.uint8)
        first, second = (
            Split(images=images, labels=np.array(x, np.int32)) for x in ([0, 1], [0, 2])
        )
        return RawData(train=first, test=second, class_names=("a", "b", "c"), source="test")

    monkeypatch.setattr(datasets, "synthetic", lacking)
    synthetic(tmp_path, seed=5)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "the training split has no images of 'c': a model cannot learn to recognise them",
        "the test split has no images of 'b': the test metrics say nothing about them",
    ]


@matrix(29)
def test_a_cached_entry_of_a_hundred_thousand_brackets_is_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    synthetic(tmp_path)
    [entry] = (tmp_path / "synthetic").glob("raw-*/entry.json")
    entry.write_text("[" * 100_000)
    assert not synthetic(tmp_path).cached
    assert "RecursionError" in caplog.text


def test_preparing_is_cached_under_data_and_configuration(tmp_path: Path) -> None:
    raw = synthetic(tmp_path)

    def cached(raw: RawData, **split: int) -> bool:
        return preprocess(raw, of_data(LEAF, "synthetic", tmp_path, **split)).cached

    assert not cached(raw, **SPLIT)
    assert cached(raw, **SPLIT)
    assert not cached(raw, **{**SPLIT, "seed": 1})
    assert not cached(synthetic(tmp_path, seed=1), **SPLIT)


def test_prepared_data_is_the_same_made_or_cached(tmp_path: Path) -> None:
    raw = synthetic(tmp_path)
    config = of_data(LEAF, "synthetic", tmp_path, **SPLIT)
    made, cached = (preprocess(raw, config) for _ in range(2))
    for name in ("train", "val", "test"):
        one, other = getattr(made, name), getattr(cached, name)
        np.testing.assert_array_equal(pixels(one), pixels(other))
        np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(made.mean, cached.mean)
    np.testing.assert_array_equal(made.std, cached.std)
    assert (len(cached.train), len(cached.val)) == (24, 6)
    assert cached.fingerprint == raw.fingerprint


def test_every_split_is_rows_of_one_packed_array_on_disk_and_none_is_a_copy(
    tmp_path: Path,
) -> None:
    raw = synthetic(tmp_path)
    prepared = preprocess(raw, of_data(LEAF, "synthetic", tmp_path, **SPLIT))
    assert prepared.test is raw.test
    assert isinstance(raw.train.images, np.memmap)
    for split in (prepared.train, prepared.val, raw.test):
        assert split.images is raw.train.images
    everything = np.concatenate([prepared.train.rows, prepared.val.rows, prepared.test.rows])
    np.testing.assert_array_equal(np.sort(everything), np.arange(42))
    large = [path for path in tmp_path.rglob("*.npy") if path.stat().st_size > 42 * 64]
    assert [path.name for path in large] == ["images.npy"]


def test_splits_of_one_array_are_packed_once_and_keep_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)

    @functools.wraps(datasets.synthetic)
    def interleaved(**_: Any) -> RawData:
        train = Split(images=images, rows=np.array([4, 0, 2]), labels=np.array([0, 1, 0], np.int32))
        test = Split(images=images, rows=np.array([5, 1]), labels=np.array([1, 0], np.int32))
        return RawData(train=train, test=test, class_names=("a", "b"), source="test")

    monkeypatch.setattr(datasets, "synthetic", interleaved)
    raw = synthetic(tmp_path)
    assert raw.train.images.shape == images.shape
    assert (pixels(raw.train).ravel().tolist(), pixels(raw.test).ravel().tolist()) == (
        [4, 0, 2],
        [5, 1],
    )
    assert raw.fingerprint == interleaved().fingerprint


def test_an_empty_validation_split_survives_the_cache(tmp_path: Path) -> None:
    raw, config = synthetic(tmp_path), of_data(LEAF, "synthetic", tmp_path, validation_size=0)
    for _ in range(2):
        prepared = preprocess(raw, config)
        assert pixels(prepared.val).shape == (0, 8, 8, 1)


def test_pictures_of_a_recorded_run_come_from_the_cache_when_their_folder_is_gone(
    tmp_path: Path,
) -> None:
    folder, data_dir = class_folders(tmp_path / "photos"), tmp_path / "data"
    before = read(folder, data_dir)
    folder.rename(tmp_path / "moved")
    config = of_data({**PICTURES, "path": str(folder)}, "folder", data_dir)
    with pytest.raises(RequestError, match="no such file or folder"):
        ingest(config)
    again = ingest(config, identity=Identity(fingerprint=before.fingerprint))
    np.testing.assert_array_equal(pixels(again.test), pixels(before.test))
    with pytest.raises(RequestError, match="no such file or folder"):
        ingest(config, identity=Identity(fingerprint="another"))


@pytest.mark.parametrize("lost", ["removed", "damaged"])
def test_pictures_of_a_recorded_run_are_packed_again_if_the_packed_copy_is_lost(
    lost: str, tmp_path: Path
) -> None:
    folder, data_dir = class_folders(tmp_path / "photos"), tmp_path / "data"
    before = read(folder, data_dir)
    config = of_data({**PICTURES, "path": str(folder)}, "folder", data_dir)
    expected = pixels(before.test)

    def lose() -> None:
        [place] = data_dir.glob("folder/pixels-*/")
        if lost == "removed":
            shutil.rmtree(place)
        else:
            (place / "images.npy").write_bytes(b"")

    lose()
    again = ingest(config, identity=Identity(fingerprint=before.fingerprint))
    np.testing.assert_array_equal(pixels(again.test), expected)
    lose()
    assert cached("folder", before.fingerprint, data_dir=data_dir) is None
    folder.rename(tmp_path / "moved")
    with pytest.raises(RequestError, match="nor is there a packed copy"):
        ingest(config, identity=Identity(fingerprint=before.fingerprint))


def test_a_recorded_run_has_its_own_groups_though_the_pictures_are_the_same(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / "photos" / split)
    path, data_dir = tmp_path / "photos", tmp_path / "data"
    made = {
        group: read(path, data_dir, group=group) for group in (None, r"(\d).png", r"(\d\d).png")
    }
    assert len({raw.fingerprint for raw in made.values()}) == 1
    path.rename(tmp_path / "moved")
    for group, raw in made.items():
        config = of_data({**PICTURES, "path": str(path), "group": group}, "folder", data_dir)
        again = ingest(config, identity=Identity(fingerprint=raw.fingerprint))
        assert raw.index is not None
        assert again.index is not None
        np.testing.assert_array_equal(again.index.groups, raw.index.groups)


def test_a_recorded_run_fits_pictures_in_its_own_way_though_all_have_the_same_shape(
    tmp_path: Path,
) -> None:
    class_folders(tmp_path / "photos")
    path, data_dir = tmp_path / "photos", tmp_path / "data"
    made = {fit: read(path, data_dir, fit=fit) for fit in FITS}
    assert len({raw.fingerprint for raw in made.values()}) == 1
    for fit, raw in made.items():
        config = of_data({**PICTURES, "path": str(path), "fit": fit}, "folder", data_dir)
        assert ingest_recorded(config, raw.identity).fit == fit


def test_a_recorded_run_has_its_own_groups_though_their_column_was_edited(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / "photos" / split)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    path, data_dir = tmp_path / "list.csv", tmp_path / "data"
    config = of_data({**PICTURES, "path": str(path), "group": "patient"}, "folder", data_dir)
    made = []
    for several in (2, 3, 4):
        rows = [
            f"{file},{file.parts[2]},{file.parts[1]},{number % several}"
            for number, file in enumerate(files)
        ]
        path.write_text("\n".join(["path,label,split,patient", *rows]))
        made.append(ingest(config))
    assert len({raw.fingerprint for raw in made}) == 1
    for raw in made:
        again = ingest_recorded(config, raw.identity)
        assert raw.index is not None
        assert again.index is not None
        assert raw.identity.grouping == raw.index.grouping
        np.testing.assert_array_equal(again.index.groups, raw.index.groups)
    with pytest.raises(RequestError, match="in other groups, so other ones would be for valid"):
        ingest_recorded(config, Identity(fingerprint=made[0].fingerprint, grouping="f" * 64))


def test_validation_pictures_share_no_group_with_training_pictures(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", 20)
    config = of_data({}, "folder", tmp_path, validation_size=0.2, seed=0)
    alone, grouped = (read(folder, tmp_path / "data", group=group) for group in (None, r"(\d).png"))
    assert alone.index is not None
    assert grouped.index is not None
    for raw in (alone, grouped):
        made, cached = (preprocess(raw, config) for _ in range(2))
        assert cached.cached
        groups = [set(raw.index.groups[part.rows]) for part in (made.train, made.val, made.test)]
        assert all(groups)
        assert not groups[0] & groups[1]
        assert not (groups[0] | groups[1]) & groups[2]
        np.testing.assert_array_equal(made.val.rows, cached.val.rows)
        assert made.fit == "pad"


def test_a_number_of_validation_pictures_is_kept_as_far_as_groups_allow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = class_folders(tmp_path / "photos", 20)

    def validation(size: int, group: str | None) -> int:
        config = of_data({}, "folder", tmp_path, validation_size=size, seed=0)
        return len(preprocess(read(folder, tmp_path / "data", group=group), config).val)

    assert [validation(size, None) for size in (2, 7, 30)] == [2, 7, 30]
    assert caplog.text == ""
    with pytest.raises(RequestError, match="validation_size=1 is out of range: .* 0 or 2–30"):
        validation(1, None)
    for _ in ("made", "cached"):
        caplog.clear()
        assert validation(5, r"(\d)\.png") == 4
        assert "validation_size=5: 4 pictures are for validation, since" in caplog.text


@pytest.mark.parametrize("size", [0.2, 5])
def test_classes_that_are_one_group_each_have_no_validation_pictures(
    size: float, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / "photos" / split)
    raw = read(tmp_path / "photos", tmp_path / "data", group="parent", near_duplicates=None)
    config = of_data({}, "folder", tmp_path, validation_size=size, seed=0)
    with pytest.raises(RequestError, match="every group has the last training pictures of a class"):
        preprocess(raw, config)


def test_a_validation_split_of_the_source_is_kept_and_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(0, 256, (8, 4, 5), np.uint8) for split in SPLITS}
    arrays |= {f"{split}_labels": np.arange(8) % 2 for split in SPLITS}
    fingerprints = set()
    for change in (0, 1):
        arrays["val_images"][0, 0, 0] = change
        np.savez(tmp_path / "a.npz", **arrays)
        leaf = {"path": str(tmp_path / "a.npz"), "class_names": ["cat", "dog"]}
        leaf["_target_"] = "pipeline.data.datasets.npz"
        config = of_data(leaf, "npz", tmp_path, **SPLIT)
        for _ in ("built", "cached"):
            raw = ingest(config)
            assert raw.val is not None
            assert np.array_equal(pixels(raw.val)[..., 0], arrays["val_images"])
            caplog.clear()
            prepared = preprocess(raw, config)
            assert caplog.messages == [
                "preprocess.validation_size and preprocess.seed have no effect: the data has a "
                "validation split of its own, which is used"
            ]
            assert np.array_equal(pixels(prepared.val)[..., 0], arrays["val_images"])
            assert len(prepared.train) == 8
        fingerprints.add(raw.fingerprint)
    assert len(fingerprints) == 2


def test_rows_of_a_list_that_cannot_be_used_are_told_by_a_run_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = class_folders(tmp_path / "photos")
    files = sorted(file.relative_to(folder) for file in folder.rglob("*.png"))
    rows = [f"{file},{file.parts[0]}" for file in files]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows, "gone.png,cat"]))
    leaf = {**PICTURES, "path": str(folder / "list.csv"), "max_bad": 0.5}
    raw = ingest(of_data(leaf, "photos", tmp_path / "data"))
    assert len(raw.train) + len(raw.test) == len(files)
    assert f"skipped: 1 row of the list: {folder}/gone.png: no such file" in caplog.text


def test_the_data_of_a_configuration_is_loaded_and_split_in_its_own_folder(tmp_path: Path) -> None:
    config = configured("dataset=digits", "model=linear", f"data_dir={tmp_path}")
    raw, prepared = ingest(config), load_data(config)
    assert prepared.fingerprint == raw.fingerprint
    assert len(prepared.val) == config.preprocess.validation_size
    assert preprocess(raw, config).cached
    assert data_folder(config) == tmp_path / "digits"
    assert {path.name.partition("-")[0] for path in (tmp_path / "digits").iterdir()} >= {
        "raw",
        "split",
    }
    again = ingest(config, identity=Identity(fingerprint=raw.fingerprint))
    assert again.fingerprint == raw.fingerprint
