"""Turns any picture into an image u8[H,W,C] of a model's size and channels.

Packing, predict and serve read all picture files through this module, so that the same bytes give
the same image everywhere and the memory of all decoding threads stays bounded.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Condition
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError

from pipeline.data.files import FORMATS, opened
from pipeline.data.values import Array, Shape

Picture = Image.Image
MODES = {1: "L", 3: "RGB"}  # by number of a model's channels
FITS = ("pad", "crop", "stretch")
"""How a picture gets another aspect ratio: margins are added, ends cut off, or it is distorted."""
PAD = FITS[0]  # the default of every model
ARRAY_CHANNELS = (1, 2, 3, 4)  # grey, grey with alpha, RGB, RGBA
ADVICE = {  # by numpy's kind of dtype
    "f": "; convert with (x * 255).round().astype('uint8') if its values range from 0 to 1, "
    "with x.round().astype('uint8') if from 0 to 255",
    "b": "; convert with x.astype('uint8') * 255",
    "i": "; convert with x.astype('uint8') if its values are 0–255",
    "u": "; convert with x.astype('uint8') if its values are 0–255",
}
REDUCED = 3  # a picture stays at least this many times larger than the target when reduced
AT_WORK = 400_000_000
"""Most bytes of all pictures being decoded, over all threads."""
PIXELS_AT_ONCE = 1_000_000  # pixels converted at once

_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_DEEPEST = 65_535
_DARKEST = 16_384  # 16-bit pictures with no brighter value have 14 bits or fewer
_SCALED = ("PPM", "JPEG2000")  # formats whose deep values Pillow scales itself
_MAX_SAMPLE_VALUE, _BITS_PER_SAMPLE = 281, 258  # TIFF tags
_PHOTOMETRIC, _TILE_WIDTH, _TILE_HEIGHT = 262, 322, 323  # TIFF tags
_WHITE_IS_ZERO = 0  # of _PHOTOMETRIC
_ORIENTATION = 0x0112  # Exif tag
_UPRIGHT = 1
_TURNS = {  # what makes a picture upright, by its other values
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # those that exchange height and width
_OTHER = {  # files with the ending of a picture that are none we read, by how they begin
    rb"\Z": "is empty",
    rb"version https://git": "is a pointer of Git LFS instead of the picture; type git lfs pull",
    rb"(?s:....)ftyp(hei|hev|mif1|msf1)": "is HEIC; convert it to JPEG or PNG",
    rb"(?i)\s*<(!doctype|html)": "is a web page instead of the picture; fetch it again",
}
_ICONS = b"\0\0\1\0"  # how a file of icons begins
_LARGEST_ICON = 2**20  # pixels
_LATE = ("ICO", "TGA")  # Pillow decodes an icon as it opens it, and takes much for a TGA
# Bytes per pixel that a decoder, by format or its own name, needs in addition to the picture.
_BESIDE = {"WEBP": 12, "AVIF": 12, "JPEG2000": 32, "TIFF": 8, "ICO": 8, "PPM": 8, "QOI": 8}
_BESIDE |= {"bmp_rle": 3}
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # 4 in every other mode


def load_picture(source: Path | BinaryIO, shape: Shape, *, fit: str = PAD) -> Array:
    """Loads the picture in a file, fitted to u8[H,W,C]; of several frames, the first.

    Raises:
        Exception: as `read_picture`; the file cannot be opened.
    """
    if not isinstance(source, Path):
        return read_picture(source, shape, fit=fit)
    with opened(source) as file:
        return read_picture(file, shape, fit=fit)


def read_picture(
    file: BinaryIO, shape: Shape, *, fit: str = PAD, formats: tuple[str, ...] = FORMATS
) -> Array:
    """Reads the picture in an open file, fitted to u8[H,W,C]; of several frames, the first.

    Raises:
        Exception: whatever Pillow raises for a file that it cannot read; a ValueError explains what
            is wrong with the size or the values.
    """
    side = max(shape[:2])
    return fitted(open_picture(file, side=side, fit=fit, formats=formats), shape, fit=fit)


def open_picture(
    source: BinaryIO, *, side: int, fit: str = PAD, formats: tuple[str, ...] = FORMATS
) -> Picture:
    """Decodes the picture in a file, `made_plain` and reduced to at least REDUCED × `side` pixels.

    A JPEG is decoded at a fraction of its size. Waits while the pictures of other threads take too
    much memory. `info["size"]` is the height and width that the picture has upright, `info["mode"]`
    its mode in the file.

    Raises:
        Exception: as `read_picture`.
    """
    with recognised(source, formats) as picture:
        width, height = picture.size
        mode = picture.mode
        picture.draft(None, (REDUCED * side, REDUCED * side))  # None keeps its mode
        if isinstance(source, BytesIO) and isinstance(picture, ImageFile.ImageFile):
            # The decoder gets all of it at once. Asking for the buffer would copy it.
            place = source.tell()
            picture.decodermaxblock = max(source.seek(0, os.SEEK_END), ImageFile.MAXBLOCK)
            source.seek(place)
        needed = _memory(picture, width * height, side, fit)
        if needed > AT_WORK:
            raise ValueError(_too_large(width * height, needed))
        deep = any(";16" in str(part) for part in getattr(picture, "tile", ()))
        with BUDGET.taking(needed):
            picture.load()
            if deep and picture.mode not in _DEEP:
                _require_deep(picture)
            # Only now, since the Exif data of a PNG may follow its pixels.
            is_sideways = _orientation(picture) in _SIDEWAYS
            made = made_plain(picture, side=side, fit=fit)
            made.info |= {"size": (width, height) if is_sideways else (height, width), "mode": mode}
            return made


def upright_size(picture: Picture) -> tuple[int, int]:
    """Height and width that a picture which is not decoded yet will have upright."""
    width, height = picture.size
    return (width, height) if _orientation(picture) in _SIDEWAYS else (height, width)


def _orientation(picture: Picture) -> int:
    """The orientation in the Exif data that were read so far, _UPRIGHT or a key of _TURNS.

    Damaged data say nothing. A TIFF has its upright size, and Pillow turns it as it decodes it.
    """
    if picture.format == "TIFF":
        return _UPRIGHT
    try:
        # The method of a PNG would decode it first.
        value = Image.Image.getexif(picture).get(_ORIENTATION)
    except Exception:  # of many kinds
        return _UPRIGHT
    return value if value in _TURNS else _UPRIGHT


def recognised(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Picture:
    """Opens the picture in a file; decodes nothing yet.

    Raises:
        Exception: as `read_picture`.
    """
    early = tuple(one for one in formats if one not in _LATE)
    try:
        try:
            return Image.open(file, formats=early)
        except UnidentifiedImageError:
            _require_small_icon(file)
            return Image.open(file, formats=tuple(one for one in formats if one in _LATE))
    except Image.DecompressionBombError as error:
        size = re.search(r"\d+", str(error))
        pixels = f"{int(size[0]):,}" if size else "too many"
        raise ValueError(f"has {pixels} pixels; make it smaller") from error
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(64)
        for other, reason in _OTHER.items():
            if re.match(other, start):
                raise ValueError(reason) from error
        raise


def _too_large(pixels: int, needed: int) -> str:
    return f"has {pixels:,} pixels, which take {needed / 1e6:,.0f} MB to decode; make it smaller"


def _require_small_icon(file: BinaryIO) -> None:
    """Refuses a large icon, before Pillow decodes it by opening it.

    Raises:
        ValueError: it is too large.
    """
    from PIL.BmpImagePlugin import DibImageFile
    from PIL.IcoImagePlugin import IcoFile
    from PIL.PngImagePlugin import PngImageFile

    file.seek(0)
    if file.read(len(_ICONS)) != _ICONS:
        return
    file.seek(0)
    try:
        place = IcoFile(file).entry[0].offset  # of the one that Pillow reads
        file.seek(place)
        kind = PngImageFile if file.read(4) == b"\x89PNG" else DibImageFile
        file.seek(place)
        pixels = math.prod(kind(file).size)
    except (SyntaxError, IndexError, TypeError, struct.error):
        return  # Pillow refuses it too
    if pixels > _LARGEST_ICON:
        raise ValueError(f"is an icon of {pixels:,} pixels; save it as PNG")


def _memory(picture: Picture, pixels: int, side: int, fit: str) -> int:
    """Upper bound of the bytes to decode and fit a picture of `pixels` pixels before reduction."""
    now = picture.width * picture.height
    names = (picture.format or "", *(tile[0] for tile in getattr(picture, "tile", ())))
    tile = (_tag(picture, _TILE_WIDTH) or 0) * (_tag(picture, _TILE_HEIGHT) or 0)
    decoder = max(_BESIDE.get(name, 0) for name in names) * max(now, tile)
    if _in_several_scans(picture):  # libjpeg keeps all coefficients, 2 bytes each
        decoder = 2 * len(picture.getbands()) * pixels
    longest = 2 * REDUCED * side  # after reduction
    kept = min(now, longest * min(longest, *picture.size)) if fit == PAD else now
    return _BYTES.get(picture.mode, 4) * now + decoder + 24 * (kept + min(now, PIXELS_AT_ONCE))


def _in_several_scans(picture: Picture) -> bool:
    """Whether a JPEG is progressive, or has scans of less than all its channels."""
    if picture.info.get("progressive"):
        return True
    if not isinstance(picture, ImageFile.ImageFile) or picture.format not in ("JPEG", "MPO"):
        return False
    file, channels = picture.fp, len(picture.getbands())
    assert file is not None
    if picture.format == "MPO":  # Pillow has gone back to its start
        from PIL.JpegImagePlugin import JpegImageFile

        file.seek(0)
        JpegImageFile(file)
    end = file.tell()  # of the header of the first scan, whose length tells its channels
    file.seek(max(0, end - 8 - 2 * channels))
    before = file.read(end - file.tell())
    return any(
        before[-8 - 2 * few :].startswith(bytes([0xFF, 0xDA, 0, 6 + 2 * few, few]))
        for few in range(1, channels)
    )


class _Budget:
    """A budget of bytes; callers wait until theirs are available."""

    def __init__(self) -> None:
        self.taken = 0
        self.changed = Condition()

    @contextmanager
    def taking(self, wanted: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: self.taken + wanted <= AT_WORK)
            self.taken += wanted
        try:
            yield
        finally:
            with self.changed:
                self.taken -= wanted
                self.changed.notify_all()


BUDGET = _Budget()
"""AT_WORK, which all readers of pictures and of large requests share."""


def fitted(picture: Picture, shape: Shape, *, fit: str = PAD) -> Array:
    """Fits the picture, upright and centred, into u8[H,W,C].

    `pad` keeps all of it and its aspect ratio; the margins get the median colour of the picture's
    border, as in Fashion-MNIST itself (Xiao et al. 2017, section 2). `crop` keeps the middle,
    `stretch` everything but the aspect ratio. A much larger picture is first reduced by averaging
    blocks, then resized with antialiasing (Lanczos). Transparent parts get a background on which
    the visible ones stand out. Grey is the luma of ITU-R BT.601.

    Raises:
        ValueError: the pixel values have no known range; pictures have other channels.
    """
    height, width, channels = shape
    _require_fitting(shape)
    upright = made_plain(picture, side=max(height, width), fit=fit)
    if upright.mode != MODES[channels]:
        upright = upright.convert(MODES[channels])
    resized = _resized(upright, (width, height), fit)
    small = np.asarray(resized).reshape(resized.height, resized.width, channels)
    if small.shape == shape:
        return small
    canvas = np.empty(shape, np.uint8)
    canvas[:] = border_colour(small[None])[0]
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def _require_fitting(shape: Shape) -> None:
    height, width, channels = shape
    if channels not in MODES:
        raise ValueError(
            f"cannot be fitted to {channels} channels, pictures have 1 or 3; the model takes "
            f"arrays [N,{height},{width},{channels}]"
        )


def _resized(picture: Picture, size: tuple[int, int], fit: str) -> Picture:
    if fit == PAD:
        return contained(picture, size)
    box: tuple[float, float, float, float] | None = None
    if fit == "crop":
        scale = min(picture.width / size[0], picture.height / size[1])
        # Rounding must not move a side beyond the picture, which Pillow refuses.
        left, top = (
            max(0.0, (whole - scale * part) / 2)
            for whole, part in zip(picture.size, size, strict=True)
        )
        box = (left, top, picture.width - left, picture.height - top)
    return picture.resize(size, Image.Resampling.LANCZOS, box)


def contained(
    picture: Picture,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Picture:
    """Resizes a picture to the largest that fits into `size` (width, height), aspect ratio kept."""
    scale = min(size[0] / picture.width, size[1] / picture.height)
    # A very long picture keeps at least one line; ImageOps.contain would leave none.
    fitting = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(fitting, resample)


def made_plain(picture: Picture, *, side: int, fit: str = PAD) -> Picture:
    """Makes a picture upright and opaque, with 8 bits per channel, in mode L or RGB.

    If its longer side (for fits other than `pad` its shorter one) is at least 2 × REDUCED × `side`,
    it is reduced to no less than half of that.

    Raises:
        ValueError: the pixel values have no known range.
    """
    decisive = max(picture.size) if fit == PAD else min(picture.size)
    factor = max(1, decisive // (REDUCED * side))
    plain = opaque(_reduced(picture, factor))
    if (orientation := _orientation(plain)) == _UPRIGHT:
        return plain
    turned = plain.transpose(_TURNS[orientation])
    turned.info = {}  # it must not be turned again
    return turned


def is_grey(picture: Picture) -> bool:
    """Whether a plain picture has no colour: as an image, its channels would be equal."""
    if picture.mode == "L":
        return True
    red, *others = picture.split()
    return all(ImageChops.difference(red, other).getbbox() is None for other in others)


def _reduced(picture: Picture, factor: int) -> Picture:
    """Averages blocks of `factor` × `factor` pixels; returns L, RGB or RGBA, orientation kept.

    Works tile by tile: a whole picture in another mode could take many times the memory.
    """
    highest = _highest(picture)
    # Pillow itself inverts those of up to 8 bits.
    negative = highest is not None and _tag(picture, _PHOTOMETRIC) == _WHITE_IS_ZERO
    mode = "RGB"
    if picture.has_transparency_data:
        mode = "RGBA"
    elif picture.mode in (*_DEEP, "1", "L"):
        mode = "L"
    if factor == 1 and picture.mode == mode:
        return picture
    width, height = picture.size
    made = Image.new(mode, (-(-width // factor), -(-height // factor)))
    across = factor * max(1, round(PIXELS_AT_ONCE**0.5) // factor)
    down = factor * max(1, PIXELS_AT_ONCE // (factor * min(width, across)))
    for top in range(0, height, down):
        for left in range(0, width, across):
            box = (left, top, min(left + across, width), min(top + down, height))
            tile = picture.crop(box)
            tile = _eight_bit(tile, highest) if highest else tile.convert(mode)
            tile = ImageChops.invert(tile) if negative else tile
            made.paste(tile.reduce(factor), (left // factor, top // factor))
    made.getexif()[_ORIENTATION] = _orientation(picture)
    return made


def _eight_bit(tile: Picture, highest: int) -> Picture:
    values = np.asarray(tile)
    grey = Image.fromarray(np.round(values.astype(np.float64) * (255 / highest)).astype(np.uint8))
    if tile.has_transparency_data:  # of a PNG, which names the transparent value
        visible = (values != tile.info["transparency"]).astype(np.uint8)
        grey.putalpha(Image.fromarray(255 * visible))
    return grey


def _highest(picture: Picture) -> int | None:
    """The value of white in a picture with more than 8 bits per channel, else None.

    Raises:
        ValueError: it is unknown: 32-bit integers beyond 16 bits, floats, or 16-bit values that are
            all so low that they have fewer bits.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if picture.mode not in _DEEP:
        return None
    low, high = _extrema(picture)
    declared = _declared(picture)
    if declared is not None and 0 <= low and high <= declared:
        return declared
    if low < 0 or high > _DEEPEST:
        raise ValueError("its pixel values exceed 16 bits; save it with 8 or 16 bits")
    if 0 < high < _DARKEST and picture.format not in _SCALED:
        raise ValueError(_too_dark(high))
    return _DEEPEST


def _extrema(picture: Picture) -> tuple[int, int]:
    step = max(1, PIXELS_AT_ONCE // picture.width)
    ends = []
    # Pillow's own getextrema does not support every mode
    for top in range(0, picture.height, step):
        box = (0, top, picture.width, min(top + step, picture.height))
        strip = np.asarray(picture.crop(box))
        ends += [int(strip.min()), int(strip.max())]
    return min(ends), max(ends)


def _declared(picture: Picture) -> int | None:
    """The highest value that a TIFF file declares, None if it declares none."""
    highest, bits = _tag(picture, _MAX_SAMPLE_VALUE), _tag(picture, _BITS_PER_SAMPLE) or 16
    if highest is not None:
        return highest or None
    return 2**bits - 1 if bits < 16 else None


def _tag(picture: Picture, number: int) -> int | None:
    """The value of a TIFF file's tag, the largest of several, None if it has none."""
    value = getattr(picture, "tag_v2", {}).get(number)
    return None if value is None else int(max(value) if isinstance(value, tuple) else value)


def _require_deep(picture: Picture) -> None:
    """Refuses 16-bit colours (Pillow keeps their upper 8 bits) that have fewer bits.

    Black ink is accepted where an opacity that varies has all bits. Without it, values of 8 bits
    look black.
    """
    extrema = picture.getextrema()
    pairs = extrema if isinstance(extrema[0], tuple) else (extrema,)
    bands = zip(picture.getbands(), pairs, strict=True)
    high = max(int(most) for band, (least, most) in bands if band != "A" or least < most)
    declared = _declared(picture)
    if declared is None or high > declared >> 8:
        if high < _DARKEST >> 8:
            raise ValueError(_too_dark(256 * high + 255))
    elif declared <= _DEEPEST // 2:
        raise ValueError(_too_dark(declared))


def _too_dark(high: int) -> str:
    return (
        f"its 16-bit values end at {high:,} of {_DEEPEST:,}, as those of 8 to 14 bits do; "
        "save it with 8 bits, or scaled to 16"
    )


def opaque(picture: Picture) -> Picture:
    """Puts transparent parts on white if the visible ones are dark, else on black."""
    if not picture.has_transparency_data:
        return picture
    layers = picture.convert("RGBA")
    alpha, grey = np.asarray(layers.getchannel("A")), np.asarray(layers.convert("L"))
    brightness = np.einsum("ij,ij->", alpha, grey, dtype=np.float64) / (alpha.sum() + 1e-9)
    background = Image.new("RGBA", layers.size, "white" if brightness < 127.5 else "black")
    flat = Image.alpha_composite(background, layers).convert("RGB")
    flat.getexif()[_ORIENTATION] = _orientation(picture)
    return flat


def picture_of(pixels: Array) -> Picture:
    """Turns u8[H,W] or u8[H,W,C] into a picture; of more than four channels, the first three."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    elif pixels.ndim == 3 and pixels.shape[2] not in ARRAY_CHANNELS:
        pixels = pixels[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels))


def fitted_pixels(pixels: Array, shape: Shape, *, fit: str = PAD) -> Array:
    """As `fitted` for pixels u8[H,W,C]; waits while other pictures take too much memory."""
    with BUDGET.taking(require_room(pixels.shape)):
        return fitted(picture_of(pixels), shape, fit=fit)


def require_room(shape: tuple[int, ...]) -> int:
    """Bytes that it takes to fit an image of that shape [H,W,C].

    Raises:
        ValueError: they are more than AT_WORK.
    """
    height, width, channels = shape
    needed = (4 + channels) * height * width + 24 * min(height * width, PIXELS_AT_ONCE)
    if needed > AT_WORK:
        raise ValueError(_too_large(height * width, needed))
    return needed


def as_stack(array: Array, shape: Shape) -> Array:
    """Returns the images of an array [H,W], [H,W,C], [N,H,W], [N,H,W,C] or [N,H·W] as u8[N,H,W,C].

    An array of two dimensions is a stack of flat images if the second is the model's height times
    width, else one image. An array of three dimensions is a stack if the last two are the model's
    height and width, else one image if the last can be channels, else a stack.

    Raises:
        ValueError: it has another dtype or shape, or is empty.
    """
    if array.dtype != np.uint8:
        advice = ADVICE.get(array.dtype.kind, "")
        raise ValueError(f"holds {array.dtype}, not uint8 with values 0–255{advice}")
    if array.size == 0:
        raise ValueError(f"has the shape {array.shape}, which holds no image")
    array = _unflattened(array, shape)
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"has the shape {array.shape}; images are [H,W], [H,W,C] or [N,H,W,C]")
    if array.ndim == 2:
        array = array[np.newaxis, ..., np.newaxis]
    elif array.ndim == 3:
        array = array[np.newaxis] if _has_channels(array, shape) else array[..., np.newaxis]
    if array.shape[1:] == shape:
        return array
    _require_fitting(shape)
    if array.shape[3] not in ARRAY_CHANNELS:
        first = "; x.transpose(0, 2, 3, 1) puts them last" if array.shape[1] in (1, 3) else ""
        raise ValueError(f"has {array.shape[3]} channels in {array.shape}; 1–4 can be read{first}")
    return array


def _unflattened(array: Array, shape: Shape) -> Array:
    """Reshapes flat images to [N,H,W]; returns other arrays unchanged."""
    if another := _to_be_reshaped(array.shape, shape):
        raise ValueError(f"has the shape {array.shape}: {another}")
    height, width, _ = shape
    flat = array.ndim < 3 and array.shape[-1] == height * width
    return array.reshape(-1, height, width) if flat and array.shape != (height, width) else array


def _to_be_reshaped(given: tuple[int, ...], shape: Shape) -> str | None:
    """Advice on saving an array whose shape can be read in two ways, or is flat in another way."""
    height, width, channels = shape
    pixels, size = height * width, f"{height}, {width}"
    if channels == 3 and given == (3, height, width):
        return "use x.transpose(1, 2, 0) for one colour image, x[..., None] for three grey ones"
    if len(given) < 3 and channels > 1 and given[-1] == pixels * channels:
        return (
            f"for flat images save x.reshape(-1, {size}, {channels}), or x.reshape(-1, {channels}, "
            f"{size}).transpose(0, 2, 3, 1) if the channels follow one another"
        )
    if len(given) == 2 and given[1] == pixels + 1 and given != (height, width):
        return "use x[:, 1:] for flat images after their labels, x[..., None] for one image"
    if len(given) == 3 and given[1:] in ((pixels, 1), (1, pixels)) and height > 1 < width:
        one = "x[None]" if given[2] == 1 else "x[:, 0]"
        return f"use x.reshape(-1, {size}) for flat images, {one} for one image"
    if len(given) == 3 and given[1:] == (pixels, channels) and height > 1 < width:
        return f"use x.reshape(-1, {size}, {channels}) for flat images, x[None] for one image"
    return None


def _has_channels(array: Array, shape: Shape) -> bool:
    return array.shape[1:] != shape[:2] and array.shape[2] in (*ARRAY_CHANNELS, shape[2])


def border_colour(images: Array) -> Array:
    """The median colour of each image's border, u8[N,1,1,C], of images u8[N,H,W,C]."""
    sides = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    colours: Array = np.median(np.concatenate(sides, axis=1), axis=1).astype(np.uint8)
    return colours[:, None, None]
