"""A contact sheet: images with their classes, each as in the file and as the model saw it.

With `explain`, each image has a map of the parts that speak for its class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.data.files import is_array, open_array, opened
from pipeline.data.pictures import (
    Picture,
    as_stack,
    contained,
    made_plain,
    open_picture,
    picture_of,
)
from pipeline.data.reading import Opener, remarks_dropped
from pipeline.data.values import Array, Shape
from pipeline.reports.explained import overlay
from pipeline.reports.page import percent
from pipeline.system.errors import PipelineError
from pipeline.system.files import replacing
from pipeline.system.fonts import first_for, fonts_for
from pipeline.system.terminal import printable
from pipeline.verbs.predict.writers import PredictedBlock

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

    from pipeline.training.explain import Importance

MOST_PICTURES, _EXPLAINED = 48, 24  # images
COLUMNS = 8
INNER = 4  # pixels between an image and its map
TILE, INSET, GAP, CAPTION, HEADER = 180, 52, 18, 62, 64  # pixels
PAPER, INK, FAINT, TRACK, ACCENT = "#ffffff", "#1b1f24", "#6b7480", "#e4e8ed", "#1f77b4"
_UNSURE, UNSURE_BELOW = "#d95f02", 0.5
_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


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
class Fonts:
    """The fonts of a sheet, read from the disk."""

    title: ImageFont.FreeTypeFont
    note: ImageFont.FreeTypeFont
    label: ImageFont.FreeTypeFont
    share: ImageFont.FreeTypeFont
    name: ImageFont.FreeTypeFont


def read_fonts() -> Fonts:
    """Reads the fonts that matplotlib brings."""
    bold, plain = (str(_FONTS / f"{name}.ttf") for name in ("DejaVuSans-Bold", "DejaVuSans"))
    return Fonts(
        title=ImageFont.truetype(bold, 20),
        note=ImageFont.truetype(plain, 12),
        label=ImageFont.truetype(bold, 15),
        share=ImageFont.truetype(plain, 15),
        name=ImageFont.truetype(plain, 11),
    )


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Collects the first images and their predictions for the page.

    `shape` is that of the model's images; `opened` opens the pictures of an archive. `explain`
    takes images u8[N,H,W,C] and classes i64[N], and maps what speaks for these.
    """

    title: str
    shape: Shape
    explain: Callable[[Array, Array], Importance] | None = None
    opened: Opener = nullcontext
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
        with remarks_dropped():
            originals = [_original(cell, self.shape, self.opened) for cell in self.cells]
        page = self.draw(originals, read_fonts())
        with replacing(path) as partial:
            page.save(partial)

    def draw(self, originals: Sequence[Picture], fonts: Fonts) -> Picture:
        """The page; `originals` are the images as in their files, none larger than a tile."""
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
        title = _short(pen, self.title, page.width - 2 * GAP, fonts.title)
        pen.text((GAP, 14), title, INK, fonts.title)
        note = f"the first {len(self.cells)} images; the small ones are as the model saw them"
        note += f"; red is what spoke for the class, by {maps.method}" if maps else ""
        pen.text((GAP, 44), note, FAINT, fonts.note)
        others = fonts_for("".join(f"{cell.label}{cell.file}" for cell in self.cells))
        for position, (cell, original) in enumerate(zip(self.cells, originals, strict=True)):
            corner = (
                GAP + position % columns * step[0],
                HEADER + GAP + position // columns * step[1],
            )
            _draw(page, original, cell.seen, corner)
            _caption(pen, cell, (corner[0], corner[1] + TILE + 6), width, fonts, others)
            if maps:
                _draw_map(
                    page, cell.seen, maps.maps[position], (corner[0] + TILE + INNER, corner[1])
                )
        return page


def _draw(page: Picture, original: Picture, seen: Array, corner: tuple[int, int]) -> None:
    left, top = corner
    ImageDraw.Draw(page).rectangle((left, top, left + TILE - 1, top + TILE - 1), TRACK)
    page.paste(original, (left + (TILE - original.width) // 2, top + (TILE - original.height) // 2))
    framed = ImageOps.expand(_as_seen(seen, INSET), 2, PAPER)
    page.paste(framed, (left + TILE - framed.width, top + TILE - framed.height))


def _draw_map(page: Picture, seen: Array, heat: Array, corner: tuple[int, int]) -> None:
    left, top = corner
    ImageDraw.Draw(page).rectangle((left, top, left + TILE - 1, top + TILE - 1), TRACK)
    picture = picture_of(overlay(seen, heat, TILE))
    page.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))


def _caption(
    pen: ImageDraw.ImageDraw,
    cell: Thumbnail,
    corner: tuple[int, int],
    width: int,
    fonts: Fonts,
    others: Sequence[FontEntry],
) -> None:
    left, top = corner
    colour = _UNSURE if cell.probability < UNSURE_BELOW else ACCENT
    filled = max(1, round(width * cell.probability))
    pen.rectangle((left, top, left + width - 1, top + 4), TRACK)
    pen.rectangle((left, top, left + filled - 1, top + 4), colour)
    share = percent(cell.probability, 0)
    taken = pen.textlength(share, fonts.share)
    pen.text((left + width - taken, top + 10), share, colour, fonts.share)
    font = _for_text(cell.label, fonts.label, others)
    label = _short(pen, cell.label, width - taken - 8, font)
    pen.text((left, top + 10), label, INK, font)
    # The end of a path tells more than its beginning: files of several folders share names.
    name = printable(cell.file) + ("" if cell.index is None else f" [{cell.index}]")
    font = _for_text(name, fonts.name, others)
    name = _short(pen, name[::-1], width, font)[::-1]
    pen.text((left, top + 33), name, FAINT, font)


def _original(cell: Thumbnail, shape: Shape, opener: Opener) -> Picture:
    """The image as in its file or, if that has changed or gone since, as the model saw it.

    It fits into a tile, so that all of a sheet fit into memory.
    """
    try:
        return contained(_in_its_file(cell, shape, opener), (TILE, TILE))
    except (OSError, ValueError, IndexError, PipelineError):
        return _as_seen(cell.seen, TILE)


def _as_seen(seen: Array, side: int) -> Picture:
    """The model's input u8[H,W,C] with its pixels visible; its longer side has `side` pixels."""
    return contained(picture_of(seen).convert("RGB"), (side, side), Image.Resampling.NEAREST)


def _in_its_file(cell: Thumbnail, shape: Shape, opener: Opener) -> Picture:
    if is_array(cell.file):
        whole = picture_of(as_stack(open_array(cell.file), shape)[cell.index])
        return made_plain(whole, side=TILE).convert("RGB")
    with opener(cell.file) as source, _as_file(source) as file:
        return open_picture(file, side=TILE).convert("RGB")


def _as_file(source: Path | BinaryIO) -> BinaryIO:
    return opened(source) if isinstance(source, Path) else source


def _for_text(
    text: str, font: ImageFont.FreeTypeFont, others: Sequence[FontEntry]
) -> ImageFont.FreeTypeFont:
    """The font, or the first of the others that has characters of a text which it lacks."""
    other = first_for(text, others)
    if other is None:
        return font
    return ImageFont.truetype(other.fname, font.size, index=getattr(other, "index", 0))


def _short(pen: ImageDraw.ImageDraw, text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """The text on one line, shortened to at most `width` pixels."""
    text = " ".join(text.split())
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text}…"
