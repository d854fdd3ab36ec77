"""Reads the images out of a scoring request, and refuses with a reason what is none.

The protocol is that of MLflow's scoring server and of TensorFlow Serving: a JSON object with the
tensor under `inputs` or `instances`. Unlike theirs, nothing is cast: what is no byte is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.data.values import Array, Shape

TENSORS = ("inputs", "instances")
SHOWN = 40  # characters of a refused value

BAD_REQUEST, TOO_LARGE, WRONG_KIND = 400, 413, 415


class Refused(Exception):
    """A request that is answered with an HTTP status of 4xx or 5xx and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def images_in(body: bytes, shape: Shape, *, most: int) -> Array:
    """The images u8[N,H,W,C] of a request's body, N from 1 to `most`; `shape` is [H,W,C].

    A single image may stand without the dimension N, grey images without the dimension C.

    Raises:
        Refused: the body is not such JSON, a value is not a whole number 0–255, the shape is not
            the model's, or there are no or too many images.
    """
    text, document = _parsed(body)
    name, values = _tensor(document)
    array = _bytes(name, values, booleans="true" in text or "false" in text)
    images = _batch(name, array, shape)
    if len(images) > most:
        raise Refused(TOO_LARGE, f"{name} holds {len(images):,} images; send at most {most:,}")
    return images


def _parsed(body: bytes) -> tuple[str, Any]:
    try:
        text = body.decode()
        return text, json.loads(text)
    except UnicodeDecodeError:
        raise Refused(BAD_REQUEST, "the body is not text in UTF-8") from None
    except RecursionError:
        raise Refused(BAD_REQUEST, "the body's JSON is nested too deeply") from None
    except ValueError as error:
        raise Refused(BAD_REQUEST, f"the body is not JSON: {error}") from None


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


def _bytes(name: str, values: list[Any], *, booleans: bool) -> Array:
    """Nested lists as an array u8[…]; `booleans` says that there are some, which numpy hides."""
    try:
        array = np.asarray(values)
    except ValueError:
        reason = f"{name} is ragged: every image, row and pixel must have the same length"
        raise Refused(BAD_REQUEST, reason) from None
    if array.size == 0:
        raise Refused(BAD_REQUEST, f"{name} holds no image")
    if array.dtype.kind not in "iu" or booleans or array.min() < 0 or array.max() > 255:
        for place, value in _no_bytes(values, name):
            raise Refused(
                BAD_REQUEST,
                f"{place} is {_short(value)}{_kind(value)}; pixels are whole numbers 0–255 "
                "(uint8), unscaled: the model scales them itself",
            )
    return array.astype(np.uint8)


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


def _no_bytes(values: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Where what is no whole number 0–255 stands, and what it is."""
    if isinstance(values, list):
        for index, value in enumerate(values):
            if type(value) is not int or not 0 <= value <= 255:
                yield from _no_bytes(value, f"{place}[{index}]")
    else:
        yield place, values


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", float: "a float", str: "a text", dict: "an object"}
    return f", {kinds[type(value)]}" if type(value) in kinds else ""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
