"""What `drift` takes for new pictures. Only the Parquet file holds some."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from pipeline.system.errors import RequestError
from pipeline.verbs.drift.pictures import NewPictures, new_pictures
from tests.data.test_embedded import png
from tests.data.test_listing import touched
from tests.pictures import LEAF

ARRAYS = {"_target_": "pipeline.data.datasets.npz", "path": "a.npz", "class_names": None}


KNOWN = ("cat", "dog", "car", "pet", "cow")


def found(path: Path, **keys: Any) -> NewPictures:
    return new_pictures(str(path), {**LEAF, **keys}, KNOWN)


def classes(new: NewPictures) -> dict[str, str]:
    """The class of each file."""
    assert new.has_classes
    names = [new.listing.class_names[label] for label in new.listing.labels]
    return dict(zip(new.listing.files, names, strict=True))


def test_classes_are_united_and_chosen_as_the_run_did(tmp_path: Path) -> None:
    folder = touched(tmp_path, "cat/1.png", "dog/1.png", "car/1.png", "cow/1.png")
    new = found(folder, classes={"pet": ["cat", "dog"], "car": "car"})
    assert classes(new) == {"car/1.png": "car", "cat/1.png": "pet", "dog/1.png": "pet"}
    assert "left out: 1 not in dataset.classes" in new.remarks


def test_chosen_classes_may_be_missing_or_united_already(tmp_path: Path) -> None:
    chosen = {"pet": ["cat", "dog"], "car": "car", "bike": "bike"}
    folder = touched(tmp_path / "a", "cat/1.png", "car/1.png")
    assert classes(found(folder, classes=chosen)) == {"car/1.png": "car", "cat/1.png": "pet"}
    folder = touched(tmp_path / "b", "pet/1.png", "cow/1.png")
    assert classes(found(folder, classes=chosen)) == {"pet/1.png": "pet"}
    folder = touched(tmp_path / "c", "cow/1.png", "hen/1.png")
    assert classes(found(folder, classes=chosen)) == {"cow/1.png": "cow", "hen/1.png": "hen"}


def test_the_columns_of_the_run_are_those_of_the_new_list_too(tmp_path: Path) -> None:
    touched(tmp_path, "1.png", "2.png")
    (tmp_path / "new.csv").write_text("path,label,kind\n1.png,a,cat\n2.png,a,dog\n")
    new = found(tmp_path / "new.csv", label_column="kind")
    assert classes(new) == {"1.png": "cat", "2.png": "dog"}
    folder = touched(tmp_path / "folder", "cat/1.png", "dog/1.png")
    assert set(classes(found(folder, label_column="kind")).values()) == {"cat", "dog"}


def test_the_root_of_the_run_counts_where_the_list_has_no_pictures_beside_it(
    tmp_path: Path,
) -> None:
    old = touched(tmp_path / "old", "1.png", "2.png")
    own = touched(tmp_path / "own", "1.png", "2.png")
    for folder, root in ((tmp_path, old), (own, own)):
        (folder / "new.csv").write_text("path,label\n1.png,cat\n2.png,dog\n")
        assert found(folder / "new.csv", root=str(old)).listing.root == root


def test_the_keys_of_another_kind_of_data_set_are_not_used(tmp_path: Path) -> None:
    folder = touched(tmp_path, "cat/1.png", "dog/1.png")
    new = new_pictures(str(folder), ARRAYS, KNOWN)
    assert classes(new) == {"cat/1.png": "cat", "dog/1.png": "dog"}


def test_pictures_that_mostly_lie_loose_are_all_taken_without_classes(tmp_path: Path) -> None:
    folder = touched(tmp_path, "cat/1.png", "dog/1.png", "1.png", "2.png")
    new = found(folder)
    assert (len(new.listing), new.has_classes) == (2, True)
    assert new.remarks == ["read as 2 class folders", "left out: 2 loose pictures"]
    new = found(touched(folder, "3.png"))
    assert (len(new.listing), new.has_classes) == (5, False)
    assert new.remarks == ["read as pictures without classes"]


def test_folders_and_labels_that_the_run_does_not_have_are_no_classes(tmp_path: Path) -> None:
    names = ("2026-01/1.png", "2026-01/3/2.png", "2026-02/1.png", "loose.png")
    new = found(touched(tmp_path / "new", *names))
    assert (new.listing.files, new.has_classes) == (names, False)
    assert new.remarks == [
        "read as pictures without classes",
        "classes are not compared, as the run has none of these: 2026-01, 2026-02",
    ]
    new = found(touched(tmp_path / "new", "cat/1.png"))
    assert (new.has_classes, new.foreign) == (True, ())
    touched(tmp_path, "1.png", "2.png")
    (tmp_path / "new.csv").write_text("path,label\n1.png,left\n2.png,right\n")
    new = found(tmp_path / "new.csv")
    assert (new.listing.files, new.has_classes) == (("1.png", "2.png"), False)
    assert new.foreign == ("left", "right")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "new.csv").write_text("path,label\n1.png,left\n2.png,right\n")
    new = found(tmp_path / "lists", root=str(tmp_path))
    assert (new.listing.files, new.has_classes) == (("1.png", "2.png"), False)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    folder = touched(tmp_path, "1.jpg", "1.heic", "2.heic")
    assert found(folder).remarks == ["read as pictures without classes", "left out: 2 .heic"]
    (tmp_path / "new.csv").write_text("path,label\n1.jpg,cat\ngone.jpg,dog\n")
    assert found(tmp_path / "new.csv").remarks == [
        "read as a list (separated by commas) with the columns path and label",
        f"left out: 1 row of the list: {tmp_path}/gone.jpg: no such file",
    ]


def test_a_list_needs_no_classes(tmp_path: Path) -> None:
    touched(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "new.csv").write_text("path,set\n1.png,x\n2.png,y\ngone.png,z\n")
    new = found(tmp_path / "new.csv")
    assert (new.listing.files, new.has_classes) == (("1.png", "2.png"), False)
    assert new.remarks == [
        "read as a list (separated by commas) without classes",
        f"left out: 1 row of the list: {tmp_path}/gone.png: no such file",
    ]
    (tmp_path / "other.csv").write_text("where,kind\n1.png,2.png\n")
    new = found(tmp_path / "other.csv", path_column="where")
    assert (new.listing.files, new.has_classes) == (("1.png",), False)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none", None, r"^drift\.path=.*none: no such file or folder"),
        ("empty", "", r"^drift\.path=.*empty: no pictures there"),
        ("new.csv", "where,kind\n1.png,cat\n", r"no column that is usual for paths"),
        ("new.csv", "path,label\n1.png,cat\n", r"1 of 1 rows cannot be used"),
    ],
)
def test_what_cannot_be_read_is_refused_without_advice_on_other_keys(
    name: str, content: str | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content:
        path.write_text(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(RequestError, match=said) as refused:
        found(path)
    assert not re.search(r"dataset\.(path|root|\w+_column)", str(refused.value))


def test_the_column_of_pictures_is_the_one_of_the_run(tmp_path: Path) -> None:
    content = [{"mask": png(row), "scan": png(2 + row)} for row in range(2)]
    parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "new.parquet")
    new = found(tmp_path / "new.parquet", path_column="scan")
    assert new.listing.files == ("new.parquet/scan/0.png", "new.parquet/scan/1.png")
    assert not new.has_classes
