from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.data.files import rest
from pipeline.data.listing import listed
from tests.data.test_listing import placed, refusal, touched


def test_stamps_change_with_the_content_of_a_file(tmp_path: Path) -> None:
    listing = listed(touched(tmp_path, "a/1.png", "b/1.png", "b/2.png"))
    before = listing.stamps()
    (tmp_path / "a/1.png").write_text("other")
    (tmp_path / "b/2.png").unlink()
    after = listing.stamps()
    assert before.shape == (3, 4)
    assert (before != after).any(axis=1).tolist() == [True, False, True]
    assert np.array_equal(after[2], [-1, -1, -1, -1])


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_stamps_hold_inodes_and_times_of_any_size(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def stat(*given: Any, **named: Any) -> Any:
        """As of a file system that hashes inodes to 64 bits, and of a file from the year 2446."""
        at = real(*given, **named)
        known = {name: getattr(at, name) for name in dir(at) if name.startswith("st_")}
        large = {"st_ino": 2**63 + at.st_ino, "st_mtime_ns": 15 * 10**18}
        return SimpleNamespace(**known | large)

    listing = listed(placed(tmp_path, kind, {"a/1.png": b"", "b/1.png": b""}))
    monkeypatch.setattr(os, "stat", stat)
    stamps = listing.stamps()
    assert (stamps >= 0).all()
    assert np.array_equal(stamps, listing.stamps())


def test_hidden_files_and_those_of_systems_are_no_classes_and_counted(tmp_path: Path) -> None:
    files = ["a/1.png", "b/1.png", "a/.ipynb_checkpoints/1.png", ".ipynb_checkpoints/1.png"]
    files += [".DS_Store", "a/._1.png", "__MACOSX/a/1.png", "@eaDir/x.png", "b/Thumbs.db", "x.md"]
    for kind in ("folder", "zip", "tar.xz"):
        path = placed(tmp_path, kind, dict.fromkeys(files, b""))
        if kind == "folder":
            (path / "empty").mkdir()
        listing = listed(path)
        assert listing.files == ("a/1.png", "b/1.png")
        expected = {"hidden file": 4, "__MACOSX": 1, "@eaDir": 1, "Thumbs.db": 1, ".md": 1}
        assert dict(listing.left_out) == expected | (
            {"empty folder": 1} if kind == "folder" else {}
        )


# Files that a command leaves where it runs, with the default folders and hydra.run.dir=runs/a.
MADE = (
    *("outputs/2026-11-30/09-00-00/.hydra/config.yaml", "outputs/2026-11-30/09-00-00/run_id"),
    "outputs/2026-11-30/09-00-00/artifacts/plots/curves.png",
    *("multirun/2026-11-30/09-00-00/run_id", "multirun/2026-11-30/09-00-00/0/.hydra/config.yaml"),
    "multirun/2026-11-30/09-00-00/0/artifacts/plots/curves.png",
    *("runs/a/run_id", "runs/a/artifacts/plots/curves.png"),
    *("outputs/2026-11-30/09-00-00-1/.pixpipe", "outputs/2026-11-30/09-00-00-1/comparison.png"),
    *("mlartifacts/1/0a1b/artifacts/plots/curves.png", "mlruns/1/0a1b/artifacts/curves.png"),
    *("data/folder/pixels-0123456789abcdef/entry.json", "data/xla/0123456789abcdef/program.pb"),
    *("data/folder/.pixels-0123456789abcdef.lock", "data/folder/.packing-0123456789abcdef/x"),
    *("venv/pyvenv.cfg", "venv/lib/matplotlib/home.png"),
    "mlflow.db",
)


def test_what_runs_and_programs_made_is_no_class_and_said_once(tmp_path: Path) -> None:
    touched(tmp_path, "cat/1.png", "dog/1.png", "outputs/mine.png", *MADE)
    before = listed(tmp_path)
    assert before.class_names == ("cat", "dog", "outputs")  # a class of that name is still one
    assert before.files == ("cat/1.png", "dog/1.png", "outputs/mine.png")
    assert before.left_out == ((".db", 1),)
    assert before.notes == (
        "left out: folders made by the data cache (data/folder/pixels-0123456789abcdef/, …), "
        "MLflow (mlartifacts/, …), runs (multirun/2026-11-30/09-00-00/, …) and a virtual "
        "environment (venv/, …)",
    )
    # The next run and its entries change nothing.
    later = [name.replace("09-00", "10-00").replace("0123", "9876") for name in MADE]
    touched(tmp_path, *later, "mlartifacts/1/9c8d/artifacts/plots/curves.png")
    after = listed(tmp_path)
    assert (after.files, after.left_out, after.notes) == (
        before.files,
        before.left_out,
        before.notes,
    )


def test_a_list_beside_the_folders_of_runs_is_still_used(tmp_path: Path) -> None:
    touched(tmp_path, "1.png", "2.png", *MADE)
    assert "left out: folders made by " in refusal(tmp_path)
    (tmp_path / "labels.csv").write_text("path,label\n1.png,a\n2.png,b\n")
    assert listed(tmp_path).class_names == ("a", "b")


def test_the_folder_of_a_run_that_is_named_is_read(tmp_path: Path) -> None:
    touched(tmp_path, *(f"outputs/a/{name}" for name in ("run_id", "cat/1.png", "dog/1.png")))
    assert listed(tmp_path / "outputs/a").class_names == ("cat", "dog")


def test_linked_folders_of_splits_are_entered(tmp_path: Path) -> None:
    touched(tmp_path / "a", "cat/1.png", "dog/2.png")
    touched(tmp_path / "b", "cat/3.png", "dog/4.png")
    photos = touched(tmp_path / "photos", "readme.md")
    (photos / "train").symlink_to(tmp_path / "a")
    told = refusal(photos)  # alone, it may be anything
    assert "a linked folder (train) is entered only if dataset.path or dataset.classes" in told
    (photos / "test").symlink_to(tmp_path / "b")
    (photos / "val").symlink_to(photos)  # leads back
    listing = listed(photos)
    assert listing.layout == "train/ and test/ above 2 class folders"
    assert listing.files == (
        "test/cat/3.png",
        "test/dog/4.png",
        "train/cat/1.png",
        "train/dog/2.png",
    )
    assert dict(listing.left_out) == {".md": 1, "linked folder": 1}
    touched(tmp_path / "c", "cat/5.png", "dog/6.png", "bird/7.png")
    (tmp_path / "c/test").symlink_to(tmp_path / "b")  # without train, a class as any other
    assert listed(tmp_path / "c").class_names == ("bird", "cat", "dog")


def test_linked_folders_are_entered_only_if_classes_name_them(tmp_path: Path) -> None:
    touched(tmp_path / "elsewhere", "right/1.png")
    photos = touched(tmp_path / "photos", "left/1.png")
    (photos / "right").symlink_to("../elsewhere/right")
    (photos / "left/loop").symlink_to(".")
    (photos / "left/again.png").symlink_to("1.png")
    told = refusal(photos)
    assert "left/ is the only class folder" in told
    assert "a linked folder (left/loop, right) is entered only if " in told
    listing = listed(photos, classes=["right", "left"])
    assert listing.files == ("left/1.png", "left/again.png", "right/1.png")
    assert listing.class_names == ("right", "left")
    assert rest(listing.left_out) == "left out: 1 linked folder"


def test_a_link_that_leads_back_is_never_entered(tmp_path: Path) -> None:
    photos = touched(tmp_path / "photos", "a/1.png", "b/1.png")
    (photos / "a/b").symlink_to("../../photos")
    (photos / "b/a").symlink_to("../a")
    assert listed(photos, classes=["a", "b"]).files == ("a/1.png", "b/1.png", "b/a/1.png")


def test_folders_that_lie_too_deep_in_one_another_are_refused(tmp_path: Path) -> None:
    touched(tmp_path / "photos", "a/1.png", "b/1.png")
    deep = tmp_path / "photos/a"
    for _ in range(1100):
        deep /= "d"
        deep.mkdir()
    assert "its folders lie too deep in one another" in refusal(tmp_path / "photos")
    subprocess.run(["rm", "-r", tmp_path / "photos"], check=True)  # too deep for pytest, too
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("d/" * 5000 + "1.png", b"")
    assert "photos.zip: the archive is damaged" in refusal(tmp_path / "photos.zip")


def test_a_folder_that_cannot_be_opened_refuses_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched(tmp_path, "a/1.png", "b/1.png", "c/1.png")
    real = os.scandir

    def scandir(path: str) -> Any:
        if Path(path) == tmp_path / "b":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert refusal(tmp_path) == f"{tmp_path}/b cannot be opened: Permission denied"
