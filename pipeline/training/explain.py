"""Shows which parts of an image speak for a class, and what features a model sees in images.

Grad-CAM if the network has convolutions, else occlusion: the first uses the gradient of the
class's score, the second covers one part of the image after another. Sources: R. R. Selvaraju et
al., "Grad-CAM", 2017; M. D. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional
Networks", 2014.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from pipeline.data.pictures import border_colour
from pipeline.data.values import Array, Split, images_at_once
from pipeline.training.graph import head_input, plain_calls
from pipeline.training.pretrained import FEATURES, WHITENING

GRAD_CAM, OCCLUSION = "Grad-CAM", "occlusion"
CELLS = 8  # parts along each side of an image that are covered in turn, overlapping by half
_FEWEST = 4  # rows of a map of features, unless all are smaller
_AT_ONCE = 256  # images of 28×28; fewer of larger ones

Scores = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Maps f32[N,H,W] of the parts that speak for a class, from 0 to 1 per image, and the method.

    A map of zeros means that no part does.
    """

    maps: Array
    method: str


def explain(model: keras.Model, images: Array, classes: Array) -> Importance:
    """Maps which parts of each image u8[N,H,W,C] speak for its class in `classes` i64[N]."""
    shown = _maps(model)
    size = images_at_once(images.shape[1:], _AT_ONCE)
    by = _by_gradient(model, shown) if shown is not None else _by_occlusion(model)
    parts = [
        by(np.asarray(images[start : start + size]), np.asarray(classes[start : start + size]))
        for start in range(0, len(images), size)
    ]
    maps = np.concatenate(parts) if parts else np.empty(images.shape[:3], np.float32)
    return Importance(maps=_scaled(maps), method=OCCLUSION if shown is None else GRAD_CAM)


def features_of(model: keras.Model, split: Split, *, batch_size: int) -> Array | None:
    """The features f32[N,F] of a split's images that the head of a model takes.

    They are the output of the layer `features` or the input of the last layer with weights. None if
    the model's layers are not a graph whose parts can be evaluated.
    """
    found = _features(model)
    if found is None:
        return None
    part = keras.Model(model.inputs, found)
    spec = tf.TensorSpec([None, *model.input_shape[1:]], model.inputs[0].dtype)
    forward = tf.function(
        lambda batch: part(batch, training=False), input_signature=[spec], autograph=False
    )
    size = images_at_once(split.images.shape[1:], batch_size)
    parts = [forward(tf.constant(images)).numpy() for images in split.batches(size)]
    return np.concatenate([np.asarray(part, np.float32).reshape(len(part), -1) for part in parts])


def _features(model: keras.Model) -> keras.KerasTensor | None:
    for layer, call in plain_calls(model).items():
        if layer.name == FEATURES:
            return call.outputs[0]
    return head_input(model)


def _maps(model: keras.Model) -> keras.KerasTensor | None:
    """The feature maps [N,H,W,F] that Grad-CAM uses: the deepest that still have positions.

    None without convolutions, and if tokens follow them, since these mix all positions.
    """
    outputs = {layer: call.outputs[0] for layer, call in plain_calls(model).items()}
    if any(len(output.shape) == 3 for output in outputs.values()):
        return None
    layers = [*outputs]
    first = next((position for position, one in enumerate(layers) if _convolves(one)), len(layers))
    maps = [output for output in [*outputs.values()][first:] if _least(output) > 1]
    large = [output for output in maps if _least(output) >= _FEWEST]
    return next(reversed(large or maps), None)


def _least(output: keras.KerasTensor) -> int:
    """The least number of rows or columns of maps [N,H,W,F]; 0 if unknown, or of no maps."""
    sizes = output.shape[1:3] if len(output.shape) == 4 else (0,)
    return min(size or 0 for size in sizes)


def _convolves(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.Model):
        return any(map(_convolves, layer.layers))
    return "Conv2D" in type(layer).__name__ and layer.name != WHITENING


def _scores(model: keras.Model) -> tuple[keras.KerasTensor | None, Scores]:
    """A tensor of the graph and a function from it to class scores before the saturating softmax.

    If the last layer cannot be taken apart, scores are logarithms of probabilities; without a
    graph the tensor is None.
    """
    calls = plain_calls(model)
    if not calls:
        return None, _logarithms
    last, call = next(reversed(calls.items()))
    softmax = getattr(last, "activation", None) is keras.activations.softmax
    if call.outputs[0] is model.outputs[0]:
        if softmax and type(last) is keras.layers.Dense:
            return call.inputs[0], lambda x: _dense(last, x)
        named = softmax and type(last) is keras.layers.Activation
        if named or type(last) is keras.layers.Softmax:
            return call.inputs[0], lambda x: tf.cast(x, tf.float32)
    return model.outputs[0], _logarithms


def _logarithms(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.cast(probabilities, tf.float32) + 1e-12)


def _dense(layer: keras.layers.Dense, x: tf.Tensor) -> tf.Tensor:
    product = tf.cast(x, tf.float32) @ tf.cast(tf.convert_to_tensor(layer.kernel), tf.float32)
    return product if layer.bias is None else product + tf.convert_to_tensor(layer.bias)


def _by_gradient(model: keras.Model, shown: keras.KerasTensor) -> Callable[[Array, Array], Array]:
    """The positive part of features times the gradient of the class's score with respect to them.

    This is Grad-CAM if the maps are averaged. If they are flattened, it takes the gradient at each
    position instead of its mean over all, in which opposite signs would cancel
    (R. L. Draelos, L. Carin, "HiResCAM", 2020).
    """
    entering, scores = _scores(model)
    both = keras.Model(model.inputs, [shown, entering])

    # In a graph, so that gradients of filters, which nobody asks for, are not computed.
    @tf.function(reduce_retracing=True, autograph=False)
    def found(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        maps, x = both(images, training=False)
        chosen = tf.gather(scores(x), classes, batch_dims=1)
        (gradient,) = tf.gradients(chosen, maps)
        positive = tf.nn.relu(tf.reduce_sum(gradient * maps, axis=-1, keepdims=True))
        return tf.image.resize(positive, model.input_shape[1:3], "bicubic")[..., 0]

    return lambda images, classes: found(tf.constant(images), classes).numpy().clip(0)


def _by_occlusion(model: keras.Model) -> Callable[[Array, Array], Array]:
    """How far a class's lead over the next one falls when the border's colour covers a part."""
    entering, scores = _scores(model)
    part = model if entering is None else keras.Model(model.inputs, entering)

    def lead(images: Array, classes: Array) -> Array:
        found = scores(part(tf.constant(images), training=False)).numpy()
        rows = np.arange(len(classes))
        own = found[rows, classes]
        found[rows, classes] = -np.inf
        return np.asarray(own - found.max(axis=1))

    def by(images: Array, classes: Array) -> Array:
        height, width = images.shape[1:3]
        fall, covered = (
            np.zeros(images.shape[:3], np.float32),
            np.zeros((height, width), np.float32),
        )
        colour, before = border_colour(images), lead(images, classes)
        for rows in _parts(height):
            for columns in _parts(width):
                changed = images.copy()
                changed[:, rows, columns] = colour
                difference = before - lead(changed, classes)
                fall[:, rows, columns] += difference[:, None, None]
                covered[rows, columns] += 1
        return (fall / covered).clip(0)

    return by


def _parts(side: int) -> list[slice]:
    """Overlapping parts of a side, of two cells each but at the ends."""
    edges = np.linspace(0, side, min(side, CELLS) + 1).round().astype(int).tolist()
    starts, ends = [0, *edges[:-1]], [*edges[1:], side]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def _scaled(maps: Array) -> Array:
    """Maps f32[N,H,W] from 0 to 1; of zeros if there is nothing, or no number, in them."""
    maps = np.nan_to_num(maps.astype(np.float32), posinf=0)
    most = maps.max(axis=(1, 2), keepdims=True, initial=0)
    return np.divide(maps, most, out=np.zeros_like(maps), where=most > 1e-12)
