"""A user's own pictures from the folder to predictions, by the commands that a user types."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.api import find_run
from tests.commands import configured, inside, pipeline, results
from tests.pictures import noise, put

pytestmark = pytest.mark.slow

RUN = ("dataset=folder", "model=linear", "train.epochs=3", "optimizer.learning_rate=0.01")


def photos(folder: Path) -> Path:
    """Colour pictures of several sizes that are bright above or below, and one that is none."""
    for number in range(40):
        height, width = (24, 30) if number % 3 else (200, 90)
        pixels = noise(number, (height, width, 3)) // 4
        name = ("above", "below")[number % 2]
        half = slice(0, height // 2) if name == "above" else slice(height // 2, None)
        pixels[half] += 150
        put(folder / name / f"{number}.{'jpg' if number % 4 else 'png'}", pixels)
    (folder / "above/broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with the photos and the store, and the id of a run."""
    place = tmp_path_factory.mktemp("own")
    path = photos(place / "photos")
    done = pipeline(*RUN, f"dataset.path={path}", "dataset.size=16", "dataset.fit=crop", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "above/broken.jpg: not an image in a readable format" in done.stderr
    assert "packing 41 pictures" in done.stderr
    found = results(done.stdout)
    assert float(found["test_accuracy"]) >= 0.75
    return place, found["run_id"]


def test_the_same_files_give_the_same_images_in_training_and_predicting(
    trained: tuple[Path, str],
) -> None:
    place, run_id = trained
    done = pipeline(
        *("predict", "dataset=folder", f"run_id={run_id}", "images=photos/below"), cwd=place
    )
    assert done.returncode == 0, done.stderr
    with (place / "predictions.csv").open() as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    with inside(place):
        run = find_run(run_id, config=configured("dataset=folder"))
        stored, packed = run.predictions(), run.load_model()
        assert packed.input_shape[1:] == (16, 16, 3)
    [index] = place.glob("data/folder/raw-*/test_rows.npy")
    test_rows = np.load(index)
    [content] = place.glob("data/folder/pixels-*/files.npy")
    ends = np.load(content.with_name("file_ends.npy"))
    starts = [0, *ends[:-1]]
    text = np.load(content).tobytes()
    names = [text[a:b].decode() for a, b in zip(starts, ends, strict=True)]
    compared = 0
    for probs, row in zip(stored["test_probs"], test_rows, strict=True):
        name = Path(names[row]).name
        if name in rows:
            assert rows[name]["class"] == ("above", "below")[probs.argmax()]
            assert float(rows[name]["probability"]) == pytest.approx(probs.max(), abs=2e-6)
            compared += 1
    assert compared


def test_a_recorded_run_needs_its_folder_no_more(trained: tuple[Path, str]) -> None:
    place, run_id = trained
    moved = shutil.move(place / "photos", place / "elsewhere")
    try:
        for verb in ("evaluate", "promote"):
            done = pipeline(verb, "dataset=folder", f"run_id={run_id}", cwd=place)
            assert done.returncode == 0, (verb, done.stderr, done.stdout)
    finally:
        shutil.move(moved, place / "photos")
