"""The templates of the pages, read with all that they include."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined, Template

from pipeline.reports.page import clean, duration, percent

_TEMPLATES = Path(__file__).parent / "templates"


@cache
def template(name: str) -> Template:
    """A template of the reports, which may use the filters `clean`, `duration` and `percent`."""
    return read_template(_TEMPLATES / name, clean=clean, duration=duration, percent=percent)


def read_template(path: Path, **filters: Callable[..., str]) -> Template:
    """Reads a template for HTML and the other files of its folder, so that rendering reads none.

    Values are escaped, and none may be missing.
    """
    texts = {file.name: file.read_text(encoding="utf-8") for file in path.parent.glob("*.*")}
    environment = Environment(
        loader=DictLoader(texts),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(path.name)
