from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.api import load_data
from pipeline.data.values import Array
from pipeline.evaluation.labels import LabelAudit
from pipeline.system.errors import RequestError
from pipeline.tracking import runs
from pipeline.verbs.audit import Audit, command
from pipeline.verbs.audit.command import Audited
from tests.commands import LEAN, carried_out, configured, inside
from tests.pictures import noise, put

SWAPPED = (3, 20, 41)  # images whose label is that of the other class
BRIEF = ("model=linear", "train.epochs=8", "train.batch_size=16", "optimizer.learning_rate=0.05")


def stripes(label: int, seed: int) -> Array:
    """Vertical or horizontal stripes under noise, u8[8,8]."""
    pattern = np.indices((8, 8))[label] % 2 * 160
    return (pattern + noise(seed, (8, 8)) // 4).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("audit")
    truth = np.arange(60) % 2
    images = np.stack([stripes(label, seed) for seed, label in enumerate(truth.tolist())])
    labels = truth.copy()
    labels[list(SWAPPED)] = 1 - truth[list(SWAPPED)]
    np.savez(
        place / "stripes.npz",
        x_train=images, y_train=labels, x_test=images[:10], y_test=truth[:10],
    )  # fmt: skip
    for seed, label in enumerate(truth.tolist()):
        name = ("-down", "across")[int(labels[seed])]
        put(place / f"photos/{name}/{seed:02d}.png", stripes(label, seed))
    return place


def audited(folder: Path, *words: str) -> Audited:
    lean = [word for word in LEAN if word.startswith("train")]
    with inside(folder):
        result: Audited = carried_out("audit", *BRIEF, *lean, *words, folder=folder / "work")
    return result


@pytest.fixture(scope="module")
def arrays(folder: Path) -> Audited:
    return audited(folder, "dataset=npz", "dataset.path=stripes.npz", "audit.folds=3")


@pytest.mark.slow
def test_swapped_labels_of_arrays_are_listed_by_split_and_index(
    arrays: Audited, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {*arrays.wrong} == {("train", index) for index in SWAPPED}
    with (folder / "exclude.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["index"]) for row in rows} == {*SWAPPED}
    assert {row["likely_wrong"] for row in rows} == {"true"}
    assert len((folder / "audit.csv").read_text().splitlines()) == 61
    page = (folder / "audit.html").read_text()
    assert "train 41" in page
    assert "dataset.exclude=exclude.csv" in page
    assert not (folder / "mlflow.db").exists(), "it records no run"


def shown(wrong: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What an audit says that finds so many of 30,000 labels wrong."""
    labels = np.zeros(30_000, np.int32)
    probabilities = np.eye(2, dtype=np.float32)[labels]
    probabilities[:wrong] = probabilities[:wrong, ::-1]
    verdict = LabelAudit(
        labels=labels,
        probabilities=probabilities,
        judged=np.ones(len(labels), bool),
        wrong=np.arange(len(labels)) < wrong,
        quality=np.ones(len(labels), np.float32),
    )
    files = dict.fromkeys(("page", "output", "exclude"), Path("a"))
    names = ("cat", "dog")
    result = Audited(
        verdict=verdict, addresses=(), class_names=names, fold=labels, before=(), **files
    )
    command.show(result, Audit())
    return capsys.readouterr().out


def test_nearly_all_labels_are_not_said_to_be_all(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(1, capsys)
    assert "1 of 30,000 labels are likely wrong (<0.01%)" in said
    assert "agree with >99.99% of the labels" in said
    assert "then train with dataset.exclude=a" in said


def test_where_no_label_looks_wrong_nothing_is_to_be_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "dataset.exclude" not in shown(0, capsys)


def test_models_that_take_most_labels_of_a_class_for_wrong_may_know_too_little_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = shown(20_000, capsys)
    assert "most labels of cat look wrong; unless they are, the models have learnt too" in said
    assert "the models have learnt too" not in shown(10_000, capsys)


@pytest.mark.slow
def test_the_list_is_one_for_dataset_exclude_and_grows_with_the_next_audit(
    arrays: Audited, folder: Path
) -> None:
    words = ("dataset=npz", "dataset.path=stripes.npz", "dataset.exclude=exclude.csv")
    with inside(folder):
        prepared = load_data(configured(*words))
    assert len(prepared.train) + len(prepared.val) == 57
    again = audited(folder, *words, "audit.folds=2", "audit.exclude=more.csv")
    assert len(again.verdict.labels) == 57
    listed = (folder / "more.csv").read_text()
    assert all(f"train,{index}," in listed for index in SWAPPED)


@pytest.mark.slow
def test_pictures_are_listed_by_file_and_a_list_that_was_there_is_kept(folder: Path) -> None:
    (folder / "photos.csv").write_text("file\nsomebody's own\n")
    names = ("audit.exclude=photos.csv", "audit.page=photos.html", "audit.output=all.csv")
    result = audited(folder, "dataset=folder", "dataset.path=photos", "audit.folds=2", *names)
    wrong = {file for (file,) in result.wrong}
    there = {f"{('across', '-down')[index % 2]}/{index:02d}.png" for index in SWAPPED}
    assert wrong == there & {file for (file,) in result.addresses}
    assert wrong
    assert result.kept is not None
    assert (folder / result.kept).read_text() == "file\nsomebody's own\n"
    words = ("dataset=folder", "dataset.path=photos", "dataset.exclude=photos.csv")
    with inside(folder):
        left = load_data(configured(*words))
    assert left.index is not None
    rows = np.concatenate([left.train.rows, left.val.rows, left.test.rows]).tolist()
    assert not wrong & {left.index.files[row] for row in rows}


@pytest.mark.slow
def test_a_model_with_a_teacher_and_a_page_that_cannot_be_written_are_refused(
    tmp_path: Path,
) -> None:
    words = ("audit", "dataset=digits", *BRIEF[1:])
    with pytest.raises(RequestError, match="/proc: cannot be written"):
        carried_out(*words, "model=linear", "audit.page=/proc/new/audit.html", folder=tmp_path)
    with pytest.raises(RequestError, match=r"train\.teacher has learnt the labels"):
        carried_out(*words, "model=linear", "train.teacher=abcd1234", folder=tmp_path)


class Unjudged(Exception):
    """The trainings would begin."""


@pytest.mark.parametrize(
    ("of_run", "refused"),
    [
        ({"source": "another place"}, True),  # the same content
        ({"fingerprint": "f" * 64}, True),  # some images excluded since
        ({"fingerprint": "f" * 64, "source": "another place"}, False),  # also called npz
    ],
)
def test_weights_that_have_learnt_these_labels_are_refused_whatever_the_data_is_called(
    of_run: dict[str, str], refused: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("dataset=npz", "dataset.path=stripes.npz", "audit.folds=2")
    with inside(folder):
        data = load_data(configured(*words[:2]))
    same = {"fingerprint": data.fingerprint, "source": data.source}
    recorded = SimpleNamespace(**{**same, **of_run}, config=configured(*words[:2]))

    def begin(*_: object, **__: object) -> None:
        raise Unjudged

    monkeypatch.setattr(runs, "find_run", lambda source, config: recorded)
    monkeypatch.setattr(command, "with_weights", begin)
    weights = ("model=efficientnet_lite0", "model.weights=abcd1234")
    said = r"model\.weights=abcd1234: that run \(.*\) has learnt the labels"
    error, match = (RequestError, said) if refused else (Unjudged, None)
    with pytest.raises(error, match=match), inside(folder):
        carried_out("audit", *words, *BRIEF[1:], *weights, folder=folder / "work")


@pytest.mark.slow
def test_a_file_that_cannot_be_read_stays_on_the_list_that_excludes_it(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "across" / "bad.png").write_bytes(b"torn")
    (tmp_path / "exclude.csv").write_text("file\nacross/bad.png\n")
    words = ("dataset=folder", "dataset.path=photos", "dataset.on_bad=refuse")
    words += ("dataset.exclude=exclude.csv", "audit.folds=2", "train.epochs=1")
    result = audited(tmp_path, *words)
    assert [*result.before] == [("across/bad.png",)]
    assert "\nacross/bad.png," in (tmp_path / "exclude.csv").read_text()
    with inside(tmp_path):
        load_data(configured(*words[:4]))


WORDS = ("audit", "dataset=folder", "dataset.path=set", "audit.folds=2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("audit.output=set/labels.csv",), "set/labels.csv: is one of the files"),
        (("audit.exclude=set/labels.csv",), "set/labels.csv: is one of the files"),
        (("audit.output=exclude.csv",), "exclude.csv: two results cannot be one"),
        (("dataset.exclude=some.csv", "audit.output=some.csv"), "some.csv: is one of the files"),
        (("dataset.exclude=some.csv", "audit.exclude=some.csv"), None),
    ],
)
def test_no_result_replaces_another_nor_a_list_of_the_data_set(
    words: tuple[str, ...], said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(24):
        put(tmp_path / f"set/{seed}.png", noise(seed, (8, 8)))
    rows = [f"{seed}.png,{'ab'[seed % 2]}" for seed in range(24)]
    (tmp_path / "set/labels.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "some.csv").write_text("file\n0.png\n")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.csv")}

    def begin(*_: object, **__: object) -> None:
        raise Unjudged

    monkeypatch.setattr(command, "out_of_fold", begin)
    error = RequestError if said else Unjudged
    with pytest.raises(error, match=said), inside(tmp_path):
        carried_out(*WORDS, *BRIEF, *words, folder=tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.csv")} == before
