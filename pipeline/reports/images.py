"""The images of a report, packed into one sprite, and the confusion matrix that shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data.polarity import is_shown_inverted
from pipeline.data.values import Array, Predictions, images_per_block
from pipeline.evaluation.metrics import MOST_CLASSES, most_confused, surest_mistakes
from pipeline.system.errors import in_percent

MOST_A_CELL = 24
FEWEST_A_CELL = 4  # thumbnails get smaller before a cell gets fewer
MISTAKES = 24
CONFUSIONS = 8
_SIDES = (64, 32, 16)  # pixels of a thumbnail's longer side, at most
THUMBNAIL_BYTES = 2_500_000  # bytes of all thumbnails before compression, if the smallest size fits
_SHOWN = 60  # approximate pixels on the screen
WEIGHTS_WIDTH = 1100


@dataclass(frozen=True, kw_only=True)
class ConfusionCell:
    """The images of one true and one predicted class.

    `share` is relative to the true class; `level` from 0 to 1 gives the colour. The `kept` most
    confident ones are thumbnails, numbered from `first`.
    """

    true: str
    guess: str
    count: int
    share: float
    level: float
    right: bool
    first: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong prediction: thumbnail, number of the image, classes, confidence."""

    thumbnail: int
    image: int
    true: str
    guess: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """Thumbnails of `width` × `height` pixels, `columns` per row, shown `zoom` times as large.

    `grey` ones are dark on light, and are inverted on a dark page.
    """

    uri: str
    width: int
    height: int
    columns: int
    rows: int
    zoom: float
    grey: bool
    captions: list[tuple[int, str]]
    """For each thumbnail, the image's number and the prediction's confidence in percent."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """The matrix by row (true class), largest off-diagonal entries, most confident mistakes.

    `names` are the classes of its rows and columns.
    """

    names: list[str]
    rows: list[list[ConfusionCell]]
    largest: list[ConfusionCell]
    mistakes: list[Mistake]
    wrong: int
    sprite: Sprite


def confusion(predictions: Predictions) -> Confusion:
    """The confusion matrix, with as many thumbnails per cell as the budget allows.

    It is that of the MOST_CLASSES classes with the most mistakes.
    """
    names = predictions.class_names
    classes, shown = len(names), most_confused(predictions, MOST_CLASSES)
    # Of the cells that have images: all would take gigabytes for ten thousand classes.
    numbers, counts = np.unique(_cell_numbers(predictions), return_counts=True)
    trues, guesses = np.divmod(numbers, classes)
    mistakes = np.where(trues == guesses, 0, counts)
    largest = np.argsort(-mistakes, kind="stable")[:CONFUSIONS]
    largest = largest[mistakes[largest] > 0]
    has_images = np.isin(trues, shown) & np.isin(guesses, shown)
    has_images[largest] = True
    side, most = _room(predictions.split.image_shape, counts[has_images])
    kept = np.where(has_images, np.minimum(counts, most), 0)
    surest = surest_mistakes(predictions, MISTAKES)
    cell = _cells(predictions, numbers, counts, kept)
    return Confusion(
        names=[names[label] for label in shown],
        rows=[[cell(true, guess) for guess in shown] for true in shown],
        largest=[cell(*divmod(number, classes)) for number in numbers[largest].tolist()],
        mistakes=_mistakes(predictions, surest, first=int(kept.sum())),
        wrong=int((~predictions.correct).sum()),
        sprite=_sprite(
            predictions, np.concatenate([_surest_of_each(predictions, kept), surest]), side
        ),
    )


def data_uri(content: bytes, kind: str) -> str:
    """A picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def smaller(png: bytes) -> bytes:
    """A PNG as a smaller JPEG, since weights look like noise, which PNG does not compress."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((WEIGHTS_WIDTH, WEIGHTS_WIDTH))
    return _encoded(picture, "jpeg")


def _room(shape: tuple[int, int, int], counts: Array) -> tuple[int, int]:
    """The longer side of a thumbnail, and the maximum number per cell."""
    longest, channels = max(shape[:2]), shape[2]
    for side in _SIDES:
        size = channels * np.prod(np.ceil(np.array(shape[:2]) * min(1.0, side / longest)))
        fitting = [
            most
            for most in range(1, MOST_A_CELL + 1)
            if np.minimum(counts, most).sum() * size <= THUMBNAIL_BYTES
        ]
        if len(fitting) >= FEWEST_A_CELL:
            break
    return side, max(fitting, default=1)


def _cell_numbers(predictions: Predictions) -> Array:
    """The number of each image's cell in the matrix, row by row, i64[N]."""
    numbers: Array = predictions.labels.astype(np.int64) * len(predictions.class_names)
    return numbers + predictions.predicted


def _surest_of_each(predictions: Predictions, kept: Array) -> Array:
    """Indices of the images to show, i64[sum of kept], for `kept` i64[m] of each cell with some."""
    _, cell, counts = np.unique(_cell_numbers(predictions), return_inverse=True, return_counts=True)
    order = np.lexsort((-predictions.confidence, cell))
    rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[cell[order]]
    return order[rank < kept[cell[order]]]


def _cells(
    predictions: Predictions, numbers: Array, counts: Array, kept: Array
) -> Callable[[int, int], ConfusionCell]:
    """Returns a function that makes the cell of a true and a predicted class.

    `numbers`, `counts` and `kept`, i64[m] each, are those of the cells with images.
    """
    names = predictions.class_names
    trues, guesses = np.divmod(numbers, len(names))
    shares = counts / np.bincount(predictions.labels, minlength=len(names))[trues]
    highest = float(shares[trues != guesses].max(initial=0)) or 1.0
    firsts = np.cumsum(kept) - kept
    position = {number: at for at, number in enumerate(numbers.tolist())}

    def cell(true: int, guess: int) -> ConfusionCell:
        at = position.get(int(true) * len(names) + int(guess))
        share = 0.0 if at is None else float(shares[at])
        return ConfusionCell(
            true=names[true],
            guess=names[guess],
            count=0 if at is None else int(counts[at]),
            share=share,
            # Mistakes are few, so their colour is the root of their share of the largest.
            level=round(share if true == guess else (share / highest) ** 0.5, 3),
            right=bool(true == guess),
            first=0 if at is None else int(firsts[at]),
            kept=0 if at is None else int(kept[at]),
        )

    return cell


def _mistakes(predictions: Predictions, chosen: Array, *, first: int) -> list[Mistake]:
    names = predictions.class_names
    return [
        Mistake(
            thumbnail=first + position,
            image=int(predictions.numbers[index]),
            true=names[predictions.labels[index]],
            guess=names[predictions.predicted[index]],
            confidence=float(predictions.confidence[index]),
        )
        for position, index in enumerate(chosen.tolist())
    ]


def _sprite(predictions: Predictions, chosen: Array, side: int) -> Sprite:
    split = predictions.split
    inverted = is_shown_inverted(split, predictions.index)
    tiles = thumbnails(split.images, side, rows=split.rows[chosen], inverted=inverted)
    confidence = predictions.confidence[chosen].tolist()
    return sprite(
        tiles,
        inverted=inverted,
        captions=[
            (number, in_percent(sure, 1))
            for number, sure in zip(predictions.numbers[chosen].tolist(), confidence, strict=True)
        ],
    )


def sprite(
    tiles: Array, *, inverted: bool, captions: Sequence[tuple[int, str]] = (), shown: int = _SHOWN
) -> Sprite:
    """Packs thumbnails u8[N,h,w,C] into one picture; each is `shown` pixels long, if it is smaller.

    `inverted` says whether grey ones are dark on light (`thumbnails`).
    """
    height, width, channels = tiles.shape[1:]
    columns = int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * columns, *tiles.shape[1:]), np.uint8)
    sheet[: len(tiles)] = tiles
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    kind = "png" if channels == 1 and inverted else "webp"  # photos are many times larger as PNG
    return Sprite(
        uri=data_uri(_encoded(picture, kind), kind),
        width=width,
        height=height,
        columns=columns,
        rows=rows,
        zoom=max(1, round(shown / max(width, height))),
        grey=channels == 1 and inverted,
        captions=list(captions),
    )


def thumbnails(images: Array, side: int, *, rows: Array | None = None, inverted: bool) -> Array:
    """Thumbnails u8[M,h,w,C] of images, of at most `side` pixels; of channels, the first 3.

    They are those of all images u8[N,H,W,C], or of some `rows` i64[M], which are read in parts.
    `inverted` turns grey ones from light on dark, as digits are stored, to dark on light.
    """
    rows = np.arange(len(images)) if rows is None else rows
    channels = 3 if images.shape[3] >= 3 else 1
    height, width = images.shape[1:3]
    shrink = min(1.0, side / max(height, width))
    size = max(1, int(height * shrink)), max(1, int(width * shrink))
    tiles = np.empty((len(rows), *size, channels), np.uint8)
    at_once = images_per_block(images.shape[1:])
    for start in range(0, len(rows), at_once):
        part = np.asarray(images[rows[start : start + at_once]])[..., :channels]
        for number, image in enumerate(part, start):
            tiles[number] = _smaller(image, size) if shrink < 1 else image
    return 255 - tiles if channels == 1 and inverted else tiles


def _smaller(image: Array, size: tuple[int, int]) -> Array:
    """An image u8[H,W,C] of one or three channels at a smaller height and width."""
    height, width = size
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    small = picture.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small).reshape(height, width, image.shape[2])


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    options = {"png": {}, "webp": {"quality": 85, "method": 2}, "jpeg": {"quality": 85}}
    picture.save(buffer, kind, **options[kind])
    return buffer.getvalue()
