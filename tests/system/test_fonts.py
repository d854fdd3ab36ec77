from __future__ import annotations

import io
import warnings
from types import SimpleNamespace

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from pipeline.system.fonts import fonts_for, use_system_fonts

CIRCLED = "Ⓐ"  # STIXGeneral has it, the default font does not


def labelled(text: str) -> Figure:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.barh([0], [1], label=text)
    axes.set_yticks([0], [text])
    axes.set_title(text)
    figure.legend()
    return figure


def lacking(figure: Figure) -> bool:
    """Whether a character of a figure is drawn as a box, of which Matplotlib warns."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure.savefig(io.BytesIO(), format="png")
    return any("missing from font" in str(one.message) for one in said)


def test_characters_that_a_plots_font_lacks_come_from_another_font() -> None:
    figure = labelled(f"cat {CIRCLED}")
    use_system_fonts(figure)
    assert not lacking(figure)
    assert lacking(labelled(f"cat {CIRCLED}"))


@pytest.mark.parametrize("text", ["cat", "größe × кот", "\n", "\ue999\u0378"])
def test_texts_need_no_other_font_if_theirs_has_all_or_none_has_more(text: str) -> None:
    assert [font.name for font in fonts_for(text)] == []


def test_a_font_that_was_removed_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = SimpleNamespace(fname="/gone.ttf", name="A", style="normal", weight=400)
    listed = [gone, *font_manager.fontManager.ttflist]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", listed)
    assert "/gone.ttf" not in [font.fname for font in fonts_for("Ⓑ")]
    assert fonts_for("Ⓑ")
