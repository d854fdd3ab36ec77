from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config.schema import Config
from pipeline.data.values import Predictions, Split
from pipeline.reports.page import Facts, duration, percent, run_html, score
from pipeline.reports.template import template
from tests.commands import configured

REPORT = template("report.html")
HOSTILE = ("<b>bold</b>", "a & b", "\"quoted\" 'twice'", "</script><script>alert(1)</script>")


class Page(HTMLParser):
    """The elements of a page, with their attributes and the text directly or deeper in them."""

    VOID = frozenset({"meta", "link", "img", "line", "circle", "rect", "polyline", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {key: value or "" for key, value in attrs}, list[str]())
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str], str]]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            (found, " ".join("".join(texts).split()))
            for name, found, texts in self.elements
            if name == tag and wanted.items() <= found.items()
        ]

    def text(self, tag: str, **attributes: str) -> str:
        [(_, text)] = self.all(tag, **attributes)
        return text


def predictions(names: tuple[str, ...] = ("cat", "dog")) -> Predictions:
    """Three of four right; a dog is taken for a cat with confidence 0.75."""
    probabilities = np.full((4, len(names)), 0.25 / (len(names) - 1), np.float32)
    probabilities[np.arange(4), [0, 0, 0, 1]] = [0.75, 0.75, 0.75, 0.75]
    return Predictions(
        split=Split(
            images=np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3, 1),
            labels=np.array([0, 0, 1, 1], np.int32),
        ),
        probabilities=probabilities,
        class_names=names,
    )


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(buffer, "png")
    return buffer.getvalue()


def facts(**changes: Any) -> Facts:
    known: dict[str, Any] = {
        "run_id": "0123456789abcdef",
        "name": "swift-owl-7",
        "experiment": "pets",
        "status": "FINISHED",
        "started": datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
        "seconds": {"train": 61.4, "total": 75.0},
        "tags": {
            "command": "python -m pipeline seed=1",
            "mlflow.source.git.commit": "c0ffee",
            "code.dirty": "true",
            "data.fingerprint": "ab" * 32,
            "hardware.cpu": "Abacus",
            "version.keras": "3.15.1",
        },
        "metrics": {"model/parameters": 235146.0, "train/best_epoch": 2.0},
        "history": {"train/loss": {1: 2.0, 2: 1.0}, "val/loss": {1: 1.5, 2: 1.25}},
        "weights": picture(),
    }
    return Facts(**{**known, **changes})


@pytest.fixture(scope="module")
def config() -> Config:
    return configured("model=mlp", "optimizer.learning_rate=0.0123", "seed=7")


@pytest.fixture(scope="module")
def page(config: Config) -> Page:
    return Page(run_html(REPORT, facts(), config, {"val": predictions(), "test": predictions()}))


def test_the_head_tells_accuracies_with_intervals_model_data_size_time_and_status(
    page: Page,
) -> None:
    head = page.text("header")
    for text in (
        "fashion_mnist · mlp",
        "swift-owl-7",
        "4 March 2026, 05:06 UTC",
        "finished",
        "test accuracy 75.00 % 95 % interval 30.06 % – 95.44 %, 4 images",
        "validation accuracy 75.00 %",
        "parameters235,146",
        "duration1 min 15 s",
    ):
        assert text in head.replace("\N{NO-BREAK SPACE}", " ")


def test_figures_over_views_and_at_a_temperature_stand_beside_the_plain_ones(
    config: Config,
) -> None:
    measured = {"test/views/accuracy": 0.875, "val/temperature": 1.5, "test/tempered/ece": 0.03125}
    text = run_html(REPORT, facts(metrics=measured), config, {"test": predictions()})
    head = Page(text).text("header").replace("\N{NO-BREAK SPACE}", " ")
    for said in (
        "test accuracy 75.00 %",
        "test accuracy over views87.50 %",
        "the same at temperature 1.500.0312",
    ):
        assert said in head


def test_an_accuracy_comes_with_its_wilson_interval() -> None:
    # 3 of 4: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964
    found = score(predictions(), "test")
    assert (found.value, found.images) == (0.75, 4)
    assert (found.low, found.high) == pytest.approx((0.300642, 0.954413), abs=1e-6)


def test_the_table_of_classes_has_their_scores_the_weakest_first(page: Page) -> None:
    rows = [text for _, text in page.all("tr") if text.startswith(("cat", "dog"))]
    assert rows[:2] == ["dog1.0000.5000.6672", "cat0.6671.0000.8002"]


def test_each_cell_of_the_matrix_is_a_button_that_says_what_is_in_it(page: Page) -> None:
    cells = [found for found, _ in page.all("button", type="button") if "aria-label" in found]
    assert [found["aria-label"] for found in cells] == [
        "cat, right: 2",
        "dog taken for cat: 1",
        "dog, right: 1",
    ]
    assert [(found["data-first"], found["data-kept"]) for found in cells] == [
        ("0", "2"),
        ("2", "1"),
        ("3", "1"),
    ]


def test_mistakes_and_confusions_are_listed_with_both_classes(page: Page) -> None:
    [(_, listed)] = [found for found in page.all("li") if "no. 2" in found[1]]
    assert listed.replace("\N{NO-BREAK SPACE}", " ") == "cat 75.0 %is dogno. 2"
    assert "dog taken for cat" in page.text("ol", class_="pairs")


def test_the_configuration_is_shown_by_group_with_the_chosen_file(page: Page) -> None:
    shown = page.text("section", id="configuration")
    assert "optimizer adam learning_rate0.0123" in shown
    assert "model mlp hidden[256, 128]" in shown
    assert "run seed7" in shown


def test_the_lineage_names_code_with_its_changes_data_machine_and_versions(page: Page) -> None:
    shown = page.text("section", id="lineage")
    for text in (
        "id0123456789abcdef",
        "experimentpets",
        "commandpython -m pipeline seed=1",
        "commitc0ffee",
        "uncommitted changesyes, in code.patch",
        f"SHA-256{'ab' * 32}",
        "processorAbacus",
        "keras3.15.1",
    ):
        assert text in shown


def test_the_lineage_of_a_job_names_its_sweep(config: Config, page: Page) -> None:
    job = facts(tags={"mlflow.parentRunId": "fedcba", "sweep.index": "4"})
    shown = Page(run_html(REPORT, job, config, {})).text("section", id="lineage")
    assert "Sweep its runfedcbajob4" in shown
    assert "Sweep" not in page.text("section", id="lineage")


def test_a_curve_has_one_line_for_each_split_and_marks_the_best_epoch(page: Page) -> None:
    training = page.text("section", id="training")
    assert "training validation best epoch" in training
    assert "validation, epoch 2: 1.2500" in training
    assert len(page.all("polyline", class_="line val")) == 1


def test_whatever_a_class_is_called_it_stays_text(config: Config) -> None:
    text = run_html(REPORT, facts(name="<i>run</i>"), config, {"test": predictions(HOSTILE)})
    page = Page(text)  # which checks that elements are nested as they should be
    assert page.all("b", class_="bad")[0][1] == HOSTILE[0]
    headings = [text for found, text in page.all("th", scope="row")]
    assert set(headings) == set(HOSTILE)
    assert len(page.all("script")) == 2
    assert page.all("i", class_="") == []
    labels = {found["data-true"] for found, _ in page.all("button") if "data-true" in found}
    assert labels == set(HOSTILE[:2])


def test_nothing_on_the_page_is_fetched(config: Config) -> None:
    text = run_html(REPORT, facts(), config, {"test": predictions()})
    page = Page(text)
    fetched = [
        value
        for _, found, _ in page.elements
        for key, value in found.items()
        if key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
    ]
    assert fetched
    assert all(value.startswith(("data:", "#")) for value in fetched)
    assert re.findall(r"url\((?!data:)", text) == []
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0][0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_link_of_the_page_leads_to_a_section_that_is_there(page: Page) -> None:
    links = {found["href"] for found, _ in page.all("a")}
    sections = {f"#{found['id']}" for found, _ in page.all("section")}
    assert links == sections
    assert len(sections) == 8


def test_without_test_images_the_page_shows_the_validation_images_and_says_so(
    config: Config,
) -> None:
    page = Page(run_html(REPORT, facts(), config, {"val": predictions()}))
    assert "The test split was not evaluated" in page.text("p", class_="note")
    assert "test accuracy" not in page.text("header")
    assert "validation images" in page.text("section", id="confusion")


def test_with_the_test_images_there_is_no_such_note(page: Page) -> None:
    assert page.all("p", class_="note") == []


def test_without_predictions_history_and_weights_their_sections_are_left_out(
    config: Config,
) -> None:
    bare = facts(history={}, weights=None, tags={}, metrics={}, seconds={}, status="FAILED")
    page = Page(run_html(REPORT, bare, config, {}))
    assert [found["id"] for found, _ in page.all("section")] == ["configuration", "lineage"]
    assert page.all("script") == page.all("dialog") == page.all("img") == []
    assert page.all("span", class_="status failed")[0][1] == "failed"


@pytest.mark.parametrize(
    ("error", "status", "heading", "reason"),
    [
        ("ValueError: <b>no</b> good", "FAILED", "Failed", "ValueError: <b>no</b> good"),
        ("KeyboardInterrupt", "KILLED", "Stopped", "stopped by Ctrl-C (SIGINT)"),
        ("__main__.Terminated", "KILLED", "Stopped", "stopped by SIGTERM"),
        ("__main__.HungUp", "KILLED", "Stopped", "stopped by SIGHUP, as its terminal was closed"),
    ],
)
def test_the_page_of_a_run_that_did_not_end_well_says_why_and_how_far_it_got(
    error: str, status: str, heading: str, reason: str, config: Config
) -> None:
    tags = {"error": error, "traceback": "Traceback: line 1\nline 2"}
    page = Page(run_html(REPORT, facts(tags=tags, status=status, weights=None), config, {}))
    assert page.text("section", id="end").startswith(f"{heading} after 2 epochs;")
    assert page.text("p", class_="reason") == reason
    assert page.text("pre") == "Traceback: line 1 line 2"
    assert [found["id"] for found, _ in page.all("section")][:2] == ["end", "training"]


def test_a_run_that_was_pruned_or_failed_at_once_says_so(config: Config) -> None:
    pruned = Page(run_html(REPORT, facts(tags={"sweep.pruned": "after epoch 2"}), config, {}))
    assert pruned.text("p", class_="reason") == "after epoch 2"
    at_once = Page(
        run_html(
            REPORT,
            facts(tags={"error": "no"}, history={}, status="FAILED"),
            config,
            {},
        )
    )
    assert "before the first epoch was over" in at_once.text("section", id="end")


def test_test_images_that_were_looked_at_later_are_told_of_beside_the_configuration(
    page: Page,
) -> None:
    later = run_html(REPORT, facts(), configured("evaluate.test=false"), {"test": predictions()})
    assert "evaluated afterwards" in Page(later).text("section", id="configuration")
    assert "evaluated afterwards" not in page.text("section", id="configuration")


def test_a_model_without_mistakes_has_no_list_of_them(config: Config) -> None:
    made = predictions()
    right = replace(made, split=replace(made.split, labels=made.predicted))
    page = Page(run_html(REPORT, facts(), config, {"test": right}))
    assert page.all("section", id="mistakes") == []
    assert page.all("ol", class_="pairs") == []


def test_no_password_of_a_store_reaches_the_page() -> None:
    config = configured("tracking.uri='postgresql://me:secret@there/db'")
    assert "secret" not in run_html(REPORT, facts(), config, {})


def test_a_number_as_a_password_does_not_reach_the_page() -> None:
    config = configured("model=linear")
    secretive = replace(config, dataset={**config.dataset, "password": 48151, "token_dim": 62342})
    page = run_html(REPORT, facts(), secretive, {})
    assert "48151" not in page
    assert "62342" in page


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7384, "2 h 3 min"),
    ],
)
def test_a_duration_is_said_as_a_person_would(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_percentage_does_not_break_from_its_sign() -> None:
    assert percent(0.86654) == "86.65\N{NO-BREAK SPACE}%"
    assert percent(1, 1) == "100.0\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("share", "digits", "said"),
    [
        (0.9996, 0, ">99"),
        (0.995, 0, ">99"),
        (0.99999, 2, ">99.99"),
        (0.001, 0, "<1"),
        (0.00001, 1, "<0.1"),
        (1 - 1e-15, 2, "100.00"),
        (1e-18, 2, "0.00"),
        (0, 0, "0"),
    ],
)
def test_what_is_neither_all_nor_nothing_is_not_rounded_to_it(
    share: float, digits: int, said: str
) -> None:
    assert percent(share, digits) == f"{said}\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize("shape", [(224, 224, 3), (224, 300, 1), (224, 224, 4)])
def test_a_report_of_large_images_stays_small(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.int32) % 10
    made = Predictions(
        split=Split(images=rng.integers(0, 256, (60, *shape), np.uint8), labels=labels),
        probabilities=rng.dirichlet(np.ones(10), 60).astype(np.float32),
        class_names=tuple("abcdefghij"),
    )
    text = run_html(REPORT, facts(), configured("dataset=digits"), {"test": made})
    assert len(text) < 1_000_000  # of 9 MB of noise
    assert len(Page(text).all("span", class_="thumb")) == 24
