from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from pipeline.config.rules import ending_in
from pipeline.verbs.predict import writers as module
from pipeline.verbs.predict.writers import WRITERS, PredictedBlock

NAMES = ("T-shirt/top", "a, b", "Größe", "bag")
PROBS = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], np.float32)


def predicted(names: tuple[str, ...] = NAMES) -> PredictedBlock:
    return PredictedBlock(
        files=(Path("a.png"), Path("b, c.npy")),
        indices=(None, 7),
        probabilities=PROBS[:, -len(names) :],
        inverted=np.array([True, False]),
        class_names=names,
    )


def written(path: Path, *batches: PredictedBlock) -> Path:
    with WRITERS[path.suffix](path) as write:
        for batch in batches:
            write(batch)
    return path


def test_the_best_come_first_and_of_equals_the_earlier_class() -> None:
    assert predicted().top.tolist() == [[3, 2, 1], [0, 1, 2]]


def test_csv_has_a_line_of_names_and_one_an_image(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", predicted(), predicted())
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[0] == {
        "file": "a.png",
        "index": "",
        "class": "bag",
        "probability": "0.4",
        "class_2": "Größe",
        "probability_2": "0.3",
        "class_3": "a, b",
        "probability_3": "0.2",
        "inverted": "true",
    }
    assert (rows[1]["file"], rows[1]["index"], rows[1]["inverted"]) == ("b, c.npy", "7", "false")


def test_no_name_of_a_file_or_class_is_a_formula_in_csv(tmp_path: Path) -> None:
    formula = replace(predicted(("=1+1", "@A1", "ok")), files=(Path("-1.png"), Path("+cmd.png")))
    with written(tmp_path / "a.csv", formula).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["'-1.png", "'+cmd.png"]
    assert {rows[0][f"class{end}"] for end in ("", "_2", "_3")} == {"'=1+1", "'@A1", "ok"}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_has_an_object_a_line_with_the_best_as_a_list(ending: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"a.{ending}", predicted(), predicted())
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 4
    assert lines[0] == {
        "file": "a.png",
        "index": None,
        "class": "bag",
        "probability": 0.4,
        "top": [
            {"class": "bag", "probability": 0.4},
            {"class": "Größe", "probability": 0.3},
            {"class": "a, b", "probability": 0.2},
        ],
        "inverted": True,
    }


def test_parquet_has_typed_columns(tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(written(tmp_path / "a.parquet", predicted(), predicted()))
    assert table.num_rows == 4
    assert [str(kind) for kind in table.schema.types] == [
        *("string", "int64", "string", "float", "string", "float", "string", "float", "bool")
    ]
    assert table.column("index").to_pylist() == [None, 7, None, 7]
    assert table.column("class").to_pylist()[0] == "bag"
    assert table.column("inverted").to_pylist() == [True, False, True, False]


def test_parquet_is_written_in_groups_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROW_GROUP", 4)
    path = written(tmp_path / "a.parquet", *[predicted()] * 5)
    groups = pyarrow.parquet.ParquetFile(path).metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [4, 4, 2]


def test_a_model_of_two_classes_has_two_of_them_in_a_row(tmp_path: Path) -> None:
    two = predicted(("cat", "dog"))
    assert [*two.columns()][2:-1] == ["class", "probability", "class_2", "probability_2"]
    [line, _] = written(tmp_path / "a.json", two).read_text().splitlines()
    assert [best["class"] for best in json.loads(line)["top"]] == ["dog", "cat"]


@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_name_that_is_no_text_can_be_written(ending: str, tmp_path: Path) -> None:
    odd = PredictedBlock(
        files=(Path(os.fsdecode(b"a\xff.png")),),
        indices=(None,),
        probabilities=PROBS[:1],
        inverted=np.array([False]),
        class_names=NAMES,
    )
    assert written(tmp_path / f"a{ending}", odd).stat().st_size


def test_the_configuration_allows_the_endings_that_can_be_written() -> None:
    from typing import get_type_hints

    from pipeline.verbs.predict import Predict

    *_, rule = get_type_hints(Predict, include_extras=True)["output"].__metadata__
    for ending in WRITERS:
        assert rule.func(f"a{ending}") == f"a{ending}"
    with pytest.raises(ValueError) as refused:
        rule.func("a.txt")
    assert str(refused.value) == f"must end in {' or '.join(WRITERS)}"


def test_the_case_of_an_ending_does_not_matter() -> None:
    assert ending_in(".png").func("A.PNG") == "A.PNG"  # type: ignore[call-arg]
