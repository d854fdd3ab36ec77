from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.schema import Checks
from pipeline.data import checks
from pipeline.data.checks import apply, called, conflicts, findings_of
from pipeline.data.measures import Measures, measured
from pipeline.data.values import RawData
from pipeline.system.errors import RequestError
from tests.commands import configured
from tests.data.test_exclusion import listed
from tests.data.test_load import synthetic
from tests.data.test_measures import of_arrays
from tests.pictures import class_folders, noise, put, read
from tests.stress.matrix import matrix


def looked_for(*overrides: str) -> Checks:
    words = (f"ingest.checks.{word}" for word in overrides)
    return configured("dataset=folder", "dataset.path=photos", *words).ingest.checks


def keys(raw: RawData, measures: Measures, wanted: Checks) -> set[str]:
    return {one.key.removeprefix("ingest.checks.") for one in findings_of(raw, measures, wanted)}


@matrix(31, 32)
def test_each_check_finds_what_is_beyond_its_limit_and_the_limit_it_names_accepts_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = class_folders(tmp_path / "photos", count=30)
    put(folder / "cat" / "twice.png", noise(1003))  # a dog's
    put(folder / "cat" / "blank.png", np.full((12, 12), 7, np.uint8))
    (folder / "dog" / "torn.png").write_bytes(b"torn")
    for number in range(27):
        (folder / "dog" / f"{number:03d}.png").unlink(missing_ok=number != 3)
    put(folder / "dog" / "003.png", noise(1003))
    raw = read(folder, tmp_path / "data", size=12)
    measures = measured(raw, tmp_path / "data")
    found = findings_of(raw, measures, looked_for("imbalance.limit=5"))
    said = {one.key.removeprefix("ingest.checks."): str(one) for one in found}
    assert said.keys() == {"smallest_class", "imbalance", "bad_files", "conflicts", "blank"}
    assert "dog (" in said["smallest_class"]
    assert "train.class_weight=balanced" in said["imbalance"]
    assert "1 of 37 files cannot be read: dog/torn.png (" in said["bad_files"]
    assert "cat/twice.png = dog/003.png" in said["conflicts"]
    assert "cat/blank.png" in said["blank"]
    accepting = [f"{key}.limit={one.accepting:g}" for key, one in zip(said, found, strict=True)]
    assert keys(raw, measures, looked_for(*accepting)) == set()
    caplog.set_level(logging.WARNING, checks.__name__)
    apply(found)
    assert {record.message for record in caplog.records} >= set(said.values())


def test_every_one_of_several_equal_images_under_two_classes_counts(tmp_path: Path) -> None:
    images = np.concatenate([np.repeat(noise(1, (1, 4, 4, 1)), 5, axis=0), noise(2, (3, 4, 4, 1))])
    raw, measures = of_arrays(images, [0, 1, 0, 1, 0, 0, 1, 1], tmp_path)
    assert conflicts(raw, measures).tolist() == [[0, 1], [0, 3], [1, 2], [1, 4]]
    [found] = [
        one
        for one in findings_of(raw, measures, looked_for("conflicts.limit=0.4"))
        if one.key == "ingest.checks.conflicts"
    ]
    assert "5 of 10 images occur under two classes" in str(found)
    [least] = [
        str(one)
        for one in findings_of(raw, measures, looked_for("conflicts.limit=0.00001"))
        if one.key == found.key
    ]
    assert "(50.00%, more than <0.01%)" in least


def test_what_is_to_be_refused_is_and_what_is_to_be_ignored_is_not_told(tmp_path: Path) -> None:
    raw, measures = of_arrays(noise(1, (4, 4, 4, 1)), [0, 0, 0, 1], tmp_path)
    wanted = looked_for("smallest_class.action=refuse", "smallest_class.limit=2")
    with pytest.raises(RequestError, match=r"fewer than 2 training images: dog \(1\)") as refused:
        apply(findings_of(raw, measures, wanted))
    assert "ingest.checks.smallest_class.limit=1 accepts it" in str(refused.value)
    assert keys(raw, measures, looked_for("smallest_class.action=ignore")) == set()
    assert keys(raw, measures, looked_for()) == {"smallest_class"}


def test_arrays_are_searched_for_equal_and_blank_images_too(tmp_path: Path) -> None:
    images = noise(1, (4, 4, 4, 1))
    images[3], images[1] = images[0], 255
    raw, measures = of_arrays(images, [0, 0, 1, 1], tmp_path)
    wanted = looked_for("smallest_class.action=ignore")
    found = {one.key: one.text for one in findings_of(raw, measures, wanted)}
    assert "train no. 0 = train no. 3" in found["ingest.checks.conflicts"]
    assert found["ingest.checks.blank"].endswith("images are of one colour: train no. 1")


def test_an_image_of_an_array_is_called_as_the_list_that_excludes_it_names_it(
    tmp_path: Path,
) -> None:
    left = synthetic(tmp_path, exclude=listed(tmp_path, "train,3", head="split,index"))
    row = int(left.train.rows[5])
    assert called(left, row) == "train no. 6"
    again = synthetic(tmp_path, exclude=listed(tmp_path, "train,6", head="split,index"))
    assert row not in again.train.rows


def test_the_very_share_of_a_limit_is_accepted(tmp_path: Path) -> None:
    images = noise(1, (98, 4, 4, 1))
    images[:29] = np.arange(29, dtype=np.uint8).reshape(29, 1, 1, 1)  # each of one colour
    raw, measures = of_arrays(images, [0, 1] * 49, tmp_path)
    assert "blank" not in keys(raw, measures, looked_for("blank.limit=0.29"))
    assert "blank" in keys(raw, measures, looked_for("blank.limit=0.28"))
