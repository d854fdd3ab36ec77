"""Layouts of folders, lists and archives as users have them. No file here holds a picture."""

from __future__ import annotations

import io
import os
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.data.files import find_files, rest
from pipeline.data.listing import Classes, Listing, listed
from pipeline.data.places import Contents, Folder
from pipeline.system.errors import RequestError


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))
    return folder


def placed(folder: Path, kind: str, files: Mapping[str, bytes]) -> Path:
    """The files as a folder or an archive of that kind, in an order that is not natural."""
    backwards = dict(sorted(files.items(), reverse=True))
    path = folder / f"photos.{kind}" if kind != "folder" else folder / "photos"
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in backwards.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, f"w:{kind[4:]}") as archive:  # type: ignore[call-overload]
            for name, content in backwards.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def shape_of(listing: Listing) -> dict[str, tuple[str, str]]:
    """Class and split by file."""
    classes = [listing.class_names[label] for label in listing.labels]
    return dict(zip(listing.files, zip(classes, listing.splits, strict=True), strict=True))


def refusal(path: Path, **keys: Any) -> str:
    with pytest.raises(RequestError) as refused:
        listed(path, **keys)
    return str(refused.value)


def test_class_folders_are_listed_in_natural_order(tmp_path: Path) -> None:
    listing = listed(touched(tmp_path, "10/1.png", "2/b.jpg", "2/a.PNG", "2/x.txt", "c.png"))
    assert listing.files == ("2/a.PNG", "2/b.jpg", "10/1.png")
    assert listing.class_names == ("2", "10")
    assert listing.labels.tolist() == [0, 0, 1]
    assert rest(listing.left_out) == "left out: 1 .txt, 1 loose picture"
    assert [listing.read(index) for index in range(3)] == [
        b"2/a.PNG",
        b"2/b.jpg",
        b"10/1.png",
    ]


# Names of files below a folder, and what is listed of them: class and split of each, and the layout
# or a part of the notes.
LAYOUTS: dict[str, tuple[list[str], dict[str, tuple[str, str]], str]] = {
    "splits above classes": (
        ["train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png", "val/b/3.png"],
        {
            "test/a/2.png": ("a", "test"),
            "test/b/2.png": ("b", "test"),
            "train/a/1.png": ("a", "train"),
            "train/b/1.png": ("b", "train"),
            "val/b/3.png": ("b", "val"),
        },
        "train/, val/ and test/ above 2 class folders",
    ),
    "splits by other words, wrapped twice": (
        ["seg_train/seg_train/a/1.png", "seg_train/seg_train/b/1.png", "seg_dev/seg_dev/a/2.png"],
        {
            "seg_dev/seg_dev/a/2.png": ("a", "val"),
            "seg_train/seg_train/a/1.png": ("a", "train"),
            "seg_train/seg_train/b/1.png": ("b", "train"),
        },
        "val has no pictures of b",
    ),
    "splits above one folder each": (
        ["train/images/a/1.png", "train/images/b/1.png", "test/images/a/2.png"],
        {
            "test/images/a/2.png": ("a", "test"),
            "train/images/a/1.png": ("a", "train"),
            "train/images/b/1.png": ("b", "train"),
        },
        "train/images/ and test/images/ above 2 class folders",
    ),
    "splits above one folder each, which might be a class": (
        ["train/cat/in/1.png", "train/cat/out/2.png", "test/cat/in/3.png"],
        {
            "test/cat/in/3.png": ("in", "test"),
            "train/cat/in/1.png": ("in", "train"),
            "train/cat/out/2.png": ("out", "train"),
        },
        "cat/ is the only folder in train/ and test/: it is passed through, and the folders within "
        "it are the classes",
    ),
    "splits within classes": (
        ["a/training/1.png", "a/validation/2.png", "b/training/3.png", "b/testing/x/4.png"],
        {
            "a/training/1.png": ("a", "train"),
            "a/validation/2.png": ("a", "val"),
            "b/testing/x/4.png": ("b", "test"),
            "b/training/3.png": ("b", "train"),
        },
        "2 class folders above train, val and test",
    ),
    "splits within classes beside others": (
        [
            *("a/train/1.png", "a/test/2.png", "a/backup/3.png", "a/cover.png"),
            *("b/train/4.png", "b/test/5.png"),
        ],
        {
            "a/test/2.png": ("a", "test"),
            "a/train/1.png": ("a", "train"),
            "b/test/5.png": ("b", "test"),
            "b/train/4.png": ("b", "train"),
        },
        "2 class folders above train and test",
    ),
    "splits within some classes": (
        [*("a/train/1.png", "a/test/2.png", "b/train/3.png", "b/test/4.png"), "c/5.png"],
        {
            "a/test/2.png": ("a", ""),
            "a/train/1.png": ("a", ""),
            "b/test/4.png": ("b", ""),
            "b/train/3.png": ("b", ""),
            "c/5.png": ("c", ""),
        },
        "a, b have folders of splits, but c none of train: these splits are not used, and the test "
        "split is drawn from all pictures; arrange all classes alike, or select those: "
        "dataset.classes=[a, b]",
    ),
    "splits within some classes whose names are no plain text": (
        ["a\n/train/1.png", "a\n/test/2.png", "b/train/3.png", "b/test/4.png", "c/5.png"],
        {
            "a\n/test/2.png": ("a\\n", ""),
            "a\n/train/1.png": ("a\\n", ""),
            "b/test/4.png": ("b", ""),
            "b/train/3.png": ("b", ""),
            "c/5.png": ("c", ""),
        },
        "a\\n, b have folders of splits, but c none of train: these splits are not used, and the "
        "test split is drawn from all pictures; arrange all classes alike, or select those: "
        "dataset.classes=[a\\n, b]",
    ),
    "folders of splits beside one that is none": (
        [
            *("seg_train/seg_train/a/1.png", "seg_train/seg_train/b/2.png"),
            *("seg_test/seg_test/a/3.png", "seg_test/seg_test/b/4.png", "seg_pred/seg_pred/5.png"),
        ],
        {
            "seg_pred/seg_pred/5.png": ("seg_pred", ""),
            "seg_test/seg_test/a/3.png": ("seg_test", ""),
            "seg_test/seg_test/b/4.png": ("seg_test", ""),
            "seg_train/seg_train/a/1.png": ("seg_train", ""),
            "seg_train/seg_train/b/2.png": ("seg_train", ""),
        },
        "seg_test/ and seg_train/ are classes here, though each holds a, b; if they are splits, "
        "call them train, val and test",
    ),
    "train beside a split of another name": (
        ["train/a/1.png", "train/b/2.png", "holdout/a/3.png", "holdout/b/4.png"],
        {
            "holdout/a/3.png": ("holdout", ""),
            "holdout/b/4.png": ("holdout", ""),
            "train/a/1.png": ("train", ""),
            "train/b/2.png": ("train", ""),
        },
        "train/ and holdout/ are classes here, though each holds a, b; if they are splits, call "
        "them train, val and test",
    ),
    "a test folder without labels": (
        ["train/a/1.png", "train/b/1.png", "test/1.png"],
        {"train/a/1.png": ("a", ""), "train/b/1.png": ("b", "")},
        "test/ has no class folders: its pictures are left out",
    ),
    "something beside the splits": (
        ["train/a/1.png", "train/b/1.png", "test/a/1.png", "extra/a/1.png"],
        {
            "test/a/1.png": ("a", "test"),
            "train/a/1.png": ("a", "train"),
            "train/b/1.png": ("b", "train"),
        },
        "test has no pictures of b",
    ),
    "train and test in a folder of their own": (
        ["data/train/a/1.png", "data/train/b/1.png", "data/test/a/1.png", "readme.md"],
        {
            "data/test/a/1.png": ("a", "test"),
            "data/train/a/1.png": ("a", "train"),
            "data/train/b/1.png": ("b", "train"),
        },
        "data/train/ and data/test/ above 2 class folders",
    ),
    "only a train folder": (
        ["train/a/1.png", "train/b/1.png"],
        {"train/a/1.png": ("a", ""), "train/b/1.png": ("b", "")},
        "2 class folders in train/",
    ),
    "a class called train": (
        ["train/1.png", "bus/1.png"],
        {"bus/1.png": ("bus", ""), "train/1.png": ("train", "")},
        "2 class folders",
    ),
    "classes with the words of splits in their names": (
        ["test tubes/x/1.png", "training shoes/x/1.png", "cars/x/1.png"],
        {
            "cars/x/1.png": ("cars", ""),
            "test tubes/x/1.png": ("test tubes", ""),
            "training shoes/x/1.png": ("training shoes", ""),
        },
        "3 class folders, with folders in them",
    ),
    "wrapped three times": (
        ["a/b/c/cat/1.png", "a/b/c/dog/x/2.png", "a/b/cover.png"],
        {"a/b/c/cat/1.png": ("cat", ""), "a/b/c/dog/x/2.png": ("dog", "")},
        "2 class folders in a/b/c/, with folders in them",
    ),
    "names of classes that are text": (
        ["Ünïcode 猫/1.png", "a=b,c/1.png", "T-shirt & top/1.png"],
        {
            "a=b,c/1.png": ("a=b,c", ""),
            "T-shirt & top/1.png": ("T-shirt & top", ""),
            "Ünïcode 猫/1.png": ("Ünïcode 猫", ""),
        },
        "3 class folders",
    ),
    "a folder of files that are no pictures": (
        ["a/1.png", "b/1.png", "heic/1.heic"],
        {"a/1.png": ("a", ""), "b/1.png": ("b", "")},
        "heic/ is no class: none of its 1 files is a picture",
    ),
    "a class in two Unicode forms": (
        ["caf\u00e9/1.png", "cafe\u0301/2.png", "tea/1.png"],
        {
            "cafe\u0301/2.png": ("caf\u00e9", ""),
            "caf\u00e9/1.png": ("caf\u00e9", ""),
            "tea/1.png": ("tea", ""),
        },
        "caf\u00e9: 2 folders, written in different Unicode forms, are one class",
    ),
    "classes that differ by case": (
        ["cat/1.png", "Cat/1.png", "Cat/2.png"],
        {"Cat/1.png": ("Cat", ""), "Cat/2.png": ("Cat", ""), "cat/1.png": ("cat", "")},
        "'Cat' and 'cat' are different classes; to unite them, write dataset.classes with "
        "{Cat: [Cat, cat]}",
    ),
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize(("files", "expected", "said"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_recognised_and_said(
    files: list[str], expected: dict[str, tuple[str, str]], said: str, kind: str, tmp_path: Path
) -> None:
    listing = listed(placed(tmp_path, kind, {name: name.encode() for name in files}))
    assert shape_of(listing) == expected
    assert said in (listing.layout, *listing.notes)
    assert [listing.read(index).decode() for index in range(len(listing))] == list(listing.files)


def test_chosen_folders_within_the_only_one_of_each_split_are_classes(tmp_path: Path) -> None:
    files = ("train/images/a/1.png", "train/images/b/1.png", "test/images/a/2.png")
    touched(tmp_path, *files)
    for classes in (["images/a", "images/b"], ["a", "b"]):
        assert listed(tmp_path, classes=[*classes]).class_names == tuple(classes)


@pytest.mark.parametrize("flat", ["test", "val"])
def test_the_only_folder_of_each_split_is_a_class_where_one_holds_pictures_only(
    flat: str, tmp_path: Path
) -> None:
    split = {"test": "val", "val": "test"}[flat]
    files = [f"{one}/images/{name}/1.png" for one in ("train", split) for name in "ab"]
    told = refusal(touched(tmp_path, *files, f"{flat}/images/1.png"))
    assert "the only class is 'images', but two are needed" in told
    way_out = ["images/a", "images/b"]
    assert told.endswith(f"for those within it, type dataset.classes=[{','.join(way_out)}]")
    assert listed(tmp_path, classes=way_out).class_names == tuple(way_out)


def test_what_lies_beside_splits_within_classes_is_counted(tmp_path: Path) -> None:
    files = ["a/train/1.png", "a/test/2.png", "b/train/3.png", "b/test/4.png"]
    listing = listed(touched(tmp_path, *files, "a/backup/5.png", "a/backup/6.png", "b/cover.png"))
    assert listing.files == tuple(sorted(files))
    assert dict(listing.left_out) == {"outside the folders of the splits": 2, "loose picture": 1}
    # As the message about other classes says, those with splits can be selected.
    touched(tmp_path, "c/7.png")
    assert {*listed(tmp_path).splits} == {""}
    assert {*listed(tmp_path, classes=["a", "b"]).splits} == {"train", "test"}
    # Other folders of these classes can be classes, too.
    (tmp_path / "b/cover.png").unlink()
    deep = listed(tmp_path, classes=["a/backup", "b"])
    assert deep.class_names == ("a/backup", "b")
    assert any("these splits are not used" in note for note in deep.notes)


def test_classes_with_similar_folders_are_no_splits(tmp_path: Path) -> None:
    listing = listed(
        touched(tmp_path, *LAYOUTS["classes with the words of splits in their names"][0])
    )
    assert listing.notes == ()


def test_a_link_that_leads_in_a_circle_is_named_when_it_is_read(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a/self.png").symlink_to("self.png")
    (tmp_path / "b/self").symlink_to("self")
    listing = listed(tmp_path)
    assert listing.files == ("a/1.png", "a/self.png", "b/1.png")
    assert rest(listing.left_out) == "left out: 1 without an ending"
    with pytest.raises(OSError, match="symbolic links"):
        listing.read(1)
    assert [file.name for file in find_files(str(tmp_path)).files] == ["1.png", "self.png", "1.png"]


REFUSED = {
    "a flat folder": (["1.png", "2.png"], "2 pictures lie there without class folders"),
    "one class": (["only/1.png"], "only/ is the only class folder, but two classes are needed"),
    "nothing": ([], "no pictures there"),
    "no pictures": (["a/1.heic"], "no pictures there; left out: 1 .heic"),
    "flat splits": (["train/1.png", "test/1.png"], "test and train hold pictures, but no class"),
    "a class that only the test folder has": (
        ["train/a/1.png", "train/b/1.png", "test/zebra/1.png"],
        "zebra occurs in test, but not in train; remove it there, or select the others: "
        "dataset.classes=[a, b]",
    ),
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize(("files", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_classes_is_refused_with_what_was_found(
    files: list[str], reason: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    path = placed(tmp_path, kind, dict.fromkeys(files, b""))
    told = refusal(path)
    assert told.startswith(f"dataset.path={path}: {reason}")
    if "zebra" not in told:
        name = path.name
        assert f"{name}/CLASS/1.png, {name}/train/CLASS/1.png and {name}/test/CLASS/2.png" in told
        assert f"dataset.path={path}/labels.csv" in told


FOLDERS = ("animals/cat/1.png", "animals/dog/1.png", "animals/dog/2.png", "cars/1.png", "3/1.png")


@pytest.mark.parametrize(
    ("classes", "names", "labels"),
    [
        (["cars", "animals"], ("cars", "animals"), [1, 1, 1, 0]),
        ({"alive": "animals", "other": ["cars", 3]}, ("alive", "other"), [1, 0, 0, 0, 1]),
        (["animals/dog", "animals/cat"], ("animals/dog", "animals/cat"), [1, 0, 0]),
        ({"dog": "animals/dog", "rest": ["animals", "cars"]}, ("dog", "rest"), [1, 0, 0, 1]),
        ([3, "cars"], ("3", "cars"), [0, 1]),
    ],
)
def test_classes_select_order_and_unite(
    classes: Any, names: tuple[str, ...], labels: list[int], tmp_path: Path
) -> None:
    checked = TypeAdapter(Classes).validate_python(classes)
    listing = listed(touched(tmp_path, *FOLDERS), classes=checked)
    assert listing.class_names == names
    assert listing.labels.tolist() == labels
    left = len(FOLDERS) - len(labels)
    assert rest(listing.left_out) == (f"left out: {left} not in dataset.classes" if left else "")


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (["cars", "anmals"], "no pictures of 'anmals'; .*; did you mean 'animals'"),
        ({"a": ["cars", "animal"], "b": 3}, "no pictures of 'animal'"),
        (["cars"], "at least two classes"),
        ([], "at least two classes"),
        ({"a": "cars", "b": ["cars", "animals"]}, "'cars' stands 2 times"),
        ({"pet": [], "a": "cars", "b": "animals"}, "'pet' unites nothing"),
    ],
)
def test_classes_that_do_not_fit_are_refused(classes: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"dataset.classes.*{reason}"):
        listed(touched(tmp_path, *FOLDERS), classes=classes)


@pytest.mark.parametrize("classes", [[True, "a"], [1.5, "a"], {"a": None}, "a"])
def test_words_that_yaml_reads_as_something_else_are_no_names_of_classes(classes: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Classes).validate_python(classes)
    assert classes == "a" or "quote what YAML reads as something else" in str(refused.value)


def test_names_of_classes_in_numbers_are_texts() -> None:
    validate = TypeAdapter(Classes).validate_python
    assert validate({3: [1, "b"], "c": 4}) == {"3": ["1", "b"], "c": "4"}
    assert validate(None) is None


def test_names_are_compared_whatever_way_their_accents_are_written(tmp_path: Path) -> None:
    apart, whole = "e\u0301te\u0301", "\u00e9t\u00e9"  # as macOS and as Linux write it
    touched(tmp_path, f"train/{whole}/1.png", "train/b/1.png", f"test/{apart}/1.png")
    listing = listed(tmp_path, classes=[apart, "b"])
    assert listing.class_names == (whole, "b")
    assert sorted(zip(listing.splits, listing.labels.tolist(), strict=True)) == [
        ("test", 0),
        ("train", 0),
        ("train", 1),
    ]


def test_names_of_classes_can_always_be_stored_and_shown(tmp_path: Path) -> None:
    touched(tmp_path, f"a\nb/{os.fsdecode(bytes([255]))}.png", f"{os.fsdecode(bytes([254]))}/1.png")
    listing = listed(tmp_path)
    assert listing.class_names == ("\\udcfe", "a\\nb")
    assert [len(listing.read(index)) for index in range(2)] == [9, 7]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "dataset.path is empty"),
        ("s3://bucket/photos", "is an address; download"),
        ("fotos", "no such file or folder; did you mean .*photos"),
        ("nowhere/x", "no such file or folder; there is no folder .*nowhere either"),
        ("photos/pipe", "is neither a folder nor a file"),
    ],
)
def test_a_path_that_is_none_is_refused(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touched(tmp_path / "photos", "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "photos/pipe")
    with pytest.raises(RequestError, match=reason):
        listed(path)


def test_the_time_for_many_files_grows_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"class{n % 100}/{n}.png" for n in range(40_000))
    there = Contents(files=names, left_out=Counter())
    monkeypatch.setattr(Folder, "contents", lambda *_: there)
    start = time.process_time()
    listing = listed(tmp_path)
    assert len(listing) == len(names)
    assert time.process_time() - start < 5  # 0.2 s; 100 s if each file were compared with each


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_lists_in_the_folders_of_splits_are_used_together(kind: str, tmp_path: Path) -> None:
    files = {f"set/{split}/{n}.png": b"" for split in ("train", "test") for n in range(4)}
    for split in ("train", "test"):
        rows = "".join(f"{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(3))
        files[f"set/{split}/metadata.csv"] = f"file_name,label\n{rows}".encode()
    listing = listed(placed(tmp_path, kind, files))
    assert shape_of(listing)["set/test/1.png"] == ("cat", "test")
    assert Counter(listing.splits) == {"train": 3, "test": 3}
    assert "train/metadata.csv and " in listing.layout
    assert dict(listing.left_out) == {"not in the list": 2}


def test_a_list_in_the_only_folder_of_a_split_is_used_and_divided(tmp_path: Path) -> None:
    folder = touched(tmp_path, "train/1.png", "train/2.png")
    (folder / "train/metadata.csv").write_text("file_name,label\n1.png,a\n2.png,b\n")
    listing = listed(folder)
    assert shape_of(listing) == {"train/1.png": ("a", ""), "train/2.png": ("b", "")}


def test_pictures_that_a_list_in_their_folder_does_not_name_are_counted(tmp_path: Path) -> None:
    folder = touched(tmp_path, "p/1.png", "p/2.png", "p/3.png", "4.png")
    (folder / "labels.csv").write_text("path,label\np/1.png,a\np/2.png,b\n")
    assert dict(listed(folder).left_out) == {"not in the list": 2}
