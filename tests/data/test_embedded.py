"""Pictures inside Parquet files, laid out as Hugging Face publishes data sets."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pytest
from PIL import Image
from pyarrow import parquet

from pipeline.data import embedded
from pipeline.data.listing import listed
from pipeline.data.reading import find_images
from pipeline.system.errors import RequestError
from pipeline.system.processes import cores
from tests.pictures import noise, put, read

NAMES = ["dog", "cat"]


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed)).save(file, "PNG")
    return file.getvalue()


def rows(seeds: Sequence[int], **more: Any) -> list[dict[str, Any]]:
    """Rows as the library `datasets` writes them; labels alternate."""
    return [
        {"image": {"bytes": png(seed), "path": None}, "label": seed % 2, **more} for seed in seeds
    ]


def written(path: Path, content: list[dict[str, Any]], *, groups: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(content)
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    told = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": told})
    parquet.write_table(table, path, row_group_size=groups)
    return path


def test_a_parquet_file_with_pictures_is_a_data_set_with_the_class_names_it_holds(
    tmp_path: Path,
) -> None:
    found = listed(written(tmp_path / "pets.parquet", rows(range(6), breed="any")))
    assert found.files[:2] == ("pets.parquet/image/0.png", "pets.parquet/image/1.png")
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [1, 0] * 3  # 0 stands for the dog
    assert found.columns == {"breed": ("any",) * 6}
    assert found.layout == "a list (Parquet) with the columns image and label"
    assert [found.read(n) for n in range(6)] == [png(n) for n in range(6)]


def test_its_pictures_are_packed_like_files(tmp_path: Path) -> None:
    seeds = range(24)
    inside = read(written(tmp_path / "pets.parquet", rows(seeds)), tmp_path / "data")
    for seed in seeds:
        put(tmp_path / "pets" / NAMES[seed % 2] / f"{seed}.png", noise(seed))
    beside = read(tmp_path / "pets", tmp_path / "data")
    found = {
        image.tobytes() for split in (inside.train, inside.test) for image in split.batch(0, 99)
    }
    assert found == {
        image.tobytes() for s in (beside.train, beside.test) for image in s.batch(0, 99)
    }
    again = read(tmp_path / "pets.parquet", tmp_path / "data")
    assert (again.cached, again.fingerprint) == (True, inside.fingerprint)


def test_shards_of_splits_are_united(tmp_path: Path) -> None:
    for name, seeds in (
        ("train-00000-of-00002", range(8)),
        ("train-00001-of-00002", range(8, 16)),
        ("validation-00000-of-00001", range(16, 20)),
        ("test-00000-of-00001", range(20, 24)),
    ):
        written(tmp_path / f"pets/data/{name}.parquet", rows(seeds))
    (tmp_path / "pets/README.md").write_text("# Pets")
    found = listed(tmp_path / "pets")
    assert found.layout == (
        "data/train-00000-of-00002.parquet in 2 parts, data/validation-00000-of-00001.parquet and "
        "data/test-00000-of-00001.parquet, one list per split"
    )
    splits = dict(zip(found.files, found.splits, strict=True))
    assert splits["data/train-00001-of-00002.parquet/image/7.png"] == "train"
    assert list(splits.values()).count("train") == 16
    assert list(splits.values()).count("val") == list(splits.values()).count("test") == 4


@pytest.mark.parametrize(
    "name",
    [
        *("part-{}-of-00002", "pets-{}-of-00002-4746b8785c874cc7", "part-{}-3f2a.snappy"),
        *("part.{}", "default/{}", "{}"),
    ],
)
def test_parts_of_one_list_are_united_without_a_split(tmp_path: Path, name: str) -> None:
    for number in range(2):
        file = tmp_path / "pets" / f"{name.format(f'{number:05}')}.parquet"
        written(file, rows(range(8 * number, 8 * number + 8)))
    found = listed(tmp_path / "pets")
    assert len(found) == 16
    assert {*found.splits} == {""}
    assert found.layout == "2 parts of a list (Parquet) with the columns image and label"


@pytest.mark.parametrize("name", ["train", "test", "pets"])
def test_a_label_that_no_part_has_is_told_as_of_a_single_file(name: str, tmp_path: Path) -> None:
    for number in range(2):
        written(tmp_path / f"pets/{name}-{number:05}-of-00002.parquet", rows(range(4)))
    with pytest.raises(RequestError, match="=lable: .*does not exist; its columns are "):
        listed(tmp_path / "pets", label_column="lable")


def test_lists_of_other_names_are_not_united(tmp_path: Path) -> None:
    for name in ("cifar10", "cifar100"):
        written(tmp_path / f"pets/{name}.parquet", rows(range(4)))
    with pytest.raises(RequestError, match=r"2 lists lie there .*name one"):
        listed(tmp_path / "pets")


def test_a_test_list_without_labels_is_not_used(tmp_path: Path) -> None:
    written(tmp_path / "pets/train-00000-of-00001.parquet", rows(range(8)))
    unlabelled = [row | {"label": -1} for row in rows(range(8, 12))]
    written(tmp_path / "pets/test-00000-of-00001.parquet", unlabelled)
    found = listed(tmp_path / "pets")
    assert (len(found), {*found.splits}) == (8, {""})
    assert found.notes == ("test-00000-of-00001.parquet has no labels: it is not used",)


def test_a_row_without_a_picture_is_listed_as_unreadable(tmp_path: Path) -> None:
    content = rows(range(24))
    content[3]["image"]["bytes"] = None
    content[4]["image"]["bytes"] = b"no picture"
    raw = read(written(tmp_path / "pets.parquet", content), tmp_path / "data")
    assert raw.index is not None
    assert {Path(file).name: reason for file, reason in raw.index.unreadable} == {
        "3.png": "is empty in its Parquet file",
        "4.png": "not an image in a readable format",
    }


def test_paths_beside_missing_bytes_name_files(tmp_path: Path) -> None:
    content = [
        {"image": {"bytes": None, "path": f"pictures/{n}.png"}, "label": n % 2} for n in range(4)
    ]
    for number in range(4):
        put(tmp_path / f"pictures/{number}.png", noise(number))
    table = pyarrow.Table.from_pylist(content)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = table.set_column(0, "image", table["image"].cast(kind))
    parquet.write_table(table, tmp_path / "pets.parquet")
    assert listed(tmp_path / "pets.parquet").files[0] == "pictures/0.png"


def test_a_column_of_bytes_holds_pictures_whatever_its_name(tmp_path: Path) -> None:
    content = [{"scan": png(n), "id": n, "label": "ab"[n % 2]} for n in range(6)]
    parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "scans.pq")
    found = listed(tmp_path / "scans.pq")
    assert found.read(5) == png(5)
    assert found.columns == {"id": tuple("012345")}


def test_a_column_of_checksums_holds_no_pictures(tmp_path: Path) -> None:
    content = [
        {"path": f"{n}.png", "sha256": bytes([200, n] * 16), "label": "ab"[n % 2]} for n in range(6)
    ]
    for row in content:
        put(tmp_path / row["path"], noise(row["sha256"][1]))
    parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "pets.parquet")
    found = listed(tmp_path / "pets.parquet")
    assert found.files[0] == "0.png"
    assert found.columns == {}


def test_a_column_of_small_pictures_may_begin_with_a_broken_one(tmp_path: Path) -> None:
    content = [{"image": png(n), "label": "ab"[n % 2]} for n in range(6)]
    content[0]["image"] = bytes([200, 1] * 16)
    parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "pets.parquet")
    assert len(listed(tmp_path / "pets.parquet").files) == 6


def test_a_picture_of_a_list_may_lie_in_a_parquet_file(tmp_path: Path) -> None:
    written(tmp_path / "pets.parquet", rows(range(4)))
    lines = [f"pets.parquet/image/{n}.png,{'ab'[n % 2]}" for n in (0, 1, 2, 9)]
    (tmp_path / "few.csv").write_text("\n".join(["path,label", *lines]))
    found = listed(tmp_path / "few.csv")
    assert found.read(2) == png(2)
    with pytest.raises(ValueError, match="the file has no row 9"):
        found.read(3)


def test_many_threads_read_the_same_bytes(tmp_path: Path) -> None:
    found = listed(written(tmp_path / "pets.parquet", rows(range(40)), groups=3))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5)).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(found.read, order)) == [png(n) for n in order]


@pytest.fixture
def groups_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the row groups that are read, in order."""
    read: list[int] = []
    real = parquet.ParquetFile.read_row_group

    def noted(file: Any, number: int, **given: Any) -> Any:
        read.append(number)
        return real(file, number, **given)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", noted)
    return read


def test_a_row_group_is_read_once_by_threads_that_are_far_apart(
    tmp_path: Path, groups_read: list[int]
) -> None:
    chunks = 4 * min(cores(), 8)  # at once; with more cores, only some of them
    order = np.random.default_rng(0).permutation(16 * chunks)
    size = 3 * len(order)
    found = listed(written(tmp_path / "pets.parquet", rows(range(size)), groups=4))
    for start in range(0, size, len(order)):
        for row in (start + order).tolist():
            assert found.read(row) == png(row)
    assert sorted(groups_read) == [*range(size // 4)]


def test_row_groups_that_take_much_memory_are_let_go(
    tmp_path: Path, groups_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = listed(written(tmp_path / "pets.parquet", rows(range(20)), groups=2))
    monkeypatch.setattr(embedded, "GROUP_BYTES", 0)
    for row in (*range(20), 0):
        found.read(row)
    assert groups_read == [*range(10), 0]


def test_a_file_in_an_archive_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "pets.parquet", rows(range(4)))
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        archive.write(file, "pets/data.parquet")
    with pytest.raises(RequestError, match="holds pictures inside an archive; unpack"):
        listed(tmp_path / "pets.zip")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = written(tmp_path / "pets.parquet", rows(range(24)))
    before = read(file, tmp_path / "data")
    written(file, rows(range(100, 124)))
    after = read(file, tmp_path / "data")
    assert not after.cached
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_damaged_file_is_refused_or_its_rows_are(tmp_path: Path, where: float) -> None:
    file = written(tmp_path / "pets.parquet", rows(range(40)))
    content = bytearray(file.read_bytes())
    at = int(where * len(content))
    content[at : at + 40] = bytes(40)
    file.write_bytes(content)
    try:
        raw = read(file, tmp_path / "data")
    except RequestError as error:
        assert "pets.parquet" in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert raw.index is not None
        assert raw.index.unreadable


def test_predict_finds_the_pictures_of_a_parquet_file(tmp_path: Path) -> None:
    file = written(tmp_path / "pets.parquet", rows(range(6)))
    found, opener = find_images(str(file))
    assert [one.name for one in found.files] == [f"{n}.png" for n in range(6)]
    with opener(found.files[4]) as content:
        assert not isinstance(content, Path)
        assert content.read() == png(4)


def test_predict_refuses_a_parquet_file_without_pictures(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([{"label": 1}]), tmp_path / "plain.parquet")
    with pytest.raises(RequestError, match="no pictures there"):
        find_images(str(tmp_path / "plain.parquet"))


def test_predict_takes_the_column_that_training_took(tmp_path: Path) -> None:
    def found(name: str, path_column: str | None = None) -> list[str]:
        files = find_images(str(tmp_path / name), path_column=path_column)[0].files
        return [file.parent.name for file in files]

    content = [{"mask": png(n + 50), "image": png(n), "scan": png(n + 90)} for n in range(2)]
    parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "usual.parquet")
    assert found("usual.parquet") == ["image", "image"]
    assert found("usual.parquet", "scan") == ["scan", "scan"]
    assert found("usual.parquet", "photo") == ["image", "image"]  # of a list of another kind
    content = [{"id": str(n), "image": png(n)} for n in range(2)]
    parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "plain.parquet")
    assert found("plain.parquet", "id") == ["image", "image"]  # no pictures there
    content = [{"mask": png(n + 50), "scan": png(n)} for n in range(2)]
    parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "two.parquet")
    assert found("two.parquet", "scan") == ["scan", "scan"]
    with pytest.raises(RequestError, match=r"in several columns \(mask and scan\); remove all but"):
        found("two.parquet")
