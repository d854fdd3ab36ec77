from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.run import run
from pipeline.system.errors import PipelineError, RequestError
from pipeline.training import models
from pipeline.verbs.drift.command import Drifted
from tests.commands import LEAN, carried_out, configured, inside
from tests.pictures import class_folders, noise, put
from tests.reports.test_page import Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_id(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run on a folder of noise that is gone afterwards, in a store of its own."""
    folder = tmp_path_factory.mktemp("drift")
    photos = class_folders(folder / "photos", count=80)
    with inside(folder):
        words = ("dataset=folder", f"dataset.path={photos}", "dataset.size=12", "model=linear")
        result = run(configured(*words, "train.epochs=1"), folder / "outputs")
        shutil.rmtree(photos)
        yield result.run_id


def pictures(folder: Path, *, divided_by: int = 1, count: int = 60) -> Path:
    for number in range(count):
        put(folder / f"{number}.png", noise(9000 + number) // divided_by)
    return folder


def test_pictures_like_those_of_the_training_show_no_drift(
    run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = pictures(tmp_path / "new")
    words = (f"drift.path={new}", f"drift.output={tmp_path}/d.csv", f"drift.page={tmp_path}/d.html")
    result = carried_out(
        "drift", *words, f"run_id='{run_id[:8]}'", "drift.fail=true", folder=tmp_path
    )
    assert result.found == []
    printed = capsys.readouterr().out
    assert "No drift found: 60 new pictures look like the training data" in printed
    assert printed.splitlines()[-1] == f"drift=none run_id={run_id} page={tmp_path}/d.html"
    names = [line.partition(",")[0] for line in (tmp_path / "d.csv").read_text().splitlines()]
    assert names[1:] == [
        *("brightness", "contrast", "height", "width", "aspect ratio"),
        *("confidence", "predicted classes", "features"),
    ]


def test_what_has_shifted_is_named_and_fails_where_that_is_asked_for(
    run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "<i>new"
    pictures(new / "cat", divided_by=4, count=40)
    put(new / "cow" / "large.png", np.kron(noise(1), np.ones((3, 2), np.uint8)))
    (new / "cow" / "torn.png").write_bytes(b"torn")
    words = (
        f"drift.path='{new}'",
        f"drift.output={tmp_path}/d.csv",
        f"drift.page={tmp_path}/d.html",
    )
    with pytest.raises(PipelineError, match=r"drift.fail=true"):
        carried_out("drift", *words, f"run_id={run_id}", "drift.fail=true", folder=tmp_path)
    printed = capsys.readouterr().out
    assert "differ far from the training data" in printed
    assert "brightness (lower: median 31" in printed
    assert "classes (dog: 50.0% → 0.0%)" in printed
    assert "classes that the run does not have: cow" in printed
    assert "left out, as they cannot be read: 1 file" in printed
    page = Page((tmp_path / "d.html").read_text(encoding="utf-8"))
    assert page.text("h1").endswith("<i>new")
    assert "classes that the run does not have: cow" in page.text("header")
    assert "left out, as they cannot be read: 1 file" in page.text("header")
    assert "read as 2 class folders" in page.text("header")
    assert page.all("i") == []
    assert page.all("script") == []


@pytest.mark.parametrize(
    ("count", "smallest", "said"),
    [
        (1, 1.7, "No drift found, but 1 new picture is too few to find a shift of values"),
        (3, 1.01, "No drift found, but 3 new pictures are too few to find a shift of values"),
        (900, 0.1, "No drift found: 900 new pictures look like .* from a distance of 0.10"),
    ],
)
def test_too_few_pictures_are_not_said_to_look_like_the_training_data(
    count: int, smallest: float, said: str
) -> None:
    result = Drifted(
        run_id="1",
        pictures=count,
        shifts=(),
        smallest=smallest,
        output=Path("drift.csv"),
        page=Path("drift.html"),
    )
    assert re.match(said, result.verdict)


def test_where_no_picture_can_be_read_the_path_is_named(run_id: str, tmp_path: Path) -> None:
    pictures(tmp_path / "new", count=1)
    (tmp_path / "new" / "0.png").write_bytes(b"torn")
    with pytest.raises(RequestError, match=r"^drift\.path: none of the 1 files can be read"):
        carried_out("drift", f"drift.path={tmp_path}/new", f"run_id={run_id}", folder=tmp_path)


def test_the_pictures_of_the_run_itself_do_not_differ_whatever_its_classes(tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", count=30, classes=("cat", "dog", "car"))
    words = ("dataset=folder", f"dataset.path={photos}", "dataset.size=12", "model=linear")
    united = "dataset.classes={pet: [cat, dog], car: car}"
    with inside(tmp_path):
        made = run(configured(*words, united, "train.epochs=1", *LEAN), tmp_path / "outputs")
        new = (f"drift.path={photos}", f"run_id={made.run_id}", "drift.fail=true")
        assert carried_out("drift", *new, folder=tmp_path / "drift").unknown == ()


def test_what_cannot_be_compared_is_refused_with_what_to_type(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path / "n", count=1)
    for words, said in (
        ((), "path: say which pictures"),
        ((f"drift.path={tmp_path}/none",), "drift.path="),
        (("drift.path='~/none'",), r"^drift\.path=~/none: no such file or folder$"),
        ((f"drift.path={tmp_path}/n",), "no champion; name the run"),
        (("drift.path='~/n'",), "no champion; name the run"),
        ((f"drift.path={tmp_path}/n", "drift.page=/proc/d.html"), "/proc: cannot be written"),
        ((f"drift.path={tmp_path}/n", "drift.output=/proc/d.csv"), "/proc: cannot be written"),
    ):
        with pytest.raises(RequestError, match=said):
            carried_out("drift", *words, folder=tmp_path)


def test_the_list_of_new_pictures_is_not_replaced_by_the_table(run_id: str, tmp_path: Path) -> None:
    new = pictures(tmp_path / "new", count=3) / "list.csv"
    new.write_text("path\n0.png\n1.png\n2.png\n")
    words = (f"drift.path={new}", f"drift.output={new}", f"run_id='{run_id}'")
    with pytest.raises(RequestError, match=r"list\.csv: is one of drift\.path="):
        carried_out("drift", *words, folder=tmp_path)
    assert new.read_text().startswith("path")


def test_a_recorded_run_needs_its_packed_copy_and_never_its_pictures(
    run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = pictures(tmp_path / "new", count=3)
    words = (f"predict.images={new}", f"predict.output={tmp_path}/p.csv", f"run_id={run_id}")
    assert carried_out("predict", *words, folder=tmp_path / "predict").tally.total == 3
    carried_out("evaluate", f"run_id={run_id}", folder=tmp_path / "evaluate")
    report = carried_out("report", f"run_id={run_id}", folder=tmp_path / "report")
    assert 'href="data.html"' in report.read_text(encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(PipelineError, match=r"test accuracy: .*, below"):  # noise is not learnt
        carried_out("promote", f"run_id={run_id}", folder=tmp_path / "promote")
    gates = capsys.readouterr().out
    assert re.search(r"same data .* passed", gates)
    assert re.search(r"reproduces predictions .* passed", gates)
    with pytest.raises(RequestError, match=r"nor is there a packed copy in .*data_dir=") as refused:
        words = (f"run_id={run_id}", f"data_dir={tmp_path}/elsewhere")
        carried_out("evaluate", *words, folder=tmp_path / "again")
    assert "dataset.path=" in str(refused.value)


def nested(images: Any, classes: int) -> Any:
    """A network within the model, of images of any size."""
    inner = keras.Input((None, None, images.shape[-1]))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(inner))
    outputs = keras.layers.Dense(classes, activation="softmax", name="probabilities")(x)
    return keras.Model(inner, outputs, name="network")(images)


def test_of_a_model_that_only_returns_a_network_all_but_the_features_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nested, "__module__", models.__name__)  # as one of our own
    monkeypatch.setattr(models, "linear", nested)
    with inside(tmp_path):
        photos = class_folders(tmp_path / "photos", count=80)
        words = ("dataset=folder", f"dataset.path={photos}", "dataset.size=12", "model=linear")
        run_id = run(configured(*words, "train.epochs=1", *LEAN), tmp_path / "outputs").run_id
        new = pictures(tmp_path / "new")
        result = carried_out("drift", f"drift.path={new}", f"run_id={run_id}", folder=tmp_path)
    assert "confidence" in result.values
    assert "features" not in {shift.name for shift in result.shifts}
    told = "the model's last layer takes no features: they are not compared"
    assert told in result.remarks
