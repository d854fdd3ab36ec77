from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.util import Finalize
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pytest
from PIL import Image
from pyarrow import parquet

from pipeline.data.files import FoundFiles, Unreadable
from pipeline.data.reading import Block
from pipeline.system.errors import PipelineError, RequestError
from pipeline.tracking.client import connect
from pipeline.tracking.models import LoadedModel
from pipeline.verbs.predict import command as module
from pipeline.verbs.predict.command import classifier
from tests.commands import QUICK, Terminal, carried_out, inside, pipeline, results
from tests.pictures import blank_png
from tests.stress.matrix import matrix

Rows = list[dict[str, str]]


def brightness_model() -> LoadedModel:
    """Calls an image `bright` by its mean brightness; it was trained on dark borders."""
    images = keras.Input((4, 4, 1), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(images))
    layer = keras.layers.Dense(2, activation="softmax")
    model = keras.Model(images, layer(mean))
    layer.set_weights([np.array([[-8, 8]], np.float32), np.array([4, -4], np.float32)])
    return LoadedModel(
        model=model,
        uri="models:/m-1",
        logged_uri="models:/m-1",
        class_names=("dim", "bright"),
        image_shape=(4, 4, 1),
        example=None,
        dark_border=1.0,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; whichever model is asked for judges brightness."""
    monkeypatch.setattr("pipeline.tracking.models.load_model", lambda *_: brightness_model())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    return tmp_path


def drawn(path: Path, *, border: int, inside: int) -> Path:
    pixels = np.full((40, 40), border, np.uint8)
    pixels[10:30, 10:30] = inside
    Image.fromarray(pixels).save(path)
    return path


def asked(folder: Path, **settings: str) -> None:
    words = {"images": "photos"} | settings
    carried_out(
        "predict", *(f"predict.{key}={value}" for key, value in words.items()), folder=folder
    )


def rows(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_an_image_and_a_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn(folder / "photos/2.png", border=0, inside=0)
    drawn(folder / "photos/10.png", border=100, inside=255)
    asked(folder)
    first, second = rows(folder / "predictions.csv")
    assert (first["file"], first["class"], first["inverted"]) == ("photos/2.png", "dim", "false")
    assert float(first["probability"]) == pytest.approx(1 / (1 + np.exp(-8)), abs=1e-6)
    assert second["class"] == "bright"
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "images=2 skipped=0 output=predictions.csv"
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["dim", "bright"]
    assert err == ""


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_the_pictures_of_an_archive_are_classified_where_they_are(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(folder / "photos/2.png", border=0, inside=0)
    (folder / "photos/new").mkdir()
    drawn(folder / "photos/new/10.jpg", border=100, inside=255)
    (folder / "photos/new/notes.txt").touch()
    (folder / "photos/new/broken.png").write_bytes(b"x")
    archive = Path(shutil.make_archive("packed", kind, folder / "photos")).name
    with pytest.raises(PipelineError, match="1 of 3 files cannot be read"):
        asked(folder, images=archive)
    assert [(row["file"], row["class"]) for row in rows(folder / "predictions.csv")] == [
        (f"{archive}/2.png", "dim"),
        (f"{archive}/new/10.jpg", "bright"),
    ]
    err = capsys.readouterr().err
    assert "left out: 1 .txt" in err
    assert f"skipped {archive}/new/broken.png: not an image" in err
    (folder / "photos/new/broken.png").unlink()
    asked(folder, images=Path(shutil.make_archive("packed", kind, folder / "photos")).name + "/new")
    assert [row["class"] for row in rows(folder / "predictions.csv")] == ["bright"]


def test_an_archive_without_pictures_is_refused(folder: Path) -> None:
    (folder / "photos/notes.txt").touch()
    archive = shutil.make_archive("packed", "zip", folder / "photos")
    with pytest.raises(RequestError, match=r"packed.zip: no pictures there; name the folder"):
        asked(folder, images=Path(archive).name)


def test_a_model_that_is_named_twice_is_refused(folder: Path) -> None:
    words = ("predict.images=photos", "predict.model_uri=models:/m-1", "run_id=abc")
    with pytest.raises(RequestError, match="model_uri=models:/m-1 and run_id=abc: give one"):
        carried_out("predict", *words, folder=folder)


def test_what_is_dark_on_light_is_inverted_for_a_model_of_light_on_dark(folder: Path) -> None:
    drawn(folder / "photos/a.png", border=255, inside=250)
    drawn(folder / "photos/b.png", border=10, inside=0)
    asked(folder)
    assert [(r["class"], r["inverted"]) for r in rows(folder / "predictions.csv")] == [
        ("dim", "true"),
        ("dim", "false"),
    ]


@pytest.mark.parametrize(("invert", "expected"), [("yes", "dim"), ("no", "bright")])
def test_inversion_can_be_told(invert: str, expected: str, folder: Path) -> None:
    drawn(folder / "photos/a.png", border=255, inside=250)
    asked(folder, invert=invert)
    [row] = rows(folder / "predictions.csv")
    assert (row["class"], row["inverted"]) == (expected, {"yes": "true", "no": "false"}[invert])


@pytest.mark.parametrize("dark_border", [None, 0.5])
def test_without_a_rule_in_the_training_images_nothing_is_inverted(
    dark_border: float | None,
) -> None:
    white = Block(
        images=np.full((1, 4, 4, 1), 255, np.uint8), files=(Path("a.png"),), indices=(None,)
    )
    model = replace(brightness_model(), dark_border=dark_border)
    assert classifier(model, "auto")(white).inverted.tolist() == [False]


def test_predictions_are_those_of_keras_for_every_image_of_an_array(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4), np.uint8)
    np.save(folder / "photos/a.npy", images)
    asked(folder, output="out/a.json", batch_size="7", invert="no")
    lines = [json.loads(line) for line in (folder / "out/a.json").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(50))
    expected = brightness_model().model.predict(images[..., np.newaxis], verbose=0)
    assert [line["probability"] for line in lines] == pytest.approx(expected.max(axis=1), abs=1e-5)


def test_what_cannot_be_read_is_listed_and_the_rest_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(folder / "photos/a.png", border=0, inside=0)
    (folder / "photos/b[1].png").write_text("no image")
    with pytest.raises(PipelineError, match=r"^1 of 2 files cannot be read; .* predictions.csv$"):
        asked(folder)
    assert len(rows(folder / "predictions.csv")) == 1
    out, err = capsys.readouterr()
    assert err == "skipped photos/b[1].png: not an image in a readable format\n"
    assert out.splitlines()[-1] == "images=1 skipped=1 output=predictions.csv"


def test_a_folder_that_cannot_be_looked_into_is_listed_and_the_rest_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(folder / "photos/a.png", border=0, inside=0)
    closed = Unreadable(file=Path("photos/closed"), reason="Permission denied")
    found = FoundFiles(files=(Path("photos/a.png"),), unreadable=(closed,))
    monkeypatch.setattr(module, "find_images", lambda images, **_: (found, nullcontext))
    with pytest.raises(PipelineError, match=r"^0 of 1 files and 1 folder cannot be read; the"):
        asked(folder)
    assert len(rows(folder / "predictions.csv")) == 1
    out, err = capsys.readouterr()
    assert err == "skipped photos/closed: Permission denied\n"
    assert out.splitlines()[-1] == "images=1 skipped=1 output=predictions.csv"


def test_the_column_of_a_parquet_file_is_the_one_that_the_run_was_trained_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimpleNamespace(
        model_uri="models:/m-1", config=SimpleNamespace(dataset={"path_column": "scan"})
    )
    monkeypatch.setattr("pipeline.tracking.runs.find_trained", lambda *_: run)
    dark = drawn(folder / "dark.png", border=0, inside=0).read_bytes()
    bright = drawn(folder / "bright.png", border=0, inside=255).read_bytes()
    table = pyarrow.table({"mask": [dark] * 2, "scan": [dark, bright]})
    parquet.write_table(table, folder / "new.parquet")
    carried_out("predict", "predict.images=new.parquet", "run_id=abc", folder=folder)
    found = rows(folder / "predictions.csv")
    assert [Path(row["file"]).parent.name for row in found] == ["scan", "scan"]


def test_nothing_readable_writes_nothing(folder: Path) -> None:
    (folder / "photos/a.png").write_text("no image")
    (folder / "predictions.csv").write_text("of an earlier time")
    with pytest.raises(PipelineError, match="none of the files can be read; .* is not written"):
        asked(folder)
    assert (folder / "predictions.csv").read_text() == "of an earlier time"
    assert {path.name for path in folder.iterdir()} >= {"photos", "predictions.csv"}
    assert [path for path in folder.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("output", ["a.csv", "a.parquet", "a.json"])
def test_an_interrupted_run_leaves_no_half_file(
    output: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(folder / "photos/a.npy", np.zeros((9, 4, 4), np.uint8))

    def second_time_interrupted(model: LoadedModel, invert: str) -> Callable[[Block], object]:
        classify, calls = classifier(model, invert), iter([None])

        def interrupted(block: Block) -> object:
            if next(calls, "over") == "over":
                raise KeyboardInterrupt
            return classify(block)

        return interrupted

    monkeypatch.setattr(module, "classifier", second_time_interrupted)
    with pytest.raises(KeyboardInterrupt, match=rf"^3 images were classified, {output} is not"):
        asked(folder, output=output, batch_size="3")
    assert [path.name for path in folder.iterdir() if output[0] == path.stem[-1:]] == []
    assert [path for path in folder.iterdir() if "partial" in path.name] == []


def test_a_bar_is_not_at_its_end_before_the_last_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(folder / "photos/a.npy", np.zeros((1000, 4, 4), np.uint8))

    def interrupted(model: LoadedModel, invert: str) -> Callable[[Block], object]:
        def classify(block: Block) -> object:
            raise KeyboardInterrupt

        return classify

    monkeypatch.setattr(module, "classifier", interrupted)
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    with pytest.raises(KeyboardInterrupt):
        asked(folder, batch_size="499")
    assert ">99 %  998 images" in shown.getvalue()


def test_a_page_of_the_images_is_drawn_where_it_is_asked_for(folder: Path) -> None:
    drawn(folder / "photos/a.png", border=255, inside=0)
    asked(folder, contact_sheet="sheets/page.png")
    with Image.open(folder / "sheets/page.png") as page:
        assert page.format == "PNG"


def test_names_reach_the_table_as_they_are_and_the_terminal_without_its_controls(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, odd = "a\x1b[31m\n.png", "b\r\x1b]0;.png"
    drawn(folder / "photos" / name, border=0, inside=0)
    (folder / "photos" / odd).write_bytes(b"broken")
    (folder / "photos/c.h\x1b[2J").write_bytes(b"another")
    with pytest.raises(PipelineError):
        asked(folder)
    assert [row["file"] for row in rows(folder / "predictions.csv")] == [f"photos/{name}"]
    assert capsys.readouterr().err == (
        "left out: 1 .h\\x1b[2j\n"
        "skipped photos/b\\r\\x1b]0;.png: not an image in a readable format\n"
    )


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"contact_sheet": "photos/a.png"}, "photos/a.png"),
        ({"contact_sheet": "b.png", "images": "."}, "b.png"),
        ({"explain": "true", "images": "*.png"}, "predictions.explained.png"),
    ],
)
def test_no_page_replaces_a_picture_that_is_classified(
    settings: dict[str, str], name: str, folder: Path
) -> None:
    for file in ("photos/a.png", "b.png", "predictions.explained.png"):
        drawn(folder / file, border=0, inside=0)
    before = (folder / name).read_bytes()
    with pytest.raises(RequestError, match=f"^{re.escape(name)}: is one of images="):
        asked(folder, **settings)
    assert (folder / name).read_bytes() == before
    assert not (folder / "predictions.csv").exists()


@matrix(23)
@pytest.mark.parametrize(("key", "name"), [("output", "a.parquet"), ("contact_sheet", "a.png")])
def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    key: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(folder / "photos/a.png", border=0, inside=0)
    monkeypatch.setattr("pipeline.tracking.models.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RequestError, match="/proc/self: cannot be written"):
        asked(folder, **{key: f"/proc/self/{name}"})


def test_what_spoke_for_the_predictions_is_drawn_beside_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(folder / "photos/a.png", border=100, inside=255)
    asked(folder, explain="true", output="found.json")
    with Image.open(folder / "found.explained.png") as page:
        assert page.width > page.height
        pixels = np.asarray(page.convert("RGB")).astype(int)
    assert (pixels[..., 0] - pixels[..., 1] > 120).any(), "some of it is red"
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "explained=found.explained.png",
        "images=1 skipped=0 output=found.json",
    ]


@matrix(35)
def test_a_model_of_other_channels_than_pictures_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(tmp_path / "a.png", border=0, inside=0)
    odd = replace(brightness_model(), image_shape=(4, 4, 5))
    monkeypatch.setattr("pipeline.tracking.models.load_model", lambda uri, tracking: odd)
    with pytest.raises(RequestError, match="takes 5 channels"):
        carried_out("predict", f"predict.images={tmp_path}/a.png", folder=tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with a store in which a finished run has a model, and what the run said."""
    made = tmp_path_factory.mktemp("trained")
    ended = pipeline(*QUICK, cwd=made)
    assert ended.returncode == 0, ended.stderr
    np.save(made / "images.npy", np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8))
    return made, results(ended.stdout)


@pytest.mark.slow
def test_the_command_line_classifies_by_a_runs_model_and_by_the_champion(
    trained: tuple[Path, dict[str, str]],
) -> None:
    folder, said = trained
    by_run = pipeline("predict", "run_id=latest", "dataset=synthetic", "images=*.npy", cwd=folder)
    assert by_run.returncode == 0, by_run.stderr
    assert results(by_run.stdout) == {"images": "20", "skipped": "0", "output": "predictions.csv"}
    with inside(folder):  # MLflow looks the source up in the process' own store
        client = connect(None)
        client.create_registered_model("synthetic")
        version = client.create_model_version("synthetic", said["model_uri"], said["run_id"])
        client.set_registered_model_alias("synthetic", "champion", version.version)
    words = ("dataset=synthetic", "images=images.npy", "output=b.csv")
    by_alias = pipeline("predict", *words, cwd=folder)
    assert by_alias.returncode == 0, by_alias.stderr
    assert by_alias.stderr == ""
    assert rows(folder / "b.csv") == rows(folder / "predictions.csv")
    missing = pipeline("predict", *words[1:], "model_uri=models:/synthetic@best", cwd=folder)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == (
        "model_uri=models:/synthetic@best: no such model; "
        "registered are models:/synthetic@champion\n"
    )


@pytest.mark.slow
def test_a_model_loads_with_what_it_was_saved_with(
    trained: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    from pipeline.config.schema import Tracking
    from pipeline.tracking.models import load_model

    folder, said = trained
    tracking = Tracking(uri=f"sqlite:///{folder}/mlflow.db")
    loaded = load_model(said["model_uri"], tracking)
    assert loaded.logged_uri == said["model_uri"]
    assert loaded.image_shape == (28, 28, 1)
    assert len(loaded.class_names) == loaded.model.output_shape[1]
    assert loaded.example is not None
    assert (loaded.example.shape[1:], loaded.example.dtype) == ((28, 28, 1), np.uint8)
    assert loaded.dark_border is not None
    [saved] = folder.rglob("MLmodel")
    foreign = Path(shutil.copytree(saved.parent, tmp_path / "foreign"))
    text = (foreign / "MLmodel").read_text()
    (foreign / "MLmodel").write_text(text.replace("class_names", "other"))
    with pytest.raises(RequestError, match="not a model of this pipeline"):
        load_model(str(foreign), tracking)
    (foreign / "MLmodel").write_text(text)
    (foreign / "data" / "model.keras").write_bytes(b"damaged")
    with pytest.raises(RequestError, match="cannot be loaded"):
        load_model(str(foreign), tracking)


def notes_its_peak() -> None:
    """Has a process write the most memory that it had, in kB, to a file when it ends."""

    def note() -> None:
        status = Path("/proc/self/status").read_text()
        Path("peak").write_text(status.partition("VmHWM:")[2].split()[0])

    Finalize(None, note, exitpriority=0)


@pytest.mark.slow
def test_predict_takes_less_than_1500_mb_whatever_the_pictures(
    trained: tuple[Path, dict[str, str]],
) -> None:
    folder, said = trained
    (folder / "large").mkdir()
    large = blank_png(folder / "large/0.png", 9_400, 6)  # 353 MB of pixels with transparency
    for number in range(1, 4):
        shutil.copy(large, folder / f"large/{number}.png")
    blank_png(folder / "large/refused.png", 13_300, 6, whole=False)
    words = ("predict", "images=large", "output=large.csv", f"model_uri={said['model_uri']}")
    ran = pipeline(*words, cwd=folder, before=notes_its_peak)
    assert "refused.png" in ran.stderr
    with (folder / "large.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 4
    assert int((folder / "peak").read_text()) * 1024 < 1_500_000_000


@pytest.mark.slow
def test_an_empty_store_is_told_with_what_to_do(tmp_path: Path) -> None:
    from pipeline.config.schema import Tracking
    from pipeline.tracking.models import load_model

    with (
        inside(tmp_path),
        pytest.raises(RequestError, match="no such model; none is saved yet; train one"),
    ):
        load_model("models:/fashion_mnist@champion", Tracking(uri=None))


def test_what_decoders_print_is_kept_off_the_terminal_and_what_is_left_out_is_said(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    drawn(folder / "photos/a.png", border=0, inside=255)
    noise = np.random.default_rng(0).integers(0, 256, (99, 99), np.uint8)
    Image.fromarray(noise).save(folder / "photos/b.tif", compression="tiff_lzw")
    content = bytearray((folder / "photos/b.tif").read_bytes())
    content[300:5000:50] = bytes(94)
    (folder / "photos/b.tif").write_bytes(content)
    (folder / "photos/c.heic").touch()
    with pytest.raises(PipelineError, match="1 of 2 files cannot be read"):
        asked(folder)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "left out: 1 .heic"
    assert len(lines) == 2
    assert lines[1].startswith("skipped photos/b.tif: ")
    assert next(folder.rglob("decoders.log")).read_text() != ""


def test_an_empty_name_of_images_is_refused(folder: Path) -> None:
    drawn(folder / "photos/a.png", border=0, inside=255)
    with pytest.raises(RequestError, match="images= is empty|images: say what to classify"):
        asked(folder, images="")
