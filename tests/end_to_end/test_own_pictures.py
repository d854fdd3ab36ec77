"""A user's own pictures from the folder to predictions, by the commands that a user types."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from pipeline.api import find_run
from pipeline.run import run
from pipeline.verbs.reproduce.command import Verdict
from tests.commands import carried_out, configured, inside, pipeline, results
from tests.pictures import noise
from tests.stress.matrix import only_stressed
from tests.verbs.serve.test_command import serving

pytestmark = pytest.mark.slow

RUN = ("dataset=folder", "model=linear", "train.epochs=3", "optimizer.learning_rate=0.01")
# As folders may be called: a combining mark; an emoji of two characters, from right to left.
FOLDERS = ("unten n\u0303", "\u2b06\ufe0f فوق")
NAMES = ("unten \u00f1", "\u2b06\ufe0f فوق")  # as classes, in natural order
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif"}


def photos(folder: Path) -> Path:
    """Pictures of many kinds and sizes that are bright above or below, and one that is none."""
    for number in range(64):
        height, width = (24, 30) if number % 3 else (200, 90)
        pixels = noise(number, (height, width, 3)) // 4
        name = FOLDERS[number % 2]
        half = slice(height // 2, None) if name == FOLDERS[0] else slice(0, height // 2)
        pixels[half] += 150
        picture, ending, options = Image.fromarray(pixels), ".jpg", {}
        match number // 2 % 6:
            case 0:
                picture.putalpha(Image.fromarray(noise(number, (height, width)) | 128))
                ending = ".png"
            case 1:
                exif = Image.Exif()
                exif[0x0112] = 6  # to be turned clockwise
                picture, options = Image.fromarray(np.rot90(pixels)), {"exif": exif}
            case 2:
                picture = picture.convert("CMYK")
            case 3:
                picture, ending = picture.quantize(64), ".gif"
            case 4:
                deep = pixels.mean(axis=2).astype(np.uint16) * 256 + noise(number, pixels.shape[:2])
                picture, ending = Image.fromarray(deep), ".png"
        path = folder / name / f"{number}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **options)
    (folder / FOLDERS[0] / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with the photos and the store, and the id of a run."""
    place = tmp_path_factory.mktemp("own")
    path = photos(place / "photos")
    done = pipeline(*RUN, f"dataset.path={path}", "dataset.size=16", "dataset.fit=crop", cwd=place)
    assert done.returncode == 0, done.stderr
    assert f"{FOLDERS[0]}/broken.jpg: not an image in a readable format" in done.stderr
    assert "packing 65 pictures" in done.stderr
    found = results(done.stdout)
    assert float(found["test_accuracy"]) >= 0.75
    return place, found["run_id"]


@pytest.fixture(scope="module")
def evaluated(trained: tuple[Path, str]) -> Mapping[str, np.ndarray]:
    """The probabilities f32[2] that the run recorded of each test picture, by its file."""
    place, run_id = trained
    with inside(place):
        stored = find_run(run_id, config=configured("dataset=folder")).predictions()
    assert stored["test"].class_names == tuple(NAMES)
    [index] = place.glob("data/folder/raw-*/test_rows.npy")
    [content] = place.glob("data/folder/pixels-*/files.npy")
    ends = np.load(content.with_name("file_ends.npy"))
    text = np.load(content).tobytes()
    files = [text[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    rows = np.load(index)
    probabilities = stored["test"].probabilities
    return {files[row]: probs for row, probs in zip(rows, probabilities, strict=True)}


def test_predict_gives_each_picture_the_probability_that_the_run_recorded(
    trained: tuple[Path, str], evaluated: Mapping[str, np.ndarray]
) -> None:
    place, run_id = trained
    done = pipeline("predict", "dataset=folder", f"run_id={run_id}", "images=photos", cwd=place)
    assert done.returncode == 1, done.stderr  # one is broken
    with (place / "predictions.csv").open(encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(evaluated) >= 10
    for name, probs in evaluated.items():
        row = rows[f"photos/{name}"]
        assert row["class"] == NAMES[probs.argmax()]
        assert float(row["probability"]) == pytest.approx(probs.max(), abs=2e-6), name


def test_serve_answers_a_picture_of_any_kind_with_the_same_probabilities(
    trained: tuple[Path, str], evaluated: Mapping[str, np.ndarray]
) -> None:
    place, run_id = trained
    with inside(place):
        uri = find_run(run_id, config=configured("dataset=folder")).model_uri
    asked = set()
    with serving("serve", f"model_uri={uri}", "port=0", cwd=place) as (_, _, address):
        for name, probs in evaluated.items():
            file = place / "photos" / name
            asked.add(file.suffix)
            answer = requests.post(
                f"{address}/predict",
                data=file.read_bytes(),
                headers={"Content-Type": KINDS[file.suffix]},
                timeout=30,
            )
            [found] = answer.json()["predictions"]
            assert found["class"] == NAMES[probs.argmax()]
            given = [found["probabilities"][one] for one in NAMES]
            np.testing.assert_allclose(given, probs, atol=2e-6, err_msg=name)
    assert asked == KINDS.keys()


def test_a_run_that_was_stopped_is_resumed_and_reproduced_without_its_folder(
    trained: tuple[Path, str],
) -> None:
    place, run_id = trained
    words = (*RUN, f"dataset.path={place}/photos", "dataset.size=16", "dataset.fit=crop")

    def stop(epoch: int, logs: dict[str, float]) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with inside(place), pytest.raises(KeyboardInterrupt):
        run(configured(*words), place / "stopped", stop)
    moved = shutil.move(place / "photos", place / "elsewhere")
    try:
        with inside(place):
            resumed = carried_out("resume", "dataset=folder", "run_id=latest", folder=place / "r")
            again = carried_out(
                "reproduce", "dataset=folder", f"run_id={run_id}", folder=place / "a"
            )
            config = configured("dataset=folder")
            runs = [find_run(one, config=config) for one in (run_id, resumed.run_id)]
            whole, continued = (one.predictions()["test"].probabilities for one in runs)
        np.testing.assert_array_equal(whole, continued)
        assert again.verdict is Verdict.IDENTICAL
        for verb in ("evaluate", "promote"):
            done = pipeline(verb, "dataset=folder", f"run_id={run_id}", cwd=place)
            assert done.returncode == 0, (verb, done.stderr, done.stdout)
    finally:
        shutil.move(moved, place / "photos")


@only_stressed  # data/test_cache.py has processes that ask at once for one entry
def test_the_jobs_of_a_sweep_share_one_packed_copy(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    place, _ = trained
    words = ("dataset.size=16", "evaluate.report=false", "train.plots=[]", "evaluate.plots=[]")
    done = pipeline(
        *("-m", *RUN, f"dataset.path={place}/photos", "seed=0,1", *words),
        *("hydra.launcher.n_jobs=2", "sweep.keep_models=1"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len([*tmp_path.glob("data/folder/pixels-*/entry.json")]) == 1
    written = "".join(path.read_text() for path in tmp_path.glob("multirun/**/*.log"))
    assert (done.stderr + written).count("packed 64 pictures") <= 1
