from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from pipeline.reports.template import read_template, template


def test_a_template_escapes_values_and_uses_filters(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>{{ name | loud }}</p>\n", encoding="utf-8")
    page = read_template(tmp_path / "page.html", loud=str.upper)
    assert page.render(name="a<b") == "<p>A&lt;B</p>"


def test_a_value_that_is_missing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("{{ name }}", encoding="utf-8")
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        read_template(tmp_path / "page.html").render()


def test_a_template_that_is_read_needs_its_files_no_more(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('{% include "part.css" %} end', encoding="utf-8")
    (tmp_path / "part.css").write_text("p { }", encoding="utf-8")
    page = read_template(tmp_path / "page.html")
    for file in tmp_path.iterdir():
        file.unlink()
    assert page.render() == "p { } end"


def test_each_page_of_the_reports_is_read_once() -> None:
    assert template("report.html") is template("report.html")
