"""Lists of pictures: CSV, JSON lines and Parquet, as people and programs write them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from pipeline.data import archives, label_lists
from pipeline.data.files import rest
from pipeline.data.listing import Listing, listed
from tests.data.test_listing import placed, refusal, touched
from tests.stress.matrix import matrix

PICTURES = ("p/1.png", "p/2.png", "p/10.png")


def pictures(folder: Path) -> Path:
    return touched(folder, *PICTURES)


def classes_of(listing: Listing) -> dict[str, str]:
    return {
        file: listing.class_names[label]
        for file, label in zip(listing.files, listing.labels, strict=True)
    }


CAT_DOG = {"p/1.png": "cat", "p/2.png": "dog", "p/10.png": "cat"}
TEXTS = {
    "commas": "path,label\np/1.png,cat\np/2.png,dog\np/10.png,cat\n",
    "semicolons, BOM, CR LF": "\ufefffile;class\r\np/1.png;cat\r\np/2.png;dog\r\np/10.png;cat\r\n",
    "tabs": "Image Path\tTarget\np/1.png\tcat\np/2.png\tdog\np/10.png\tcat",
    "bars": "img|category\np/1.png|cat\np/2.png|dog\np/10.png|cat",
    "Excel's own": "sep=;\nfilename;label\np/1.png;cat\np/2.png;dog\np/10.png;cat\n",
    "quotes": 'path, label\n"p/1.png", "cat"\n"p/2.png", dog\np/10.png,cat\n',
    "spaces and blank lines": "path,label\n p/1.png , cat\n\np/2.png,dog \n,\np/10.png,cat\n\n",
    "an index without a name": ",label,path\n0,cat,p/1.png\n1,dog,p/2.png\n2,cat,p/10.png\n",
    "paths of Windows": "path,label\np\\1.png,cat\np\\2.png,dog\np\\10.png,cat\n",
    "slashes of two systems": "path,label\np/x\\..\\1.png,cat\n./p\\2.png,dog\np/10.png,cat\n",
    "detours": "path,label\n./p/1.png,cat\np//2.png,dog\np/x/../10.png,cat\n",
    "no endings": "id,breed\np/1,cat\np/2,dog\np/10,cat\n",
    "numbers beside names": "path,label,label_name\np/1.png,3,cat\np/2.png,5,dog\np/10.png,3,cat\n",
    "a number beside the path": "id,path,label\n1,p/1.png,cat\n2,p/2.png,dog\n3,p/10.png,cat\n",
    "another order": "label,path\ncat,p/10.png\ndog,p/2.png\ncat,p/1.png\n",
    "rows twice": "path,label\np/1.png,cat\np/2.png,dog\np/1.png,cat\np/10.png,cat\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_list_of_text_is_read(text: str, tmp_path: Path) -> None:
    (pictures(tmp_path) / "list.csv").write_text(text, newline="")
    listing = listed(tmp_path / "list.csv")
    assert classes_of(listing) == CAT_DOG
    assert listing.class_names == ("cat", "dog")
    assert listing.root == tmp_path


@pytest.mark.parametrize("ending", [".tsv", ".tab"])
def test_the_ending_of_tabs_decides_where_the_header_has_some(ending: str, tmp_path: Path) -> None:
    rows = "p/1.png\tcat\t0,0,8,8\np/2.png\tdog\t\np/10.png\tcat\t\n"
    tabs, commas = (pictures(tmp_path) / f"{name}{ending}" for name in ("tabs", "commas"))
    tabs.write_text(f"path\tlabel\tbox (x,y,w,h)\n{rows}")
    listing = listed(tabs)
    assert classes_of(listing) == CAT_DOG
    assert listing.columns["box (x,y,w,h)"] == ("0,0,8,8", "", "")
    commas.write_text(TEXTS["commas"])
    assert classes_of(listed(commas)) == CAT_DOG


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path, mask = pictures(tmp_path) / "list.csv", "1 2 " * 50_000
    path.write_text(f"path,label,mask\np/1.png,cat,{mask}\np/2.png,dog,\np/10.png,cat,\n")
    listing = listed(path)
    assert classes_of(listing) == CAT_DOG
    assert listing.columns["mask"] == (mask.strip(), "", "")


def test_a_list_in_utf_16_is_read(tmp_path: Path) -> None:
    (pictures(tmp_path) / "list.txt").write_text(TEXTS["tabs"], encoding="utf-16")
    assert classes_of(listed(tmp_path / "list.txt")) == CAT_DOG


ROWS: list[dict[str, Any]] = [
    {"file": "p/1.png", "label": 0, "split": "train", "who": "Ann", "age": 3.0, "ok": True},
    {"file": "p/2.png", "label": 1, "split": "Training", "who": None, "age": 2.5, "ok": False},
    {"file": "p/10.png", "label": 0, "split": "dev", "who": "Bo", "age": None, "ok": None},
]


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"list.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "ndjson"])
def test_a_list_of_typed_values_is_read_with_its_split_and_further_columns(
    kind: str, tmp_path: Path
) -> None:
    listing = listed(written(pictures(tmp_path), kind, ROWS))
    assert listing.files == PICTURES
    assert listing.class_names == ("0", "1")
    assert listing.labels.tolist() == [0, 1, 0]
    assert listing.splits == ("train", "train", "val")
    assert listing.columns == {
        "who": ("Ann", "", "Bo"),
        "age": ("3", "2.5", ""),
        "ok": ("true", "false", ""),
    }
    assert listing.layout.endswith("with the columns file, label and split")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_columns_of_lists_and_objects_are_not_kept_and_said(kind: str, tmp_path: Path) -> None:
    rows = [row | {"boxes": [1, 2], "image": {"bytes": "x"}} for row in ROWS]
    listing = listed(written(pictures(tmp_path), kind, rows))
    assert list(listing.columns) == ["who", "age", "ok"]
    assert any("no plain values" in note and "boxes" in note for note in listing.notes)


@pytest.mark.parametrize("kind", ["timestamp[us]", "date32[day]", "duration[s]"])
def test_a_column_of_times_that_python_does_not_have_is_not_kept_and_said(
    kind: str, tmp_path: Path
) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    far = pyarrow.array([2**31 - 1 if kind == "date32[day]" else 2**62] * len(ROWS))
    dated = far.cast("int32" if kind == "date32[day]" else "int64").cast(kind)
    parquet.write_table(table.append_column("until", dated), pictures(tmp_path) / "l.parquet")
    listing = listed(tmp_path / "l.parquet")
    assert list(listing.columns) == ["who", "age", "ok"]
    assert any(f"until ({kind})" in note for note in listing.notes)


def test_pictures_within_a_list_are_refused(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": "x", "path": None}, "label": 1}] * 3
    assert "image holds struct<" in refusal(written(tmp_path, "parquet", rows))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("inner", ["", "set/"])
def test_a_list_beside_its_pictures_is_found(kind: str, inner: str, tmp_path: Path) -> None:
    files = {f"{inner}{name}": name.encode() for name in PICTURES}
    files[f"{inner}list.csv"] = TEXTS["commas"].encode()
    path = placed(tmp_path, kind, files)
    for named in (path, path / inner / "list.csv"):
        listing = listed(named)
        found = {listing.read(row).decode(): name for row, name in enumerate(listing.labels)}
        assert found == {"p/1.png": 0, "p/2.png": 1, "p/10.png": 0}


def test_a_list_beside_class_folders_is_used_only_if_it_is_named(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "list.csv").write_text("path,label,kind\na/1.png,x,p\nb/1.png,y,q\n")
    listing = listed(tmp_path)
    assert listing.class_names == ("a", "b")
    told = f"list.csv is not used; type dataset.path={tmp_path / 'list.csv'}"
    assert told in listing.notes
    assert listed(tmp_path / "list.csv").class_names == ("x", "y")
    assert listed(tmp_path, label_column="kind").class_names == ("p", "q")
    assert "dataset.root=x is for lists, but it has 2 class folders" in refusal(
        touched(tmp_path / "other", "a/1.png", "b/1.png"), root="x"
    )


def test_several_lists_are_told(tmp_path: Path) -> None:
    touched(tmp_path, "p/1.png", "a.csv", "b.csv")
    assert f"2 lists lie there (a.csv, b.csv); name one: dataset.path={tmp_path}" in refusal(
        tmp_path
    )


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_lists_of_the_splits_are_read_together(kind: str, tmp_path: Path) -> None:
    files = {f"p/{number}.png": b"x" for number in range(5)} | {
        "train.csv": b"path,label,camera\np/0.png,cat,north\np/1.png,dog,south\n",
        "my_val.jsonl": b'{"path": "p/2.png", "label": "dog", "site": 7}\n',
        "test.csv": b"file;class\np/3.png;cat\np/4.png;dog\np/4.png;dog\n",
        "notes.csv": b"text\nabc\n",
    }
    listing = listed(placed(tmp_path, kind, files))
    assert listing.splits == ("train", "train", "val", "test", "test")
    assert classes_of(listing) == {
        f"p/{number}.png": "cat" if number in (0, 3) else "dog" for number in range(5)
    }
    assert listing.columns == {
        "camera": ("north", "south", "", "", ""),
        "site": ("", "", "7", "", ""),
    }
    assert listing.layout == "train.csv, my_val.jsonl and test.csv, one list per split"
    assert "notes.csv stands for no split: it is not used" in listing.notes
    assert "1 row repeats another, and counts once" in listing.notes


@pytest.mark.parametrize("content", [b"", b"text\n", "é\n".encode("latin-1"), b"a,b\n1\n"])
def test_a_list_that_is_not_used_need_not_be_readable(content: bytes, tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "train.csv").write_text("path,label\np/1.png,cat\np/2.png,dog\n")
    (tmp_path / "test.csv").write_text("path,label\np/10.png,cat\n")
    (tmp_path / "notes.csv").write_bytes(content)
    listing = listed(tmp_path)
    assert classes_of(listing) == CAT_DOG
    assert "notes.csv stands for no split: it is not used" in listing.notes


def test_a_list_of_missing_files_is_refused_whatever_share_may_be_missing(tmp_path: Path) -> None:
    path = pictures(tmp_path / "photos") / "list.csv"
    path.write_text(TEXTS["commas"])
    (tmp_path / "empty").mkdir()
    for classes in (None, ["cat", "dog"]):
        told = refusal(path, root=str(tmp_path / "empty"), classes=classes, max_bad=1)
        assert told == (
            f"dataset.path={path}: no picture can be used; "
            + "; ".join(f"{tmp_path}/empty/{name}: no such file" for name in PICTURES)
        )


def test_a_test_list_without_labels_is_left_out_and_said(tmp_path: Path) -> None:
    touched(tmp_path, "p/1.png", "p/2.png", "p/3.png")
    (tmp_path / "train.csv").write_text("path,label\np/1.png,cat\np/2.png,dog\n")
    (tmp_path / "test.csv").write_text("path\np/3.png\n")
    listing = listed(tmp_path)
    assert (listing.files, listing.splits) == (("p/1.png", "p/2.png"), ("", ""))
    assert "test.csv has no labels: it is not used" in listing.notes


def test_a_picture_in_the_lists_of_two_splits_is_in_neither(tmp_path: Path) -> None:
    touched(tmp_path, *(f"p/{number}.png" for number in range(5)))
    rows = "path,label\np/{}.png,cat\np/{}.png,dog\np/4.png,dog\n"
    (tmp_path / "train.csv").write_text(rows.format(0, 1))
    (tmp_path / "test.csv").write_text(rows.format(2, 3))
    listing = listed(tmp_path, max_bad=0.2)
    assert listing.files == tuple(f"p/{number}.png" for number in range(4))
    [bad] = listing.unreadable
    assert (bad.file, bad.reason) == (tmp_path / "p/4.png", "listed in train.csv and test.csv")
    message = (
        "train.csv and test.csv: 1 of 5 pictures cannot be used, more than dataset.max_bad=0.1"
    )
    assert message in refusal(tmp_path)
    (tmp_path / "test.csv").write_text("path,label\np/4.png,dog\n")
    assert "no picture is left for test: " in refusal(tmp_path, max_bad=0.5)


def test_a_list_for_testing_may_have_one_picture_of_each_class(tmp_path: Path) -> None:
    files = [f"p/{number}.png" for number in range(33)]
    touched(tmp_path, *files)
    rows = [f"{file},class {number % 11}\n" for number, file in enumerate(files)]
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(rows[:22]))
    (tmp_path / "test.csv").write_text("path,label\n" + "".join(rows[22:]))
    listing = listed(tmp_path)
    assert listing.splits.count("test") == len(listing.class_names) == 11


@pytest.mark.parametrize("before", ["", "./", "{folder}/", "../{name}/"])
def test_a_name_that_holds_a_backslash_is_found_and_is_no_way_out(
    before: str, tmp_path: Path
) -> None:
    before = before.format(folder=tmp_path, name=tmp_path.name)
    files = ("a\\1.png", "b/2\\x.png", "b/3.png")
    path = touched(tmp_path, *files) / "list.csv"
    path.write_text("path,label\n" + "".join(f"{before}{file},{file[0]}\n" for file in files))
    assert classes_of(listed(path)) == {file: file[0] for file in files}
    path.write_text(f"path,label\n{before}b/3.png,b\n{before}a\\..\\..\\1.png,a\n")
    assert "line 3: " in refusal(path, max_bad=1.0)
    assert "lies outside" in refusal(path, max_bad=1.0)


def test_paths_beside_the_folder_of_a_list_lie_in_the_root_that_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    path = tmp_path / "lists/deep/list.csv"
    path.parent.mkdir(parents=True)
    path.write_text("path,label\n../../p/1.png,cat\n../../p/2.png,dog\n../../p/10.png,cat\n")
    assert classes_of(listed(path, root=str(tmp_path))) == CAT_DOG
    path.write_text(path.read_text().replace("../../p", "..\\..\\p"))
    assert classes_of(listed(path, root=str(tmp_path))) == CAT_DOG
    assert "lies outside" in refusal(path)
    path.write_text("path,label\nC:\\p/1.png,cat\n")
    assert "is a path of Windows" in refusal(path)
    path.write_text("path,label\n../../p/1.png,cat\n")
    assert "lies outside" in refusal(path, root=str(tmp_path / "lists"))


def test_each_class_may_have_its_ending(tmp_path: Path) -> None:
    files = [*(f"a/{n}.jpg" for n in range(60)), *(f"b/{n}.png" for n in range(60)), "c/1.PNG"]
    touched(tmp_path, *files)
    rows = (f"{file.rpartition('.')[0]},{file[0]}\n" for file in files)
    (tmp_path / "list.csv").write_text("id,breed\n" + "".join(rows) + "a/gone,a\n")
    listing = listed(tmp_path / "list.csv")
    assert sorted(listing.files) == sorted(files)
    assert "its paths have no endings; completed by .PNG, .jpg and .png" in listing.notes


def test_endings_that_differ_by_case_are_of_one_file_where_the_disk_ignores_case(
    tmp_path: Path,
) -> None:
    touched(tmp_path, "1.jpg", "2.jpg")
    both = tmp_path / "1.JPG"
    ignores_case = both.exists()
    if not ignores_case:
        both.hardlink_to(tmp_path / "1.jpg")  # both names are found, as on such a disk
    (tmp_path / "list.csv").write_text("id,breed\n1,cat\n2,dog\n")
    listing = listed(tmp_path / "list.csv")
    assert classes_of(listing) == {"1.jpg": "cat", "2.jpg": "dog"}
    assert "its paths have no endings; completed by .jpg" in listing.notes
    if not ignores_case:
        both.unlink()
        touched(tmp_path, "1.JPG")
        told = refusal(tmp_path / "list.csv")
        assert "1 stands for 1.jpg and 1.JPG; write the endings into the list" in told


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_either_form_name_the_same_file(forms: tuple[str, str], tmp_path: Path) -> None:
    named, there = (unicodedata.normalize(form, "é/ü 1.png") for form in forms)  # type: ignore[arg-type]
    touched(tmp_path, there, "p/2.png")
    (tmp_path / "list.csv").write_text(f"path,label\n{named},cat\np/2.png,dog\n")
    assert set(listed(tmp_path / "list.csv").files) == {there, "p/2.png"}


@pytest.mark.parametrize("names", [("train.csv", "train.tsv"), ("val.csv", "test.csv")])
def test_lists_that_do_not_make_splits_are_told(names: tuple[str, ...], tmp_path: Path) -> None:
    touched(tmp_path, "p/1.png", *names)
    assert "2 lists lie there" in refusal(tmp_path)


def test_columns_and_the_folder_of_the_pictures_may_be_named(tmp_path: Path) -> None:
    pictures(tmp_path / "elsewhere")
    path = tmp_path / "list.csv"
    path.write_text("label,what,set,which,where\n9,cat,u,train,1.png\n9,dog,v,train,2.png\n")
    named = {"path_column": "where", "label_column": "what", "split_column": "which"}
    listing = listed(path, root=str(tmp_path / "elsewhere/p"), **named)  # type: ignore[arg-type]
    assert listing.root == tmp_path / "elsewhere/p"
    assert classes_of(listing) == {"1.png": "cat", "2.png": "dog"}
    assert listing.columns == {"label": ("9", "9"), "set": ("u", "v")}
    listing = listed(path, root=str(placed(tmp_path, "zip", {"1.png": b"", "2.png": b""})), **named)  # type: ignore[arg-type]
    assert listing.files == ("1.png", "2.png")


@matrix(43)
def test_absolute_paths_must_lie_in_the_folder_of_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{pictures(tmp_path) / name},{name[2:3]}\n" for name in PICTURES)
    (tmp_path / "list.csv").write_text(f"path,label\n{text}")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/list.csv").write_text(f"path,label\n{text}")
    monkeypatch.chdir(tmp_path)
    assert listed("list.csv").files == PICTURES
    assert listed("lists/list.csv", root=".").files == PICTURES
    told = refusal(Path("lists/list.csv"))
    assert told.startswith("lists/list.csv, line 2: ")
    assert f"lies outside {tmp_path}/lists; name the folder" in told


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/etc/passwd", "lies outside"),
        ("//etc/passwd", "lies outside"),
        ("../p/1.png", "lies outside"),
        ("p/../../1.png", "lies outside"),
        ("p\\..\\..\\1.png", "lies outside"),
        ("https://example.org/1.png", "is an address"),
        ("file:///etc/passwd", "is an address"),
        ("s3://bucket/1.png", "is an address"),
        ("data:image/png;base64,AAAA", "is an address"),
        ("C:\\pictures\\1.png", "is a path of Windows"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
@matrix(43)
def test_what_lies_outside_its_folder_is_refused(
    path: str, reason: str, kind: str, tmp_path: Path
) -> None:
    text = f'path,label\np/1.png,a\n"{path}",b\n'
    place = placed(tmp_path, kind, {"p/1.png": b"", "p/2.png": b"", "list.csv": text.encode()})
    told = refusal(place, max_bad=1.0)
    assert f"{place / 'list.csv'}, line 3: " in told
    assert reason in told


UNUSABLE = {
    "no file": ("p/3.png,dog", "{root}/p/3.png: no such file"),
    "a folder": ("p,dog", "{root}/p: no such file"),
    "no label": ("p/2.png,", "{root}/p/2.png: no label (line 5)"),
    "no path": (",dog", "{root}/list.csv: line 5: no path"),
    "a zero byte": ('"p/2\\u0000.png",dog', "no such file"),
    "two labels": ("p/1.png,dog", "{root}/p/1.png: listed as cat and dog"),
}


@pytest.mark.parametrize(("row", "reason"), UNUSABLE.values(), ids=UNUSABLE)
@matrix(31)
def test_rows_that_cannot_be_used_are_named_and_too_many_are_refused(
    row: str, reason: str, tmp_path: Path
) -> None:
    path = pictures(tmp_path) / "list.csv"
    path.write_text(f"path,label\np/1.png,cat\np/2.png,dog\np/10.png,cat\n{row}\n")
    named = [f"{one.file}: {one.reason}" for one in listed(path, max_bad=0.5).unreadable]
    expected = reason.format(root=tmp_path)
    assert any(expected in one for one in named)
    told = refusal(path, max_bad=0.24)
    assert f"of 4 rows cannot be used, more than dataset.max_bad=0.24 allows: {named[0]}" in told


@matrix(32)
def test_a_picture_in_two_splits_is_unusable(tmp_path: Path) -> None:
    path = pictures(tmp_path) / "list.csv"
    text = "path,label,split\np/1.png,a,train\np/2.png,b,train\np/10.png,a,train\np/10.png,a,test"
    path.write_text(text)
    [first, second] = listed(path, max_bad=0.5).unreadable
    assert first == second
    assert first.reason == "listed as train and test (lines 4 and 5)"


def test_where_missing_files_lie_is_told(tmp_path: Path) -> None:
    path = pictures(tmp_path / "deep") / "list.csv"
    path.write_text("path,label\n1.png,a\n2.png,b\n")
    assert f"It lies in another folder: dataset.root={tmp_path}/deep/p" in refusal(path)
    path.write_text("path,label\nq/1.png,a\nq/2.png,b\n")
    assert f"There is {tmp_path}/deep/p/1.png: fix the paths" in refusal(path)
    path.write_text("path,label\nq/x.png,a\nq/y.png,b\n")
    assert f"Its paths are relative to {tmp_path}/deep; dataset.root=" in refusal(path)


@pytest.mark.parametrize("path", ["string_view", "binary", "binary_view", "large_binary"])
@pytest.mark.parametrize("label", ["decimal128(4, 2)", "string_view", "binary"])
def test_texts_and_numbers_in_parquet_are_those_of_any_list(
    path: str, label: str, tmp_path: Path
) -> None:
    kinds = {
        "path": pyarrow.type_for_alias(path),
        "label": pyarrow.decimal128(4, 2) if "decimal" in label else pyarrow.type_for_alias(label),
    }
    columns = {"path": [None, "", *PICTURES], "label": [*"12121"]}
    table = {name: pyarrow.array(columns[name]).cast(kind) for name, kind in kinds.items()}
    parquet.write_table(pyarrow.table(table), pictures(tmp_path) / "l.parquet")
    listing = listed(tmp_path / "l.parquet", max_bad=0.5)
    assert classes_of(listing) == dict(zip(PICTURES, "121", strict=True))


def test_missing_labels_in_parquet_are_missing(tmp_path: Path) -> None:
    rows = [
        {"path": name, "label": label}
        for name, label in zip(PICTURES, (1.0, 2.0, None), strict=True)
    ]
    listing = listed(written(pictures(tmp_path), "parquet", rows), max_bad=0.5)
    assert classes_of(listing) == {"p/1.png": "1", "p/2.png": "2"}
    assert [one.reason for one in listing.unreadable] == ["no label (line 3)"]


DAMAGED = {
    "no rows": (b"path,label\n", "lists no pictures"),
    "nothing": (b"", "lists no pictures"),
    "another encoding": ("path,label\np/1.png,caf\u00e9".encode("latin-1"), "line 2 is not UTF-8"),
    "not text": (b"path,label\n\0\0,\0", "holds zero bytes"),
    "too many values": (
        b"path,label\na,b.png,cat",
        "line 2 has 3 values, but the first line has 2",
    ),
    "too few values": (b"path,label\na.png,b\n\na.png\n", "line 4 has 1 values"),
    "an open quote": (b'path,label\na.png,b\n"c.png,b\nd.png,b\n', "line 3: unexpected end"),
    "two columns of one name": (b"path,label,label\na,b,c", "several columns 'label'"),
    "no header": (b"a/1.png,cat\na/2.png,dog", "has no header; add a first line"),
    "no column of labels": (
        b"path,what\na.png,b",
        "its columns are path, what; name one: dataset.",
    ),
    "two columns of paths": (b"path,file,label\na.png,b.png,c", "may hold the paths: path, file"),
    "two columns of labels": (
        b"path,class,category\na,b,c\nd,b,e",
        "may hold the labels: class, ca",
    ),
    "an unknown split": (
        b"path,label,split\na.png,a,train\nb.png,a,tets",
        "line 3: the split is 'tets', which is none of train, val and test",
    ),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_list_that_cannot_be_read_is_refused_with_its_line(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    told = refusal(path)
    assert str(path) in told
    assert reason in told


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("l.jsonl", b'{"path": "a.png"}\n[1]', "line 2 is no JSON object"),
        ("l.jsonl", b'{"path": "a.png"}\n{"path": ', "line 2 is not JSON"),
        ("l.jsonl", b'{"path": "a", "path": "b"}', "line 1 is not JSON (.*a key stands twice"),
        ("l.jsonl", b"[" * 100_000, "line 1 is not JSON (RecursionError"),
        ("l.json", b'[\n{"path": "a.png"}]', 'each line must be an object, as {"path": "a.png"'),
        ("l.json", b'{"a.png": "cat"}', "l.json has pictures as keys; each line must be an object"),
        ("l.parquet", b"PAR1 and no more PAR1", "is damaged or not Parquet"),
        ("l.csv.7z", b"7z", "is an archive that cannot be read; unpack it"),
        ("l.csv.gz", b"\x1f\x8b", "is a compressed list; unpack it"),
        (
            "l.dat",
            b"path,label",
            "is neither an archive (zip, tar) nor, by its ending, a list",
        ),
        ("l.xlsx", b"PK\3\4", "is a spreadsheet; save it as CSV"),
        ("l.png", b"", "is a single picture; name the folder"),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b", "type dataset=idx dataset.path="),
        ("l.npz", b"PK\3\4", "type dataset=npz dataset.path="),
    ],
)
def test_other_files_are_refused(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    told = refusal(tmp_path / name)
    assert str(tmp_path / name) in told
    assert all(part in told for part in reason.split(".*"))


def test_columns_named_must_exist(tmp_path: Path) -> None:
    path = pictures(tmp_path) / "list.csv"
    path.write_text(TEXTS["commas"])
    for key in ("path_column", "label_column", "split_column"):
        told = refusal(path, **{key: "nowhere"})
        assert told.startswith(f"dataset.{key}=nowhere: ")
        assert "its columns are path, label" in told


def test_a_column_of_folds_is_kept_and_not_taken_for_splits(tmp_path: Path) -> None:
    path = pictures(tmp_path) / "list.csv"
    path.write_text("path,label,fold\np/1.png,a,1\np/2.png,b,2\np/10.png,a,1\n")
    listing = listed(path)
    assert listing.splits == ("", "", "")
    assert listing.columns == {"fold": ("1", "2", "1")}


def test_classes_of_a_list_are_selected_by_label(tmp_path: Path) -> None:
    path = pictures(tmp_path) / "list.csv"
    path.write_text("path,label,who\np/1.png,a,Ann\np/2.png,b,Bo\np/10.png,3,Cy\n")
    listing = listed(path, classes={"x": [3], "y": "a"})
    assert classes_of(listing) == {"p/1.png": "y", "p/10.png": "x"}
    assert listing.columns == {"who": ("Ann", "Cy")}
    assert rest(listing.left_out) == "left out: 1 not in dataset.classes"


def test_labels_of_their_own_are_no_classes(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(20)]
    path = touched(tmp_path, *names) / "list.csv"
    path.write_text("path,label\n" + "".join(f"{name},{name}x\n" for name in names))
    assert "each picture has a label of its own" in refusal(path)


def test_spaces_around_labels_are_ignored_and_said(tmp_path: Path) -> None:
    path = pictures(tmp_path) / "list.csv"
    path.write_text("path,label\np/1.png,cat \np/2.png,Dog\np/10.png,cat\n")
    listing = listed(path)
    assert listing.class_names == ("cat", "Dog")
    assert listing.notes == ("spaces around labels are ignored (in 1 row)",)


@matrix(29)
def test_a_list_of_too_many_rows_or_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(pictures(tmp_path), "parquet", ROWS)
    monkeypatch.setattr(label_lists, "MOST_ROWS", 2)
    assert "has more than 2 rows" in refusal(path)
    monkeypatch.setattr(archives, "LARGEST", 100)
    monkeypatch.setattr("pipeline.data.listing.LARGEST", 100)
    assert "has more than 100 bytes" in refusal(written(tmp_path, "jsonl", ROWS))


def test_a_link_in_the_folder_is_the_users_own(tmp_path: Path) -> None:
    elsewhere = touched(tmp_path / "elsewhere", "1.png", "2.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/p").symlink_to(elsewhere)
    path = tmp_path / "photos/list.csv"
    path.write_text("path,label\np/1.png,a\np/2.png,b\n")
    assert listed(path).files == ("p/1.png", "p/2.png")


def test_the_very_share_of_rows_that_may_be_bad_is_accepted(tmp_path: Path) -> None:
    touched(tmp_path, *(f"{number}.png" for number in range(71)))
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(100)]
    (tmp_path / "pets.csv").write_text("\n".join(["path,label", *rows]))
    assert len(listed(tmp_path / "pets.csv", max_bad=0.29).unreadable) == 29
    assert "29 of 100 rows cannot be used" in refusal(tmp_path / "pets.csv", max_bad=0.28)
