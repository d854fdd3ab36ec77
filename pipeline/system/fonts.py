"""Finds fonts of the system for characters that the font of plots and contact sheets lacks."""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing matplotlib takes a tenth of a second
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry
    from matplotlib.text import Text


def use_system_fonts(figure: Figure) -> None:
    """Lets the texts of a figure fall back to fonts that have the characters which theirs lack.

    Where no installed font has them, boxes stay in their places.
    """
    from matplotlib.text import Text

    ticks: list[Text] = []  # have no text before they are asked for it
    for axes in figure.axes:
        ticks += (*axes.get_xticklabels(), *axes.get_yticklabels())
    texts = {*figure.findobj(Text), *ticks}
    if names := [font.name for font in fonts_for("".join(one.get_text() for one in texts))]:
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *names])


def fonts_for(text: str) -> Sequence[FontEntry]:
    """The installed fonts that have what matplotlib's own lacks of a text, the plainest first.

    All fonts of the system may be read for it: ask once for all texts of a picture.
    """
    return _fonts_with(_lacking(text))


def first_for(text: str, fonts: Sequence[FontEntry]) -> FontEntry | None:
    """The first of these fonts that has something of what matplotlib's own lacks of a text."""
    lacking = _lacking(text)
    return next((font for font in fonts if _covered(font.fname, lacking)), None)


def _lacking(text: str) -> frozenset[str]:
    from matplotlib.font_manager import FontProperties, findfont

    shown = {one for one in text if not one.isascii() and one.isprintable()}
    return frozenset(shown - _covered(findfont(FontProperties()), shown) if shown else shown)


@lru_cache
def _fonts_with(characters: frozenset[str]) -> Sequence[FontEntry]:
    from matplotlib.font_manager import fontManager

    chosen, lacking = [], set(characters)
    for font in sorted(fontManager.ttflist, key=_unusual) if lacking else ():
        # The last resort has a box for every character.
        if not font.name.startswith("Last Resort") and (found := _covered(font.fname, lacking)):
            chosen.append(font)
            lacking -= found
    return chosen


def _covered(file: str, characters: Set[str]) -> set[str]:
    """Those of the characters that a font has; none if it is not there any more."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(file)
    except (OSError, RuntimeError):
        return set()
    return {one for one in characters if font.get_char_index(ord(one))}


def _unusual(font: FontEntry) -> tuple[bool, bool, bool, str]:
    """Sort key that puts upright fonts of normal weight without serifs first."""
    return font.style != "normal", font.weight != 400, "Serif" in font.name, font.name
