from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.system.errors import RequestError
from pipeline.system.files import replacing, require_others
from tests.stress.matrix import matrix


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@matrix(22)
def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with replacing(path) as part:
        part.mkdir()
        (part / "new").touch()
    assert [file.name for file in path.iterdir()] == ["new"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.mkdir()
        raise RuntimeError
    assert [file.name for file in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_lies_beside_and_keeps_the_suffix(tmp_path: Path) -> None:
    with replacing(tmp_path / "model.keras") as part:
        part.touch()
        assert part.parent == tmp_path
        assert part.suffix == ".keras"


@matrix(23)
def test_a_place_that_cannot_be_written_is_an_os_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught, replacing(tmp_path / "file" / "a.txt"):
        pass
    assert str(tmp_path / "file") in str(caught.value.filename)


def test_results_replace_neither_one_another_nor_what_is_read(tmp_path: Path) -> None:
    table, other, read = (tmp_path / name for name in ("a.csv", "new/b.csv", "list.csv"))
    read.touch()
    require_others([table, other], [read, tmp_path / "nowhere", Path("a\0b")], "path=list.csv")
    with pytest.raises(RequestError, match="a.csv: two results cannot be one file"):
        require_others([other, table, tmp_path / "new/../a.csv"], [], "path=list.csv")
    with pytest.raises(RequestError, match="new.csv: is a folder; name a file"):
        (tmp_path / "new.csv").mkdir()
        require_others([table, tmp_path / "new.csv"], [], "path=list.csv")
    table.symlink_to(read)
    with pytest.raises(RequestError, match="a.csv: is one of path=list.csv, and would be replaced"):
        require_others([other, table], [read], "path=list.csv")
