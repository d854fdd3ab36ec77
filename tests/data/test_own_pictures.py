"""What public reports about other loaders wanted of pictures and their splits."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.load import ingest
from pipeline.data.pictures import load_picture
from pipeline.data.reading import reason_of
from pipeline.data.values import Array, Index, RawData
from pipeline.system.errors import RequestError
from tests.commands import of_data
from tests.pictures import LEAF, class_folders, noise, put, read
from tests.stress.matrix import matrix, stressed, tally

SIDES = ("left", "right")


def disc(side: str, size: tuple[int, int] = (24, 24), seed: int = 0) -> Array:
    """A bright disc on a dark ground, left or right of the middle."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    centre = (SIDES.index(side) + 0.5) / 2 * width
    inside = (x - centre) ** 2 + (y - height / 2) ** 2 < (min(size) / 5) ** 2
    return np.where(inside, 230, noise(seed, size) % 60).astype(np.uint8)


def index_of(raw: RawData) -> Index:
    assert raw.index is not None
    return raw.index


def notes(raw: RawData) -> str:
    return "\n".join(index_of(raw).notes)


def is_left(images: Array) -> Array:
    """Whether the brighter half of each image is the left one."""
    columns = images.mean(axis=(1, 3))
    half = columns.shape[1] // 2
    left: Array = columns[:, :half].mean(axis=1) > columns[:, -half:].mean(axis=1)
    return left


def test_pictures_are_upright_as_the_camera_says(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x112] = 3
    for side in SIDES:
        for number in range(6):
            pixels, exif = disc(side, seed=number), turned if number % 2 else None
            path = tmp_path / f"photos/{side}/{number}.jpg"
            put(path, pixels[::-1, ::-1] if exif else pixels, **({"exif": exif} if exif else {}))
    raw = read(tmp_path / "photos", tmp_path / "data")
    np.testing.assert_array_equal(is_left(raw.train.images), index_of(raw).labels == 0)


def test_depths_palettes_transparency_and_animations_look_like_plain_pictures(
    tmp_path: Path,
) -> None:
    for side in SIDES:
        place = tmp_path / "photos" / side
        plain = disc(side)
        put(place / "plain.png", plain)
        put(place / "deep.png", plain.astype(np.uint16) * 257)
        put(place / "deep.tif", plain.astype(np.uint16) * 257)
        picture = Image.fromarray(plain)
        mask = Image.fromarray(((plain > 120) * 255).astype(np.uint8))
        Image.merge("LA", (picture, mask)).save(place / "alpha.png")
        picture.convert("RGB").quantize(8).save(place / "palette.gif")
        picture.convert("RGB").convert("CMYK").save(place / "cmyk.jpg", quality=95)
        picture.convert("1").save(place / "bit.png")
        other = Image.fromarray(disc(SIDES[1 - SIDES.index(side)]))
        picture.save(place / "film.gif", save_all=True, append_images=[other] * 3)
    raw = read(tmp_path / "photos", tmp_path / "data")
    assert not index_of(raw).unreadable
    np.testing.assert_array_equal(is_left(raw.train.images), index_of(raw).labels == 0)


def test_pictures_of_any_size_fit(tmp_path: Path) -> None:
    for side in SIDES:
        for number, size in enumerate(
            ((24, 24), (24, 240), (10, 90), (31, 33), (1, 1), (200, 300))
        ):
            put(tmp_path / f"photos/{side}/{number}.png", disc(side, size, seed=number))
    raw = read(tmp_path / "photos", tmp_path / "data")
    assert len(raw.train) + len(raw.test) == 12


def test_colours_of_one_brightness_stay_apart(tmp_path: Path) -> None:
    for name, colour in (("red", (220, 0, 0)), ("green", (0, 112, 0))):
        for number in range(6):
            pixels = np.full((16, 16, 3), colour) + noise(number, (16, 16, 1)) % 5
            put(tmp_path / f"photos/{name}/{number}.png", pixels.clip(0, 255).astype(np.uint8))
    raw = read(tmp_path / "photos", tmp_path / "data")
    red = raw.train.images[..., 0].mean(axis=(1, 2)) > raw.train.images[..., 1].mean(axis=(1, 2))
    names = np.array(raw.class_names)[index_of(raw).labels]
    np.testing.assert_array_equal(red, names == "red")


@matrix(32)
def test_frames_of_a_subject_are_found_to_belong_together(tmp_path: Path) -> None:
    for subject in range(8):
        look, name = noise(subject, (24, 24)).astype(int), ("dog", "cat")[subject % 2]
        for frame in range(4):
            shaken = (look + noise(100 * subject + frame, (24, 24)) % 7 - 3).clip(0, 255)
            path = tmp_path / f"photos/{name}/subject{subject}_{frame}.png"
            put(path, shaken.astype(np.uint8))
    found = read(tmp_path / "photos", tmp_path / "data")
    named = read(tmp_path / "photos", tmp_path / "data", near_duplicates=None, group=r"^(\w+)_")
    for raw in (found, named):
        assert "32 pictures are 8 groups, the largest of 4" in notes(raw)
        subjects = [
            {index_of(raw).files[row].rpartition("_")[0] for row in split.rows}
            for split in (raw.train, raw.test)
        ]
        assert subjects[0] and subjects[1]  # noqa: PT018
        assert not subjects[0] & subjects[1]
    np.testing.assert_array_equal(index_of(found).groups, index_of(named).groups)


def test_settings_without_effect_beside_given_splits_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folders = [f"{split}/{side}" for split in ("train", "test", "val") for side in SIDES]
    for number in range(18):
        put(tmp_path / f"photos/{folders[number % 6]}/{number}.png", noise(number))
    told = "dataset.test_fraction and dataset.seed have no effect: the data has a test split of its"
    for times in (
        1,
        1,
        0,
    ):  # by a run, too, which makes or loads the data; then this process has it
        caplog.clear()
        assert told in notes(read(tmp_path / "photos", tmp_path / "data"))
        assert caplog.text.count(told) == times
    shutil.rmtree(tmp_path / "photos/test")
    assert told not in notes(read(tmp_path / "photos", tmp_path / "data"))


def test_folders_that_look_like_splits_are_warned_of_by_a_run_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(18):
        folder = ("left/train", "left/test", "right")[number % 3]
        put(tmp_path / f"photos/{folder}/{number}.png", noise(number))
    told = "left have folders of splits, but right none of train: these splits are not used"
    for _ in ("made", "loaded"):
        caplog.clear()
        assert told in notes(read(tmp_path / "photos", tmp_path / "data"))
        assert [one.levelname for one in caplog.records if told in one.message] == ["WARNING"]


def test_other_files_beside_the_pictures_make_no_other_data_set(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos")
    before = read(folder, tmp_path / "data")
    for name in ("mlflow.db", "mlflow.db-journal", "predictions.csv", "mlruns/1/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    after = read(folder, tmp_path / "data")
    assert len(list(tmp_path.glob("data/folder/raw-*/"))) == 1
    assert dict(index_of(before).left_out) == {}
    assert dict(index_of(after).left_out) == {".db": 1, ".db-journal": 1, ".csv": 1}
    assert "left out: folders made by MLflow" not in notes(before)
    assert "left out: folders made by MLflow" in notes(after)
    # A recorded run has the remarks of the time when the data set was made.
    config = of_data({**LEAF, "path": str(folder)}, "folder", tmp_path / "data")
    recorded = ingest(config, identity=before.identity)
    assert index_of(recorded).notes == index_of(before).notes
    assert index_of(recorded).left_out == index_of(before).left_out


@matrix(32)
def test_duplicates_between_given_splits_and_classes_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for side in SIDES:
            for number in range(3):
                seed = 10 * number + SIDES.index(side) + 100 * (split == "test")
                put(tmp_path / f"photos/{split}/{side}/{number}.png", noise(seed))
    same = noise(999)
    for name in ("train/left/same.png", "train/right/same.png", "test/left/same.bmp"):
        put(tmp_path / "photos" / name, same)
    raw = read(tmp_path / "photos", tmp_path / "data")
    assert raw.duplicates == 1
    assert "the same picture under two classes: " in notes(raw)
    assert "test/left/same.bmp = train/right/same.png" in notes(raw)
    assert "1 group of pictures is in more than one of the given splits" in notes(raw)
    assert "kept in its split" not in notes(raw)
    assert len(index_of(raw).conflicts) == 1


@pytest.mark.parametrize("splits", [("",), ("train", "test"), ("train", "val", "test")])
def test_undivided_near_duplicates_are_advised_of_where_a_split_is_drawn(
    splits: tuple[str, ...], tmp_path: Path
) -> None:
    for number, split in enumerate(splits):
        for side in SIDES:
            for seed in range(5):
                pixels = noise(100 * number + 10 * SIDES.index(side) + seed)
                put(tmp_path / "photos" / split / side / f"{seed}.png", pixels)
    photo = np.asarray(Image.fromarray(noise(7, (6, 6))).resize((24, 24)))
    put(tmp_path / "photos" / splits[0] / "left/photo.png", photo)
    put(tmp_path / "photos" / splits[0] / "left/lighter.png", (photo * 0.9 + 20).astype(np.uint8))
    said = notes(read(tmp_path / "photos", tmp_path / "data"))
    advice = "" if "val" in splits else "; dataset.near_duplicates=null divides them"
    assert f"near-duplicates, kept in one split: 2 pictures{advice}\n" in said


@matrix(31)
def test_a_class_of_one_picture_is_trained_on_and_named(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", 8)
    put(folder / "rare/1.png", noise(31))
    raw = read(folder, tmp_path / "data")
    assert 2 in raw.train.labels
    why = "a class would be left without pictures to train with"
    assert f"not in the test split, since {why}: rare" in notes(raw)


def test_classes_that_are_one_group_each_cannot_be_tested(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos")
    with pytest.raises(RequestError, match=r"dataset.group=parent: no picture is left to test on"):
        read(folder, tmp_path / "data", group="parent")


def test_groups_that_each_have_the_only_pictures_of_a_class_cannot_be_tested(
    tmp_path: Path,
) -> None:
    for number, place in enumerate(("a/first", "c/first", "b/second", "c/second")):
        for index in range(3):
            put(tmp_path / f"photos/{place}_{index}.png", noise(10 * number + index))
    with pytest.raises(RequestError, match="every group has the only pictures of a class; each"):
        read(tmp_path / "photos", tmp_path / "data", group="^([a-z]+)_")


def test_classes_of_one_picture_each_cannot_be_tested(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", 1)
    with pytest.raises(RequestError, match=r"dataset.path: no picture is left to test on, .*one"):
        read(folder, tmp_path / "data")


def test_classes_of_similar_pictures_cannot_be_tested_unless_these_are_divided(
    tmp_path: Path,
) -> None:
    for number, name in enumerate(("cat", "dog")):
        for index in range(6):
            pixels = np.kron(noise(number, (6, 6)), np.ones((4, 4))) // 2 + index
            put(tmp_path / f"photos/{name}/{index}.png", pixels.astype(np.uint8))
    mend = "and pictures like it; .*; dataset.near_duplicates=null divides similar ones"
    with pytest.raises(RequestError, match=mend):
        read(tmp_path / "photos", tmp_path / "data")
    divided = read(tmp_path / "photos", tmp_path / "data", near_duplicates=None)
    assert sorted(divided.test.labels.tolist()) == [0, 1]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_given_split_that_loses_all_pictures_is_not_drawn_anew(
    split: str, tmp_path: Path
) -> None:
    for name in ("train", "val", "test"):
        class_folders(tmp_path / "photos" / name, 2)
    out = tmp_path / "exclude.csv"
    lost = sorted((tmp_path / "photos" / split).rglob("*.png"))
    out.write_text("\n".join(["file", *map(str, lost)]))
    with pytest.raises(RequestError, match=rf"exclude.csv: leaves no picture to {split}.* on"):
        read(tmp_path / "photos", tmp_path / "data", exclude=str(out))
    for path in lost:
        path.write_bytes(b"")
    with pytest.raises(RequestError, match=f"dataset.path: no picture for {split} can be read"):
        read(tmp_path / "photos", tmp_path / "data", max_bad=0.5)


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_an_archive_gives_what_its_folder_gives(kind: str, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", colour=True)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, folder))
    one, other = read(folder, tmp_path / "data"), read(archive, tmp_path / "data")
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(one.train.images, other.train.images)


def test_columns_of_a_list_are_kept_by_row_and_group_pictures(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", 6)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    lines = [f"{file},{file[:3]},cam{number % 4}" for number, file in enumerate(reversed(files))]
    (folder / "labels.csv").write_text("\n".join(["path,label,camera", *lines]))
    raw = read(folder / "labels.csv", tmp_path / "data", group="camera")
    index = index_of(raw)
    expected = dict(line.split(",")[::2] for line in lines)
    assert dict(zip(index.files, index.columns["camera"], strict=True)) == expected
    cameras = [{index.columns["camera"][row] for row in s.rows} for s in (raw.train, raw.test)]
    assert not cameras[0] & cameras[1]


def test_the_remarks_are_those_on_the_list_that_is_read_not_on_an_equal_one(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", 6)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.png")]
    for name, ending, columns in (("a.csv", "", "path,label"), ("b.csv", " ", "image,class")):
        lines = [columns, *(f"{file},{file[:3]}{ending}" for file in files)]
        (folder / name).write_text("\n".join(lines))
    first, again = (read(folder / name, tmp_path / "data") for name in ("a.csv", "b.csv"))
    assert "with the columns path and label" in notes(first)
    assert "with the columns image and class\nspaces around labels are ignored" in notes(again)
    assert first.fingerprint == again.fingerprint


def mutated(seed: int) -> bytes:
    """A picture of some format with some bytes changed, cut off or repeated."""
    rng = np.random.default_rng(seed)
    kinds = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000")
    buffer = io.BytesIO()
    picture = Image.fromarray(noise(seed, (16, 16, 3)))
    picture.save(buffer, kinds[seed % len(kinds)])
    content = bytearray(buffer.getvalue())
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(0, len(content)))
        match rng.integers(0, 4):
            case 0:
                content[place] = int(rng.integers(0, 256))
            case 1:
                content[place : place + 4] = b"\xff\xff\xff\xff"
            case 2:
                del content[max(1, place) :]
            case 3:
                content[place:place] = content[: int(rng.integers(0, 40))]
    return bytes(content)


MUTATIONS = stressed(2000, 80)


@pytest.mark.filterwarnings("ignore:::PIL")
@matrix(30)
def test_mutated_pictures_are_named_or_what_predict_makes_of_them(tmp_path: Path) -> None:
    tally(MUTATIONS)
    folder = class_folders(tmp_path / "photos", 2)
    for seed in range(MUTATIONS):
        (folder / "cat" / f"{seed}.png").write_bytes(mutated(seed))
    raw = read(folder, tmp_path / "data", size=8, channels=3, max_bad=1.0)
    reasons, index = dict(index_of(raw).unreadable), index_of(raw)
    assert len(reasons) + len(index.files) == MUTATIONS + 4
    assert len(reasons) > MUTATIONS / 10
    rows = {file: row for row, file in enumerate(index.files)}
    for seed in range(MUTATIONS):
        name = f"cat/{seed}.png"
        try:
            expected = load_picture(folder / name, (8, 8, 3))
        except Exception as error:
            assert reasons[name] == reason_of(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(raw.train.images[rows[name]], expected)
