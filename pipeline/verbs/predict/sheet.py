"""A contact sheet: images with their classes, each as in the file and as the model saw it.

With `explain`, each image has a map of the parts that speak for its class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.data.files import is_array, open_array, opened, printable
from pipeline.data.pictures import (
    Picture,
    as_stack,
    contained,
    made_plain,
    open_picture,
    picture_of,
)
from pipeline.data.values import Array, Shape
from pipeline.reports.explained import overlay
from pipeline.system.errors import PipelineError
from pipeline.system.files import replacing
from pipeline.verbs.predict.writers import PredictedBlock

if TYPE_CHECKING:
    from pipeline.training.explain import Importance

MOST_PICTURES, _EXPLAINED = 48, 24  # images
COLUMNS = 8
INNER = 4  # pixels between an image and its map
TILE, INSET, GAP, CAPTION, HEADER = 180, 52, 18, 62, 64  # pixels
PAPER, INK, FAINT, TRACK, ACCENT = "#ffffff", "#1b1f24", "#6b7480", "#e4e8ed", "#1f77b4"
_UNSURE, UNSURE_BELOW = "#d95f02", 0.5
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One image of the sheet; `seen` u8[H,W,C] is the model's input, `best` the class's number."""

    file: Path
    index: int | None
    label: str
    probability: float
    seen: Array
    best: int


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Collects the first images and their predictions for the page.

    `shape` is that of the model's images. `explain` takes images u8[N,H,W,C] and classes i64[N],
    and maps what speaks for these.
    """

    title: str
    shape: Shape
    explain: Callable[[Array, Array], Importance] | None = None
    cells: list[Thumbnail] = field(default_factory=list)

    def add(self, predicted: PredictedBlock, images: Array) -> None:
        """Adds as many images u8[N,H,W,C], before any inversion, as there is room for."""
        most = _EXPLAINED if self.explain else MOST_PICTURES
        for position in range(min(len(images), most - len(self.cells))):
            best = predicted.top[position, 0]
            self.cells.append(
                Thumbnail(
                    file=predicted.files[position],
                    index=predicted.indices[position],
                    label=predicted.class_names[best],
                    probability=float(predicted.probabilities[position, best]),
                    seen=np.bitwise_xor(
                        images[position], 255 * predicted.inverted[position].astype("u1")
                    ),
                    best=int(best),
                )
            )

    def save(self, path: Path) -> None:
        """Draws the page as a PNG."""
        with replacing(path) as partial:
            self.draw().save(partial)

    def draw(self) -> Picture:
        """The page."""
        seen = [cell.seen for cell in self.cells]
        maps = self.explain and self.explain(
            np.stack(seen), np.array([cell.best for cell in self.cells])
        )
        width = TILE + (TILE + INNER if maps else 0)
        most = COLUMNS * (TILE + GAP) // (width + GAP)
        columns = min(most, max(2 if maps else 4, len(self.cells)))
        rows = -(-len(self.cells) // columns)
        step = width + GAP, TILE + CAPTION + GAP
        page = Image.new("RGB", (GAP + columns * step[0], HEADER + rows * step[1] + GAP), PAPER)
        pen = ImageDraw.Draw(page)
        large = _font(20, bold=True)
        pen.text((GAP, 14), _short(pen, self.title, page.width - 2 * GAP, large), INK, large)
        note = f"the first {len(self.cells)} images; the small ones are as the model saw them"
        note += f"; red is what spoke for the class, by {maps.method}" if maps else ""
        pen.text((GAP, 44), note, FAINT, _font(12))
        for position, cell in enumerate(self.cells):
            corner = (
                GAP + position % columns * step[0],
                HEADER + GAP + position // columns * step[1],
            )
            _draw(page, cell, corner, self.shape)
            if maps:
                _draw_map(
                    page, cell.seen, maps.maps[position], (corner[0] + TILE + INNER, corner[1])
                )
        return page


def _draw(page: Picture, cell: Thumbnail, corner: tuple[int, int], shape: Shape) -> None:
    left, top = corner
    pen = ImageDraw.Draw(page)
    pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), TRACK)
    whole = contained(_original(cell, shape), (TILE, TILE))
    page.paste(whole, (left + (TILE - whole.width) // 2, top + (TILE - whole.height) // 2))
    seen = picture_of(cell.seen).convert("RGB").resize((INSET, INSET), Image.Resampling.NEAREST)
    framed = ImageOps.expand(seen, 2, PAPER)
    page.paste(framed, (left + TILE - framed.width, top + TILE - framed.height))
    _caption(pen, cell, (left, top + TILE + 6))


def _draw_map(page: Picture, seen: Array, heat: Array, corner: tuple[int, int]) -> None:
    left, top = corner
    ImageDraw.Draw(page).rectangle((left, top, left + TILE - 1, top + TILE - 1), TRACK)
    picture = picture_of(overlay(seen, heat, TILE))
    page.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))


def _caption(pen: ImageDraw.ImageDraw, cell: Thumbnail, corner: tuple[int, int]) -> None:
    left, top = corner
    colour = _UNSURE if cell.probability < UNSURE_BELOW else ACCENT
    filled = max(1, round(TILE * cell.probability))
    pen.rectangle((left, top, left + TILE - 1, top + 4), TRACK)
    pen.rectangle((left, top, left + filled - 1, top + 4), colour)
    bold, light, small = _font(15, bold=True), _font(15), _font(11)
    share = f"{cell.probability:.0%}"
    width = pen.textlength(share, light)
    pen.text((left + TILE - width, top + 10), share, colour, light)
    pen.text((left, top + 10), _short(pen, cell.label, TILE - width - 8, bold), INK, bold)
    name = printable(Path(cell.file.name)) + ("" if cell.index is None else f" [{cell.index}]")
    pen.text((left, top + 33), _short(pen, name, TILE, small), FAINT, small)


def _original(cell: Thumbnail, shape: Shape) -> Picture:
    """The image as in its file or, if that has changed or gone since, as the model saw it."""
    try:
        return _in_its_file(cell, shape)
    except (OSError, ValueError, IndexError, PipelineError):
        side = (TILE, TILE)
        return picture_of(cell.seen).convert("RGB").resize(side, Image.Resampling.NEAREST)


def _in_its_file(cell: Thumbnail, shape: Shape) -> Picture:
    if is_array(cell.file):
        whole = picture_of(as_stack(open_array(cell.file), shape)[cell.index])
        return made_plain(whole, side=TILE).convert("RGB")
    with opened(cell.file) as file:
        return open_picture(file, side=TILE).convert("RGB")


def _short(pen: ImageDraw.ImageDraw, text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """The text on one line, shortened to at most `width` pixels."""
    text = " ".join(text.split())
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)
