"""Reads images from a request's body, JSON or a picture; refuses anything else with a reason.

The JSON is that of MLflow's scoring server and of TensorFlow Serving: an object with the tensor
under `inputs` or `instances`. Unlike there, nothing is cast: a value that is not a byte is refused.
A picture is read as `predict` reads a file. Both take their memory from the same budget.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.data.pictures import AT_WORK, BUDGET, MODES, PAD, read_picture
from pipeline.data.polarity import to_invert
from pipeline.data.values import Array, Shape
from pipeline.system.errors import first_line

SMALL = 64 * 1024  # bytes; a JSON body of up to this size does not wait for memory
TENSORS = ("inputs", "instances")
_SHOWN = 40  # characters of a refused value
_REASON = 160  # characters of what a decoder says of a picture
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MOST_PIXELS = 50_000_000  # a small file may unpack to gigabytes
RAW = "application/octet-stream"

BAD_REQUEST, TOO_LARGE, WRONG_KIND = 400, 413, 415


class Refused(Exception):
    """A request that is answered with an HTTP status of 4xx or 5xx and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def images_in(body: bytes, shape: Shape, *, most: int) -> Array:
    """The images u8[N,H,W,C] of a request's body, N from 1 to `most`; `shape` is [H,W,C].

    A single image may lack the dimension N, grey images the dimension C.

    A body beyond SMALL waits while other threads' pictures and bodies take too much memory.

    Raises:
        Refused: the body is not such JSON, a value is not a whole number 0–255, the shape is not
            the model's, there are no or too many images, or reading it would take too much memory.
    """
    with _place_for(body) if len(body) > SMALL else nullcontext():
        name, images = _images(body, shape)
    if len(images) > most:
        raise Refused(TOO_LARGE, f"{name} holds {len(images):,} images; send at most {most:,}")
    return images


def _place_for(body: bytes) -> AbstractContextManager[None]:
    needed = memory_to_read(body)
    if needed > AT_WORK:
        reason = f"the body's JSON takes {needed / 1e6:,.0f} MB to read; send fewer images at once"
        raise Refused(TOO_LARGE, reason)
    return BUDGET.taking(needed)


def _images(body: bytes, shape: Shape) -> tuple[str, Array]:
    try:
        text, document = _parsed(body)
        name, values = _tensor(document)
        # If there is a text, numpy turns every number into a text of that length.
        odd = text.count('"') > 2 or "true" in text or "false" in text
        return name, _batch(name, _bytes(name, values, odd=odd), shape)
    except RecursionError:
        raise Refused(BAD_REQUEST, "the body's JSON is nested too deeply") from None


def memory_to_read(body: bytes) -> int:
    """Most bytes that reading JSON takes: its text, Python's objects and numpy's numbers."""
    lists, objects, commas = body.count(b"["), body.count(b"{"), body.count(b",")
    texts = body.count(b'"') // 2
    # Numbers up to 256 exist once; any other takes three characters at least, and 32 bytes.
    numbers = max(0, len(body) - commas - 2 * lists) // 3
    text = len(body) * (2 if body.isascii() else 5)
    members = 300 * objects + 200 * body.count(b":") + 80 * texts
    return text + members + 120 * lists + 19 * commas + 32 * numbers


def _parsed(body: bytes) -> tuple[str, Any]:
    try:
        text = body.decode()
        return text, json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise Refused(BAD_REQUEST, "the body is not text in UTF-8") from None
    except ValueError as error:
        raise Refused(BAD_REQUEST, f"the body is not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Refused(BAD_REQUEST, f"the body's JSON holds {_short(twice)} twice in one object")
    return made


def _tensor(document: Any) -> tuple[str, list[Any]]:
    """The name and the nested lists of the one tensor."""
    form = '{"inputs": [image, …]}'
    if not isinstance(document, dict):
        raise Refused(BAD_REQUEST, f"the body must be a JSON object, {form}")
    names = [name for name in TENSORS if name in document]
    others = sorted(document.keys() - set(TENSORS))
    if others:
        raise Refused(BAD_REQUEST, f"{_short(others[0])} is not taken; send {form} alone")
    if len(names) != 1:
        raise Refused(BAD_REQUEST, f"the body needs one of {' and '.join(TENSORS)}: {form}")
    [name] = names
    if not isinstance(document[name], list):
        raise Refused(BAD_REQUEST, f"{name} must be a list of images, {form}")
    return name, document[name]


def _bytes(name: str, values: list[Any], *, odd: bool) -> Array:
    """Nested lists as an array u8[…]; `odd`: they may hold texts or booleans, which numpy casts."""
    if odd:
        _require_bytes(name, values)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        reason = f"{name} is ragged: every image, row and pixel must have the same length"
        raise Refused(BAD_REQUEST, reason) from None
    if array.size == 0:
        raise Refused(BAD_REQUEST, f"{name} holds no image")
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        _require_bytes(name, values)
    return array.astype(np.uint8)


def _require_bytes(name: str, values: list[Any]) -> None:
    for where, value in _no_bytes(values, name):
        raise Refused(
            BAD_REQUEST,
            f"{where} is {_short(value)}{_kind(value)}; pixels are whole numbers 0–255 "
            "(uint8), unscaled: the model scales them itself",
        )


def _batch(name: str, array: Array, shape: Shape) -> Array:
    height, width, channels = shape
    if channels == 1 and (height, width) in (array.shape, array.shape[1:]):
        array = array[..., None]
    if array.shape == shape:
        array = array[None]
    if array.ndim == 4 and array.shape[1:] == shape:
        return array
    grey = f" or [N,{height},{width}]" if channels == 1 else ""
    expected = f"[N,{height},{width},{channels}]{grey}"
    given = ",".join(map(str, array.shape))
    raise Refused(BAD_REQUEST, f"{name} has the shape [{given}]; the model takes {expected}")


def _no_bytes(values: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The position and the value of something that is not a whole number 0–255."""
    if isinstance(values, list):
        for index, value in enumerate(values):
            if type(value) is not int or not 0 <= value <= 255:
                yield from _no_bytes(value, f"{name}[{index}]")
    else:
        yield name, values


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", float: "a float", str: "a text", dict: "an object"}
    return f", {kinds[type(value)]}" if type(value) in kinds else ""


def _short(value: Any) -> str:
    text = ""
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):  # no more than is shown
        text += part
        if len(text) > _SHOWN:
            return text[: _SHOWN - 1] + "…"
    return text


def picture_in(
    body: bytes, shape: Shape, dark_border: float | None, fit: str = PAD
) -> tuple[Array, bool]:
    """The picture as the model takes it, u8[1,H,W,C], and whether its brightness was inverted.

    It is inverted if its border is bright and that of the training images dark, or vice versa;
    `dark_border` is the share of training images with a dark border, None if unknown.

    Raises:
        Refused: the body is not a picture that can be read, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(body), formats=_FORMATS) as picture:
            size = f"{picture.width}×{picture.height}"
            too_large = picture.width * picture.height > MOST_PIXELS
        if not too_large:
            images = read_picture(io.BytesIO(body), shape, fit=fit, formats=_FORMATS)[np.newaxis]
            inverted = bool(to_invert(images, dark_border)[0])
            return (255 - images if inverted else images), inverted
    except Image.DecompressionBombError:  # Pillow's own limit, which is higher than ours
        size = "too many"
    except UnidentifiedImageError:
        raise _unreadable("of no format that is taken") from None
    # Decoders may raise anything for damaged bytes.
    except Exception as error:
        raise _unreadable(first_line(str(error))[:_REASON]) from error
    raise Refused(TOO_LARGE, f"the picture has {size} pixels; send at most {MOST_PIXELS:,}")


def _unreadable(why: str) -> Refused:
    return Refused(
        BAD_REQUEST,
        f"the body is no picture that can be read ({why}); "
        f"send the bytes of a file in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}",
    )


def require_picture_channels(shape: Shape) -> None:
    """Checks that a model of images of this shape can take pictures, which are grey or RGB.

    Raises:
        Refused: it takes another number of channels.
    """
    if shape[2] not in MODES:
        raise Refused(
            BAD_REQUEST,
            f"the model takes {shape[2]} channels; pictures have 1 or 3; send their values to "
            "/invocations",
        )


def require_picture_type(kind: str) -> None:
    """Checks that the declared content type of a body is that of a picture.

    Raises:
        Refused: it is not.
    """
    if not kind.startswith("image/") and kind != RAW:
        raise Refused(
            WRONG_KIND,
            f"the content type is {kind}; send the file itself, curl --data-binary @file, "
            "with the header 'Content-Type: image/png' or image/jpeg",
        )
