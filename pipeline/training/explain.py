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
    layer = _map_layer(model)
    size = images_at_once(images.shape[1:], _AT_ONCE)
    by = _by_gradient(model, layer) if layer is not None else _by_occlusion(model)
    parts = [
        by(np.asarray(images[start : start + size]), np.asarray(classes[start : start + size]))
        for start in range(0, len(images), size)
    ]
    maps = np.concatenate(parts) if parts else np.empty(images.shape[:3], np.float32)
    return Importance(maps=_scaled(maps), method=OCCLUSION if layer is None else GRAD_CAM)


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
    for layer in reversed(_outputs(model)):
        if layer.name == FEATURES:
            return layer.output
    weighted = [layer for layer in _outputs(model) if layer.weights]
    if not weighted or isinstance(weighted[-1], keras.Model):
        return None
    entering = weighted[-1].input
    return None if isinstance(entering, list | tuple | dict) else entering


def _outputs(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a graph, in order, that have one output; empty if the model is no graph."""
    if not getattr(model, "inputs", None):  # a subclass that is no graph of layers
        return []
    return [layer for layer in model.layers if _rank(layer) is not None]


def _rank(layer: keras.layers.Layer) -> int | None:
    try:
        return len(layer.output.shape)
    except (AttributeError, ValueError):  # used several times, or several outputs
        return None


def _map_layer(model: keras.Model) -> keras.layers.Layer | None:
    """The layer whose feature maps Grad-CAM uses: the deepest one that still has positions.

    None without convolutions, and if tokens follow them, since these mix all positions.
    """
    layers = _outputs(model)
    if any(_rank(layer) == 3 for layer in layers):
        return None
    first = next((position for position, one in enumerate(layers) if _convolves(one)), len(layers))
    maps = [one for one in layers[first:] if _rank(one) == 4 and min(one.output.shape[1:3]) > 1]
    large = [one for one in maps if min(one.output.shape[1:3]) >= _FEWEST]
    return next(reversed(large or maps), None)


def _convolves(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.Model):
        return any(map(_convolves, layer.layers))
    return "Conv2D" in type(layer).__name__ and layer.name != WHITENING


def _scores(model: keras.Model) -> tuple[keras.KerasTensor | None, Scores]:
    """A tensor of the graph and a function from it to class scores before the saturating softmax.

    If the last layer cannot be taken apart, scores are logarithms of probabilities; without a
    graph the tensor is None.
    """
    layers = _outputs(model)
    if not layers:
        return None, _logarithms
    last = layers[-1]
    softmax = getattr(last, "activation", None) is keras.activations.softmax
    if last.output is model.output:
        if softmax and type(last) is keras.layers.Dense:
            return last.input, lambda x: _dense(last, x)
        named = softmax and type(last) is keras.layers.Activation
        if named or type(last) is keras.layers.Softmax:
            return last.input, lambda x: tf.cast(x, tf.float32)
    return model.output, _logarithms


def _logarithms(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.cast(probabilities, tf.float32) + 1e-12)


def _dense(layer: keras.layers.Dense, x: tf.Tensor) -> tf.Tensor:
    product = tf.cast(x, tf.float32) @ tf.cast(tf.convert_to_tensor(layer.kernel), tf.float32)
    return product if layer.bias is None else product + tf.convert_to_tensor(layer.bias)


def _by_gradient(model: keras.Model, layer: keras.layers.Layer) -> Callable[[Array, Array], Array]:
    """The positive part of features times the gradient of the class's score with respect to them.

    This is Grad-CAM if the maps are averaged. If they are flattened, it takes the gradient at each
    position instead of its mean over all, in which opposite signs would cancel
    (R. L. Draelos, L. Carin, "HiResCAM", 2020).
    """
    entering, scores = _scores(model)
    both = keras.Model(model.inputs, [layer.output, entering])

    # In a graph, so that gradients of filters, which nobody asks for, are not computed.
    @tf.function(reduce_retracing=True, autograph=False)
    def found(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        maps, x = both(images, training=False)
        chosen = tf.gather(scores(x), classes, batch_dims=1)
        (gradient,) = tf.gradients(chosen, maps)
        shown = tf.nn.relu(tf.reduce_sum(gradient * maps, axis=-1, keepdims=True))
        return tf.image.resize(shown, model.input_shape[1:3], "bicubic")[..., 0]

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
