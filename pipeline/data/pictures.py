"""Makes of any picture what a model takes: u8[H,W,C] of its size and channels."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from pipeline.data.values import Array, Shape

Picture = Image.Image
MODES = {1: "L", 3: "RGB"}  # by the channels of a model
ARRAY_CHANNELS = (1, 2, 3, 4)  # grey, grey with alpha, RGB, RGBA
ADVICE = {  # by the kind of an array's numbers
    "f": "; make (x * 255).round().astype('uint8') of it if they go from 0 to 1",
    "b": "; make x.astype('uint8') * 255 of it",
    "i": "; make x.astype('uint8') of it if its values are 0–255",
    "u": "; make x.astype('uint8') of it if its values are 0–255",
}
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_DEEPEST = 65_535


def fitted(picture: Picture, shape: Shape) -> Array:
    """The whole picture, upright, in the middle of u8[H,W,C].

    The sides keep their proportion; what is left beside it takes the median colour of the
    picture's border, as Fashion-MNIST's own images were made (Xiao et al. 2017, section 2).
    Resized with antialiasing (Lanczos). Transparent parts get the background on which the visible
    ones stand out; grey is the luma of ITU-R BT.601.

    Raises:
        ValueError: the pixel values have no known range.
    """
    height, width, channels = shape
    resized = contained(plain(picture).convert(MODES[channels]), (width, height))
    small = np.asarray(resized).reshape(resized.height, resized.width, channels)
    if small.shape == shape:
        return small
    canvas = np.empty(shape, np.uint8)
    canvas[:] = _border_colour(small)
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def plain(picture: Picture) -> Picture:
    """The picture upright, opaque and of 8 bits a channel.

    Raises:
        ValueError: the pixel values have no known range.
    """
    return opaque(eight_bit(ImageOps.exif_transpose(picture)))


def contained(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture, its proportions kept, as large as fits into `size` (width, height)."""
    scale = min(size[0] / picture.width, size[1] / picture.height)
    # A very long picture keeps a line at least, which ImageOps.contain would not give it.
    fitting = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(fitting, Image.Resampling.LANCZOS)


def eight_bit(picture: Picture) -> Picture:
    """A picture of 16 bits a channel in 8; others as they are.

    Raises:
        ValueError: 32-bit integers beyond 16 bits, or floats: what is white there is not known.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if picture.mode not in _DEEP:
        return picture
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > _DEEPEST:
        raise ValueError("its pixels go beyond 16 bits; save it with 8 or 16 bits")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def opaque(picture: Picture) -> Picture:
    """Transparent parts on white if what is visible is dark, else on black."""
    if not picture.has_transparency_data:
        return picture
    layers = picture.convert("RGBA")
    alpha = layers.getchannel("A")
    visible = np.asarray(alpha, np.float64)
    brightness = np.average(np.asarray(layers.convert("L")), weights=visible + 1e-9)
    background = Image.new("RGBA", layers.size, "white" if brightness < 127.5 else "black")
    return Image.alpha_composite(background, layers).convert("RGB")


def picture_of(pixels: Array) -> Picture:
    """u8[H,W] or u8[H,W,C] with 1–4 channels as a picture."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def as_stack(array: Array, shape: Shape) -> Array:
    """Images of one array, u8[N,H,W,C], from [H,W], [H,W,C], [N,H,W] or [N,H,W,C].

    Of three dimensions it is a stack if the last two are the model's height and width, else one
    image if the last can be channels, else a stack.

    Raises:
        ValueError: another dtype or shape, or no image in it.
    """
    if array.dtype != np.uint8:
        advice = ADVICE.get(array.dtype.kind, "")
        raise ValueError(f"holds {array.dtype}, not uint8 with values 0–255{advice}")
    if array.size == 0:
        raise ValueError(f"has the shape {array.shape}, in which there is no image")
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"has the shape {array.shape}; images are [H,W], [H,W,C] or [N,H,W,C]")
    if array.ndim == 2:
        array = array[np.newaxis, ..., np.newaxis]
    elif array.ndim == 3:
        array = array[np.newaxis] if _has_channels(array, shape) else array[..., np.newaxis]
    if array.shape[3] not in ARRAY_CHANNELS:
        raise ValueError(f"has {array.shape[3]} channels in {array.shape}; 1–4 can be read")
    return array


def _has_channels(array: Array, shape: Shape) -> bool:
    return array.shape[1:] != shape[:2] and array.shape[2] in ARRAY_CHANNELS


def _border_colour(image: Array) -> Array:
    frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    colour: Array = np.median(frame, axis=0).astype(np.uint8)
    return colour
