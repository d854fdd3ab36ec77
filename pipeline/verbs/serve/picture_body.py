"""Reads the one picture that is the body of a request, as `predict` reads a file."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.data.pictures import load
from pipeline.data.polarity import to_invert
from pipeline.data.values import Array, Shape
from pipeline.system.errors import first_line
from pipeline.verbs.serve.bodies import BAD_REQUEST, TOO_LARGE, WRONG_KIND, Refused

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MOST_PIXELS = 50_000_000  # a small file may unfold to gigabytes
RAW = "application/octet-stream"


def picture_in(body: bytes, shape: Shape, dark_border: float | None) -> tuple[Array, bool]:
    """The picture as the model takes it, u8[1,H,W,C], and whether its brightness was inverted.

    It is where its border is bright and that of the training images dark, or the other way round;
    `dark_border` is the share of these that have a dark one, None where that is not known.

    Raises:
        Refused: the body is no picture that can be read, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as picture:
            size = f"{picture.width}×{picture.height}"
            too_large = picture.width * picture.height > MOST_PIXELS
        if not too_large:
            images = load(io.BytesIO(body), shape, formats=FORMATS)[np.newaxis]
            inverted = bool(to_invert(images, dark_border)[0])
            return (255 - images if inverted else images), inverted
    except Image.DecompressionBombError:  # Pillow's own limit, which is higher than ours
        size = "too many"
    except UnidentifiedImageError:
        raise _unreadable("of no format that is taken") from None
    # Decoders raise whatever they like at damaged bytes.
    except Exception as error:
        raise _unreadable(first_line(str(error))[:80]) from error
    raise Refused(TOO_LARGE, f"the picture has {size} pixels; send at most {MOST_PIXELS:,}")


def _unreadable(why: str) -> Refused:
    return Refused(
        BAD_REQUEST,
        f"the body is no picture that can be read ({why}); "
        f"send the bytes of a file in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
    )


def require_picture_type(kind: str) -> None:
    """Refuses a body that calls itself something else than a picture.

    Raises:
        Refused: as said.
    """
    if not kind.startswith("image/") and kind != RAW:
        raise Refused(
            WRONG_KIND,
            f"the content type is {kind}; send the file itself, curl --data-binary @file, "
            "with the header 'Content-Type: image/png' or image/jpeg",
        )
