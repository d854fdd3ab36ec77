from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.config.schema import Config
from pipeline.data.values import Predictions, Split
from pipeline.reports.notes import (
    accuracy_table,
    code_block,
    escaped,
    groups_of,
    markdown_table,
    note_of_run,
    summary,
)
from pipeline.reports.page import run_html
from pipeline.reports.template import template
from tests.commands import configured
from tests.evaluation.test_slices import predictions as of_files
from tests.reports.test_page import Page, facts


@pytest.fixture(scope="module")
def config() -> Config:
    return configured("model=mlp", "dataset=digits", "seed=7", "train.epochs=1")


def predictions(right: int, images: int) -> Predictions:
    labels = np.zeros(images, np.int32)
    guesses = np.where(np.arange(images) < right, 0, 1)
    return Predictions(
        split=Split(images=np.zeros((images, 2, 2, 1), np.uint8), labels=labels),
        probabilities=np.eye(2, dtype=np.float32)[guesses],
        class_names=("cat", "dog"),
    )


def test_a_run_is_described_by_what_it_trained_its_accuracies_its_command_and_its_report(
    config: Config,
) -> None:
    note = note_of_run(
        config,
        {"val": predictions(1, 2), "test": predictions(3, 4)},
        parameters=235146.0,
        command="python -m pipeline seed=7",
        report="report.html",
    )
    what, table, command, report = note.split("\n\n")
    assert what == "**mlp on digits**: 235,146 parameters, 1 epoch, seed 7."
    assert table.splitlines()[2:] == [
        "| test | &ensp;**0.7500** | &ensp;0.3006 to 0.9544 | &ensp;4 |",
        "| validation | &ensp;**0.5000** | &ensp;0.0945 to 0.9055 | &ensp;2 |",
    ]
    assert command == "```sh\npython -m pipeline seed=7\n```"
    assert report == "Report: [report.html](artifacts:report.html)"


def grouped(images: int, size: int) -> Predictions:
    """Predictions on images of which each `size` belong together."""
    found = of_files({}, [True] * images)
    assert found.index is not None
    groups = np.arange(2 * images) // (2 * size)
    return replace(found, index=replace(found.index, groups=groups))


def test_images_that_belong_together_are_said_not_to_be_independent(config: Config) -> None:
    assert groups_of(grouped(2000, 100)) == 20
    assert groups_of(grouped(2000, 1)) is None
    assert groups_of(predictions(1, 2)) is None
    found = {"test": grouped(2000, 100), "val": predictions(1, 2)}
    note = note_of_run(config, found, parameters=None, command="x", report=None)
    assert "The 2,000 test images are in 20 groups." in note
    assert note.count("independent") == 1
    text = run_html(template("report.html"), facts(), config, found)
    head = Page(text).text("header")
    assert "2,000 images in 20 groups; the interval treats the images as independent" in head
    assert head.count("independent") == 1


def test_what_a_run_lacks_is_left_out(config: Config) -> None:
    nothing: dict[str, Any] = {"val": predictions(0, 0)}
    note = note_of_run(config, nothing, parameters=None, command="x", report=None)
    assert note == "**mlp on digits**: 1 epoch, seed 7.\n\nNot evaluated.\n\n```sh\nx\n```"
    five = replace(config, train=replace(config.train, epochs=5))
    assert summary(five, None) == "**mlp on digits**: 5 epochs, seed 7."
    assert accuracy_table({}) == ""


def test_a_table_has_a_line_under_its_header() -> None:
    assert markdown_table(("a", "b"), [("1", "2")]) == (
        "| a | &ensp;b |\n| --- | --- |\n| 1 | &ensp;2 |"
    )


@pytest.mark.parametrize(
    ("command", "fence"), [("a b", "```"), ("echo `x`", "```"), ("````", "`````")]
)
def test_a_command_never_ends_its_own_block(command: str, fence: str) -> None:
    assert code_block(command) == f"{fence}sh\n{command}\n{fence}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("a\n b", "a b"),
        ("*a* <b>", "&#42;a&#42; &#60;b&#62;"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_a_text_of_others_is_escaped_and_on_one_line(text: str, shown: str) -> None:
    assert escaped(text) == shown
