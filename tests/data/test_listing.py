from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data.listing import listed


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_class_folders_are_listed_in_natural_order(tmp_path: Path) -> None:
    listing = listed(touched(tmp_path, "10/1.png", "2/b.jpg", "2/a.PNG", "2/x.txt", "c.png"))
    assert listing.files == ("2/a.PNG", "2/b.jpg", "10/1.png")
    assert listing.class_names == ("2", "10")
    assert listing.labels.tolist() == [0, 0, 1]
    assert listing.rest == "left out: 1 .txt, 1 loose picture"
    assert [listing.read(index) for index in range(3)] == [b"2/a.PNG", b"2/b.jpg", b"10/1.png"]


def test_stamps_change_with_the_content_of_a_file(tmp_path: Path) -> None:
    listing = listed(touched(tmp_path, "a/1.png", "b/1.png", "b/2.png"))
    before = listing.stamps()
    (tmp_path / "a/1.png").write_text("other")
    (tmp_path / "b/2.png").unlink()
    after = listing.stamps()
    assert before.shape == (3, 4)
    assert (before != after).any(axis=1).tolist() == [True, False, True]
    assert np.array_equal(after[2], [-1, -1, -1, -1])
