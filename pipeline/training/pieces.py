"""The pieces of the augmentation `combined`: independent changes to batches of training.

Each is plain TensorFlow on whole arrays; XLA can compile all but the rotations of RandAugment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.data.values import Tensor
from pipeline.system.imports import Lazy

if TYPE_CHECKING:
    import tensorflow as tf
else:
    tf = Lazy("tensorflow")  # configurations are checked without TensorFlow, as in models.py


# Each draws its random numbers independently of the others.
FLIP, CROP, COLOUR, ERASING, CUTOUT, MIXING, BOX, _NOISE, FIRST, RAND_AUGMENT = range(10)
QUANTILES = 1024  # of the beta distribution, which XLA cannot draw from


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of training: images u8[n,H,W,C] and targets f32[n,K], whose rows sum to one.

    `seed` i64[2] determines all random numbers: the seed of the run and the number of the step.
    `epoch` counts from 0.
    """

    images: Tensor
    targets: Tensor
    seed: Tensor
    epoch: Tensor

    def uniform(self, piece: int, *shape: Any, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Random numbers f32[shape] from `low` to `high`, independent of other pieces'."""
        return tf.random.stateless_uniform(
            shape, self.seed + tf.constant([piece << 33, 0], tf.int64), low, high
        )

    @property
    def size(self) -> tuple[Any, int, int, int]:
        """Number, height, width and channels of the images; the number may be a tensor."""
        return (tf.shape(self.images)[0], *self.images.shape[1:])


def _as_pixels(values: Tensor) -> Tensor:
    return tf.cast(tf.clip_by_value(tf.round(values), 0, 255), tf.uint8)


def moved(batch: Batch, flip: str, crop: int) -> Batch:
    """Mirrors images and moves them by up to `crop` pixels, in one gather."""
    if flip == "none" and crop == 0:
        return batch
    n, height, width, channels = batch.size
    rows, columns = (tf.tile(tf.range(side)[tf.newaxis], [n, 1]) for side in (height, width))
    if crop > 0:
        moves = batch.uniform(CROP, n, 2, low=-crop, high=crop + 1)
        moves = tf.clip_by_value(tf.cast(tf.floor(moves), tf.int32), -crop, crop)
        rows = _reflected(rows + moves[:, :1], height)
        columns = _reflected(columns + moves[:, 1:], width)
    if flip != "none":
        mirrored = batch.uniform(FLIP, n) < 0.5 if flip == "random" else _turn(batch)
        columns = tf.where(mirrored[:, tf.newaxis], width - 1 - columns, columns)
    positions = rows[:, :, tf.newaxis] * width + columns[:, tf.newaxis, :]
    pixels = tf.reshape(batch.images, [n, height * width, channels])
    moved = tf.gather(pixels, tf.reshape(positions, [n, height * width]), axis=1, batch_dims=1)
    return replace(batch, images=tf.reshape(moved, [n, height, width, channels]))


def _reflected(positions: Tensor, size: int) -> Tensor:
    inside = tf.abs(positions)
    inside = tf.where(inside >= size, 2 * (size - 1) - inside, inside)
    return tf.clip_by_value(inside, 0, size - 1)


def _turn(batch: Batch) -> Tensor:
    """Whether each image is to be flipped in this epoch, bool[n]; depends on content and epoch."""
    _, *shape = batch.size
    weights = tf.random.stateless_uniform(shape, [batch.seed[0], 0], 0, 2**15, tf.int32)
    sums = tf.reduce_sum(tf.cast(batch.images, tf.int32) * weights, axis=(1, 2, 3))
    side = tf.bitwise.right_shift(tf.bitwise.bitwise_and(sums, 2**16 - 1), 8)
    return (side + tf.cast(batch.epoch, tf.int32)) % 2 == 1


def coloured(batch: Batch, strength: float) -> Batch:
    """Changes brightness, contrast and, of three channels, saturation by up to `strength`."""
    if strength == 0:
        return batch
    n, *_, channels = batch.size
    factors = batch.uniform(COLOUR, 3, n, 1, 1, 1, low=1 - strength, high=1 + strength)
    x = tf.cast(batch.images, tf.float32) * factors[0]
    mean = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
    x = mean + (x - mean) * factors[1]
    if channels == 3:
        grey = tf.reduce_sum(x * [0.299, 0.587, 0.114], axis=3, keepdims=True)
        x = grey + (x - grey) * factors[2]
    return replace(batch, images=_as_pixels(x))


def _rectangle(batch: Batch, top: Tensor, left: Tensor, high: Tensor, wide: Tensor) -> Tensor:
    """Masks bool[n,H,W,1] (or bool[1,H,W,1]) of rectangles, whose places and sizes are f32[n]."""
    _, height, width, _ = batch.size
    rows = tf.range(height, dtype=tf.float32)[tf.newaxis, :]
    columns = tf.range(width, dtype=tf.float32)[tf.newaxis, :]
    top, left, high, wide = (tf.round(value)[:, tf.newaxis] for value in (top, left, high, wide))
    in_rows, in_columns = (
        (rows >= top) & (rows < top + high),
        (columns >= left) & (columns < left + wide),
    )
    return (in_rows[:, :, tf.newaxis] & in_columns[:, tf.newaxis, :])[..., tf.newaxis]


def erased(batch: Batch, probability: float) -> Batch:
    """Fills a rectangle of 2 % to 33 % of an image with noise, with this probability."""
    if probability == 0:
        return batch
    n, height, width, _ = batch.size
    draws = batch.uniform(ERASING, 5, n)
    area = (0.02 + 0.31 * draws[1]) * (height * width)
    aspect = tf.exp((2 * draws[2] - 1) * tf.math.log(1 / 0.3))
    high = tf.minimum(tf.sqrt(area * aspect), height)
    wide = tf.minimum(tf.sqrt(area / aspect), width)
    mask = _rectangle(batch, draws[3] * (height - high), draws[4] * (width - wide), high, wide)
    mask &= (draws[0] < probability)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    noise = batch.uniform(_NOISE, *batch.size, high=256.0)
    noise = tf.cast(tf.minimum(noise, 255), tf.uint8)
    return replace(batch, images=tf.where(mask, noise, batch.images))


def cut_out(batch: Batch, share: float) -> Batch:
    """Blackens a square of this share of the shorter side; its centre is anywhere."""
    if share == 0:
        return batch
    n, height, width, _ = batch.size
    side = tf.fill([n], max(1.0, share * min(height, width)))
    draws = batch.uniform(CUTOUT, 2, n)
    mask = _rectangle(batch, draws[0] * height - side / 2, draws[1] * width - side / 2, side, side)
    return replace(batch, images=tf.where(mask, tf.zeros([], tf.uint8), batch.images))


def _share(batch: Batch, alpha: float) -> Tensor:
    """A share f32[] drawn from Beta(alpha, alpha)."""
    from scipy.stats import beta

    quantiles = beta.ppf(
        [(position + 0.5) / QUANTILES for position in range(QUANTILES)], alpha, alpha
    )
    position = tf.cast(batch.uniform(MIXING) * QUANTILES, tf.int32)
    return tf.gather(tf.constant(quantiles, tf.float32), tf.minimum(position, QUANTILES - 1))


def _other(values: Tensor) -> Tensor:
    """For each row another one of the batch; batches are in random order."""
    return tf.roll(values, 1, axis=0)


def mixed(batch: Batch, mixup: float, cutmix: float) -> Batch:
    """Mixes images and targets by mixup, by cutmix, or by one of the two that each step draws."""
    if mixup == 0 or cutmix == 0:
        return _blended(batch, mixup) if mixup else _pasted(batch, cutmix) if cutmix else batch
    first = batch.uniform(FIRST) < 0.5
    one, other = _blended(batch, mixup), _pasted(batch, cutmix)
    return replace(
        batch,
        images=tf.where(first, one.images, other.images),
        targets=tf.where(first, one.targets, other.targets),
    )


def _blended(batch: Batch, alpha: float) -> Batch:
    share = _share(batch, alpha)
    images = tf.cast(batch.images, tf.float32)
    return replace(
        batch,
        images=_as_pixels(share * images + (1 - share) * _other(images)),
        targets=share * batch.targets + (1 - share) * _other(batch.targets),
    )


def _pasted(batch: Batch, alpha: float) -> Batch:
    """Pastes a rectangle of another image; mixes the targets by its share inside the image."""
    _, height, width, _ = batch.size
    side = tf.sqrt(1 - _share(batch, alpha))
    high, wide = side[tf.newaxis] * height, side[tf.newaxis] * width
    centre = batch.uniform(BOX, 2, 1)
    mask = _rectangle(
        batch, centre[0] * height - high / 2, centre[1] * width - wide / 2, high, wide
    )
    kept = 1 - tf.reduce_mean(tf.cast(mask, tf.float32))
    return replace(
        batch,
        images=tf.where(mask, _other(batch.images), batch.images),
        targets=kept * batch.targets + (1 - kept) * _other(batch.targets),
    )


def operated_on(batch: Batch, times: int, magnitude: float) -> Batch:
    """Applies operations of RandAugment to each image, each drawn from ten that are equally likely.

    None, rotation (30°), shears (0.3), shifts (a third), brightness and contrast (0.9),
    solarization, posterization; in brackets at magnitude 10, to either side.
    """
    for turn in range(times):
        draws = batch.uniform(RAND_AUGMENT + turn, 2, batch.size[0])
        operation = tf.cast(draws[0] * 10, tf.int32)
        strength = magnitude / 10 * tf.where(draws[1] < 0.5, -1.0, 1.0)
        images = retoned(warped(batch.images, operation, strength), operation, strength)
        batch = replace(batch, images=images)
    return batch


def warped(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Rotates (operation 1), shears (2, 3) or shifts (4, 5) images u8[n,H,W,C] about their centres.

    `operation` i32[n] is that of each image, `strength` f32[n] is from -1 to 1.
    """
    _, height, width, _ = images.shape

    def only(number: int, value: Tensor) -> Tensor:
        return tf.where(operation == number, value, tf.zeros_like(strength))

    angle = only(1, strength * 0.5236)
    a, b = tf.cos(angle), -tf.sin(angle) + only(2, 0.3 * strength)
    d, e = tf.sin(angle) + only(3, 0.3 * strength), tf.cos(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    c = x - a * x - b * y + only(4, strength * width / 3)
    f = y - d * x - e * y + only(5, strength * height / 3)
    none = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, c, d, e, f, none, none], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def retoned(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Changes brightness (operation 6) or contrast (7), solarizes (8) or posterizes (9) images.

    `images` are u8[n,H,W,C], `operation` and `strength` as in `warped`.
    """
    operation, strength = (
        value[:, tf.newaxis, tf.newaxis, tf.newaxis] for value in (operation, strength)
    )
    x = tf.cast(images, tf.float32)
    mean = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
    size = tf.abs(strength)
    step = tf.pow(2.0, tf.round(4 * size))
    x = tf.where(operation == 6, x * (1 + 0.9 * strength), x)
    x = tf.where(operation == 7, mean + (x - mean) * (1 + 0.9 * strength), x)
    x = tf.where((operation == 8) & (x >= 256 * (1 - size)), 255 - x, x)
    return _as_pixels(tf.where(operation == 9, tf.floor(x / step) * step, x))
